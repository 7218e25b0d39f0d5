package sender

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"qmail/internal/format/smtproute"
	qmtp "qmail/internal/proto/qmtp/client"
	smtp "qmail/internal/proto/smtp/client"
)

const (
	// crowded is how many packages wait on a connection before another one is opened, up to maxLinks to one
	// address.
	crowded  = 16
	maxLinks = 4
	// linkAge is when a connection takes no more packages: servers end them after an hour.
	linkAge = 30 * time.Minute
	// maxTries bounds the connections to one address that are tried for one package.
	maxTries = 3
)

// Texts, in the manner of qmail-remote's.
const (
	noQMTP     = "Sorry, I wasn't able to establish a QMTP connection. (#4.4.1)\n"
	unreadable = "Unable to read message. (#4.3.0)\n"
)

// sendQMTP sends m to a relay of qmtproutes.
func (s *Sender) sendQMTP(ctx context.Context, c *Config, targets []smtproute.Target, m *smtp.Message) smtp.Result {
	p := &qmtp.Message{Sender: m.Sender, Recipients: m.Recipients, Head: m.Body.Head, Rest: m.Body.Rest, Size: m.Body.Size}
	last := verdict('Z', noQMTP, len(m.Recipients))
	enough := s.world.Now().Add(searchFor)
	for _, t := range targets {
		r, next := s.tryQMTP(ctx, c, t.Addr, p)
		if r != nil {
			last = *r
		}
		if !next || ctx.Err() != nil || s.world.Now().After(enough) {
			break
		}
	}
	return last
}

// tryQMTP sends to one address. next means that another may do better; r is nil where there is nothing to report.
func (s *Sender) tryQMTP(ctx context.Context, c *Config, addr netip.AddrPort, p *qmtp.Message) (r *smtp.Result, next bool) {
	if s.slow.Skip(addr.Addr(), s.world.Now()) {
		return nil, true
	}
	host := addr.Addr().String()
	died := verdict('Z', "Connected to "+host+" but connection died. (#4.4.2)\n", len(p.Recipients))
	for range maxTries {
		l, err := s.links.get(addr, func() (*qmtp.Conn, error) { return s.openQMTP(ctx, c, addr) })
		if err != nil {
			return s.noConnection(addr, err, len(p.Recipients))
		}
		answer := l.Send(p)
		s.links.put(l)
		switch {
		case answer.Answers != nil:
			r := translate(host, answer.Answers)
			return &r, false
		case errors.Is(answer.Err, qmtp.ErrUnreadable):
			r := verdict('Z', unreadable, len(p.Recipients))
			return &r, false
		case answer.Sent:
			r := verdict('Z', "Connected to "+host+" but connection died. Possible duplicate! (#4.4.2)\n", len(p.Recipients))
			return &r, false
		case p.Rest != nil: // and some of it has been read
			return &died, false
		}
	}
	return &died, true
}

// noConnection is what to do when a connection cannot be made.
func (s *Sender) noConnection(addr netip.AddrPort, err error, recipients int) (r *smtp.Result, next bool) {
	if exhausted(err) {
		s.world.Log.Error("cannot connect", "address", addr, "error", err)
		r := verdict('Z', noResources, recipients)
		return &r, false
	}
	return nil, !errors.Is(err, errClosed)
}

func (s *Sender) openQMTP(ctx context.Context, c *Config, addr netip.AddrPort) (*qmtp.Conn, error) {
	nc, err := s.dial(ctx, c, addr)
	if err != nil {
		return nil, err
	}
	return qmtp.New(nc, c.Timeout), nil
}

// translate makes the answers of a QMTP server what qmail-remote would have said.
func translate(host string, answers []string) smtp.Result {
	r := smtp.Result{Recipients: make([]smtp.Report, len(answers)), Answered: true}
	refusal := byte('D')
	for i, a := range answers {
		said := "Remote host said: " + strings.TrimRight(a[1:], "\n") + "\n"
		switch a[0] {
		case 'K':
			r.Recipients[i] = smtp.Report{Letter: 'r'}
			if r.Message.Letter == 0 {
				r.Message = smtp.Report{Letter: 'K', Text: host + " accepted message.\n" + said}
			}
		case 'D':
			r.Recipients[i] = smtp.Report{Letter: 'h', Text: host + " does not like recipient.\n" + said}
		default:
			r.Recipients[i] = smtp.Report{Letter: 's', Text: host + " does not like recipient.\n" + said}
			refusal = 'Z'
		}
	}
	if r.Message.Letter == 0 {
		r.Message = smtp.Report{Letter: refusal, Text: "Giving up on " + host + ".\n"}
	}
	return r
}

// link is a connection that several messages use at once.
type link struct {
	*qmtp.Conn
	addr   netip.AddrPort
	opened time.Time
	since  time.Time // when it was last used
	users  int
}

// links holds the QMTP connections.
type links struct {
	now func() time.Time

	mu     sync.Mutex
	open   map[netip.AddrPort][]*link
	dials  map[netip.AddrPort]*dialing
	sweep  *time.Timer // runs while there are connections
	closed bool
}

// dialing is a connection being made; all who want one to that address wait for it.
type dialing struct {
	done chan struct{}
	err  error
}

var errClosed = errors.New("sender: closed")

// get returns a connection to addr that takes packages, with a place on it; dial makes a new one.
func (p *links) get(addr netip.AddrPort, dial func() (*qmtp.Conn, error)) (*link, error) {
	for {
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return nil, errClosed
		}
		if l := p.pick(addr); l != nil {
			l.users++
			p.mu.Unlock()
			return l, nil
		}
		if d := p.dials[addr]; d != nil {
			p.mu.Unlock()
			if <-d.done; d.err != nil {
				return nil, d.err
			}
			continue
		}
		d := &dialing{done: make(chan struct{})}
		if p.dials == nil {
			p.dials, p.open = map[netip.AddrPort]*dialing{}, map[netip.AddrPort][]*link{}
		}
		p.dials[addr] = d
		p.mu.Unlock()
		conn, err := dial()
		return p.add(addr, d, conn, err)
	}
}

// pick is the connection with the least to do, or nil if there should be another one. The lock is held.
func (p *links) pick(addr netip.AddrPort) *link {
	var best *link
	least, usable := 0, 0
	for _, l := range p.open[addr] {
		load, ok := l.Load()
		if !ok || p.now().Sub(l.opened) > linkAge {
			continue
		}
		if usable++; best == nil || load < least {
			best, least = l, load
		}
	}
	if best != nil && least >= crowded && usable < maxLinks && p.dials[addr] == nil {
		return nil
	}
	return best
}

// add ends a dialing.
func (p *links) add(addr netip.AddrPort, d *dialing, conn *qmtp.Conn, err error) (*link, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.dials, addr)
	if err == nil && p.closed {
		conn.Finish()
		err = errClosed
	}
	d.err = err
	close(d.done)
	if err != nil {
		return nil, err
	}
	l := &link{Conn: conn, addr: addr, opened: p.now(), since: p.now(), users: 1}
	p.open[addr] = append(p.open[addr], l)
	if p.sweep == nil {
		p.sweep = time.AfterFunc(sweepEach, p.clean)
	}
	return l, nil
}

// put takes back a place.
func (p *links) put(l *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l.users--
	l.since = p.now()
}

// clean ends what has been idle or open for long, and forgets what has ended by itself.
func (p *links) clean() {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	for addr, list := range p.open {
		list = slices.DeleteFunc(list, func(l *link) bool {
			_, usable := l.Load()
			over := !usable || l.users == 0 && now.Sub(l.since) > idleFor || now.Sub(l.opened) > linkAge
			if over {
				l.Finish()
			}
			return over
		})
		if p.open[addr] = list; len(list) == 0 {
			delete(p.open, addr)
		}
	}
	p.sweep = nil
	if len(p.open) > 0 && !p.closed {
		p.sweep = time.AfterFunc(sweepEach, p.clean)
	}
}

// close ends all connections; packages without an answer fail.
func (p *links) close() {
	p.mu.Lock()
	p.closed = true
	var all []*link
	for _, list := range p.open {
		all = append(all, list...)
	}
	p.open = nil
	if p.sweep != nil {
		p.sweep.Stop()
	}
	p.mu.Unlock()
	for _, l := range all {
		l.Close()
	}
}
