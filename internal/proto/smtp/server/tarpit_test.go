package server

import (
	"context"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestWhoIsRefusedAgainAndAgainWaits plays sessions in virtual time and measures when each reply comes.
func TestWhoIsRefusedAgainAndAgainWaits(t *testing.T) {
	const delay = 3 * time.Second
	tests := []struct {
		name  string
		lines []string
		stop  bool // the server stops in the first wait
		took  time.Duration
		last  string // reply
	}{
		{"as many mistakes as are free", []string{"FOO", "FOO", "NOOP"}, false, 0, "250"},
		{"each one beyond costs", []string{"FOO", "FOO", "FOO", "FOO", "NOOP"}, false, 2 * delay, "250"},
		{"what is no mistake does not", []string{"FOO", "FOO", "FOO", "NOOP", "NOOP", "NOOP"}, false, delay, "250"},
		{"and all at once are not cheaper", []string{"FOO\r\nFOO\r\nFOO\r\nFOO\r\nNOOP"}, false, 2 * delay, "250"},
		{"nor are many bytes of them", []string{strings.Repeat("FOO "+strings.Repeat("x", 800)+"\r\n", 4) + "NOOP"}, false, 2 * delay, "250"},
		{"a server that stops does not wait", []string{"FOO", "FOO", "FOO", "FOO"}, true, delay / 2, "421"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, stop := context.WithCancel(t.Context())
				defer stop()
				config := &Config{Greeting: "mx.example", MaxErrors: 20, TarpitAfter: 2, Tarpit: delay,
					Limits: Limits{Command: time.Minute, Block: time.Minute, Transaction: time.Hour, Grace: time.Minute, Rate: 1}}
				v := &Server{Settings: func() *Config { return config }, Now: time.Now}
				client, conn := net.Pipe()
				defer client.Close()
				ended := make(chan error, 1)
				go func() { ended <- v.Serve(ctx, conn, &Peer{}); conn.Close() }()
				replies := make(chan string, 100)
				go func() {
					defer close(replies)
					var all string
					b := make([]byte, 4096)
					for {
						n, err := client.Read(b)
						for all += string(b[:n]); strings.Contains(all, "\r\n"); {
							var one string
							one, all, _ = strings.Cut(all, "\r\n")
							replies <- one
						}
						if err != nil {
							return
						}
					}
				}()
				<-replies
				began, last := time.Now(), ""
				if tt.stop {
					time.AfterFunc(delay/2, stop)
				}
				for _, line := range tt.lines {
					if _, err := client.Write([]byte(line + "\r\n")); err != nil {
						break // it has stopped
					}
					for range strings.Count(line, "\r\n") + 1 {
						if one, ok := <-replies; ok {
							last = one
						}
					}
				}
				if tt.stop {
					for one := range replies {
						last = one
					}
				}
				if took := time.Since(began); took != tt.took || !strings.HasPrefix(last, tt.last) {
					t.Errorf("took %v, want %v; %q", took, tt.took, last)
				}
				client.Close()
				<-ended
			})
		})
	}
}
