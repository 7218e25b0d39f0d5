package pop3

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// box is a mailbox in memory.
type box struct {
	messages []string
	broken   bool
	removed  []int
}

func (b *box) Len() int         { return len(b.messages) }
func (b *box) Size(i int) int64 { return int64(len(b.messages[i])) }
func (b *box) UID(i int) string { return fmt.Sprintf("uid%d", i+1) }

func (b *box) Read(i int) (io.ReadCloser, error) {
	if b.broken {
		return nil, io.ErrUnexpectedEOF
	}
	return io.NopCloser(strings.NewReader(b.messages[i])), nil
}

func (b *box) Update(remove func(i int) bool) error {
	for i := range b.messages {
		if remove(i) {
			b.removed = append(b.removed, i)
		}
	}
	if b.broken {
		return io.ErrClosedPipe
	}
	return nil
}

// talk plays a session and returns what the client sees, CRLF as a bar.
func talk(t *Transaction, lines ...string) string {
	var out bytes.Buffer
	w := bufio.NewWriter(&out)
	for _, line := range lines {
		end, err := t.Step(w, line)
		if err != nil {
			w.WriteString("error: " + err.Error())
		}
		if end {
			w.WriteString("END")
			break
		}
	}
	w.Flush()
	return strings.ReplaceAll(out.String(), "\r\n", "|")
}

func TestTransaction(t *testing.T) {
	three := []string{"S: 1\n\nb\n", "S: 2\n\n1\n2\n3\n", "S: 3\n\n.\n..x\n"}
	tests := []struct {
		name  string
		box   []string
		lines []string
		want  string
	}{
		{"STAT counts", three, []string{"STAT\r\n"}, "+OK 3 32|"},
		{"STAT leaves out what is deleted", three, []string{"DELE 2\r\n", "STAT\r\n", "LAST\r\n"}, "+OK |+OK 2 20|+OK 2|"},
		{"RSET brings it back", three, []string{"DELE 2\n", "RSET\n", "STAT\n", "LAST\n"}, "+OK |+OK |+OK 3 32|+OK 0|"},
		{"LIST leaves numbers as they are", three, []string{"DELE 1", "LIST"}, "+OK |+OK |2 12|3 12|.|"},
		{"LIST of one", three, []string{"LIST 3"}, "+OK 3 12|"},
		{"UIDL", three, []string{"DELE 2", "UIDL", "UIDL 3", "UIDL 2"}, "+OK |+OK |1 uid1|3 uid3|.|+OK 3 uid3|-ERR already deleted|"},
		{"RETR has no line of its own", three, []string{"RETR 1"}, "+OK |S: 1||b|.|"},
		{"dots are doubled", three, []string{"RETR 3"}, "+OK |S: 3||..|...x|.|"},
		{"TOP counts lines of the body", three, []string{"TOP 2 2"}, "+OK |S: 2||1|2|.|"},
		{"TOP of no lines", three, []string{"TOP 2 0"}, "+OK |S: 2|||.|"},
		{"TOP of more than there are", three, []string{"TOP 2 99999999999999999999999"}, "+OK |S: 2||1|2|3|.|"},
		{"an unended line is ended", []string{"S: x\n\nno"}, []string{"RETR 1"}, "+OK |S: x||no|.|"},
		{"so it is in TOP", []string{"S: x\n\nno"}, []string{"TOP 1 1"}, "+OK |S: x||no|.|"},
		{"an empty message", []string{""}, []string{"RETR 1"}, "+OK ||.|"},
		{"a header alone", []string{"S: x\n"}, []string{"RETR 1", "TOP 1 0"}, "+OK |S: x|.|+OK |S: x|.|"},
		{"CRLF is not doubled", []string{"S: x\r\n\r\na\r\n"}, []string{"RETR 1"}, "+OK |S: x||a|.|"},
		{"a bare CR ends a line, and dots after it are doubled", []string{"S: x\n\na\r.\r+OK injected\n"}, []string{"RETR 1"}, "+OK |S: x||a|..|+OK injected|.|"},
		{"no number", three, []string{"RETR", "RETR x", "RETR 1x", "RETR -1", "RETR +1", "RETR 0x1", "RETR 1.0", "DELE 1\x00", "RETR 2 1"},
			strings.Repeat("-ERR syntax error|", 9)},
		{"numbers out of range", three, []string{"RETR 0", "DELE 4", "LIST 4294967297", "UIDL 18446744073709551617", "DELE 00"},
			"-ERR messages are counted from 1|-ERR not that many messages|-ERR not that many messages|-ERR not that many messages|-ERR messages are counted from 1|"},
		{"TOP wants two numbers", three, []string{"TOP 1", "TOP", "TOP 1 -1", "TOP 0 1", "TOP 1 x"},
			"-ERR syntax error|-ERR syntax error|-ERR syntax error|-ERR messages are counted from 1|-ERR syntax error|"},
		{"what is deleted is gone", three, []string{"DELE 1", "DELE 1", "RETR 1", "TOP 1 0", "LIST 1"},
			"+OK |-ERR already deleted|-ERR already deleted|-ERR already deleted|-ERR already deleted|"},
		{"CAPA", three, []string{"capa"}, "+OK |TOP|UIDL|EXPIRE NEVER|.|"},
		{"anything else", three, []string{"", "USER x", "XTND x", "noop"}, "-ERR unimplemented|-ERR unimplemented|-ERR unimplemented|+OK |"},
		{"QUIT", three, []string{"QUIT", "STAT"}, "+OK |END"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := talk(NewTransaction(&box{messages: tt.box}), tt.lines...); got != tt.want {
				t.Errorf("\n got %q\nwant %q", got, tt.want)
			}
		})
	}
}

func TestTrouble(t *testing.T) {
	b := &box{messages: []string{"a\n", "b\n"}, broken: true}
	if got := talk(NewTransaction(b), "RETR 1", "DELE 2", "QUIT"); got != "-ERR unable to open that message|+OK |-ERR unable to unlink all deleted messages|END" {
		t.Errorf("%q", got)
	}
	if fmt.Sprint(b.removed) != "[1]" {
		t.Errorf("removed %v", b.removed)
	}
	if got := talk(NewTransaction(&box{}), strings.Split(strings.Repeat("X\n", 500), "\n")...); strings.Count(got, "|") != maxErrors || !strings.HasSuffix(got, "END") {
		t.Errorf("%d refusals", strings.Count(got, "|"))
	}
}

// half fails in the middle of a message.
type half struct{ box }

func (h *half) Read(int) (io.ReadCloser, error) {
	return io.NopCloser(io.MultiReader(strings.NewReader("S: x\n"), errReader{})), nil
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestAMessageCutShortHasNoEnd(t *testing.T) {
	var out bytes.Buffer
	w := bufio.NewWriter(&out)
	_, err := NewTransaction(&half{box{messages: []string{"x"}}}).Step(w, "RETR 1\r\n")
	w.Flush()
	if !errors.Is(err, io.ErrUnexpectedEOF) || strings.Contains(out.String(), "\r\n.\r\n") {
		t.Errorf("%q %v", out.String(), err)
	}
}

func TestUID(t *testing.T) {
	for name, want := range map[string]string{
		"1000000001.10.host":          "1000000001.10.host",
		"1.2.host:2,S":                "1.2.host",
		strings.Repeat("x", 70):       strings.Repeat("x", 70),
		strings.Repeat("x", 71):       "",
		"a b":                         "",
		"a\r\n2 b":                    "",
		"a\xe9":                       "",
		":2,S":                        "",
		strings.Repeat("y", 71) + ":": "",
	} {
		got := UID(name)
		if want == "" {
			if len(got) != 32 || strings.Trim(got, "0123456789abcdef") != "" {
				t.Errorf("UID(%q) = %q", name, got)
			}
		} else if got != want {
			t.Errorf("UID(%q) = %q", name, got)
		}
	}
	if UID("a b:2,") != UID("a b:2,S") || UID("a b") == UID("a c") {
		t.Error("a hash depends on the flags, or not on the name")
	}
}

func TestLogin(t *testing.T) {
	tests := []struct {
		name  string
		lines []string
		want  string
		creds *Credentials
	}{
		{"a password may have spaces", []string{"user joe", "PASS se cret \r\n"}, "+OK |", &Credentials{"joe", "se cret ", false}},
		{"the last name counts", []string{"USER joe", "USER ann", "PASS x"}, "+OK |+OK |", &Credentials{"ann", "x", false}},
		{"APOP", []string{"APOP joe 0123"}, "", &Credentials{"joe", "0123", true}},
		{"names come first", []string{"PASS x", "USER", "USER joe", "PASS"}, "-ERR USER first|-ERR syntax error|+OK |-ERR syntax error|", nil},
		{"APOP wants two words", []string{"APOP", "APOP joe", "APOP joe "}, strings.Repeat("-ERR syntax error|", 3), nil},
		{"a NUL cannot be passed on", []string{"USER a\x00b", "USER joe", "PASS a\x00b", "APOP a b\x00"}, "-ERR syntax error|+OK |-ERR syntax error|-ERR syntax error|", nil},
		{"nothing else comes before", []string{"STAT", "RETR 1", "AUTH", "STLS"}, strings.Repeat("-ERR authorization first|", 4), nil},
		{"CAPA", []string{"CAPA"}, "+OK |TOP|UIDL|EXPIRE NEVER|USER|", nil},
		{"QUIT", []string{"NOOP", "quit"}, "+OK |+OK |END", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := &Login{}
			var got strings.Builder
			var creds *Credentials
			for _, line := range tt.lines {
				a := l.Step(line)
				for _, text := range append([]string{a.Text}, a.List...) {
					if text != "" {
						got.WriteString(text + "|")
					}
				}
				if a.End {
					got.WriteString("END")
				}
				creds = a.Try
			}
			if got.String() != tt.want || (creds == nil) != (tt.creds == nil) || creds != nil && *creds != *tt.creds {
				t.Errorf("%q %+v", got.String(), creds)
			}
		})
	}
}

// pair is a connection in memory; the client's end reads what it wants.
func pair(t *testing.T) (client, server net.Conn) {
	client, server = net.Pipe()
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

func TestAuthorizeReadsNothingBeyondTheLogin(t *testing.T) {
	client, server := pair(t)
	go func() {
		go io.Copy(io.Discard, client)
		io.WriteString(client, "USER joe\r\nPASS x\r\nSTAT\r\n")
	}()
	creds, conn, err := Authorize(t.Context(), server, &Login{Banner: "<1.2@h>"}, Rules{})
	if err != nil || creds == nil || *creds != (Credentials{"joe", "x", false}) {
		t.Fatalf("%+v %v", creds, err)
	}
	rest := make([]byte, 6)
	if _, err := io.ReadFull(conn, rest); err != nil || string(rest) != "STAT\r\n" {
		t.Errorf("%q %v", rest, err)
	}
}

func TestAuthorizeStartsTLSOnce(t *testing.T) {
	client, server := pair(t)
	inner, other := pair(t)
	var said bytes.Buffer
	done := make(chan struct{})
	go func() {
		defer close(done)
		in := bufio.NewReader(client)
		in.ReadString('\n')
		io.WriteString(client, "USER mallory\r\n")
		in.ReadString('\n')
		io.WriteString(client, "STLS\r\n")
		line, _ := in.ReadString('\n')
		said.WriteString(line)
		in = bufio.NewReader(other)
		for _, send := range []string{"PASS x\r\n", "STLS\r\n", "QUIT\r\n"} {
			io.WriteString(other, send)
			line, _ := in.ReadString('\n')
			said.WriteString(line)
		}
	}()
	rules := Rules{StartTLS: func(context.Context, Conn) (Conn, error) { return inner, nil }}
	creds, conn, err := Authorize(t.Context(), server, &Login{STLS: true}, rules)
	<-done
	want := "+OK begin TLS\r\n-ERR USER first\r\n-ERR authorization first\r\n+OK \r\n"
	if creds != nil || err != nil || said.String() != want {
		t.Errorf("%+v %v, said %q", creds, err, said.String())
	}
	if conn != inner {
		t.Error("the connection returned is not the protected one")
	}
}

func TestASilentClientIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		go io.Copy(io.Discard, client)
		began := time.Now()
		_, _, err := Authorize(t.Context(), server, &Login{}, Rules{Patience: time.Minute})
		if err == nil || time.Since(began) != time.Minute {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		began = time.Now()
		if err := Serve(server, NewTransaction(&box{})); err == nil || time.Since(began) != Timeout {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		client.Close()
		server.Close()
	})
}

func TestALoginHasAnEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		go io.Copy(io.Discard, client)
		go func() {
			for {
				if _, err := io.WriteString(client, "NOOP\r\n"); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		}()
		began := time.Now()
		_, _, err := Authorize(t.Context(), server, &Login{}, Rules{Patience: time.Minute, Total: 10 * time.Minute})
		if err == nil || time.Since(began) != 10*time.Minute {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		client.Close()
		server.Close()
	})
}

func TestLongLines(t *testing.T) {
	for name, serve := range map[string]func(net.Conn) error{
		"login":       func(c net.Conn) error { _, _, err := Authorize(t.Context(), c, &Login{}, Rules{}); return err },
		"transaction": func(c net.Conn) error { return Serve(c, NewTransaction(&box{})) },
	} {
		client, server := pair(t)
		seen := make(chan string)
		go func() {
			b, _ := io.ReadAll(client)
			seen <- string(b)
		}()
		go io.Copy(client, io.LimitReader(endless{}, 1<<26))
		err := serve(server)
		server.Close()
		if got := <-seen; !errors.Is(err, ErrLine) || !strings.HasSuffix(got, "-ERR line too long\r\n") {
			t.Errorf("%s: %v, said %q", name, err, got)
		}
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'a'
	}
	return len(p), nil
}

func TestServe(t *testing.T) {
	client, server := pair(t)
	b := &box{messages: []string{"S: 1\n\nx\n"}}
	done := make(chan error)
	go func() { done <- Serve(server, NewTransaction(b)) }()
	go io.WriteString(client, "STAT\r\nDELE 1\r\nQUIT\r\n")
	in := bufio.NewReader(client)
	for _, want := range []string{"+OK \r\n", "+OK 1 8\r\n", "+OK \r\n", "+OK \r\n"} {
		if line, err := in.ReadString('\n'); line != want {
			t.Errorf("%q %v", line, err)
		}
	}
	if err := <-done; err != nil || len(b.removed) != 1 {
		t.Errorf("%v %v", err, b.removed)
	}
}

// FuzzTransaction: whatever the client says and the messages hold, each line gets one whole reply, and what a
// client reads back of a message is its lines.
func FuzzTransaction(f *testing.F) {
	f.Add("RETR 1", "S: x\r\n\r\na\r.\n..\n")
	f.Add("TOP 1 2", "S: x\n\n.\n+OK\n-ERR\n")
	f.Add("LIST", "")
	f.Fuzz(func(t *testing.T, line, message string) {
		var out bytes.Buffer
		w := bufio.NewWriter(&out)
		if _, err := NewTransaction(&box{messages: []string{message}}).Step(w, line); err != nil {
			t.Fatal(err)
		}
		w.Flush()
		reply := out.String()
		status, rest, ok := strings.Cut(reply, "\r\n")
		if !ok || !strings.HasPrefix(status, "+OK") && !strings.HasPrefix(status, "-ERR") {
			t.Fatalf("no status: %q", reply)
		}
		if strings.ContainsAny(strings.ReplaceAll(reply, "\r\n", ""), "\r\n") {
			t.Errorf("a line end that is not CRLF: %q", reply)
		}
		if rest == "" {
			return
		}
		if body, ok := strings.CutSuffix("\r\n"+rest, "\r\n.\r\n"); !ok || strings.Contains(body+"\r\n", "\r\n.\r\n") {
			t.Errorf("not one end: %q", rest)
		}
		if verb, arg := split(line); verb == "RETR" && arg == "1" {
			if got, want := undo(rest), normal(message); got != want {
				t.Errorf("%q came as %q", message, got)
			}
		}
	})
}

// undo reads a multi-line response as a client does.
func undo(s string) string {
	var lines []string
	for line := range strings.SplitSeq(strings.TrimSuffix(s, ".\r\n"), "\r\n") {
		lines = append(lines, strings.TrimPrefix(line, "."))
	}
	return strings.Join(lines, "\n")
}

// normal has each line of a message ended by LF.
func normal(s string) string {
	s = strings.ReplaceAll(strings.ReplaceAll(s, "\r\n", "\n"), "\r", "\n")
	if !strings.HasSuffix(s, "\n") {
		s += "\n"
	}
	return s
}

// FuzzLogin: credentials never hold what would break the records of a password checker.
func FuzzLogin(f *testing.F) {
	f.Add("USER joe", "PASS x")
	f.Add("USER joe", "APOP joe x")
	f.Fuzz(func(t *testing.T, first, second string) {
		l := &Login{}
		for _, line := range []string{first, second} {
			a := l.Step(line)
			if c := a.Try; c != nil && (strings.ContainsRune(c.User+c.Secret, 0) || c.User == "" || c.Secret == "") {
				t.Errorf("%+v", c)
			}
			if (a.Try == nil) == (a.Text == "") {
				t.Errorf("%+v", a)
			}
		}
	})
}
