package sender

import (
	"context"
	"net"
	"net/netip"
	"time"

	"qmail/internal/format/smtproute"
	"qmail/internal/proto/smtp/client"
	"qmail/internal/system/dns"
)

// refusal is why a domain has no targets. A nil one is none.
type refusal = client.Report

func noHost(name string) *refusal {
	return &refusal{Letter: 'D', Text: "Sorry, I couldn't find any host named " + visible(name) + ". (#5.1.2)\n"}
}

func softDNS() *refusal {
	return &refusal{Letter: 'Z', Text: "Sorry, I couldn't find any host by that name. (#4.1.2)\n"}
}

func noExchanger() *refusal {
	return &refusal{Letter: 'D', Text: "Sorry, I couldn't find a mail exchanger or IP address. (#5.4.4)\n"}
}

func nullMX() *refusal { // RFC 7505 4.2
	return &refusal{Letter: 'D', Text: "Sorry, that host says that it does not take mail (null MX). (#5.1.10)\n"}
}

func myself() *refusal {
	return &refusal{Letter: 'D', Text: "Sorry. Although I'm listed as a best-preference MX or A for that host,\nit isn't in my control/locals file, so I don't treat it as local. (#5.4.6)\n"}
}

// visible shows a name that a stranger chose: bytes below 33 and above 126 are '?'.
func visible(name string) string {
	b := []byte(name)
	for i, c := range b {
		if c < 33 || c > 126 {
			b[i] = '?'
		}
	}
	return string(b)
}

// Plan is where mail for a domain goes.
type Plan struct {
	Setting string          // "lmtproutes", "qmtproutes" or "smtproutes" if an entry there says so
	Relay   smtproute.Relay // and what it says
	QMTP    bool
	LMTP    bool
	Targets []smtproute.Target // in the order in which to try them
	Refusal *client.Report     // or why there are none
}

// plan finds out where mail for a domain goes.
func (s *Sender) plan(ctx context.Context, c *Config, domain string) (p Plan) {
	if c.LMTP != nil {
		if relay, routed := c.LMTP(domain); routed && !relay.Direct() {
			p = Plan{Setting: "lmtproutes", Relay: relay, LMTP: true}
			p.Targets, p.Refusal = s.relayTargets(ctx, relay)
			return p
		}
	}
	if c.QMTP != nil {
		if relay, routed := c.QMTP(domain); routed && !relay.Direct() {
			p = Plan{Setting: "qmtproutes", Relay: relay, QMTP: true}
			p.Targets, p.Refusal = s.relayTargets(ctx, relay)
			return p
		}
	}
	relay, routed := c.Route(domain)
	if routed {
		p.Setting, p.Relay = "smtproutes", relay
	} else {
		relay.Port = smtproute.SMTP
	}
	p.Targets, p.Refusal = s.targets(ctx, relay, domain)
	return p
}

// targets finds the addresses for a domain, in the order in which to try them. A relay that is direct only has a port.
func (s *Sender) targets(ctx context.Context, relay smtproute.Relay, domain string) ([]smtproute.Target, *refusal) {
	if !relay.Direct() {
		return s.relayTargets(ctx, relay)
	}
	mine, err := s.mine()
	if err != nil {
		s.world.Log.Error("cannot list the addresses of this machine", "error", err)
		return nil, &refusal{Letter: 'Z', Text: noResources}
	}
	if a, ok := smtproute.Literal(domain); ok {
		return choose([]smtproute.Host{{Exchanger: smtproute.Exchanger{Host: domain}, Addrs: []netip.Addr{a}}}, relay.Port, mine, noExchanger)
	}
	return s.exchangers(ctx, domain, relay.Port, mine)
}

// relayTargets looks up a relay of smtproutes. It may be this machine: whoever wrote the route knows why.
func (s *Sender) relayTargets(ctx context.Context, relay smtproute.Relay) ([]smtproute.Target, *refusal) {
	if relay.Addr.IsValid() {
		return []smtproute.Target{{Host: relay.Addr.String(), Addr: netip.AddrPortFrom(relay.Addr, relay.Port)}}, nil
	}
	h := s.host(ctx, smtproute.Exchanger{Host: relay.Host})
	return choose([]smtproute.Host{h}, relay.Port, func(netip.Addr) bool { return false }, func() *refusal { return noHost(relay.Host) })
}

// exchangers looks up the MX hosts of a domain, or, where it has none, the domain itself.
func (s *Sender) exchangers(ctx context.Context, domain string, port uint16, mine func(netip.Addr) bool) ([]smtproute.Target, *refusal) {
	a, err := s.world.Resolver.Lookup(ctx, domain, dns.TypeMX)
	if err != nil {
		return nil, softDNS()
	}
	if a.Status != dns.Found {
		h := s.host(ctx, smtproute.Exchanger{Host: domain})
		return choose([]smtproute.Host{h}, port, mine, func() *refusal { return noHost(domain) })
	}
	list := named(a.MX)
	if len(list) == 0 {
		return nil, nullMX()
	}
	list = smtproute.Pick(list, s.world.Random)
	for _, x := range list {
		if usable(x.Host) {
			s.world.Resolver.Prefetch(x.Host, dns.TypeA)
			s.world.Resolver.Prefetch(x.Host, dns.TypeAAAA)
		}
	}
	hosts := make([]smtproute.Host, len(list))
	for i, x := range list {
		hosts[i] = s.host(ctx, x)
	}
	return choose(hosts, port, mine, noExchanger)
}

// named leaves out null MX records, which mean nothing beside others (RFC 7505 3).
func named(records []dns.MX) []smtproute.Exchanger {
	list := make([]smtproute.Exchanger, 0, len(records))
	for _, mx := range records {
		if mx.Host != "" || mx.Bad {
			list = append(list, smtproute.Exchanger{Preference: mx.Preference, Host: mx.Host})
		}
	}
	return list
}

func choose(hosts []smtproute.Host, port uint16, mine func(netip.Addr) bool, none func() *refusal) ([]smtproute.Target, *refusal) {
	targets, outcome := smtproute.Targets(hosts, port, mine)
	switch outcome {
	case smtproute.Some:
		return targets, nil
	case smtproute.Unknown:
		return nil, softDNS()
	case smtproute.Myself:
		return nil, myself()
	}
	return nil, none()
}

// usable reports whether a name may be looked up. One that reads as an address is a name without one: it
// must not lead where its owner could not point an A record.
func usable(name string) bool {
	_, literal := smtproute.Literal(name)
	return name != "" && !literal
}

// host looks up the addresses of one host.
func (s *Sender) host(ctx context.Context, x smtproute.Exchanger) smtproute.Host {
	h := smtproute.Host{Exchanger: x}
	if !usable(x.Host) {
		return h
	}
	s.world.Resolver.Prefetch(x.Host, dns.TypeAAAA)
	for _, kind := range []dns.Type{dns.TypeA, dns.TypeAAAA} {
		a, err := s.world.Resolver.Lookup(ctx, x.Host, kind)
		h.Unknown = h.Unknown || err != nil
		h.Addrs = append(h.Addrs, a.Addrs...)
	}
	return h
}

// localFor is how long the list of our own addresses is taken for current.
const localFor = time.Minute

type local struct {
	addrs map[netip.Addr]bool
	until time.Time
}

// mine returns whether an address is ours. A list that cannot be renewed goes on to count.
func (s *Sender) mine() (func(netip.Addr) bool, error) {
	l := s.local.Load()
	now := s.world.Now()
	if l == nil || now.After(l.until) {
		addrs, err := s.world.Local()
		switch {
		case err != nil && l == nil:
			return nil, err
		case err != nil:
			l = &local{l.addrs, now.Add(localFor)}
		default:
			l = &local{map[netip.Addr]bool{}, now.Add(localFor)}
			for _, a := range addrs {
				l.addrs[a.Unmap()] = true
			}
		}
		s.local.Store(l)
	}
	return func(a netip.Addr) bool { return l.addrs[a] || a.IsUnspecified() }, nil
}

// Local lists the addresses of this machine's interfaces, and ::1.
func Local() ([]netip.Addr, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	addrs := []netip.Addr{netip.IPv6Loopback()}
	for _, a := range list {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				addrs = append(addrs, ip.Unmap())
			}
		}
	}
	return addrs, nil
}
