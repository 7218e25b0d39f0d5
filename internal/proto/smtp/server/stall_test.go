package server

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"qmail/internal/format/reply"
)

// reader collects what a session says, so that it never waits for us to read.
type reader struct {
	conn net.Conn
	got  chan string
}

func listen(conn net.Conn) *reader {
	r := &reader{conn, make(chan string, 1)}
	go func() {
		all, _ := io.ReadAll(conn)
		r.got <- string(all)
	}()
	return r
}

// TestStalls lets a client fall silent, or drip, at each stage: in virtual time, the session ends when its
// limits say so, with 421 and nothing queued.
func TestStalls(t *testing.T) {
	upTo := func(parts ...string) string { return strings.Join(parts, "") }
	body := "Subject: x\r\n\r\n"
	tests := []struct {
		name, send, drip string
		every, within    time.Duration
	}{
		{"after the banner", "", "", 0, 10 * time.Second},
		{"within a command", "EHL", "", 0, 10 * time.Second},
		{"after HELO", ehlo, "", 0, 10 * time.Second},
		{"after MAIL", upTo(ehlo, from), "", 0, 10 * time.Second},
		{"after RCPT", upTo(ehlo, from, to), "", 0, 10 * time.Second},
		{"after 354", upTo(ehlo, from, to, "DATA\r\n"), "", 0, 20 * time.Second},
		{"within the message", upTo(ehlo, from, to, "DATA\r\n", body), "", 0, 20 * time.Second},
		{"before the last LF", upTo(ehlo, from, to, "DATA\r\n", body, "\r\n.\r"), "", 0, 20 * time.Second},
		{"a command that drips", "", "N", 2 * time.Second, 10 * time.Second},
		{"a message that drips is too slow", upTo(ehlo, from, to, "DATA\r\n"), "x\r\n", time.Second, 30 * time.Second},
		{"a message at the least rate meets the end of its transaction", upTo(ehlo, from, to, "DATA\r\n"), strings.Repeat("x", 298) + "\r\n", time.Second, time.Minute},
		{"recipients that never end", upTo(ehlo, from), to, 9 * time.Second, time.Minute},
		{"commands that lead nowhere", ehlo, "NOOP\r\n", 9 * time.Second, time.Minute},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := &memoryQueue{}
				client, done := dial(t.Context(), newServer(q))
				r := listen(client)
				began := time.Now()
				if _, err := io.WriteString(client, tt.send); err != nil {
					t.Fatal(err)
				}
				for tt.drip != "" {
					time.Sleep(tt.every)
					if _, err := io.WriteString(client, tt.drip); err != nil {
						break
					}
				}
				if err := <-done; err != errTimeout {
					t.Errorf("ended with %v", err)
				}
				if took := time.Since(began); took < tt.within-tt.every || took > tt.within+tt.every {
					t.Errorf("after %v, want %v", took, tt.within)
				}
				if got := <-r.got; !strings.HasSuffix(got, timedOut) {
					t.Errorf("last words %q", got[max(0, len(got)-80):])
				}
				if len(q.messages) != 0 || strings.Contains(tt.send, "DATA") != (q.aborted == 1) {
					t.Errorf("%d queued, %d aborted", len(q.messages), q.aborted)
				}
			})
		})
	}
}

func TestAClientThatNeverReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, done := dial(t.Context(), newServer(&memoryQueue{}))
		go io.Copy(client, strings.NewReader(strings.Repeat("NOOP\r\n", 200000)))
		began := time.Now()
		if err := <-done; err == nil {
			t.Error("the session went well")
		}
		if took := time.Since(began); took > 11*time.Second {
			t.Errorf("it took %v", took)
		}
		client.Close()
	})
}

func TestAClientThatVanishes(t *testing.T) {
	whole := ehlo + from + to + "DATA\r\n" + strings.TrimSuffix(text, "\n")
	for cut := range len(whole) + 1 {
		q := &memoryQueue{}
		s := &script{chunks: [][]byte{[]byte(whole[:cut])}}
		if err := newServer(q).Serve(t.Context(), s, testPeer()); err != io.EOF {
			t.Fatalf("after %q: %v", whole[:cut], err)
		}
		inMessage := cut >= len(ehlo+from+to+"DATA\r\n")
		if len(q.messages) != 0 || inMessage != (q.aborted == 1) {
			t.Fatalf("after %q: %d queued, %d aborted", whole[:cut], len(q.messages), q.aborted)
		}
	}
}

// TestDoubtIsNotARefusal loses the queue after it was given a message: 4yz would promise that the message will
// not be delivered, so the client hears nothing at all.
func TestDoubtIsNotARefusal(t *testing.T) {
	q := &memoryQueue{commit: &reply.Error{Code: 451, Status: "4.3.0", Text: "unable to reach the queue", Err: reply.ErrInDoubt}}
	client, done := dial(t.Context(), newServer(q))
	r := listen(client)
	if _, err := io.WriteString(client, ehlo+from+to+"DATA\r\nSubject: x\r\n\r\n.\r\n"); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, reply.ErrInDoubt) {
		t.Errorf("the session ended with %v", err)
	}
	if got := <-r.got; !strings.HasSuffix(got, "\r\n") || !strings.HasPrefix(got[strings.LastIndex(got[:len(got)-2], "\n")+1:], "354 ") {
		t.Errorf("the last word was %q", got)
	}
}

func TestAnOrderlyStop(t *testing.T) {
	tests := []struct {
		name, before, after string
		queued              int
	}{
		{"between messages the session ends", ehlo, "", 0},
		{"within a transaction too", ehlo + from + to, "", 0},
		{"within a command too", ehlo + "NOO", "", 0},
		{"a message that is coming in may finish", ehlo + from + to + "DATA\r\nSubject: x\r\n", "\r\nhello\r\n.\r\n", 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, stop := context.WithCancel(t.Context())
				q := &memoryQueue{}
				client, done := dial(ctx, newServer(q))
				r := listen(client)
				io.WriteString(client, tt.before)
				synctest.Wait()
				stop()
				synctest.Wait()
				if tt.after != "" {
					time.Sleep(15 * time.Second) // as long as the message's own deadlines allow
					if _, err := io.WriteString(client, tt.after); err != nil {
						t.Fatal(err)
					}
				}
				if err := <-done; err != errStopping {
					t.Errorf("ended with %v", err)
				}
				if got := <-r.got; !strings.HasSuffix(got, stopping) {
					t.Errorf("last words %q", got)
				}
				if q.count() != tt.queued {
					t.Errorf("%d queued", q.count())
				}
			})
		})
	}
}

func TestAnEndlessMessageIsCutOff(t *testing.T) {
	line := []byte(strings.Repeat("x", 1<<20-2) + "\r\n")
	s := &script{chunks: [][]byte{[]byte(ehlo + from + to + "DATA\r\n")}}
	for range 80 {
		s.chunks = append(s.chunks, line)
	}
	s.chunks = append(s.chunks, []byte("\r\n.\r\nNOOP\r\n"))
	q := &memoryQueue{}
	if err := newServer(q).Serve(t.Context(), s, testPeer()); err != nil {
		t.Fatal(err)
	}
	if got := codes(t, s.out.String()); got != "220, 250, 250 2.1.0, 250 2.1.5, 354, 552 5.3.4" || len(s.chunks) < 10 || len(q.messages) > 0 {
		t.Errorf("%s with %d MiB unread", got, len(s.chunks))
	}
}
