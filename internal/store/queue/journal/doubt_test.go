package journal

import (
	"errors"
	"strings"
	"syscall"
	"testing"

	"qmail/internal/store/queue"
	"qmail/internal/system/disk"
)

// TestWhatNobodyKnowsIsNotRefused: a sync fails, and so does what would say that the record does not count. Whoever
// was told "no" would be wrong once the process is killed, since the bytes are there.
func TestWhatNobodyKnowsIsNotRefused(t *testing.T) {
	for _, kind := range []disk.Kind{disk.OpSync, disk.OpRename, disk.OpSyncDir, disk.OpOpen} {
		t.Run(string(kind), func(t *testing.T) {
			m := disk.NewMemory()
			j, err := Open(m, smallOptions(t))
			if err != nil {
				t.Fatal(err)
			}
			failed := false
			m.Inject(func(o disk.Op) error {
				if o.Kind == disk.OpSync && !failed || failed && o.Kind == kind && strings.HasPrefix(o.Name, segmentDir) {
					failed = true
					return syscall.EIO
				}
				return nil
			})
			id := j.NewID()
			err = commit(j, queue.Batch{Accepts: []queue.Accept{{ID: id, Envelope: benchEnvelope(), Body: split("a message")}}})
			if !errors.Is(err, queue.ErrInDoubt) {
				t.Errorf("it was answered with %v", err)
			}
			after := m.Kill()
			j.Close()
			if j, err = Open(after, smallOptions(t)); err != nil {
				t.Fatal(err)
			}
			if _, err := readAll(j, id); err != nil {
				t.Errorf("it is not there, so the test proves nothing: %v", err)
			}
			j.Close()
		})
	}
}

// TestWhatIsKnownIsRefused: where the next segment can be begun, no is no.
func TestWhatIsKnownIsRefused(t *testing.T) {
	m := disk.NewMemory()
	j, err := Open(m, smallOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	failed := false
	m.Inject(func(o disk.Op) error {
		if o.Kind == disk.OpSync && !failed {
			failed = true
			return syscall.EIO
		}
		return nil
	})
	id := j.NewID()
	err = commit(j, queue.Batch{Accepts: []queue.Accept{{ID: id, Envelope: benchEnvelope(), Body: split("a message")}}})
	if err == nil || errors.Is(err, queue.ErrInDoubt) {
		t.Errorf("it was answered with %v", err)
	}
	after := m.Kill()
	j.Close()
	if j, err = Open(after, smallOptions(t)); err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if _, err := readAll(j, id); !errors.Is(err, queue.ErrNotFound) {
		t.Errorf("it is there: %v", err)
	}
}
