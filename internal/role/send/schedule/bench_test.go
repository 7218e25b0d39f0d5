package schedule

import (
	"fmt"
	"runtime"
	"testing"
	"time"
)

var sizes = []int{10_000, 100_000, 1_000_000}

// deferred is a Scheduler with n single-recipient messages at 1,000 destinations, each tried once and waiting
// for a time of its own.
func deferred(tb testing.TB, n int) *Scheduler {
	tb.Helper()
	o := Defaults()
	o.Channels[Remote].Concurrency = 200
	s := New(o, epoch)
	for i := range n {
		m := one(uint64(i), Remote, fmt.Sprint("domain", i%1000, ".example"))
		m.Birth = at(-int64(i % 500_000))
		m.Recipients[0].Next = at(1 + int64(i*7919%400_000))
		s.mustAdd(tb, m, epoch)
	}
	return s
}

func heapInUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkAttempt is a deferred recipient that comes due, is tried and waits again: turn, Next, Done, Wake.
func BenchmarkAttempt(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			before := heapInUse()
			s := deferred(b, n)
			size := float64(heapInUse()-before) / float64(n)
			b.ReportAllocs()
			now := epoch
			later := []byte("Z")
			b.ResetTimer()
			for done := 0; done < b.N; {
				j, ok := s.Next(now)
				if !ok {
					now, _ = s.Wake(now)
					continue
				}
				done++
				if _, err := s.Done(j.ID, later, Answered, now); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(size, "B/message")
		})
	}
}

// BenchmarkNewMail is a message that is added and delivered while others wait.
func BenchmarkNewMail(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := deferred(b, n)
			s.SetConcurrency(Local, 100)
			m := one(0, Local, "joe")
			m.Birth = epoch
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				m.ID = uint64(n + i)
				if err := s.Add(m, epoch); err != nil {
					b.Fatal(err)
				}
				j, ok := s.Next(epoch)
				if !ok {
					b.Fatal("no job")
				}
				if p, err := s.Done(j.ID, []byte("K"), Answered, epoch); err != nil || !p.Finished() {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkList is a recipient of a message to 50,000 at 500 domains, one per job.
func BenchmarkList(b *testing.B) {
	for done := 0; done < b.N; {
		b.StopTimer()
		o := Defaults()
		o.Channels[Remote].Concurrency = 200
		s := New(o, epoch)
		m := Message{ID: 1, Birth: epoch, Alone: true}
		for i := range 50_000 {
			m.Recipients = append(m.Recipients, Recipient{uint32(i), Remote, fmt.Sprint("domain", i%500), time.Time{}})
		}
		b.StartTimer()
		s.mustAdd(b, m, epoch)
		for j, ok := s.Next(epoch); ok; j, ok = s.Next(epoch) {
			done++
			if _, err := s.Done(j.ID, []byte("K"), Answered, epoch); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// BenchmarkAlarm is an alarm with a million waiting, until the first job.
func BenchmarkAlarm(b *testing.B) {
	s := deferred(b, 1_000_000)
	for b.Loop() {
		s.Alarm(epoch)
		j, ok := s.Next(epoch)
		if !ok {
			b.Fatal("no job")
		}
		if _, err := s.Done(j.ID, []byte("Z"), Answered, epoch); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDead is a deferred recipient of one of 1,000 dead destinations, each probed and the rest put off.
func BenchmarkDead(b *testing.B) {
	s := deferred(b, 1_000_000)
	now := epoch
	later := []byte("Z")
	b.ResetTimer()
	for done := 0; done < b.N; {
		j, ok := s.Next(now)
		if !ok {
			now, _ = s.Wake(now)
			continue
		}
		done++
		if _, err := s.Done(j.ID, later, Unreachable, now); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRestore is a message that is put back after a start, up to a million of them.
func BenchmarkRestore(b *testing.B) {
	s := New(Defaults(), epoch)
	names := make([]string, 1000)
	for i := range names {
		names[i] = fmt.Sprint("domain", i, ".example")
	}
	m := one(0, Remote, "")
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		m.ID = uint64(i)
		m.Recipients[0].Destination = names[i%1000]
		m.Recipients[0].Next = at(1 + int64(i)*7919%400_000)
		if err := s.Add(m, epoch); err != nil {
			b.Fatal(err)
		}
	}
}
