package serialsmtp

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"qmail/internal/system/env"
)

// server is an SMTP server for one connection; it refuses recipients that begin with "no".
func server(t *testing.T) (address string, seen chan string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	seen = make(chan string, 1)
	go func() {
		defer ln.Close()
		conn, err := ln.Accept()
		if err != nil {
			seen <- err.Error()
			return
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		var all strings.Builder
		in := bufio.NewReader(conn)
		fmt.Fprint(conn, "220 ready\r\n")
		data := false
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				break
			}
			if !strings.HasPrefix(line, "EHLO") && !strings.HasPrefix(line, "RSET") {
				all.WriteString(strings.ReplaceAll(line, "\r\n", "|"))
			}
			switch verb := strings.ToUpper(line); {
			case data && line == ".\r\n":
				data = false
				fmt.Fprint(conn, "250 taken\r\n")
			case data:
			case strings.HasPrefix(verb, "EHLO"):
				fmt.Fprint(conn, "250-here\r\n250 PIPELINING\r\n")
			case strings.HasPrefix(verb, "RCPT TO:<NO"):
				fmt.Fprint(conn, "550 no such user\r\n")
			case strings.HasPrefix(verb, "DATA"):
				if strings.HasSuffix(all.String(), "RCPT TO:<no@y>|DATA|") {
					fmt.Fprint(conn, "503 no recipients\r\n")
					break
				}
				data = true
				fmt.Fprint(conn, "354 go\r\n")
			default:
				fmt.Fprint(conn, "250 ok\r\n")
			}
		}
		seen <- all.String()
	}()
	return ln.Addr().String(), seen
}

func names(t *testing.T, messages ...string) *os.File {
	t.Helper()
	dir := t.TempDir()
	list := ""
	for i, m := range messages {
		path := filepath.Join(dir, fmt.Sprint("m", i))
		if err := os.WriteFile(path, []byte(m), 0o600); err != nil {
			t.Fatal(err)
		}
		list += path + "\x00"
	}
	path := filepath.Join(dir, "names")
	if err := os.WriteFile(path, []byte(list), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestMessagesShareAConnection(t *testing.T) {
	address, seen := server(t)
	in := names(t, "Return-Path: <s@x>\nDelivered-To: p-a@y\nS: 1\n\n.dot\n", "Return-Path: <s@x>\nDelivered-To: p-no@y\nS: 2\n\nx\n",
		"Return-Path: <>\nDelivered-To: p-c@y\nS: 3\n\nx\n")
	var out, errs bytes.Buffer
	code := Main(t.Context(), &env.Env{Stdin: in, Stdout: &out, Stderr: &errs}, []string{"-c", address, "p-", "me.example"})
	if code != 0 {
		t.Fatalf("%d %s", code, errs.String())
	}
	results := ""
	for line := range strings.Lines(out.String()) {
		_, result, _ := strings.Cut(line, "\x00")
		results += result[:1]
	}
	if results != "KDK" {
		t.Errorf("%q", out.String())
	}
	got := <-seen
	for _, want := range []string{"MAIL FROM:<s@x>|RCPT TO:<a@y>|DATA|S: 1||..dot|.|", "MAIL FROM:<>|RCPT TO:<c@y>|DATA|S: 3||x|.|", "QUIT|"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in %q", want, got)
		}
	}
}

func TestNobodyThere(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	if code := Main(t.Context(), &env.Env{Stderr: io.Discard}, []string{"-c", ln.Addr().String(), "p-", "me"}); code != 111 {
		t.Errorf("%d", code)
	}
	if code := Main(t.Context(), &env.Env{Stderr: io.Discard}, []string{"p-"}); code != 100 {
		t.Errorf("%d", code)
	}
}

func TestAServerThatRefusesUs(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		if conn, err := ln.Accept(); err == nil {
			fmt.Fprint(conn, "554 go away\r\n")
			io.Copy(io.Discard, conn)
			conn.Close()
		}
	}()
	var out, errs bytes.Buffer
	in := names(t, "Return-Path: <s@x>\nDelivered-To: p-a@y\nS: 1\n\n.dot\n")
	if code := Main(t.Context(), &env.Env{Stdin: in, Stdout: &out, Stderr: &errs}, []string{"-c", ln.Addr().String(), "p-", "me"}); code != 111 || out.Len() > 0 {
		t.Errorf("%d %q %q", code, out.String(), errs.String())
	}
}
