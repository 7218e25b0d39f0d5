// Package check is "qmail check": it says in plain words what a stranger sees on each door of control/listen, and what is
// wrong with the certificates that are shown there. It changes nothing, and asks nobody: it reads the files that the
// roles will read, as whoever runs it.
package check

import (
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"qmail/internal/store/control"
	"qmail/internal/store/keys"
	"qmail/internal/system/env"
)

const (
	exitBad   = 1
	exitUsage = 100
)

// Main returns 0 if all is well, 1 if something should be mended, 100 for wrong arguments.
func Main(_ context.Context, e *env.Env, args []string) int {
	if len(args) != 0 {
		fmt.Fprintln(e.Stderr, "qmail-check: usage: qmail check (it takes no arguments)")
		return exitUsage
	}
	r := &report{w: e.Stdout, now: e.Now(), dir: control.Open(e.Home)}
	r.certificates(e.Home)
	r.doors()
	if r.bad {
		return exitBad
	}
	return 0
}

// report is what is written, and whether there was something to mend.
type report struct {
	w     io.Writer
	now   time.Time
	dir   control.Dir
	pairs []keys.Pair
	blind bool // the keys are not for us to see
	bad   bool
}

func (r *report) say(format string, args ...any) { fmt.Fprintf(r.w, format+"\n", args...) }

func (r *report) mend(format string, args ...any) {
	r.bad = true
	r.say("  ! "+format, args...)
}

func (r *report) certificates(home string) {
	r.say("Certificates:")
	pairs, troubles, err := keys.Load(home)
	if err != nil {
		r.blind = true
		r.mend("they cannot be read by you: %v", err)
		return
	}
	r.pairs = pairs
	for _, p := range pairs {
		r.certificate(&p)
	}
	for _, t := range troubles {
		r.mend("%s cannot be used: %v", t.Name, t.Err)
	}
	if len(pairs) == 0 {
		r.mend("there is none, so that there is no TLS (qmail-keyd(8) says where they go)")
	}
}

func (r *report) certificate(p *keys.Pair) {
	by := "signed by " + text(p.Leaf.Issuer.String())
	if p.Leaf.CheckSignatureFrom(p.Leaf) == nil || p.Leaf.Issuer.String() == p.Leaf.Subject.String() {
		by = "signed by itself: others can encrypt to us with it, and have no reason to believe that it is us"
	}
	r.say("  %s is for %s, %s, until %s, %s", p.Path, text(strings.Join(names(p.Leaf), ", ")), kind(p.Leaf),
		p.Leaf.NotAfter.UTC().Format("2 January 2006"), by)
	days, due := p.Expires(r.now)
	switch {
	case due && days < 0:
		r.mend("%s has expired", p.Path)
	case due:
		r.mend("%s expires in less than %d days", p.Path, max(days, 1))
	case r.now.Before(p.Leaf.NotBefore):
		r.mend("%s is not valid yet", p.Path)
	}
}

func names(c *x509.Certificate) []string {
	if len(c.DNSNames) > 0 {
		return c.DNSNames
	}
	return []string{"no name"}
}

func kind(c *x509.Certificate) string { return c.PublicKeyAlgorithm.String() }

// text is somebody else's text in one line.
func text(s string) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return '?'
		}
		return c
	}, s)
}

// tls says how TLS begins at a kind of door.
type tls byte

const (
	never tls = iota
	later     // STARTTLS, or STLS
	first     // before anything else
)

// kinds are the services of control/listen: what they are for, and TLS.
var kinds = map[string]struct {
	what string
	tls  tls
	how  string
}{
	"smtp":        {"anybody can hand in mail for the domains in control/rcpthosts, by SMTP", later, "STARTTLS"},
	"submission":  {"who logs in can send mail anywhere", later, "STARTTLS"},
	"submissions": {"who logs in can send mail anywhere", first, ""},
	"lmtp":        {"mail can be handed in by LMTP", later, "STARTTLS"},
	"qmtp":        {"anybody can hand in mail for the domains in control/rcpthosts, by QMTP", never, ""},
	"qmtps":       {"anybody can hand in mail for the domains in control/rcpthosts, by QMTP", first, ""},
	"qmqp":        {"machines of control/qmqpclients can hand in mail for anybody, by QMQP", never, ""},
	"qmqps":       {"machines of control/qmqpclients can hand in mail for anybody, by QMQP", first, ""},
	"pop3":        {"users can fetch their mail by POP3", later, "STLS"},
	"pop3s":       {"users can fetch their mail by POP3", first, ""},
}

func (r *report) doors() {
	r.say("Doors:")
	list, present, err := r.dir.List("listen")
	if err != nil {
		r.mend("%v", err)
		return
	}
	if !present {
		list = []string{"smtp :25"}
	}
	for _, line := range list {
		r.door(line)
	}
	if len(list) == 0 {
		r.say("  none: nobody can hand in mail from outside")
	}
}

func (r *report) door(line string) {
	fields := strings.Fields(line)
	if len(fields) != 2 {
		r.mend("control/listen: not of the form SERVICE ADDRESS:PORT: %q", line)
		return
	}
	service, address := fields[0], fields[1]
	k, known := kinds[service]
	if !known {
		r.mend("control/listen: unknown service %q", service)
		return
	}
	whence := ""
	if host, _, err := net.SplitHostPort(address); err == nil {
		if ip := net.ParseIP(host); ip != nil && ip.IsLoopback() {
			whence = ", from this machine only"
		}
	}
	r.say("  %s at %s%s: %s; %s", service, text(address), whence, k.what, r.encryption(k.tls, k.how))
	if k.tls == first && len(r.pairs) == 0 && !r.blind {
		r.mend("%s needs a certificate: every client is turned away", service)
	}
}

func (r *report) encryption(when tls, how string) string {
	switch {
	case when == never:
		return "never encrypted"
	case r.blind:
		return "encrypted if there is a certificate"
	case len(r.pairs) == 0 && when == first:
		return "cannot be encrypted, and so is of no use"
	case len(r.pairs) == 0:
		return "not encrypted, for want of a certificate"
	case when == first:
		return "always encrypted, with TLS 1.2 or 1.3"
	}
	return "encrypted if the client asks for it (" + how + "), with TLS 1.2 or 1.3"
}
