// Package tcpto remembers addresses whose connections timed out, so that they are left alone for a while.
//
// It keeps qmail's rule (an address is skipped for 64 to 97 minutes after its last time-out if it timed out
// at least twice, at least two minutes apart) in memory instead of lock/tcpto, for IPv4 and IPv6. Only an
// accepted connection clears an address; a refused one neither counts nor clears.
package tcpto

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	// MaxHosts is how many addresses are remembered; the oldest makes room.
	MaxHosts = 1024

	enough   = 2 // time-outs before an address is skipped
	maxCount = 10
	apart    = 120 * time.Second
	shortest = 60 * 64 * time.Second
	spread   = 32 // the skip is shortest plus 0 to 31 times 64 s
)

type record struct {
	count int
	last  time.Time
	skip  time.Duration
}

// Table is the memory. It is safe for concurrent use.
type Table struct {
	random func(n int) int

	mu      sync.Mutex
	records map[netip.Addr]record
}

// New makes an empty table. random(n) is from 0 to n-1: addresses that died together come back apart.
func New(random func(n int) int) *Table {
	return &Table{random: random, records: map[netip.Addr]record{}}
}

// Skip reports whether a should be left alone now.
func (t *Table) Skip(a netip.Addr, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, ok := t.records[a]
	if !ok || r.count < enough {
		return false
	}
	since := now.Sub(r.last)
	return since >= 0 && since < r.skip
}

// TimedOut counts a connection that timed out. Within two minutes of the last one it is the same event.
func (t *Table) TimedOut(a netip.Addr, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, ok := t.records[a]
	if since := now.Sub(r.last); ok && since >= 0 && since < apart {
		return
	}
	if !ok && len(t.records) >= MaxHosts {
		t.makeRoom()
	}
	r.count = min(r.count+1, maxCount)
	r.last = now
	r.skip = shortest + time.Duration(t.random(spread))*64*time.Second
	t.records[a] = r
}

// makeRoom forgets the record that qmail would: the one with the least time and count.
func (t *Table) makeRoom() {
	var victim netip.Addr
	var least time.Time
	for a, r := range t.records {
		if worth := r.last.Add(time.Duration(r.count) * 1024 * time.Second); !victim.IsValid() || worth.Before(least) {
			victim, least = a, worth
		}
	}
	delete(t.records, victim)
}

// Connected clears an address.
func (t *Table) Connected(a netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.records, a)
}

// Clear forgets all addresses.
func (t *Table) Clear() {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.records)
}

// Entry is one remembered address.
type Entry struct {
	Addr  netip.Addr
	Count int
	Last  time.Time
}

// Entries lists what is remembered, in the order of addresses.
func (t *Table) Entries() []Entry {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := make([]Entry, 0, len(t.records))
	for a, r := range t.records {
		list = append(list, Entry{a, r.count, r.last})
	}
	slices.SortFunc(list, func(a, b Entry) int { return cmp.Or(a.Addr.Compare(b.Addr), a.Last.Compare(b.Last)) })
	return list
}

// Line is the entry as qmail-tcpto prints it.
func (e Entry) Line(now time.Time) string {
	return fmt.Sprintf("%s timed out %d seconds ago; # recent timeouts: %d", e.Addr, int64(now.Sub(e.Last)/time.Second), e.Count)
}
