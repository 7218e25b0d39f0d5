// Package relay says who may send where: rcpthosts, morercpthosts.cdb, relayclients, badhelo, badmailfrom,
// badrcptto (these three also with norelay at the end of their names), envnoathost, localiphost and percenthack,
// read once into a Policy that never changes.
//
// One thing differs from qmail-smtpd on purpose: without rcpthosts nobody but relay clients may send anything.
// No state of these files makes us a relay for a stranger: one that cannot be read or understood is an error
// that names file and line, and the caller keeps what it had or refuses to serve.
package relay

import (
	"fmt"
	"net/netip"
	"strings"

	"qmail/internal/format/address"
	"qmail/internal/format/cdb"
	"qmail/internal/format/reply"
	"qmail/internal/store/control"
)

// Policy is what the control files said. Its methods may be called by any number of goroutines.
type Policy struct {
	hosts       control.Set // rcpthosts
	more        *cdb.DB     // morercpthosts.cdb; nil if there is none, or no rcpthosts
	clients     Networks    // relayclients
	badSenders  unwanted    // badmailfrom
	badRcpts    unwanted    // badrcptto
	badHelos    unwanted    // badhelo
	percentHack control.Set
	own         map[netip.Addr]bool
	localIPHost string // stands in for our own address literals; empty if unknown
	noAtHost    string // envnoathost: what the queue adds to recipients without a domain
}

// Load reads the files. own are the addresses of this machine; loopback and unspecified count as own anyway.
func Load(dir control.Dir, own []netip.Addr) (*Policy, error) {
	p := &Policy{own: make(map[netip.Addr]bool, len(own))}
	for _, ip := range own {
		p.own[ip.Unmap().WithZone("")] = true
	}
	var err error
	if p.localIPHost, err = dir.LineOrMe("localiphost", ""); err != nil {
		return nil, err
	}
	if p.noAtHost, err = dir.LineOrMe("envnoathost", ""); err != nil {
		return nil, err
	}
	if err := p.loadHosts(dir); err != nil {
		return nil, err
	}
	if p.clients, _, err = LoadNetworks(dir, "relayclients"); err != nil {
		return nil, err
	}
	for name, list := range map[string]*unwanted{"badmailfrom": &p.badSenders, "badrcptto": &p.badRcpts, "badhelo": &p.badHelos} {
		if *list, err = loadUnwanted(dir, name); err != nil {
			return nil, err
		}
	}
	p.percentHack, err = loadSet(dir, "percenthack", isDomain)
	return p, err
}

func (p *Policy) loadHosts(dir control.Dir) error {
	var err error
	if p.hosts, err = loadSet(dir, "rcpthosts", isDomainPattern); err != nil || p.hosts == nil {
		return err // without rcpthosts qmail does not look at morercpthosts either
	}
	data, present, err := dir.Read("morercpthosts.cdb")
	if err != nil || !present {
		return err
	}
	if p.more, err = cdb.New(data); err == nil {
		err = p.more.Each(func(_, _ []byte) error { return nil })
	}
	if err != nil {
		return fmt.Errorf("%s: %w", dir.Path("morercpthosts.cdb"), err)
	}
	return nil
}

// loadSet reads a list whose entries must look right; nil if there is no file.
func loadSet(dir control.Dir, name string, good func(string) bool) (control.Set, error) {
	entries, present, err := dir.Entries(name)
	if err != nil || !present {
		return nil, err
	}
	list := make([]string, len(entries))
	for i, e := range entries {
		if !good(e.Text) {
			return nil, malformed(dir, name, e)
		}
		list[i] = e.Text
	}
	return control.NewSet(list), nil
}

func malformed(dir control.Dir, name string, e control.Entry) error {
	return fmt.Errorf("%s:%d: malformed line %q", dir.Path(name), e.Number, e.Text)
}

func isDomain(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c <= ' ' || c == 0x7f || c < 0x80 && strings.IndexByte("*@%!,;<>()\"\\", c) >= 0 {
			return false
		}
	}
	return s != "" && s != "."
}

func isDomainPattern(s string) bool { return isDomain(strings.TrimPrefix(s, ".")) }

func isAddressPattern(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < ' ' || s[i] == 0x7f {
			return false
		}
	}
	return true
}

// Client reports whether the peer at ip may send anywhere.
func (p *Policy) Client(ip netip.Addr) bool { return p.clients.Has(ip) }

// Refusals; shared, never changed.
var (
	errHost     = &reply.Error{Code: 553, Status: "5.7.1", Text: "sorry, that domain isn't in my list of allowed rcpthosts (#5.7.1)"}
	errSender   = &reply.Error{Code: 553, Status: "5.7.1", Text: "sorry, your envelope sender is in my badmailfrom list (#5.7.1)"}
	errRcpt     = &reply.Error{Code: 553, Status: "5.7.1", Text: "sorry, your envelope recipient is in my badrcptto list (#5.7.1)"}
	errHelo     = &reply.Error{Code: 553, Status: "5.7.1", Text: "sorry, your HELO host name is in my badhelo list (#5.7.1)"}
	errBareFrom = &reply.Error{Code: 553, Status: "5.1.7", Text: "sorry, your envelope sender has no domain (#5.1.7)"}
	errBareTo   = &reply.Error{Code: 553, Status: "5.1.3", Text: "sorry, that address has no domain (#5.1.3)"}
	errControl  = &reply.Error{Code: 451, Status: "4.3.0", Text: "unable to read controls (#4.3.0)"}
)

// Sender returns the reverse-path as it shall be stored. What badmailfrom lists is refused at RCPT, as ever.
// relay is whether the peer may send anywhere; only then may a sender lack its domain.
func (p *Policy) Sender(relay bool, path address.Path) (string, error) {
	if path.Bare && !relay {
		return "", errBareFrom
	}
	return p.literal(path.Address), nil
}

// Recipient returns the forward-path as it shall be stored, or the refusal. sender is what Sender returned.
func (p *Policy) Recipient(relay bool, sender string, path address.Path) (string, error) {
	if sender != "" && p.badSenders.address(relay, sender) {
		return "", errSender
	}
	recipient := p.literal(path.Address)
	if p.badRcpts.address(relay, recipient) {
		return "", errRcpt
	}
	if relay {
		return recipient, nil
	}
	if path.Bare {
		if !address.EqualFold(recipient, "postmaster") { // the one name RFC 5321 4.5.1 wants without a domain
			return "", errBareTo
		}
		return recipient, nil
	}
	_, domain, _ := address.Split(recipient)
	if err := p.allowed(domain); err != nil {
		return "", err
	}
	_, domain, _ = address.Split(p.unhack(recipient))
	return recipient, p.allowed(domain)
}

// Helo says whether a client may go by that name. Like a bad sender it is to be refused at RCPT.
func (p *Policy) Helo(relay bool, name string) error {
	if p.badHelos.host(relay, name) {
		return errHelo
	}
	return nil
}

// Raw is Recipient for QMTP, whose addresses are bytes without a syntax: nothing is replaced, senders do not count,
// and a recipient without a domain is welcome, since it is the queue that gives it one.
func (p *Policy) Raw(relay bool, recipient string) (string, error) {
	switch {
	case relay:
		return recipient, nil
	case p.hosts == nil:
		return "", errHost
	}
	whole := recipient
	_, domain, ok := address.Split(recipient)
	if !ok {
		whole += "@" + p.noAtHost
	} else if err := p.allowed(domain); err != nil {
		return "", err
	}
	if there := p.unhack(whole); there != whole {
		_, domain, _ = address.Split(there)
		return recipient, p.allowed(domain)
	}
	return recipient, nil
}

// unhack does what qmail-send will do with domains in percenthack: "a%b@hack" is on its way to "a@b", and
// that is where it must be allowed to go.
func (p *Policy) unhack(addr string) string {
	for {
		local, domain, ok := address.Split(addr)
		i := strings.LastIndexByte(local, '%')
		if !ok || i < 0 || !p.percentHack.Has(domain) {
			return addr
		}
		addr = local[:i] + "@" + local[i+1:]
	}
}

// literal replaces one of our own address literals by localiphost.
func (p *Policy) literal(addr string) string {
	if p.localIPHost == "" || !strings.HasSuffix(addr, "]") {
		return addr
	}
	local, domain, _ := address.Split(addr)
	ip, ok := address.Literal(domain)
	if !ok || !ip.IsLoopback() && !ip.IsUnspecified() && !p.own[ip] {
		return addr
	}
	return local + "@" + p.localIPHost
}

// allowed says whether strangers may send to a domain.
func (p *Policy) allowed(domain string) error {
	_, _, err := p.Listed(domain)
	return err
}

// Listed looks up the domain and each suffix that begins at a dot: in rcpthosts, then in morercpthosts. It returns the
// control file and the entry in it, or the refusal.
func (p *Policy) Listed(domain string) (file, key string, err error) {
	domain = address.Lower(domain)
	if domain == "" || p.hosts == nil {
		return "", "", errHost
	}
	for s, ok := domain, true; ok; s, ok = suffix(s) {
		if p.hosts[s] {
			return "rcpthosts", s, nil
		}
	}
	if p.more == nil {
		return "", "", errHost
	}
	for s, ok := domain, true; ok; s, ok = suffix(s) {
		_, found, err := p.more.Find([]byte(s))
		if err != nil {
			return "morercpthosts.cdb", "", &reply.Error{Code: errControl.Code, Status: errControl.Status, Text: errControl.Text, Err: err}
		}
		if found {
			return "morercpthosts.cdb", s, nil
		}
	}
	return "", "", errHost
}

// suffix returns the next suffix of s that begins at a dot, ".b.c" and then ".c" for "a.b.c".
func suffix(s string) (string, bool) {
	i := strings.IndexByte(s[1:], '.')
	if i < 0 {
		return "", false
	}
	return s[1+i:], true
}
