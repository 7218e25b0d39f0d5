package serialqmtp

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

	"qmail/internal/format/netstring"
	"qmail/internal/system/env"
)

// TestMessagesAndAnswers lets a server take one message, refuse one, and go away before it has answered a third.
func TestMessagesAndAnswers(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	seen := make(chan string, 3)
	go func() {
		defer close(seen)
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		in := bufio.NewReader(conn)
		for _, answer := range []string{"Kok", "Dno (#5.1.1)", ""} {
			message, sender, recipients := read(in), read(in), read(in)
			seen <- fmt.Sprintf("%q %s %s", message, sender, recipients)
			if answer != "" {
				conn.Write(netstring.Append(nil, answer))
			}
		}
	}()
	dir := t.TempDir()
	list := ""
	for i := range 4 {
		path := filepath.Join(dir, fmt.Sprint("m", i))
		if err := os.WriteFile(path, fmt.Appendf(nil, "Return-Path: <s@x>\nDelivered-To: p-%d@y\nS: %d\n\nx\n", i, i), 0o600); err != nil {
			t.Fatal(err)
		}
		list += path + "\x00"
	}
	if err := os.WriteFile(filepath.Join(dir, "names"), []byte(list), 0o600); err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(filepath.Join(dir, "names"))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	var out bytes.Buffer
	if code := Main(t.Context(), &env.Env{Stdin: in, Stdout: &out, Stderr: io.Discard}, []string{"-c", ln.Addr().String(), "p-"}); code != 0 {
		t.Fatal(code)
	}
	results := ""
	for line := range strings.Lines(out.String()) {
		_, result, _ := strings.Cut(line, "\x00")
		results += result[:1]
	}
	if results != "KDZZ" {
		t.Errorf("%q", out.String())
	}
	for i := range 3 {
		if got, want := <-seen, fmt.Sprintf(`"\nS: %d\n\nx\n" s@x 3:%d@y,`, i, i); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

func read(in *bufio.Reader) string {
	var n int
	if _, err := fmt.Fscanf(in, "%d:", &n); err != nil {
		return err.Error()
	}
	b := make([]byte, n+1)
	if _, err := io.ReadFull(in, b); err != nil {
		return err.Error()
	}
	return string(b[:n])
}

func TestMisuse(t *testing.T) {
	if code := Main(t.Context(), &env.Env{Stderr: io.Discard}, nil); code != 100 {
		t.Errorf("%d", code)
	}
}
