package authd

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"qmail/internal/format/address"
	"qmail/internal/proto/checker"
	"qmail/internal/proto/sasl"
)

// maxWaiting bounds those who wait for a hash to be computed: some seconds of work.
const maxWaiting = 200

var (
	errTooMany = errors.New("too many failed logins, try again later (#4.7.0)")
	errBusy    = errors.New("too many logins at once, try again later (#4.7.0)")
)

// unable is what a client reads of trouble that is ours.
const unable = "unable to check passwords now, try again later (#4.7.0)"

// Mechanisms is checker.Backend.
func (r *role) Mechanisms(peer string) (list []string) {
	book, others := r.book.Load(), *r.dovecot.Load() != "" || r.program.Load()
	if book.Len() == 0 && !others {
		return nil
	}
	if !others {
		for _, hash := range [...]string{sasl.ScramSHA256, sasl.ScramSHA1} {
			if book.All(hash) {
				list = append(list, hash+"-PLUS", hash)
			}
		}
	}
	list = append(list, sasl.Plain, sasl.Login)
	if allowed := *r.allowed.Load(); len(allowed) > 0 {
		list = slices.DeleteFunc(list, func(m string) bool { return !slices.Contains(allowed, m) })
	}
	return list
}

// Begin is checker.Backend.
func (r *role) Begin(peer string, who checker.Who, mechanism string) checker.Conversation {
	x := &exchange{role: r, who: who, mechanism: mechanism}
	x.ip, _ = netip.ParseAddr(who.IP)
	x.who.IP = ""
	if x.ip.IsValid() {
		x.who.IP = x.ip.Unmap().WithZone("").String()
	}
	offered := r.Mechanisms(peer)
	if !slices.Contains(services[peer], who.Service) || !slices.Contains(offered, mechanism) {
		return x
	}
	var bindings []sasl.Binding
	if slices.ContainsFunc(offered, func(m string) bool { return strings.HasSuffix(m, "-PLUS") }) { // else nobody has been told
		for _, b := range who.Bindings {
			bindings = append(bindings, sasl.Binding(b))
		}
	}
	x.sasl, _ = sasl.NewServer(mechanism, bindings, x) // nil if there is no such mechanism here
	return x
}

// exchange is one exchange. It is the Users of its sasl.Server, whose calls come within Next.
type exchange struct {
	role      *role
	who       checker.Who
	ip        netip.Addr
	mechanism string
	sasl      *sasl.Server
	ctx       context.Context // of Next
	login     string          // who it says it is, once that counts as a guess
}

// Next is checker.Conversation.
func (x *exchange) Next(ctx context.Context, response []byte) checker.Answer {
	if x.sasl == nil {
		return checker.Answer{Verdict: checker.Malformed}
	}
	x.ctx = ctx
	began := time.Now()
	challenge, done, err := x.sasl.Next(response)
	if !done {
		return checker.Answer{Verdict: checker.More, Challenge: challenge}
	}
	return x.end(began, err)
}

// end says how it ended. A wrong guess is answered in its own time, reckoned from when it came.
func (x *exchange) end(began time.Time, err error) checker.Answer {
	g := &x.role.guesses
	switch {
	case err == nil:
		login := address.Lower(x.sasl.Login)
		g.Right(x.ip, x.login, time.Now())
		x.role.log.Info("login", "service", x.who.Service, "ip", x.who.IP, "mechanism", x.mechanism, "user", strconv.QuoteToASCII(login))
		return checker.Answer{Verdict: checker.Yes, Login: login}
	case errors.Is(err, sasl.ErrMalformed):
		return checker.Answer{Verdict: checker.Malformed}
	case errors.Is(err, sasl.ErrRefused):
		wait(x.ctx, began.Add(g.Delay(x.ip, x.login, time.Now())))
		x.refused("wrong name or password")
		return checker.Answer{Verdict: checker.No}
	case errors.Is(err, errTooMany):
		wait(x.ctx, began.Add(time.Second))
		x.refused("too many failed logins")
		return checker.Answer{Verdict: checker.Later, Text: errTooMany.Error()}
	}
	if x.login != "" {
		g.Void(x.ip, x.login, time.Now())
	}
	if errors.Is(err, errBusy) {
		return checker.Answer{Verdict: checker.Later, Text: errBusy.Error()}
	}
	x.role.log.Warn("unable to check a password", "service", x.who.Service, "err", err)
	return checker.Answer{Verdict: checker.Later, Text: unable}
}

// refused tells the log. A name that is not known is not shown: it may be a password.
func (x *exchange) refused(why string) {
	name := "a name that is not known"
	if u, known := x.role.book.Load().Find(x.login); known {
		name = u.Login
	}
	x.role.refusals.Note(x.who.IP, x.who.Service+" login "+name, why)
}

// wait sleeps until a time or the end of ctx.
func wait(ctx context.Context, until time.Time) {
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// guess counts a guess, and says whether it may be looked at.
func (x *exchange) guess(login string) error {
	if !x.role.guesses.Take(x.ip, login, time.Now()) {
		x.login = ""
		return errTooMany
	}
	x.login = login
	return nil
}

// begin waits for a turn to compute a hash.
func (r *role) begin(ctx context.Context) error {
	defer r.waiting.Add(-1)
	if r.waiting.Add(1) > maxWaiting {
		return errBusy
	}
	select {
	case r.work <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *role) done() { <-r.work }
