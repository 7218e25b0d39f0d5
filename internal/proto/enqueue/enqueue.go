// Package enqueue is the only door into the queue: a client for whoever has a message, a server for
// qmail-send, and the drop file for when no qmail-send is running.
//
// Client and server speak frames (system/ipc). A connection carries many conversations at once, each with a
// stream number of the client's choice:
//
//	client  E  envelope records (format/envelope, untrusted form); several E frames are joined
//	        B  bytes of the message; any number. All E frames come before the first B, or after the last
//	        D  the message is complete: answer when it is on disk
//	        X  throw the message away
//	        V  one address: would you take it? No envelope, no message
//	server  R  "K<id>", "Ztext (#x.y.z)" or "Dtext (#x.y.z)"; one for each D and V, and for a message
//	           that is refused before its D, after which the server forgets the stream until its D or X;
//	           "?" if the server itself does not know whether the message is in the queue
//
// K means: on disk, together with everything needed to find it again. A connection that ends before R
// leaves the client in doubt: all recipients or none.
package enqueue

import (
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"qmail/internal/format/reply"
)

// Frame kinds.
const (
	kindEnvelope = 'E'
	kindBody     = 'B'
	kindDone     = 'D'
	kindAbort    = 'X'
	kindVerify   = 'V'
	kindResult   = 'R'
)

const (
	// piece is how much of a body or envelope goes into one frame, in bytes.
	piece = 64 << 10
	// MaxEnvelope bounds the envelope of one message, in bytes: about a million recipients.
	MaxEnvelope = 64 << 20
)

// HoldOption is an option of a message that qmail-send is to hold: who accepts it has doubts that the administrator is
// to clear up. It goes no further than qmail-send.
const HoldOption = "HOLD"

// birth begins an option of a message that says when it was first accepted, by another queue.
const birth = "BIRTH="

// BirthOption is that option. qmail-send believes it of root and of itself, and it goes no further.
func BirthOption(at time.Time) string { return birth + strconv.FormatInt(at.UnixNano(), 10) }

// BirthOf reads one; false for any other option.
func BirthOf(option string) (at time.Time, ok bool) {
	digits, ok := strings.CutPrefix(option, birth)
	n, err := strconv.ParseInt(digits, 10, 64)
	return time.Unix(0, n), ok && err == nil
}

// SocketPath is the door's socket below a home.
func SocketPath(home string) string { return filepath.Join(home, "queue", "enqueue") }

// DropDir is where complete messages wait for a qmail-send to start.
func DropDir(home string) string { return filepath.Join(home, "queue", "drop") }

// Accepted is what the queue says of a message it has taken.
type Accepted struct {
	ID   uint64
	Time time.Time // when the answer came
}

var (
	errGone    = reply.Temporary("4.3.0", "unable to reach the queue", nil)
	errTimeout = reply.Temporary("4.3.0", "the queue takes too long", nil)
)

// ErrUnreachable is what an injector gets when no qmail-send can be reached, or when one went away.
var ErrUnreachable error = errGone

// Unreachable reports whether err says that qmail-send was not there, went away or is stopping, rather than
// what it thinks of the message. A message that was complete when qmail-send went away is in doubt.
func Unreachable(err error) bool {
	if err == nil {
		return false
	}
	e := reply.Of(err)
	return e.Status == errGone.Status && e.Text == errGone.Text || e.Status == "4.3.2"
}
