package rspawn

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"qmail/internal/proto/jobs"
	"qmail/internal/proto/sender"
	"qmail/internal/store/control"
	"qmail/internal/system/dns"
	"qmail/internal/system/ipc"
)

// counter is a qmail-send that keeps a number of jobs under way.
type counter struct {
	client *jobs.Client
	job    jobs.Job
	mu     sync.Mutex
	left   int // to be started
	open   int
	failed string
	done   chan struct{}
}

func (c *counter) Results(number uint32, results []jobs.Result, over bool) {
	for _, r := range results {
		if r.Text[0] != 'K' {
			c.failed = r.Text
		}
	}
	if over {
		c.next(number)
	}
}

func (c *counter) next(number uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left == 0 {
		if c.open--; c.open == 0 {
			close(c.done)
		}
		return
	}
	c.left--
	c.client.Start(number, &c.job)
}

func (c *counter) Gone([]uint32, error) {}

// BenchmarkRelay sends 4 KiB messages, each of its own, over the whole of qmail-rspawn to a sink in the same
// process: what is measured is both.
func BenchmarkRelay(b *testing.B) {
	s := startSink(b)
	home := b.TempDir()
	if err := os.Mkdir(filepath.Join(home, "control"), 0o755); err != nil {
		b.Fatal(err)
	}
	for name, text := range map[string]string{"me": "here.example\n", "smtproutes": s.route()} {
		if err := os.WriteFile(filepath.Join(home, "control", name), []byte(text), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	config, err := sender.Load(control.Open(home), sender.Strict)
	if err != nil {
		b.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	resolver := dns.New(dns.Config{})
	defer resolver.Close()
	sp := &spawner{sender: sender.New(sender.Here(resolver, time.Now, log)), log: log}
	defer sp.sender.Close()
	sp.sender.Configure(config)
	ours, theirs, err := ipc.LocalPair()
	if err != nil {
		b.Fatal(err)
	}
	go jobs.Serve(context.Background(), theirs, sp.deliver)
	const parallel = 20
	c := &counter{left: b.N, open: parallel, done: make(chan struct{}), job: jobs.Job{Host: "far.example", Sender: "s@here.example", Recipients: []string{"u@far.example"}, Body: 1}}
	body := []byte(strings.Repeat(strings.Repeat("x", 63)+"\n", 64))
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	b.ResetTimer()
	c.client = jobs.NewClient(ours, c)
	defer c.client.Close()
	if err := c.client.Load(1, body); err != nil {
		b.Fatal(err)
	}
	for i := range parallel {
		c.next(uint32(i + 1))
	}
	<-c.done
	b.StopTimer()
	if c.failed != "" {
		b.Fatal(c.failed)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}
