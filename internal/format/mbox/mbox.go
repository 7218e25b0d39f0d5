// Package mbox writes the mbox format, mbox(5) in its form with reversible quoting: a From_ line, the message
// with ">" before each line that is any number of ">" and then "From ", and an empty line.
package mbox

import (
	"bufio"
	"bytes"
	"io"
	"time"
)

// FromLine is the line before a message, and UFLINE: "From sender Mon Nov 23 03:57:29 2026\n", in UTC. Blanks
// and line ends in the sender become dashes, so that it stays one word of one line.
func FromLine(sender string, t time.Time) []byte {
	line := append(make([]byte, 0, len(sender)+40), "From "...)
	if sender == "" {
		line = append(line, "MAILER-DAEMON"...)
	}
	for i := range len(sender) {
		switch c := sender[i]; c {
		case ' ', '\t', '\n':
			line = append(line, '-')
		default:
			line = append(line, c)
		}
	}
	line = append(line, ' ')
	return t.UTC().AppendFormat(line, "Mon Jan 02 15:04:05 2006\n")
}

// bufferSize is also how many bytes of a line are looked at to see whether it wants quoting; a line of more ">"
// than that quotes nothing.
const bufferSize = 64 << 10

// WriteBody writes a message, quoted, ended by a newline and followed by the empty line.
func WriteBody(w io.Writer, message io.Reader) error {
	in := bufio.NewReaderSize(message, bufferSize)
	start, last := true, byte('\n')
	for {
		part, err := in.ReadSlice('\n')
		if err != nil && err != bufio.ErrBufferFull && err != io.EOF {
			return &ReadError{err}
		}
		if start && wantsQuote(part) {
			if _, err := w.Write([]byte{'>'}); err != nil {
				return err
			}
		}
		if len(part) > 0 {
			if _, err := w.Write(part); err != nil {
				return err
			}
			last = part[len(part)-1]
		}
		if err == io.EOF {
			break
		}
		start = err == nil
	}
	end := "\n"
	if last != '\n' {
		end = "\n\n"
	}
	_, err := io.WriteString(w, end)
	return err
}

// ReadError is an error of the message, as opposed to one of the mailbox.
type ReadError struct{ Err error }

func (e *ReadError) Error() string { return "unable to read message: " + e.Err.Error() }
func (e *ReadError) Unwrap() error { return e.Err }

func wantsQuote(line []byte) bool {
	return bytes.HasPrefix(bytes.TrimLeft(line, ">"), []byte("From "))
}
