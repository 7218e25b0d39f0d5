package serve

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"qmail/internal/system/env"
)

// tcpPair is a connection over the loopback: the client's end, and the server's as a file.
func tcpPair(t *testing.T) (client net.Conn, server *os.File) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if client, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if server, err = conn.(*net.TCPConn).File(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

func TestASocketAsStandardInputAndOutput(t *testing.T) {
	client, file := tcpPair(t)
	c, err := NewStdio(&env.Env{Stdin: file, Stdout: file, Stderr: file})
	if err != nil {
		t.Fatal(err)
	}
	if c.Remote.String() != client.LocalAddr().String() || c.Local.String() != client.RemoteAddr().String() {
		t.Errorf("from %v to %v, want %v and %v", c.Remote, c.Local, client.LocalAddr(), client.RemoteAddr())
	}
	if c.Stderr != io.Discard {
		t.Error("the log would go to the client")
	}
	c.SetReadDeadline(time.Now().Add(time.Millisecond))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read = %v", err)
	}
	io.WriteString(c, "hello")
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(client)
	if string(got) != "hello" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func TestPipesAsStandardInputAndOutput(t *testing.T) {
	r, theirs, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ours, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer theirs.Close()
	defer ours.Close()
	defer w.Close()
	c, err := NewStdio(&env.Env{Stdin: r, Stdout: w, Stderr: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	if c.Remote.IsValid() {
		t.Errorf("a pipe comes from %v", c.Remote)
	}
	c.SetReadDeadline(time.Now().Add(time.Millisecond))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read = %v", err)
	}
	c.SetReadDeadline(time.Time{})
	io.WriteString(theirs, "x")
	b := make([]byte, 10)
	if n, err := c.Read(b); n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	io.WriteString(c, "hello")
	if n, err := ours.Read(b); string(b[:n]) != "hello" || err != nil {
		t.Errorf("%q, %v", b[:n], err)
	}
	if err := c.CloseWrite(); err == nil {
		t.Error("half of a pipe was closed")
	}
	ours.Close()
	if _, err := io.WriteString(c, "hello"); err == nil { // and no signal
		t.Error("written to nobody")
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func TestAFileAsStandardInput(t *testing.T) {
	path := filepath.Join(t.TempDir(), "session")
	if err := os.WriteFile(path, []byte("QUIT\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(path + ".out")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	c, err := NewStdio(&env.Env{Stdin: in, Stdout: out, Stderr: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := errors.Join(c.SetReadDeadline(time.Now()), c.SetWriteDeadline(time.Now())); err != nil {
		t.Error(err)
	}
	if got, err := io.ReadAll(c); string(got) != "QUIT\r\n" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	io.WriteString(c, "221\r\n")
	if got, err := os.ReadFile(path + ".out"); string(got) != "221\r\n" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

func TestNothingToWriteTo(t *testing.T) {
	_, file := tcpPair(t)
	if _, err := NewStdio(&env.Env{Stdin: file, Stdout: io.Discard, Stderr: io.Discard}); err == nil {
		t.Error("accepted")
	}
}
