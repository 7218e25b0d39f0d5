package send

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"
	"time"

	"qmail/internal/proto/enqueue"
	"qmail/internal/role/send/route"
	"qmail/internal/role/send/schedule"
	"qmail/internal/store/control"
)

// Config is what the control files say. It is read whole; a reload that fails keeps the old one.
type Config struct {
	Routes       *route.Table
	Schedule     schedule.Options
	BounceFrom   string        // bouncefrom
	BounceHost   string        // bouncehost
	DoubleBounce string        // doublebounceto@doublebouncehost
	Me           string        // who reports
	QSBMF        bool          // bounceformat: bounces are what qmail-send has always sent, and not a multipart/report
	BounceMax    int64         // bouncemaxbytes: the largest message that goes back whole; 0 means any
	Warn         time.Duration // warnlifetime: the age at which a sender is told that his mail is late; 0 for never
}

// maxConcurrency is the highest concurrencylocal or concurrencyremote; more would only fill memory.
const maxConcurrency = 4000

// maxSeconds bounds times, so that they can be added to others.
const maxSeconds = 1 << 33

// ReadConfig reads the control files of a home. The error names the file, and the line if one is malformed.
func ReadConfig(home string) (*Config, error) {
	r := reader{dir: control.Open(home)}
	c := &Config{
		Routes:       r.routes(),
		Schedule:     r.schedule(),
		BounceFrom:   r.lineOr("bouncefrom", "MAILER-DAEMON"),
		BounceHost:   r.lineOrMe("bouncehost"),
		DoubleBounce: r.lineOr("doublebounceto", "postmaster") + "@" + r.lineOrMe("doublebouncehost"),
		QSBMF:        r.qsbmf(),
		BounceMax:    r.number("bouncemaxbytes", 50000),
		Warn:         time.Duration(min(r.number("warnlifetime", 0), maxSeconds)) * time.Second,
	}
	c.Me = r.lineOr("me", c.BounceHost)
	if r.err != nil {
		return nil, r.err
	}
	return c, nil
}

// reader keeps the first error.
type reader struct {
	dir control.Dir
	err error
}

func (r *reader) keep(name string, err error) {
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("unable to read control/%s: %w", name, err)
	}
}

func (r *reader) lineOr(name, otherwise string) string {
	v, err := r.dir.LineOr(name, otherwise)
	r.keep(name, err)
	return v
}

func (r *reader) lineOrMe(name string) string {
	v, err := r.dir.LineOrMe(name, name)
	r.keep(name, err)
	return v
}

// list reads a list whose lines must please check.
func (r *reader) list(name string, check func(line string) error) ([]string, bool) {
	entries, ok, err := r.dir.Entries(name)
	r.keep(name, err)
	var list []string
	for _, e := range entries {
		if err := check(e.Text); err != nil && r.err == nil {
			r.err = fmt.Errorf("%s:%d: %q %w", r.dir.Path(name), e.Number, e.Text, err)
		}
		list = append(list, e.Text)
	}
	return list, ok
}

var (
	errNoHost  = errors.New("holds blanks or control characters, which no host name has")
	errNoColon = errors.New("has no colon")
)

// hostLine refuses what can be no host name, and so would never count though somebody meant it to.
func hostLine(line string) error {
	for i := 0; i < len(line); i++ {
		if line[i] <= ' ' || line[i] == 0x7f {
			return errNoHost
		}
	}
	return nil
}

// virtualLine is hostLine for host:prefix.
func virtualLine(line string) error {
	if !strings.Contains(line, ":") {
		return errNoColon
	}
	return hostLine(line)
}

func (r *reader) routes() *route.Table {
	locals, ok := r.list("locals", hostLine)
	if !ok {
		me, present, err := r.dir.Line("me")
		r.keep("me", err)
		if !present && r.err == nil {
			r.err = fmt.Errorf("neither control/locals nor control/me says which mail is local")
		}
		locals = []string{me}
	}
	virtual, _ := r.list("virtualdomains", virtualLine)
	percent, _ := r.list("percenthack", hostLine)
	return &route.Table{
		Locals:   control.NewSet(locals),
		Virtual:  control.NewMap(virtual),
		Percent:  control.NewSet(percent),
		NoAtHost: r.lineOrMe("envnoathost"),
	}
}

func (r *reader) schedule() schedule.Options {
	o := schedule.Defaults()
	o.Lifetime = time.Duration(min(r.number("queuelifetime", int64(o.Lifetime/time.Second)), maxSeconds)) * time.Second
	for channel, name := range [...]string{schedule.Local: "concurrencylocal", schedule.Remote: "concurrencyremote"} {
		l := &o.Channels[channel]
		l.Concurrency = int(min(r.number(name, int64(l.Concurrency)), maxConcurrency))
	}
	if program := r.lineOr("qmailremote", ""); program != "" {
		o.Channels[schedule.Remote].PerJob = 1 // it takes one at a time, and several of it may run
	}
	return o
}

// qsbmf reads bounceformat.
func (r *reader) qsbmf() bool {
	switch format := r.lineOr("bounceformat", "dsn"); {
	case format == "qsbmf":
		return true
	case format != "dsn" && r.err == nil:
		r.err = fmt.Errorf("control/bounceformat: %q is neither dsn nor qsbmf", format)
	}
	return false
}

// number reads the digits that a line begins with; an empty line is no number, and no mistake.
func (r *reader) number(name string, otherwise int64) int64 {
	line, present, err := r.dir.Line(name)
	r.keep(name, err)
	if !present || line == "" {
		return otherwise
	}
	n, ok := control.ScanInt(line)
	if !ok && r.err == nil {
		r.err = fmt.Errorf("%s:1: %q is no number", r.dir.Path(name), line)
	}
	return n
}

// identity says how the injectors of a home are to be named in Received lines.
type identity struct {
	qmaild, qmails, alias int // uids; -1 where the account does not exist
}

func lookupIdentity() identity {
	return identity{qmaild: uidOf("qmaild"), qmails: uidOf("qmails"), alias: uidOf("alias")}
}

func uidOf(name string) int {
	u, err := user.Lookup(name)
	if err != nil {
		return -1
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return -1
	}
	return uid
}

// how is the middle of qmail-queue's Received line for an injector.
func (i identity) how(uid int) string {
	switch uid {
	case i.alias:
		return "by alias"
	case i.qmaild:
		return "from network"
	case i.qmails:
		return "for bounce"
	}
	return enqueue.ByUID(uid)
}

// network is the uid that mail from the network has.
func (i identity) network() int {
	if i.qmaild >= 0 && os.Getuid() == i.qmails {
		return i.qmaild
	}
	return os.Getuid()
}
