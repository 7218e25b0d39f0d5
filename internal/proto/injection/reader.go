package injection

import (
	"bufio"
	"bytes"
	"errors"
	"io"

	"qmail/internal/format/header"
)

// reader gives the lines of a header and then the body. A text whose first line ends in CRLF is one whose
// line ends are CRLF throughout: they become LF.
type reader struct {
	in    *bufio.Reader
	first bool
	crlf  bool
	begin []byte // of the body: what was read to find the end of the header
	bare  bool   // the header ended with the text: there is no body
}

func newReader(in io.Reader) *reader {
	return &reader{in: bufio.NewReaderSize(in, 64<<10), first: true}
}

// line is the next line with its newline, which is added to a last line without one; io.EOF if there is none.
func (r *reader) line(limit int) ([]byte, error) {
	var line []byte
	for {
		part, err := r.in.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > limit {
			return nil, permanent("the header is too long")
		}
		switch {
		case err == nil:
			return r.ended(line), nil
		case errors.Is(err, bufio.ErrBufferFull):
		case err == io.EOF && len(line) > 0:
			return append(line, '\n'), nil
		case err == io.EOF:
			return nil, io.EOF
		default:
			return nil, temporary("read error", err)
		}
	}
}

func (r *reader) ended(line []byte) []byte {
	if r.first {
		r.first, r.crlf = false, bytes.HasSuffix(line, []byte("\r\n"))
	}
	if r.crlf && bytes.HasSuffix(line, []byte("\r\n")) {
		line = append(line[:len(line)-2], '\n')
	}
	return line
}

// readHeader reads up to the end of the header: the empty line, the end of the text, or the first line that is
// no field, before which an empty line is put. A line "From ..." of an mbox file becomes a field.
func (m *message) readHeader(r *reader) error {
	var field header.Field
	room := maxHeader
	for {
		line, err := r.line(room)
		if err != nil && err != io.EOF {
			return err
		}
		room -= len(line)
		if len(field) > 0 && len(line) > 0 && (line[0] == ' ' || line[0] == '\t') {
			field = append(field, line...)
			continue
		}
		if len(field) > 0 {
			if err := m.field(field); err != nil {
				return err
			}
			field = nil
		}
		_, isField := header.NameEnd(line)
		switch {
		case err == io.EOF:
			r.bare = true
			return nil
		case len(line) == 1:
			r.begin = line
			return nil
		case bytes.HasPrefix(line, []byte("From ")):
			field = append([]byte("MBOX-Line: "), line...)
		case !isField:
			r.begin = append([]byte("\n"), line...)
			return nil
		default:
			field = line
		}
	}
}

// body writes the body. An error of reading is errReading; one of writing is the writer's.
func (r *reader) body(w io.Writer) error {
	if r.bare {
		return nil
	}
	if _, err := w.Write(r.begin); err != nil {
		return err
	}
	last := r.begin[len(r.begin)-1]
	buf := make([]byte, 64<<10)
	held := false // a CR that may belong to a line end
	for {
		n, err := r.in.Read(buf[1:])
		part := buf[1 : 1+n]
		if held && n > 0 {
			buf[0], part = '\r', buf[:1+n]
			held = false
		}
		if r.crlf && len(part) > 0 {
			part = bytes.ReplaceAll(part, []byte("\r\n"), []byte("\n"))
			if part[len(part)-1] == '\r' {
				part, held = part[:len(part)-1], true
			}
		}
		if len(part) > 0 {
			last = part[len(part)-1]
			if _, err := w.Write(part); err != nil {
				return err
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return errors.Join(errReading, err)
		}
	}
	if held {
		last = '\r'
		if _, err := w.Write([]byte("\r")); err != nil {
			return err
		}
	}
	if last != '\n' {
		_, err := w.Write([]byte("\n"))
		return err
	}
	return nil
}
