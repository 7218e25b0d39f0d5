// Package qbiff is qbiff(1): in a .qmail file it tells the user, on the terminals where he has asked for it
// (biff y), that there is mail.
package qbiff

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"qmail/internal/format/excerpt"
	"qmail/internal/system/env"
)

const (
	utmp      = "/var/run/utmp"
	maxUtmp   = 16 << 20
	looked    = 64 << 10 // bytes of the message
	textLimit = 78
	writeTime = 5 * time.Second // a terminal may be stopped
)

// Main runs the role; a terminal that cannot be told is no reason to trouble the mail, so it returns 0.
func Main(_ context.Context, e *env.Env, _ []string) int {
	user := e.Get("USER")
	if user == "" {
		return 0
	}
	lines, err := terminals(utmp, user)
	if err != nil || len(lines) == 0 {
		return 0
	}
	message, err := io.ReadAll(io.LimitReader(e.Stdin, looked))
	if err != nil {
		return 0
	}
	text := announce(e.Get("LOCAL"), e.Get("SENDER"), message)
	for _, line := range lines {
		tell("/dev/"+line, text)
	}
	return 0
}

// announce is what is written to terminals.
func announce(local, sender string, message []byte) []byte {
	return fmt.Appendf(nil, "\r\n\x07*** TO <%s> FROM <%s>\r\n    %s\r\n",
		excerpt.Printable(local), excerpt.Printable(sender), excerpt.Text(message, textLimit))
}

// record is where things are in an entry of utmp(5), which is not the same everywhere.
type record struct{ size, line, user int }

func layout(arch string) record {
	if arch == "arm64" || arch == "riscv64" || arch == "loong64" {
		return record{size: 400, line: 8, user: 44}
	}
	return record{size: 384, line: 8, user: 44}
}

const (
	userProcess = 7 // an entry of somebody who is logged in
	nameLength  = 32
)

// terminals are those on which user is logged in.
func terminals(path, user string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxUtmp))
	if err != nil {
		return nil, err
	}
	return parse(b, layout(runtime.GOARCH), user), nil
}

func parse(b []byte, r record, user string) (lines []string) {
	for ; len(b) >= r.size; b = b[r.size:] {
		if binary.NativeEndian.Uint16(b) != userProcess || text(b[r.user:]) != user {
			continue
		}
		if line := text(b[r.line:]); line != "" && line[0] != '/' && !strings.Contains(line, "..") {
			lines = append(lines, line)
		}
	}
	return lines
}

func text(b []byte) string {
	s, _, _ := strings.Cut(string(b[:nameLength]), "\x00")
	return s
}

// tell writes to a terminal of our own that wants to be told.
func tell(path string, text []byte) {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	var st unix.Stat_t
	wanted := unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR &&
		int(st.Uid) == os.Getuid() && st.Mode&unix.S_IXUSR != 0
	if !wanted {
		return
	}
	f.SetWriteDeadline(time.Now().Add(writeTime))
	f.Write(text) // who is not told now sees the mail anyway
}
