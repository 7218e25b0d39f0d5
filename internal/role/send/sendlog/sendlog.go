// Package sendlog writes qmail-send's log lines exactly as documented in qmail-log(5), for the programs that have
// read them for decades. Facts go in, bytes come out; there are no timestamps, which are the logger's work.
//
// Free text is made safe: a line end becomes "/"; every other byte that is no visible ASCII, and "%", becomes
// "_". So nothing a stranger says can begin a line or a field.
//
// A Writer gathers lines and hands them on by Flush, in one write, so that a busy moment costs one system
// call. It allocates nothing per line, and is for one goroutine.
//
//	log := sendlog.NewWriter(os.Stderr)
//	log.New(17)
//	log.Starting(1, 17, true, "joe@example.org")
//	log.Status(1, 10, 0, 20, false)
//	err := log.Flush() // when there is nothing else to do
package sendlog

import (
	"io"
	"strconv"
)

// maxHeld is how much may wait for a Flush before there is one without being asked, in bytes.
const maxHeld = 64 << 10

// Writer gathers lines. An error to write is kept for the next Flush, and the lines are lost: a log that
// cannot be written must not stop the mail, nor fill the memory.
type Writer struct {
	w   io.Writer
	buf []byte
	err error
}

// NewWriter makes a Writer.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Flush writes what has been gathered.
func (w *Writer) Flush() error {
	w.write()
	err := w.err
	w.err = nil
	return err
}

func (w *Writer) write() {
	if len(w.buf) == 0 {
		return
	}
	n, err := w.w.Write(w.buf)
	if err == nil && n < len(w.buf) {
		err = io.ErrShortWrite
	}
	if err != nil && w.err == nil {
		w.err = err
	}
	if cap(w.buf) > 2*maxHeld {
		w.buf = nil
	}
	w.buf = w.buf[:0]
}

// end ends a line.
func (w *Writer) end(b []byte) {
	w.buf = append(b, '\n')
	if len(w.buf) >= maxHeld {
		w.write()
	}
}

// Status is how many deliveries run, and may run; exiting says that the end has been asked for.
func (w *Writer) Status(local, maxLocal, remote, maxRemote int, exiting bool) {
	b := append(w.buf, "status: local "...)
	b = fraction(b, local, maxLocal)
	b = append(b, " remote "...)
	b = fraction(b, remote, maxRemote)
	if exiting {
		b = append(b, " exitasap"...)
	}
	w.end(b)
}

func fraction(b []byte, n, of int) []byte {
	b = strconv.AppendInt(b, int64(n), 10)
	return strconv.AppendInt(append(b, '/'), int64(of), 10)
}

// Exiting is the last line.
func (w *Writer) Exiting() { w.end(append(w.buf, "status: exiting"...)) }

// New is a message that was accepted.
func (w *Writer) New(msg uint64) { w.end(number(w.buf, "new msg ", msg)) }

// Info is what is known of it.
func (w *Writer) Info(msg uint64, bytes int64, sender string, qp int64, uid int) {
	b := number(w.buf, "info msg ", msg)
	b = strconv.AppendInt(append(b, ": bytes "...), bytes, 10)
	b = AppendSafe(append(b, " from <"...), sender)
	b = strconv.AppendInt(append(b, "> qp "...), qp, 10)
	w.end(strconv.AppendInt(append(b, " uid "...), int64(uid), 10))
}

// Starting is a delivery that begins. A Status follows.
func (w *Writer) Starting(delivery, msg uint64, local bool, recipient string) {
	b := number(w.buf, "starting delivery ", delivery)
	b = number(b, ": msg ", msg)
	if local {
		b = append(b, " to local "...)
	} else {
		b = append(b, " to remote "...)
	}
	w.end(AppendSafe(b, recipient))
}

// Success, Failure and Deferral are how a delivery ended. The text may be empty.
func (w *Writer) Success(delivery uint64, text string) { w.result(delivery, ": success: ", text) }

// Failure is a delivery that will not be tried again; see Success.
func (w *Writer) Failure(delivery uint64, text string) { w.result(delivery, ": failure: ", text) }

// Deferral is a delivery that will be tried again; see Success.
func (w *Writer) Deferral(delivery uint64, text string) { w.result(delivery, ": deferral: ", text) }

// Mangled is a delivery whose report makes no sense; it will be tried again.
func (w *Writer) Mangled(delivery uint64) {
	w.end(append(number(w.buf, "delivery ", delivery), ": report mangled, will defer"...))
}

func (w *Writer) result(delivery uint64, outcome, text string) {
	b := append(number(w.buf, "delivery ", delivery), outcome...)
	w.end(AppendSafe(b, text))
}

// Bounce is a bounce that was queued, of a message, and its qp.
func (w *Writer) Bounce(msg uint64, qp int64) {
	b := number(w.buf, "bounce msg ", msg)
	w.end(strconv.AppendInt(append(b, " qp "...), qp, 10))
}

// Notice is a notice of another kind ("delay", "delivery"), of which qmail-log(5) does not know.
func (w *Writer) Notice(kind string, msg uint64, qp int64) {
	b := number(append(w.buf, kind...), " notice msg ", msg)
	w.end(strconv.AppendInt(append(b, " qp "...), qp, 10))
}

// TripleBounce is one that was dropped, since what failed was a double bounce.
func (w *Writer) TripleBounce(msg uint64) {
	w.end(number(w.buf, "triple bounce: discarding bounce/", msg))
}

// End is a message that is finished.
func (w *Writer) End(msg uint64) { w.end(number(w.buf, "end msg ", msg)) }

// Alert is trouble that stops the mail until somebody helps. The text is qmail-send's, or in its manner.
func (w *Writer) Alert(text string) { w.end(appendText(append(w.buf, "alert: "...), text)) }

// Warning is trouble that qmail-send gets over alone.
func (w *Writer) Warning(text string) { w.end(appendText(append(w.buf, "warning: "...), text)) }

func number(b []byte, before string, n uint64) []byte {
	return strconv.AppendUint(append(b, before...), n, 10)
}

// AppendSafe adds free text.
func AppendSafe(dst []byte, text string) []byte {
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case c == '\n':
			c = '/'
		case c < 33 || c > 126 || c == '%':
			c = '_'
		}
		dst = append(dst, c)
	}
	return dst
}

// appendText adds our own words, where a space may stand.
func appendText(dst []byte, text string) []byte {
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case c == '\n':
			c = '/'
		case c < ' ' || c > '~':
			c = '_'
		}
		dst = append(dst, c)
	}
	return dst
}
