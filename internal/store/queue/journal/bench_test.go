package journal

import (
	"bytes"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/store/queue"
	"qmail/internal/system/disk"
)

func benchEnvelope() *envelope.Envelope {
	return &envelope.Envelope{
		UID: 1000, QP: 12345, Birth: time.Unix(1700000000, 0), Sender: "someone@sender.example.org",
		Recipients: []string{"somebody@recipient.example.net"},
	}
}

func openDir(b testing.TB, opt Options) *Journal {
	b.Helper()
	d, err := disk.OpenDir(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { d.Close() })
	opt.Warn = func(s string) { b.Log(s) }
	j, err := Open(d, opt)
	if err != nil {
		b.Fatal(err)
	}
	return j
}

// BenchmarkCommit accepts 4 KiB messages from so many callers at once, each waiting for its own, and closes them.
func BenchmarkCommit(b *testing.B) {
	for _, callers := range []int{1, 20, 128} {
		b.Run(fmt.Sprintf("%d callers", callers), func(b *testing.B) {
			j := openDir(b, Options{})
			defer j.Close()
			body := [][]byte{bytes.Repeat([]byte("0123456789abcde\n"), 256)}
			env := benchEnvelope()
			b.ReportAllocs()
			b.SetBytes(4096)
			b.ResetTimer()
			var wg sync.WaitGroup
			for c := range callers {
				wg.Go(func() {
					done := make(chan error, 1)
					tell := func(err error) { done <- err }
					for i := c; i < b.N; i += callers {
						id := j.NewID()
						j.Commit(queue.Batch{Accepts: []queue.Accept{{ID: id, Envelope: env, Body: body}}}, tell)
						if err := <-done; err != nil {
							b.Error(err)
							return
						}
						j.Write(queue.Batch{Closes: []queue.Close{{ID: id, Outcome: queue.Delivered}}})
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
			b.ReportMetric(float64(j.Stats().Syncs)/float64(b.N), "syncs/msg")
		})
	}
}

// BenchmarkOpen opens a queue of that many deferred 4 KiB messages, and scans it.
func BenchmarkOpen(b *testing.B) {
	for _, n := range []int{100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			d, err := disk.OpenDir(b.TempDir())
			if err != nil {
				b.Fatal(err)
			}
			defer d.Close()
			fill(b, d, n)
			b.ResetTimer()
			for range b.N {
				j, err := Open(d, Options{})
				if err != nil {
					b.Fatal(err)
				}
				opened := b.Elapsed()
				seen := 0
				if err := j.Scan(func(e *queue.Entry) error {
					if e.Envelope != nil {
						seen++
					}
					return nil
				}); err != nil || seen != n {
					b.Fatalf("saw %d of %d: %v", seen, n, err)
				}
				b.ReportMetric(float64(opened)/1e6/float64(b.N), "ms-to-open")
				b.StopTimer()
				j.Close()
				b.StartTimer()
			}
		})
	}
}

func fill(b testing.TB, d disk.FS, n int) {
	b.Helper()
	j, err := Open(d, Options{})
	if err != nil {
		b.Fatal(err)
	}
	body := [][]byte{bytes.Repeat([]byte("0123456789abcde\n"), 256)}
	var wg sync.WaitGroup
	for range n {
		wg.Add(1)
		j.Commit(queue.Batch{
			Accepts: []queue.Accept{{ID: j.NewID(), Envelope: benchEnvelope(), Body: body}},
		}, func(err error) {
			if err != nil {
				b.Error(err)
			}
			wg.Done()
		})
	}
	wg.Wait()
	if err := j.Close(); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkIndex measures what a live message costs in memory.
func BenchmarkIndex(b *testing.B) {
	const n = 1_000_000
	for range b.N {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		x := index{live: map[queue.ID]*entry{}}
		s := &segment{seq: 1}
		for i := range n {
			x.fold(s, place{int64(i%16000) * 4096, 200}, &item{kind: kindAccept, id: queue.ID(i), recipients: 1, size: 4096})
			x.fold(s, place{}, &item{kind: kindNote, id: queue.ID(i), next: 1})
		}
		s.sort()
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n, "bytes/msg")
		runtime.KeepAlive(x)
		runtime.KeepAlive(s)
	}
}
