package client

import (
	"bytes"
	"errors"
	"net"
	"time"
)

const (
	// maxText is how much of a reply is kept for reports.
	maxText = 5000
	// maxReply is how many bytes one reply may have before we stop listening.
	maxReply = 512 << 10
	// maxLine is how much of one line is looked at.
	maxLine = 512

	unknownCode = 999 // of a reply that does not begin with three digits
)

var (
	errTurn = errors.New("smtp: the server speaks out of turn")
	errLong = errors.New("smtp: the reply does not end")
)

// reader reads replies through a buffer of fixed size.
type reader struct {
	conn net.Conn
	buf  []byte
	r, w int
	text []byte // of the last reply: lines end in LF, control bytes are '?'
	head [maxLine]byte
	err  error // the connection's end
}

func (rd *reader) empty() bool { return rd.r == rd.w && rd.err == nil }

// reply reads one reply before the deadline and returns its code. Continuation is while the fourth byte
// of a line is '-'; codes of later lines are ignored. each, if not nil, gets the text of every line but the
// first, cut to maxLine.
func (rd *reader) reply(deadline time.Time, each func(line []byte)) (int, error) {
	rd.text = rd.text[:0]
	timed := false
	code, total := 0, 0
	for first := true; ; first = false {
		n, ended := 0, false
		for !ended {
			if rd.r == rd.w {
				if !timed {
					timed = true
					if err := rd.conn.SetReadDeadline(deadline); err != nil {
						rd.err = err
						return 0, err
					}
				}
				if err := rd.fill(); err != nil {
					return 0, err
				}
			}
			part := rd.buf[rd.r:rd.w]
			if i := bytes.IndexByte(part, '\n'); i >= 0 {
				part, ended = part[:i], true
				rd.r++
			}
			rd.r += len(part)
			if total += len(part) + 1; total > maxReply {
				rd.err = errLong
				return 0, errLong
			}
			n += copy(rd.head[n:], part)
			rd.keep(part)
		}
		rd.keep([]byte{'\n'})
		line := bytes.TrimRight(rd.head[:n], "\r")
		if first {
			code = codeOf(line)
		} else if each != nil && len(line) > 4 {
			each(line[4:])
		}
		if len(line) < 4 || line[3] != '-' {
			return code, nil
		}
	}
}

// keep adds to the text of the reply, as far as there is room: CRs are dropped, other control bytes hidden.
func (rd *reader) keep(part []byte) {
	for _, b := range part {
		switch {
		case len(rd.text) >= maxText:
			return
		case b == '\r':
			continue
		case b < ' ' && b != '\n' && b != '\t', b == 0x7f:
			b = '?'
		}
		rd.text = append(rd.text, b)
	}
}

func (rd *reader) fill() error {
	if rd.err != nil {
		return rd.err
	}
	if rd.buf == nil {
		rd.buf = make([]byte, 2<<10)
	}
	n, err := rd.conn.Read(rd.buf)
	rd.r, rd.w = 0, n
	if n > 0 {
		return nil
	}
	rd.err = err
	return err
}

func codeOf(line []byte) int {
	if len(line) < 3 {
		return unknownCode
	}
	code := 0
	for _, b := range line[:3] {
		if b < '0' || b > '9' {
			return unknownCode
		}
		code = code*10 + int(b-'0')
	}
	return code
}
