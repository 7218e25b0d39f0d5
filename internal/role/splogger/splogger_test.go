package splogger

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// syslogd receives messages on a datagram socket.
func syslogd(t *testing.T) (path string, receive func() string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "log")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return path, func() string {
		b := make([]byte, 4096)
		conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, err := conn.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
}

func now() time.Time { return time.Date(2026, 11, 23, 3, 58, 18, 7000, time.UTC) }

func TestLines(t *testing.T) {
	path, receive := syslogd(t)
	s := &splogger{path: path, tag: "qmail", facility: 2, now: now}
	input := "status: local 0/10\nalert: oh no!\nwarning: hm\n" + strings.Repeat("x", 1000) + "\ntab\tand \xff\nno end"
	if err := s.run(strings.NewReader(input)); err != nil {
		t.Fatal(err)
	}
	s.close()
	stamp := fmt.Sprintf("%d.000007", now().Unix())
	for _, want := range []string{
		"<22>Nov 23 03:58:18 qmail: " + stamp + " status: local 0/10",
		"<17>Nov 23 03:58:18 qmail: " + stamp + " alert: oh no!",
		"<20>Nov 23 03:58:18 qmail: " + stamp + " warning: hm",
		"<22>Nov 23 03:58:18 qmail: " + stamp + " " + strings.Repeat("x", 799),
		"<22>Nov 23 03:58:18 qmail: " + stamp + "+" + strings.Repeat("x", 201),
		"<22>Nov 23 03:58:18 qmail: " + stamp + " tab?and ?",
		"<22>Nov 23 03:58:18 qmail: " + stamp + " no end",
	} {
		if got := receive(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestASyslogdThatComesBack(t *testing.T) {
	path, receive := syslogd(t)
	s := &splogger{path: path + ".not", tag: "t", now: now}
	s.send(info, "lost")
	s.path = path
	s.send(info, "found")
	if got := receive(); !strings.HasSuffix(got, ": found") {
		t.Errorf("%q", got)
	}
	s.conn.Close() // as if it had been started anew
	s.send(info, "again")
	if got := receive(); !strings.HasSuffix(got, ": again") {
		t.Errorf("%q", got)
	}
	s.close()
}
