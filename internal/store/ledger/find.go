package ledger

import (
	"bytes"
	"errors"
	"strings"
	"time"

	"qmail/internal/format/address"
	"qmail/internal/store/queue"
	"qmail/internal/system/disk"
)

// Query says what to look for. What is empty does not matter.
type Query struct {
	Sender, Recipient string // an address, or a pattern with stars; ASCII case does not matter
	ID                queue.ID
	Since, Until      time.Time // of the accept
	Limit             int       // of messages; 0 is any number
}

// Found is a message that was looked for.
type Found struct {
	ID         queue.ID
	Accepted   time.Time
	Carried    bool
	UID        int
	Size       int64
	Sender     string
	Recipients []Fate // those that were looked for
}

// Fate is what became of a recipient; Outcome is 0 while it is not known.
type Fate struct {
	Index   uint32
	Address string
	Outcome queue.Outcome
	Time    time.Time
	As      queue.ID
}

// matcher is a pattern made ready.
type matcher struct {
	exact []byte // lower case; nil if there are stars
	parts []string
	any   bool
}

func newMatcher(pattern string) matcher {
	switch {
	case pattern == "" || pattern == "*":
		return matcher{any: true}
	case strings.Contains(pattern, "*"):
		return matcher{parts: strings.Split(address.Lower(pattern), "*")}
	}
	return matcher{exact: []byte(address.Lower(pattern))}
}

func (m *matcher) match(b []byte) bool {
	switch {
	case m.any:
		return true
	case m.exact != nil:
		return len(b) == len(m.exact) && equalFold(b, m.exact)
	}
	rest := address.Lower(string(b))
	first, last := m.parts[0], m.parts[len(m.parts)-1]
	var ok bool
	if rest, ok = strings.CutPrefix(rest, first); !ok {
		return false
	}
	if rest, ok = strings.CutSuffix(rest, last); !ok {
		return false
	}
	for _, part := range m.parts[1 : len(m.parts)-1] {
		_, after, ok := strings.Cut(rest, part)
		if !ok {
			return false
		}
		rest = after
	}
	return true
}

// equalFold compares with b, which is in lower case.
func equalFold(a, b []byte) bool {
	for i, c := range a {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != b[i] {
			return false
		}
	}
	return true
}

// Find looks through the account for messages, and for what became of them. The news of the queue are not in it.
func Find(d disk.FS, q Query) ([]*Found, error) {
	files, err := list(d)
	if err != nil {
		return nil, err
	}
	s := &search{q: q, sender: newMatcher(q.Sender), recipient: newMatcher(q.Recipient), byID: map[queue.ID]*Found{}}
	for _, number := range files {
		err := scanFile(d, number, func(_ *block, e *Entry) error { s.entry(e); return nil })
		if err != nil && !errors.Is(err, errHeader) {
			return s.found, err
		}
	}
	return s.found, nil
}

type search struct {
	q                 Query
	sender, recipient matcher
	found             []*Found
	byID              map[queue.ID]*Found
}

func (s *search) entry(e *Entry) {
	if !e.Accept {
		if len(s.byID) > 0 {
			if f := s.byID[e.ID]; f != nil {
				f.close(e)
			}
		}
		return
	}
	q := &s.q
	if q.ID != 0 && e.ID != q.ID || !s.sender.match(e.Sender) || q.Limit > 0 && len(s.found) >= q.Limit {
		return
	}
	if !s.recipient.any && s.recipient.exact != nil && !containsFold(e.recipients, s.recipient.exact) {
		return
	}
	if !q.Since.IsZero() && e.Time.Before(q.Since) || !q.Until.IsZero() && e.Time.After(q.Until) {
		return
	}
	f := &Found{ID: e.ID, Accepted: e.Time, Carried: e.Carried, UID: e.UID, Size: e.Size, Sender: string(e.Sender)}
	e.EachRecipient(func(i uint32, a []byte) {
		if s.recipient.match(a) {
			f.Recipients = append(f.Recipients, Fate{Index: i, Address: string(a)})
		}
	})
	if len(f.Recipients) > 0 || s.recipient.any {
		s.found = append(s.found, f)
		s.byID[e.ID] = f
	}
}

// containsFold finds out quickly that an address is not there: mostly its bytes are not, in either case.
func containsFold(all, want []byte) bool {
	if len(all) < len(want)+64 {
		for ; len(all) >= len(want); all = all[1:] {
			if equalFold(all[:len(want)], want) {
				return true
			}
		}
		return false
	}
	return bytes.Contains(bytes.ToLower(all), want)
}

func (f *Found) close(e *Entry) {
	if e.All() {
		for i := range f.Recipients {
			f.Recipients[i].set(e)
		}
		return
	}
	at := 0
	e.EachClosed(1<<32-1, func(i uint32) {
		for at < len(f.Recipients) && f.Recipients[at].Index < i {
			at++
		}
		if at == len(f.Recipients) || f.Recipients[at].Index != i {
			at = 0 // the set may step back
			for at < len(f.Recipients) && f.Recipients[at].Index != i {
				at++
			}
		}
		if at < len(f.Recipients) {
			f.Recipients[at].set(e)
		}
	})
}

func (t *Fate) set(e *Entry) {
	if t.Outcome == 0 {
		t.Outcome, t.Time, t.As = e.Outcome, e.Time, e.As
	}
}
