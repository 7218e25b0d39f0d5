package received

import (
	"bytes"

	"qmail/internal/format/address"
)

// MaxHops is how many trace fields a message may have before it counts as looping: qmail-smtpd's limit.
const MaxHops = 100

// Hops counts the Received and Delivered-To fields in the header of a message whose lines end in LF. The message
// may come in pieces; the state is a few bytes. The zero value is ready to use.
type Hops struct {
	Seen   int
	inBody bool
	name   [16]byte // how the line at hand begins
	have   int
}

// Add takes the next bytes of the message.
func (h *Hops) Add(p []byte) {
	for len(p) > 0 && !h.inBody {
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			h.Line(p)
			return
		}
		h.Line(p[:i])
		h.End()
		p = p[i+1:]
	}
}

// Line takes the next bytes of a header line, without its end; for who looks for line ends anyway.
func (h *Hops) Line(p []byte) { h.have += copy(h.name[h.have:], p) }

// End ends the header line at hand: it counts if it is a hop, and ends the header if it is empty.
func (h *Hops) End() {
	h.inBody = h.have == 0
	if isField(h.name[:h.have], "received") || isField(h.name[:h.have], "delivered-to") {
		h.Seen++
	}
	h.have = 0
}

// InBody reports whether the header has ended.
func (h *Hops) InBody() bool { return h.inBody }

// isField reports whether line begins with a field name and a colon. Blanks before the colon are of the obsolete
// syntax (RFC 5322 4.5).
func isField(line []byte, name string) bool {
	if len(line) <= len(name) || !address.EqualFold(string(line[:len(name)]), name) {
		return false
	}
	rest := bytes.TrimLeft(line[len(name):], " \t")
	return len(rest) > 0 && rest[0] == ':'
}
