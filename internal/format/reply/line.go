package reply

import (
	"strconv"
	"strings"
	"time"
)

// maxLine bounds Line, in bytes.
const maxLine = 481

// Line is the refusal in err as QMTP and QMQP have it: a letter and one line that ends in the status. Whatever the
// text holds, it is printable ASCII and of bounded length.
func Line(err error) string {
	e := Of(err)
	text := e.Text
	if !strings.HasSuffix(text, ")") {
		text += " (#" + e.Status + ")"
	}
	b := append([]byte{e.Letter()}, text[:min(len(text), maxLine-1)]...)
	for i, c := range b {
		if c < ' ' || c > '~' {
			b[i] = '?'
		}
	}
	return string(b)
}

// Accepted is what qmail's servers say of a message that is in the queue: "ok 1800000000 qp 7".
func Accepted(now time.Time, qp uint64) string {
	b := append(make([]byte, 0, 40), "ok "...)
	b = append(strconv.AppendInt(b, now.Unix(), 10), " qp "...)
	return string(strconv.AppendUint(b, qp, 10))
}
