package smtpd

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"qmail/internal/format/address"
	"qmail/internal/format/date822"
	"qmail/internal/format/envelope"
	"qmail/internal/proto/enqueue"
	"qmail/internal/proto/smtp/server"
)

// admit counts what somebody who has logged in sends. What is beyond control/submitlimit is accepted, and held: whoever
// has got hold of a password sends no more than that, and whoever had a reason loses nothing.
func (r *role) admit(p *server.Peer, e *envelope.Envelope) {
	if p.Login == "" {
		return
	}
	limit := r.config.Load().submitLimit
	if !r.meter.Within(p.Login, len(e.Recipients), limit, r.Env.Now()) {
		e.Options = append(e.Options, enqueue.HoldOption)
	}
}

// accepted tells the log who has sent a message, and of one that is held its owner and the postmaster, once an hour.
func (r *role) accepted(p *server.Peer, e *envelope.Envelope, id uint64) {
	if p.Login == "" {
		return
	}
	held := slices.Contains(e.Options, enqueue.HoldOption)
	text := fmt.Sprintf("submitted %s: msg %d recipients %d held %v user %q", p.IP, id, len(e.Recipients), held, p.Login)
	r.Refusals.Say(text)
	now := r.Env.Now()
	if !held || !r.meter.Tell(p.Login, now) {
		return
	}
	c := r.config.Load()
	owner := c.complete(address.Path{Address: p.Login, Bare: !strings.Contains(p.Login, "@")}).Address
	if err := r.tell(owner, c, id, now); err != nil {
		r.Log.Warn("unable to tell somebody that his mail is held", "msg", id, "err", err)
	}
}

// tell puts the notice into the queue.
func (r *role) tell(owner string, c *Config, id uint64, now time.Time) error {
	to := []string{owner, "postmaster@" + c.Me}
	if owner == to[1] {
		to = to[:1]
	}
	e := &envelope.Envelope{Recipients: to}
	m, err := r.link.Open(e)
	if err != nil {
		return err
	}
	if err := m.Write(notice(owner, c, id, now)); err != nil {
		m.Abort()
		return err
	}
	_, err = m.Commit(e)
	return err
}

// notice is what the owner reads. The login is known to qmail-authd, and has no control characters.
func notice(owner string, c *Config, id uint64, now time.Time) []byte {
	var b []byte
	b = append(b, "Date: "...)
	b = append(date822.Append(b, now), '\n')
	b = fmt.Appendf(b, "Message-ID: <%d.held.%d@%s>\n", now.UnixNano(), id, c.Session.IDHost)
	b = fmt.Appendf(b, "From: MAILER-DAEMON@%s\nTo: %s\nSubject: your mail is on hold\nAuto-Submitted: auto-generated\n", c.Me, address.QuoteAddress(owner))
	b = fmt.Appendf(b, "MIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n")
	b = fmt.Appendf(b, `Hi. This is the mail server at %s.

In the last hour your account has sent mail to more than %d recipients. What
it sends beyond that is kept here and not lost, but it is not sent on until
the postmaster of this server, who reads this too, has looked at it.

If it was not you who sent so much, change your password now.

For the postmaster: the first message on hold is %d.
"qmail queue list -state held" lists all of them, "qmail queue release ID" lets
one go, "qmail queue delete ID" throws it away.
`, c.Me, c.submitLimit, id)
	return b
}
