package sender

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"

	"qmail/internal/format/smtproute"
	"qmail/internal/store/control"
)

// Care says what a malformed line of a control file means.
type Care bool

const (
	// Strict makes it an error, for who can say so and wait.
	Strict Care = true
	// Classic reads it as qmail-remote always did: no digits are the default, a route without a colon is
	// none, and a route that makes no sense leads nowhere, for now.
	Classic Care = false
)

// Load reads helohost (default me), lmtproutes, qmtproutes, smtplogins, smtproutes, timeoutconnect, timeoutremote and tlspolicy. Where neither helohost nor me
// exists, Hello is empty and everything is deferred. An error names the file, and the line where one is at fault.
func Load(dir control.Dir, care Care) (*Config, error) {
	c := &Config{}
	var err error
	if c.Hello, err = hello(dir); err != nil {
		return nil, err
	}
	if c.ConnectTimeout, err = seconds(dir, "timeoutconnect", 60, care); err != nil {
		return nil, err
	}
	if c.Timeout, err = seconds(dir, "timeoutremote", 1200, care); err != nil {
		return nil, err
	}
	if c.Route, err = routes(dir, "smtproutes", smtproute.SMTP, care); err != nil {
		return nil, err
	}
	if c.QMTP, err = routes(dir, "qmtproutes", smtproute.QMTP, care); err != nil {
		return nil, err
	}
	if c.LMTP, err = routes(dir, "lmtproutes", smtproute.LMTP, care); err != nil {
		return nil, err
	}
	c.Safety, err = LoadSafety(dir)
	return c, err
}

func hello(dir control.Dir) (string, error) {
	for _, name := range []string{"helohost", "me"} {
		v, present, err := dir.Line(name)
		if err != nil {
			return "", err
		}
		if !present {
			continue
		}
		if v == "" || strings.ContainsFunc(v, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return "", fmt.Errorf("%s: line 1: %q is no host name", dir.Path(name), v)
		}
		return v, nil
	}
	return "", nil
}

// maxSeconds bounds configured waits, so that they can be counted in nanoseconds.
const maxSeconds = 24 * 3600

func seconds(dir control.Dir, name string, otherwise int64, care Care) (time.Duration, error) {
	v, present, err := dir.Line(name)
	if err != nil {
		return 0, err
	}
	n := otherwise
	if present {
		var ok bool
		if n, ok = control.ScanInt(v); !ok && care == Classic {
			n = otherwise
		} else if !ok {
			return 0, fmt.Errorf("%s: line 1: %q is no number", dir.Path(name), v)
		}
	}
	return time.Duration(min(max(n, 1), maxSeconds)) * time.Second, nil
}

// nowhere is an address that no connection can be made to.
func nowhere() smtproute.Relay { return smtproute.Relay{Addr: netip.IPv4Unspecified()} }

// routes reads smtproutes or qmtproutes.
func routes(dir control.Dir, name string, port uint16, care Care) (func(domain string) (smtproute.Relay, bool), error) {
	entries, _, err := dir.Entries(name)
	if err != nil {
		return nil, err
	}
	var lines []string
	for _, e := range entries {
		if err := checkRoute(e.Text); err != nil && care == Strict {
			return nil, fmt.Errorf("%s: line %d: %q: %w", dir.Path(name), e.Number, e.Text, err)
		}
		lines = append(lines, e.Text)
	}
	m := control.NewMap(lines)
	return func(domain string) (smtproute.Relay, bool) {
		value, _, ok := m.Domain(domain)
		if !ok {
			return smtproute.Relay{}, false
		}
		relay, err := smtproute.ParseRelay(value, port)
		if err != nil {
			relay = nowhere()
		}
		return relay, true
	}, nil
}

func checkRoute(line string) error {
	_, value, ok := strings.Cut(line, ":")
	if !ok {
		return errors.New("there is no colon")
	}
	_, err := smtproute.ParseRelay(value, smtproute.SMTP)
	return err
}

// Here is the world of this machine, whose DNS is asked by r.
func Here(r Resolver, now func() time.Time, log *slog.Logger) World {
	return World{Resolver: r, Dial: Dialer(), Local: Local, Random: rand.IntN, Now: now, Log: log}
}
