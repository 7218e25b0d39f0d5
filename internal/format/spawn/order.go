// Package spawn is what qmail-send and its spawners say to each other (qmail-lspawn(8), qmail-rspawn(8)): the orders
// and the reports, and what a report says of how a qmail-local or a qmail-remote ended.
//
// An order is a slot, one byte, then the name of a message below queue/mess, the sender and the recipient, each ended
// by a NUL. A report is the slot of its order, then a text ended by a NUL, whose first byte is K (done), Z (later)
// or D (never). Before all reports a spawner says in one byte how many slots it has.
//
// Nothing is kept of an order beyond the limits: who sends more gets a report that says so.
package spawn

import (
	"bufio"
	"errors"
	"io"
	"strings"
)

const (
	// maxMessage is the longest name of a message, with its NUL.
	maxMessage = 100
	// maxAddress is the longest sender or recipient, far beyond what a queue holds.
	maxAddress = 64 << 10
)

// Reports about an order that cannot be carried out.
const (
	outOfMemory = "Zqmail-spawn out of memory. (#4.3.0)\n"
	nonNumeric  = "DInternal error: messid has nonnumerics. (#5.3.5)\n"
	tooLong     = "DInternal error: messid too long. (#5.3.5)\n"
	tooShort    = "DInternal error: messid too short. (#5.3.5)\n"
	// NoHost is the report about a recipient without an @.
	NoHost = "DSorry, address must include host name. (#5.1.3)\n"
)

// Order is what a spawner is told to do.
type Order struct {
	Slot              byte
	Message           string // digits and slashes
	Sender, Recipient string
}

// ReadOrder takes one order. An order that nobody could carry out has a report that says why. The error is io.EOF where no
// order begins, and io.ErrUnexpectedEOF within one.
func ReadOrder(r *bufio.Reader) (o Order, report string, err error) {
	if o.Slot, err = r.ReadByte(); err != nil {
		return o, "", err
	}
	message, long1, err := field(r, maxMessage-1)
	if err != nil {
		return o, "", err
	}
	sender, long2, err := field(r, maxAddress)
	if err != nil {
		return o, "", err
	}
	recipient, long3, err := field(r, maxAddress)
	if err != nil {
		return o, "", err
	}
	o.Message, o.Sender, o.Recipient = message, sender, recipient
	switch {
	case long2 || long3:
		return o, outOfMemory, nil
	case !numeric(message):
		return o, nonNumeric, nil
	case long1:
		return o, tooLong, nil
	case message == "":
		return o, tooShort, nil
	case strings.IndexByte(recipient, '@') < 0:
		return o, NoHost, nil
	}
	return o, "", nil
}

// field reads up to a NUL and keeps what is within the limit.
func field(r *bufio.Reader, limit int) (value string, long bool, err error) {
	var b []byte
	for {
		c, err := r.ReadByte()
		switch {
		case err == io.EOF:
			return "", false, io.ErrUnexpectedEOF
		case err != nil:
			return "", false, err
		case c == 0:
			return string(b), long, nil
		case len(b) == limit:
			long = true
		default:
			b = append(b, c)
		}
	}
}

// numeric says whether a name stays below queue/mess: it has digits, and slashes that do not come first.
func numeric(name string) bool {
	for i, c := range []byte(name) {
		if (c < '0' || c > '9') && (c != '/' || i == 0) {
			return false
		}
	}
	return true
}

// AppendOrder writes an order. A value with a NUL has no form.
func AppendOrder(dst []byte, o Order) ([]byte, error) {
	dst = append(dst, o.Slot)
	for _, v := range []string{o.Message, o.Sender, o.Recipient} {
		if strings.IndexByte(v, 0) >= 0 {
			return nil, errors.New("spawn: NUL in an order")
		}
		dst = append(append(dst, v...), 0)
	}
	return dst, nil
}

// AppendReport writes a report, up to a NUL in its text.
func AppendReport(dst []byte, slot byte, text string) []byte {
	text, _, _ = strings.Cut(text, "\x00")
	return append(append(append(dst, slot), text...), 0)
}
