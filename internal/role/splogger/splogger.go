// Package splogger is splogger(8): it gives the lines of its input to syslog, each with the time at which it was
// read.
package splogger

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"qmail/internal/system/env"
)

const (
	exitUsage = 100
	devLog    = "/dev/log"
	mail      = 2 // the facility
	maxText   = 799
	// Priorities of syslog(3).
	alert, warning, info = 1, 4, 6
	writeTime            = 5 * time.Second
)

// Main runs the role until its input ends.
func Main(_ context.Context, e *env.Env, args []string) int {
	tag, facility := "splogger", mail
	if len(args) > 0 {
		tag = printable(args[0])
	}
	if len(args) > 1 {
		n, err := strconv.Atoi(args[1])
		if err != nil || n < 0 || n > 23 {
			fmt.Fprintln(e.Stderr, "splogger: usage: splogger [ tag [ facility ] ]")
			return exitUsage
		}
		facility = n
	}
	s := &splogger{path: devLog, tag: tag, facility: facility, now: e.Now}
	defer s.close()
	if err := s.run(e.Stdin); err != nil {
		fmt.Fprintf(e.Stderr, "splogger: fatal: unable to read input: %v\n", err)
		return 111
	}
	return 0
}

// splogger is a connection to syslog.
type splogger struct {
	path     string
	tag      string
	facility int
	now      func() time.Time
	conn     net.Conn
	stream   bool // each message needs an end
}

// run logs lines; one that is long becomes several, each with a plus sign but the first.
func (s *splogger) run(r io.Reader) error {
	in := bufio.NewReaderSize(r, maxText)
	priority, sign := info, " "
	for {
		part, err := in.ReadSlice('\n')
		if len(part) > 0 {
			if sign == " " {
				priority = classify(string(part))
			}
			ended := part[len(part)-1] == '\n'
			now := s.now()
			s.send(priority, fmt.Sprintf("%d.%06d%s%s", now.Unix(), now.Nanosecond()/1000, sign, printable(strings.TrimSuffix(string(part), "\n"))))
			if sign = "+"; ended {
				sign = " "
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
}

func classify(line string) int {
	switch {
	case strings.HasPrefix(line, "alert:"):
		return alert
	case strings.HasPrefix(line, "warning:"):
		return warning
	}
	return info
}

// printable keeps what every syslogd and terminal can stand.
func printable(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c < 32 || c > 126 {
			b[i] = '?'
		}
	}
	return string(b)
}

// send writes a message as syslog(3) does. Should syslogd be gone the message is lost, as there: who writes our
// input must not be kept waiting.
func (s *splogger) send(priority int, text string) {
	message := fmt.Appendf(nil, "<%d>%s %s: %s", s.facility<<3|priority, s.now().Format(time.Stamp), s.tag, text)
	for range 2 { // syslogd may have been started anew
		if s.conn == nil && s.connect() != nil {
			return
		}
		b := message
		if s.stream {
			b = append(b, 0)
		}
		s.conn.SetWriteDeadline(time.Now().Add(writeTime))
		if _, err := s.conn.Write(b); err == nil {
			return
		}
		s.close()
	}
}

func (s *splogger) connect() (err error) {
	if s.conn, err = net.DialTimeout("unixgram", s.path, writeTime); err == nil {
		s.stream = false
		return nil
	}
	s.conn, err = net.DialTimeout("unix", s.path, writeTime)
	if err != nil {
		s.conn = nil // not a nil *net.UnixConn
		return err
	}
	s.stream = true
	return nil
}

func (s *splogger) close() {
	if s.conn != nil {
		s.conn.Close() // what was sent was sent
		s.conn = nil
	}
}
