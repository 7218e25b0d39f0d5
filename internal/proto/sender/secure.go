package sender

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"qmail/internal/format/address"
	"qmail/internal/format/smtproute"
	"qmail/internal/format/tlspolicy"
	"qmail/internal/proto/smtp/client"
	"qmail/internal/store/control"
)

// Safety is what connections to servers are asked for.
type Safety struct {
	// Policy is the one for a destination: a relay if there is one, else the domain. nil means that TLS is used where it
	// is offered.
	Policy func(destination string) tlspolicy.Policy
	// Login is what a relay shall know us by; nil, or its result nil, is nothing.
	Login func(host string, port uint16) *client.Login
	// Roots are the authorities to believe; nil for those of the system.
	Roots *x509.CertPool

	sessions tls.ClientSessionCache
}

// resumable is how many TLS sessions are remembered, to be resumed.
const resumable = 512

// secureSMTP is the port where TLS comes first (RFC 8314 3.3).
const secureSMTP = 465

// LoadSafety reads tlspolicy and smtplogins. An error names the file and the line: with these, a line that is not
// understood is no line to be passed over.
func LoadSafety(dir control.Dir) (Safety, error) {
	s := Safety{sessions: tls.NewLRUClientSessionCache(resumable)}
	var err error
	if s.Policy, err = policies(dir); err != nil {
		return Safety{}, err
	}
	s.Login, err = logins(dir)
	return s, err
}

func policies(dir control.Dir) (func(string) tlspolicy.Policy, error) {
	const name = "tlspolicy"
	entries, _, err := dir.Entries(name)
	if err != nil {
		return nil, err
	}
	var lines []string
	known := map[string]tlspolicy.Policy{}
	for _, e := range entries {
		key, value, ok := strings.Cut(e.Text, ":")
		if !ok {
			return nil, fmt.Errorf("%s: line %d: there is no colon", dir.Path(name), e.Number)
		}
		if known[address.Lower(key)], err = tlspolicy.Parse(value); err != nil {
			return nil, fmt.Errorf("%s: line %d: %w", dir.Path(name), e.Number, err)
		}
		lines = append(lines, e.Text)
	}
	m := control.NewMap(lines)
	return func(destination string) tlspolicy.Policy {
		if _, key, ok := m.Domain(destination); ok {
			return known[key]
		}
		return tlspolicy.Policy{Level: tlspolicy.May}
	}, nil
}

var (
	errLogin  = errors.New("not a host, a name and a password, with blanks between")
	errPublic = errors.New("it is readable by everybody; passwords are for our eyes only")
)

// logins reads lines "host[:port] name password"; the password is all the rest of its line.
func logins(dir control.Dir) (func(host string, port uint16) *client.Login, error) {
	const name = "smtplogins"
	entries, present, err := dir.Entries(name)
	if err != nil || !present {
		return nil, err
	}
	info, err := os.Stat(dir.Path(name))
	switch {
	case errors.Is(err, fs.ErrNotExist): // gone meanwhile
		return nil, nil
	case err != nil:
		return nil, err
	case info.Mode()&0o007 != 0:
		return nil, fmt.Errorf("%s: %w", dir.Path(name), errPublic)
	}
	known := map[string]*client.Login{}
	for _, e := range entries {
		host, rest, _ := strings.Cut(strings.ReplaceAll(e.Text, "\t", " "), " ")
		user, password, ok := strings.Cut(strings.TrimLeft(rest, " "), " ")
		if !ok || user == "" || password == "" {
			return nil, fmt.Errorf("%s: line %d: %w", dir.Path(name), e.Number, errLogin)
		}
		known[address.Lower(host)] = &client.Login{Name: user, Password: password}
	}
	return func(host string, port uint16) *client.Login {
		host = address.Lower(host)
		if l := known[host+":"+strconv.Itoa(int(port))]; l != nil {
			return l
		}
		return known[host]
	}, nil
}

// destination is whom a connection is to, by the name that policies and certificates know: the relay, as its setting
// spells it, or else the domain.
func (p *Plan) destination(domain string) string {
	switch {
	case p.Relay.Direct():
		return strings.TrimSuffix(domain, ".")
	case p.Relay.Addr.IsValid():
		return p.Relay.Addr.String()
	}
	return strings.TrimSuffix(p.Relay.Host, ".")
}

// security is what a connection to one of p's targets has to have.
func (c *Config) security(p *Plan, domain string, t smtproute.Target) *client.Security {
	destination := p.destination(domain)
	s := &client.Security{
		Policy: tlspolicy.Policy{Level: tlspolicy.May}, Server: t.Host, Names: []string{destination, "." + destination},
		Roots: c.Safety.Roots, Sessions: c.Safety.sessions,
		AtOnce: !p.Relay.Direct() && t.Addr.Port() == secureSMTP && !p.LMTP,
	}
	if c.Safety.Policy != nil {
		s.Policy = c.Safety.Policy(destination)
	}
	if c.Safety.Login != nil && !p.Relay.Direct() {
		s.Login = c.Safety.Login(destination, t.Addr.Port())
	}
	return s
}

// place is where an idle connection leads, and what was asked of it: only a message that asks the same may use it.
type place struct {
	addr  netip.AddrPort
	asked string
}

// once is asked of connections for one message only.
const once = "once"

// placeOf leaves out what makes no difference.
func placeOf(addr netip.AddrPort, s *client.Security, lmtp bool) place {
	asked := ""
	if lmtp {
		asked = "lmtp "
	}
	level := s.Policy.Level
	if s.Login != nil {
		asked += "login " + s.Login.Name + " "
		level = max(level, tlspolicy.Verify)
	}
	switch level {
	case tlspolicy.May:
	case tlspolicy.Verify:
		names := s.Policy.Names
		if len(names) == 0 {
			names = s.Names
		}
		asked += level.String() + " " + strings.Join(names, " ")
	case tlspolicy.Fingerprint:
		asked += fmt.Sprintf("%s %x", level, s.Policy.Prints)
	default:
		asked += level.String()
	}
	return place{addr, asked}
}
