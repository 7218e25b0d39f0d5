package senders

import (
	"sync"
	"time"

	"qmail/internal/format/address"
)

const (
	// period is what a limit is for.
	period = time.Hour
	// tellTime is how often somebody hears that his mail is held.
	tellTime = time.Hour
	// maxSenders bounds those who are remembered: who has sent least is forgotten first.
	maxSenders = 16384
)

// Meter reckons the recipients of each login: so many in an hour, which drain evenly. The zero value is ready.
type Meter struct {
	mu    sync.Mutex
	users map[string]*usage
}

type usage struct {
	level float64 // recipients not yet drained
	last  time.Time
	told  time.Time // that mail is held
}

// Within counts the recipients of a message, and reports whether that keeps to a limit for an hour; 0 is none. A message
// over it counts, too, but no more than makes one wait for another hour.
func (m *Meter) Within(login string, recipients, limit int, now time.Time) bool {
	if limit <= 0 {
		return true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	u := m.user(login, now)
	drained := max(0, now.Sub(u.last).Hours()*float64(limit))
	u.level, u.last = max(0, u.level-drained), now
	ok := u.level+float64(recipients) <= float64(limit)
	u.level = min(u.level+float64(recipients), 2*float64(limit))
	return ok
}

// user finds or makes an entry. The lock is held.
func (m *Meter) user(login string, now time.Time) *usage {
	login = address.Lower(login)
	if u := m.users[login]; u != nil {
		return u
	}
	if m.users == nil {
		m.users = map[string]*usage{}
	}
	for level := 0.0; len(m.users) >= maxSenders; level = 2*level + 1 {
		for name, u := range m.users {
			if now.Sub(u.last) >= 2*period || u.level <= level {
				delete(m.users, name)
			}
		}
	}
	u := &usage{last: now}
	m.users[login] = u
	return u
}

// Tell reports whether somebody is to be told now that his mail is held, and takes it that he is.
func (m *Meter) Tell(login string, now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	u := m.user(login, now)
	if !u.told.IsZero() && now.Sub(u.told) < tellTime {
		return false
	}
	u.told = now
	return true
}
