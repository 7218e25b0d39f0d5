// Package admin is how the tools of the administrator, and users who look for their own mail, talk to a running
// qmail-send: questions about the queue and orders to it, over the Unix socket queue/admin. Who may ask what is for
// qmail-send to say, by the uid and groups that the kernel gives.
//
// The conversation is of frames (system/ipc) on stream 0, a question at a time; every payload is text0 records in a
// fixed order, in which empty ones are left out:
//
//	client  L  list messages that pass a filter: I and R for each, E with the totals
//	        S  show message i: I, R for its recipients, E
//	        C  the bytes of message i: B, E
//	        H  what the journal knows of message i: V, E
//	        O  an order about message i: E
//	        X  what would happen to mail for an address: W, E
//	        T  addresses that timed out: A, E; with f, forget them
//	        Q  the size of the queue: E
//	        N  go on, after M
//	server  I  a message
//	        R  some of its recipients
//	        B  bytes
//	        V  events in its life
//	        W  steps of an explanation
//	        A  addresses
//	        M  a page is over: N asks for the next
//	        E  the answer is complete; totals, or how many recipients an order was for
//	        F  the answer is a refusal: "Ztext (#x.y.z)" or "Dtext (#x.y.z)"
//
// Answers come in pages of bounded size, so neither side holds more than one: a reader that is slow, such as a pager,
// keeps nobody waiting and nothing in memory.
package admin

import (
	"net/netip"
	"path/filepath"
	"strings"
	"time"
)

// SocketPath is the socket below a home.
func SocketPath(home string) string { return filepath.Join(home, "queue", "admin") }

// Frame kinds.
const (
	kindList    = 'L'
	kindShow    = 'S'
	kindCopy    = 'C'
	kindLife    = 'H'
	kindOrder   = 'O'
	kindExplain = 'X'
	kindSlow    = 'T'
	kindSize    = 'Q'
	kindNext    = 'N'

	kindMessage    = 'I'
	kindRecipients = 'R'
	kindBytes      = 'B'
	kindEvents     = 'V'
	kindSteps      = 'W'
	kindAddresses  = 'A'
	kindMore       = 'M'
	kindEnd        = 'E'
	kindRefusal    = 'F'
)

const (
	// MaxText bounds any value in a record, in bytes: an address, and what virtualdomains puts before it.
	MaxText = 4000
	// MaxSteps bounds the steps that a worker may add to an explanation, in bytes.
	MaxSteps = 100 << 10
	// chunk is how much goes into one frame, in bytes, before the next is begun.
	chunk = 32 << 10
	// page is how much is sent before the client has to ask for more, in bytes.
	page = 256 << 10
)

// State of a recipient. The numbers are on the wire.
type State uint8

// The states.
const (
	Waiting State = 1 + iota // for its next attempt
	Ready                    // to be tried as soon as there is a place
	Running                  // being delivered
	Held                     // until it is released
	Failed                   // for good; its sender is told when all others are done
	Done                     // delivered, or told of
	states
)

// Letters of channels.
const (
	Local  = 'l'
	Remote = 'r'
)

var stateNames = [...]string{Waiting: "waiting", Ready: "ready", Running: "running", Held: "held", Failed: "failed", Done: "done"}

func (s State) String() string {
	if s == 0 || s >= states {
		return "unknown"
	}
	return stateNames[s]
}

// ParseState reads what String writes.
func ParseState(name string) (State, bool) {
	for s := Waiting; s < states; s++ {
		if s.String() == name {
			return s, true
		}
	}
	return 0, false
}

// Filter chooses messages. The zero Filter chooses all.
type Filter struct {
	Sender      string        // a pattern: "*" stands for anything; "<>" is the empty sender
	Recipient   string        // a pattern, for one recipient as it was given or as it is delivered to
	Domain      string        // of that recipient; ".example" stands for the domains below
	State       State         // of that recipient; 0 for any
	OlderThan   time.Duration // whole seconds; 0 for no limit
	YoungerThan time.Duration
	MessageID   string // with its angle brackets
	Recipients  bool   // tell the recipients too
	CountOnly   bool   // tell the totals alone
}

// Message is a message of the queue.
type Message struct {
	ID         uint64
	Birth      time.Time // when it was accepted
	Size       int64
	Sender     string
	UID        int // of who injected it
	QP         int64
	Recipients int // all
	Waiting    int // of them, and so on
	Ready      int
	Running    int
	Held       int
	Failed     int
	OnHold     bool
	Damaged    bool      // nothing of its envelope can be read
	Next       time.Time // the first of the planned attempts; zero if none is
}

// Done is how many recipients are delivered to or told of.
func (m *Message) Done() int {
	return m.Recipients - m.Waiting - m.Ready - m.Running - m.Held - m.Failed
}

// Recipient is a recipient of a message.
type Recipient struct {
	Index   int
	Address string // as in the envelope
	To      string // as it is delivered to, by virtualdomains and the like
	Channel byte   // Local or Remote
	State   State
	Next    time.Time // the next attempt; zero if none is planned
	Text    string    // why it waits or failed, if that was asked for and is known
}

// Totals are at the end of a list.
type Totals struct {
	Messages   int64
	Recipients int64 // not done
	Bytes      int64
	Failed     int64 // recipients
	OnHold     int64 // messages
	Oldest     time.Time
}

// Size is what qmail-qstat tells.
type Size struct {
	Messages   int64
	Recipients int64 // not done
	OnHold     int64 // messages
	Dropped    int64 // messages in queue/drop
	Bytes      int64 // of the journal
	LiveBytes  int64 // of them, needed
	Full       bool  // there is no room for more
}

// Verb is an order.
type Verb byte

// The orders.
const (
	Retry   Verb = 'r' // try now who waits
	Hold    Verb = 'h' // try nobody until Release
	Release Verb = 'u'
	Bounce  Verb = 'b' // give up who is not done, and tell the sender
	Delete  Verb = 'd' // and tell nobody
)

// Verbs lists the orders by name.
func Verbs() map[string]Verb {
	return map[string]Verb{"retry": Retry, "hold": Hold, "release": Release, "bounce": Bounce, "delete": Delete}
}

// Order is an order about a message.
type Order struct {
	Verb   Verb
	ID     uint64
	Reason string // of Bounce: what the sender is told
}

// Effect is what an order did.
type Effect struct {
	Recipients int64 // that it was for
	Running    int64 // that were being delivered to; Bounce and Delete are for them if that fails
}

// Event is something that happened to a message.
type Event struct {
	Time       time.Time // zero if it is not known
	What       string    // "accepted", "deferred", "failed", "held", "released", or what a recipient was closed as: "delivered" ...
	Recipients string    // numbers, such as "0-3,7"; empty for all
	Addresses  string    // one of them, when there is but one
	Next       time.Time // of deferred
	Text       string
	As         uint64 // the message that carries on
}

// Step is one step of an explanation. Together with its topic, Value is for programs and Text for people.
type Step struct {
	Topic string
	Value string
	Text  string
	File  string // that decided it
	Line  int    // in there, from 1; 0 if it is not known
}

// Verdict is the last step: what the report of a delivery would be.
func Verdict(report string) Step {
	value, text := "Z", report
	if report != "" {
		value, text = report[:1], report[1:]
	}
	return Step{Topic: "verdict", Value: value, Text: strings.TrimRight(text, "\n")}
}

// Slow is an address whose connections timed out.
type Slow struct {
	Addr    netip.Addr
	Count   int
	Last    time.Time
	Skipped bool // left alone at the moment
}
