// Package jobs is how qmail-send gives deliveries to qmail-local and qmail-rspawn, and what they report.
//
// One connection (system/ipc) carries many jobs at once. Bodies are sent once and named by number, so that a
// message to a thousand recipients is not sent a thousand times:
//
//	send    B  bytes of a body; stream is the body's number, several frames are joined
//	        b  a body in a file: the descriptor comes with it; o<offset> l<length>
//	        F  forget the body
//	        J  a job; stream is the job's number; records below. Its body, if any, has been sent before
//	        Q  a question; stream is its number: x and records of a job (what would be done about it?), s (which
//	           addresses have timed out?) or f (forget them)
//	worker  R  results: i<recipient's index> then K<text>, Z<text> or D<text>, then w if who took the message
//	           took over the recipient's wishes for notices, too
//	        E  the same, and the job is over; recipients without a result are to be tried later
//	        A  the answer to a question, in a form that those who ask and answer agree on; empty if there is none
//
// Records of a job: b<body number> F<sender> H<host> D<dash> E<ext> v (verify only: no body, deliver nothing)
// m<option>... T<recipient> r<option>... . H is for remote jobs, D and E for local ones. Numbers are the
// sender's choice and are used again once forgotten or over.
//
// A worker that dies leaves its jobs without E: each is tried again later, and may have been delivered.
package jobs

import (
	"errors"
	"fmt"

	"qmail/internal/format/envelope"
	"qmail/internal/format/text0"
)

// Frame kinds.
const (
	kindBody    = 'B'
	kindFile    = 'b'
	kindForget  = 'F'
	kindJob     = 'J'
	kindResults = 'R'
	kindEnd     = 'E'
	kindAsk     = 'Q'
	kindAnswer  = 'A'
)

const (
	piece = 64 << 10
	// MaxText bounds the report of one recipient, in bytes, as qmail-send always did.
	MaxText = 10000
	// MaxRecipients is how many recipients one job may have.
	MaxRecipients = 100
	// maxBody bounds one body held in memory by a worker, in bytes; larger ones come as files.
	maxBody = 512 << 10
	// maxHeld bounds all bodies held in memory by a worker, in bytes.
	maxHeld = 256 << 20
	// MaxAnswer bounds the answer to a question, in bytes.
	MaxAnswer = 200 << 10
	// maxAsked bounds the questions that wait for an answer.
	maxAsked = 64
	// maxJobs bounds the jobs of a worker that run at once.
	maxJobs = 4096
)

// Job is one delivery of one body to one or more recipients. A sender with a per-recipient form (VERP) has
// been expanded.
type Job struct {
	Body       uint32 // number of a loaded body; 0 for none
	Verify     bool   // only ask whether the recipient could be delivered to
	Sender     string
	Host       string // remote: the domain that was asked for
	Dash, Ext  string // local
	Options    []string
	Recipients []string
	// RecipientOptions is by index into Recipients.
	RecipientOptions map[int][]string
}

// Question is something to be asked of a worker. One of the fields is set.
type Question struct {
	Explain *Job // what would be done? Nothing is, and there is no body
	Slow    bool // which addresses have timed out?
	Forget  bool // forget them
}

func (q *Question) append(dst []byte) ([]byte, error) {
	switch {
	case q.Explain != nil:
		if err := q.Explain.check(); err != nil {
			return nil, err
		}
		return q.Explain.append(append(dst, 'x')), nil
	case q.Slow:
		return append(dst, 's'), nil
	case q.Forget:
		return append(dst, 'f'), nil
	}
	return nil, errQuestion
}

func parseQuestion(b []byte) (*Question, error) {
	switch {
	case len(b) > 0 && b[0] == 'x':
		j, err := parseJob(b[1:])
		return &Question{Explain: j}, err
	case string(b) == "s":
		return &Question{Slow: true}, nil
	case string(b) == "f":
		return &Question{Forget: true}, nil
	}
	return nil, errQuestion
}

// Result is the outcome for one recipient. Text begins with K, Z or D and may be several lines; NULs are
// not kept.
type Result struct {
	Recipient int // index into the job's Recipients
	Text      string
	// PassedOn says that who took the message also took over the recipient's wishes for notices (RFC 3461).
	PassedOn bool
}

var (
	errJob      = errors.New("jobs: malformed job")
	errResults  = errors.New("jobs: malformed results")
	errQuestion = errors.New("jobs: malformed question")
	errPeer     = errors.New("jobs: the peer breaks the protocol")
)

// check reports what cannot be written.
func (j *Job) check() error {
	e := envelope.Envelope{Sender: j.Sender, Options: j.Options, Recipients: j.Recipients, RecipientOptions: j.RecipientOptions}
	if err := e.Check(); err != nil {
		return err
	}
	for _, s := range []string{j.Host, j.Dash, j.Ext} {
		if len(s) > 2*envelope.MaxAddress || !text0.Clean(s) {
			return errJob
		}
	}
	if len(j.Recipients) == 0 || len(j.Recipients) > MaxRecipients {
		return fmt.Errorf("jobs: %d recipients", len(j.Recipients))
	}
	return nil
}

func (j *Job) append(dst []byte) []byte {
	dst = text0.AppendInt(dst, 'b', int64(j.Body))
	if j.Verify {
		dst = text0.Append(dst, 'v', "")
	}
	for _, r := range [...]struct {
		letter byte
		value  string
	}{{'H', j.Host}, {'D', j.Dash}, {'E', j.Ext}} {
		if r.value != "" {
			dst = text0.Append(dst, r.letter, r.value)
		}
	}
	e := envelope.Envelope{Sender: j.Sender, Options: j.Options, Recipients: j.Recipients, RecipientOptions: j.RecipientOptions}
	return e.Append(dst, false)
}

func parseJob(b []byte) (*Job, error) {
	j := &Job{}
	for len(b) > 0 && b[0] != 'F' {
		letter, value, rest, err := text0.Cut(b)
		if err != nil {
			return nil, err
		}
		if len(value) > 2*envelope.MaxAddress {
			return nil, errJob
		}
		switch letter {
		case 'b':
			n, err := text0.Int(value)
			if err != nil || n < 0 || n > 1<<32-1 {
				return nil, errJob
			}
			j.Body = uint32(n)
		case 'v':
			j.Verify = true
		case 'H':
			j.Host = string(value)
		case 'D':
			j.Dash = string(value)
		case 'E':
			j.Ext = string(value)
		default:
			return nil, fmt.Errorf("jobs: unknown record %q", letter)
		}
		b = rest
	}
	e, err := envelope.Parse(b, false, MaxRecipients)
	if err != nil {
		return nil, err
	}
	j.Sender, j.Options, j.Recipients, j.RecipientOptions = e.Sender, e.Options, e.Recipients, e.RecipientOptions
	if len(j.Recipients) == 0 {
		return nil, errJob
	}
	return j, nil
}

func appendResults(dst []byte, results []Result) []byte {
	for _, r := range results {
		dst = text0.AppendInt(dst, 'i', int64(r.Recipient))
		dst = appendText(dst, r.Text)
		if r.PassedOn {
			dst = text0.Append(dst, 'w', "")
		}
	}
	return dst
}

// appendText writes a report as one record whose letter is its first byte. What is not a report becomes Z.
func appendText(dst []byte, text string) []byte {
	if text == "" || text[0] != 'K' && text[0] != 'Z' && text[0] != 'D' {
		text = "Z" + text
	}
	if len(text) > MaxText {
		text = text[:MaxText]
	}
	for i := 0; i < len(text); i++ {
		if text[i] != 0 {
			dst = append(dst, text[i])
		}
	}
	return append(dst, 0)
}

func parseResults(b []byte) ([]Result, error) {
	var results []Result
	for len(b) > 0 {
		letter, value, rest, err := text0.Cut(b)
		if err != nil || letter != 'i' {
			return nil, errResults
		}
		n, err := text0.Int(value)
		if err != nil || n < 0 || n >= MaxRecipients {
			return nil, errResults
		}
		letter, value, b, err = text0.Cut(rest)
		if err != nil || letter != 'K' && letter != 'Z' && letter != 'D' || len(value) >= MaxText {
			return nil, errResults
		}
		r := Result{Recipient: int(n), Text: string(letter) + string(value)}
		if len(b) >= 2 && b[0] == 'w' && b[1] == 0 {
			r.PassedOn = true
			b = b[2:]
		}
		results = append(results, r)
	}
	return results, nil
}
