package qq

import (
	"bytes"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"qmail/internal/proto/enqueue"
)

// Hold keeps a message that cannot go on yet: 256 KiB of it in memory, more in a file without a name. Errors
// are outcomes (*reply.Error).
type Hold struct {
	home   string
	memory []byte
	file   *os.File // then all of it
	size   int64
}

// NewHold makes a Hold whose file, should it need one, is on the disk of the home's queue, or among the
// machine's temporary files.
func NewHold(home string) *Hold { return &Hold{home: home} }

// Write adds to the message.
func (h *Hold) Write(p []byte) (int, error) {
	if h.file == nil && len(h.memory)+len(p) <= inMemory {
		h.memory = append(h.memory, p...)
		h.size += int64(len(p))
		return len(p), nil
	}
	if h.file == nil {
		f, err := unnamed(h.home)
		if err != nil {
			return 0, err
		}
		h.file = f
		if err := h.spill(h.memory); err != nil {
			return 0, err
		}
		h.memory = nil
	}
	if err := h.spill(p); err != nil {
		return 0, err
	}
	h.size += int64(len(p))
	return len(p), nil
}

func (h *Hold) spill(p []byte) error {
	if _, err := h.file.Write(p); err != nil {
		return because(CodeWrite, err)
	}
	return nil
}

// Size is the length of the message so far.
func (h *Hold) Size() int64 { return h.size }

// Reader reads the message from its start. There is only one at a time.
func (h *Hold) Reader() (io.Reader, error) {
	if h.file == nil {
		return bytes.NewReader(h.memory), nil
	}
	if _, err := h.file.Seek(0, io.SeekStart); err != nil {
		return nil, because(CodeRead, err)
	}
	return h.file, nil
}

// Close gives the memory and the file back.
func (h *Hold) Close() error {
	h.memory = nil
	if h.file == nil {
		return nil
	}
	return h.file.Close()
}

// unnamed makes a file that vanishes with its descriptor.
func unnamed(home string) (*os.File, error) {
	var failed error
	for _, dir := range []string{enqueue.DropDir(home), os.TempDir()} {
		f, err := os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE, 0o600)
		if err == nil {
			return f, nil
		}
		failed = errors.Join(failed, err)
	}
	return nil, because(CodeFiles, failed)
}
