package local

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"qmail/internal/proto/jobs"
)

// BenchmarkWorker gives messages of 4 KiB to a worker in a process of its own, so many at a time, and waits
// for each report. cpu-ms is the worker's alone.
func BenchmarkWorker(b *testing.B) {
	for _, together := range []int{1, 8, 32} {
		b.Run(strconv.Itoa(together), func(b *testing.B) {
			w := newWorld(b)
			text := strings.Repeat("0123456789abcde\n", 256)
			before := w.cpu(b)
			b.ResetTimer()
			var numbers []uint32
			for range b.N {
				if len(numbers) == together {
					if got := w.await(b, numbers[0]); got != "Kdid 1+0+0\n" {
						b.Fatal(got)
					}
					must(b, w.Forget(numbers[0]))
					numbers = numbers[1:]
				}
				j := &jobs.Job{Sender: "s@remote.example", Recipients: []string{"alice@test.example"}}
				numbers = append(numbers, w.start(b, j, text))
			}
			for _, number := range numbers {
				w.await(b, number)
			}
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
			b.ReportMetric(float64(w.cpu(b)-before)*10/float64(b.N), "cpu-ms/op")
		})
	}
}

// cpu is the processor time of the worker, in hundredths of a second.
func (w *world) cpu(b *testing.B) int {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(w.pid) + "/stat")
	must(b, err)
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	user, err := strconv.Atoi(fields[11])
	must(b, err)
	system, err := strconv.Atoi(fields[12])
	must(b, err)
	return user + system
}
