package journal

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"qmail/internal/store/queue"
	"qmail/internal/system/disk"
)

// TestManyDeferred opens and scans a queue of 4 KiB messages that all wait, from footers alone. By default there are few;
// QMAIL_TEST_DEFERRED=1000000 is the real thing, 5 GB of disk and a minute.
func TestManyDeferred(t *testing.T) {
	n := 20_000
	if s := os.Getenv("QMAIL_TEST_DEFERRED"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	} else if testing.Short() {
		t.Skip("writes 100 MB")
	}
	d, err := disk.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	start := time.Now()
	fill(t, d, n)
	t.Logf("%d messages accepted in %v", n, time.Since(start).Round(time.Millisecond))
	var before, after runtime.MemStats
	runtime.GC()
	runtime.GC() // pools keep for one more
	runtime.ReadMemStats(&before)
	counted := &readCounter{FS: d}
	start = time.Now()
	j, err := Open(counted, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	opened := time.Since(start)
	start = time.Now()
	seen := 0
	if err := j.Scan(func(e *queue.Entry) error {
		if e.Envelope == nil || len(e.Open) != 1 {
			return fmt.Errorf("message %v: %+v", e.ID, e)
		}
		seen++
		return nil
	}); err != nil || seen != n {
		t.Fatalf("saw %d of %d: %v", seen, n, err)
	}
	scanned := time.Since(start)
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := (float64(after.HeapAlloc) - float64(before.HeapAlloc)) / float64(n)
	t.Logf("opened in %v, scanned in %v, %.0f bytes of memory each, %d MB read", opened.Round(time.Millisecond), scanned.Round(time.Millisecond), each, counted.bytes.Load()>>20)
	if each > 200 {
		t.Errorf("%.0f bytes of memory each", each)
	}
	if read := counted.bytes.Load(); read > int64(n)*1000+10<<20 {
		t.Errorf("%d bytes read: the bodies too", read)
	}
}
