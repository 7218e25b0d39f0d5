package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"qmail/internal/format/netstring"
	"qmail/internal/store/keys"
)

// TestTLSDoors lets mail in by QMTP and QMQP through TLS, and by STARTTLS with the certificate that qmail init has made;
// then changes that certificate while a session is open.
func TestTLSDoors(t *testing.T) {
	h := newHouse(t)
	qmtps, qmqps := freeAddress(t), freeAddress(t)
	h.write("control/listen", "smtp "+h.address+"\nqmtps "+qmtps+"\nqmqps "+qmqps+"\n")
	h.write("control/qmqpclients", "127.0.0.0/8\n")
	h.start()
	t.Cleanup(func() {
		if t.Failed() {
			b, _ := os.ReadFile(h.log)
			t.Logf("%s", b)
		}
	})
	alice, sender := netstring.Append(nil, "alice@test.example"), "s@far.example"
	packages := map[string][]byte{
		qmtps: netstring.Append(netstring.Append(netstring.Append(nil, "\nSubject: by qmtps\n\nx\n"), sender), alice),
		qmqps: netstring.Append(nil, string(netstring.Append(netstring.Append(nil, "Subject: by qmqps\n\nx\n"), sender))+string(alice)),
	}
	for address, text := range packages {
		conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(soon))
		b := make([]byte, 200)
		_, werr := conn.Write(text)
		n, rerr := io.ReadAtLeast(conn, b, 4)
		if werr != nil || rerr != nil || !strings.Contains(string(b[:n]), ":K") {
			t.Errorf("%q %v %v", b[:n], werr, rerr)
		}
		conn.Close()
	}
	for name, with := range map[string]string{"by qmtps": " with QMTP (TLS 1.3) tls TLS_", "by qmqps": " with QMQP (TLS 1.3) tls TLS_"} {
		if m := h.receives(t, "alice", name); !strings.Contains(m, with) {
			t.Errorf("there is no %q in\n%s", with, m)
		}
	}

	open, before := startTLS(t, h.address)
	text, err := keys.SelfSigned("test.example", time.Now(), time.Hour)
	path := filepath.Join(h.home, "keys/test.example.pem")
	if err := errors.Join(err, os.WriteFile(path+".new", text, 0o600), h.give(path+".new"), os.Rename(path+".new", path)); err != nil {
		t.Fatal(err)
	}
	if err := h.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(soon)
	for after := before; after == before; {
		var c net.Conn
		c, after = startTLS(t, h.address)
		c.Close()
		if time.Now().After(deadline) {
			t.Fatal("the old certificate is still shown")
		}
	}
	fmt.Fprint(open, "NOOP\r\n")
	if b, err := readSome(open); err != nil || !strings.HasPrefix(b, "250") {
		t.Errorf("the session that was open gets %q %v", b, err)
	}
	h.stop()
}

// startTLS returns a connection inside TLS, and the serial number of the server's certificate.
func startTLS(t *testing.T, address string) (net.Conn, string) {
	t.Helper()
	raw, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	raw.SetDeadline(time.Now().Add(2 * soon))
	for i, say := range []string{"", "EHLO x\r\n", "STARTTLS\r\n"} {
		fmt.Fprint(raw, say)
		got, err := readSome(raw)
		if want := []string{"220", "250", "220"}[i]; err != nil || !strings.HasPrefix(got, want) {
			t.Fatalf("%q after %q, %v", got, say, err)
		}
	}
	c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true})
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	return c, c.ConnectionState().PeerCertificates[0].SerialNumber.String()
}

// readSome reads a reply of a server that sends each in one piece.
func readSome(conn net.Conn) (string, error) {
	b := make([]byte, 4096)
	n, err := conn.Read(b)
	return string(b[:n]), err
}
