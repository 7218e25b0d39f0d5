// Package serial is what maildirserial(1) and its clients say to each other (serialmail): names of message files go
// to the client, each ended by a NUL; back come lines, each a name, a NUL, then K, Z or D and a text.
//
// A message file begins with two lines that qmail-local has written, Return-Path and Delivered-To; the address in the
// second begins with a prefix that is not part of the recipient.
package serial

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"qmail/internal/format/header"
)

const (
	// maxName bounds a file name, maxText what is said about it, maxHead a line of a message's beginning, in bytes.
	maxName = 4096
	maxText = 4096
	maxHead = 2048
	// dialTime is how long a connection may take.
	dialTime = time.Minute
	// tcpclient leaves its connection on this descriptor, for reading, and the next, for writing.
	connectionFD = 6
)

// Envelope is who a message is from and for.
type Envelope struct{ Sender, Recipient string }

// ErrOther is a message that is not for this prefix.
var ErrOther = errors.New("not a message with this prefix")

// Head reads the envelope off a message. What is left in r is the message.
func Head(r *bufio.Reader, prefix string) (Envelope, error) {
	var e Envelope
	path, ok, err := cut(r, "Return-Path: <")
	if err != nil || !ok {
		return e, errors.Join(ErrOther, err)
	}
	tokens, parsed := header.Tokenize(strings.TrimSuffix(path, ">"))
	to, ok, err := cut(r, "Delivered-To: "+prefix)
	if err != nil || !ok || !parsed || to == "" {
		return e, errors.Join(ErrOther, err)
	}
	return Envelope{header.Address(tokens), to}, nil
}

// cut reads a line and takes something off its beginning.
func cut(r *bufio.Reader, prefix string) (rest string, ok bool, err error) {
	line, err := r.ReadSlice('\n')
	if err == io.EOF || errors.Is(err, bufio.ErrBufferFull) || len(line) > maxHead {
		return "", false, nil
	}
	if err != nil {
		return "", false, err
	}
	rest, ok = strings.CutPrefix(string(line[:len(line)-1]), prefix)
	return rest, ok && strings.IndexByte(rest, 0) < 0, nil
}

// Message is a message to be sent.
type Message struct {
	Envelope
	Body io.Reader
	Size int64 // of the body
}

// Serve is a client: it reads names until there are no more, sends each message and says what became of it.
// deliver returns K, Z or D and a text.
func Serve(in io.Reader, out io.Writer, prefix string, deliver func(m *Message) (report string)) error {
	names := bufio.NewReaderSize(in, maxName+1)
	for {
		name, err := names.ReadSlice(0)
		if err == io.EOF && len(name) == 0 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("unable to read names: %w", err)
		}
		path := string(name[:len(name)-1])
		if _, err := io.WriteString(out, path+"\x00"+line(one(path, prefix, deliver))); err != nil {
			return err
		}
	}
}

func one(path, prefix string, deliver func(m *Message) (report string)) string {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return "Zunable to open message"
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return "Zunable to open message"
	}
	r := bufio.NewReaderSize(f, 64<<10)
	e, err := Head(r, prefix)
	if err != nil {
		return "Zunable to read message: " + err.Error()
	}
	at, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return "Zunable to read message"
	}
	return deliver(&Message{e, r, info.Size() - at + int64(r.Buffered())})
}

// line makes one line of a report, which must have a letter.
func line(report string) string {
	report = strings.TrimRight(report, "\r\n")
	if report == "" || strings.IndexByte("KZD", report[0]) < 0 {
		report = "Z" + report
	}
	b := []byte(report[:min(len(report), maxText)])
	for i, c := range b {
		if c < 32 || c == 127 {
			b[i] = ' '
		}
	}
	return string(b) + "\n"
}

// Result is what a client says about a message.
type Result struct {
	Name   string
	Letter byte // K, Z or D
	Text   string
}

// Next reads one; io.EOF is the end. A letter that is none means later.
func Next(r *bufio.Reader) (Result, error) {
	name, err := upTo(r, 0, maxName)
	if err != nil {
		return Result{}, err
	}
	text, err := upTo(r, '\n', maxText+1)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return Result{}, err
	}
	if text == "" || strings.IndexByte("KZD", text[0]) < 0 {
		return Result{name, 'Z', text}, nil
	}
	return Result{name, text[0], text[1:]}, nil
}

var errLong = errors.New("serial: too long")

func upTo(r *bufio.Reader, end byte, most int) (string, error) {
	var b []byte
	for {
		c, err := r.ReadByte()
		if err != nil {
			if err == io.EOF && len(b) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return "", err
		}
		if c == end {
			return string(b), nil
		}
		if len(b) == most {
			return "", errLong
		}
		b = append(b, c)
	}
}

// Connect opens a connection to an address, "host:port", or takes the one that tcpclient has left.
func Connect(address string) (net.Conn, error) {
	if address != "" {
		return net.DialTimeout("tcp", address, dialTime)
	}
	f := os.NewFile(connectionFD, "connection")
	if f == nil {
		return nil, os.ErrInvalid
	}
	return net.FileConn(f)
}
