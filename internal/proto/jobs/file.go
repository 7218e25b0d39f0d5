package jobs

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// inMemory is how long a message may be to be copied to memory, in bytes, and not to a disk.
const inMemory = 1 << 20

// Copy copies the message into a file that nobody else can reach, for programs that want one.
func (b *Body) Copy() (*os.File, error) {
	fd, err := -1, error(nil)
	if b.Size() > inMemory {
		fd, err = unix.Open(os.TempDir(), unix.O_RDWR|unix.O_TMPFILE|unix.O_CLOEXEC, 0o600)
	}
	if fd < 0 {
		fd, err = unix.MemfdCreate("message", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "message")
	n, err := io.Copy(f, b.Reader())
	if err == nil && n != b.Size() {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Reopen opens a Copy anew: with an offset of its own at the start, and no right to write.
func Reopen(copied *os.File) (*os.File, error) {
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", copied.Fd()))
}
