// Package smtproute decides where a message for a domain goes: the relays of control/smtproutes, and the
// order in which the mail exchangers of a domain are tried (RFC 5321 5.1).
//
// It is given what the DNS said, which addresses are our own, and randomness; it asks nobody. A host whose
// preference is not better than that of the best one that is ourselves is never tried.
package smtproute

import (
	"cmp"
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// SMTP is the port of mail exchangers, and of relays that name none; QMTP that of relays of control/qmtproutes, LMTP of
// those of control/lmtproutes.
const (
	SMTP = 25
	QMTP = 209
	LMTP = 24
)

const (
	// MaxHosts and MaxTargets bound what is tried for one domain.
	MaxHosts   = 20
	MaxTargets = 40
)

// Relay is the right side of a line of smtproutes. With neither Host nor Addr the domain's own exchangers
// are meant, at Port.
type Relay struct {
	Host string     // a name to look up
	Addr netip.Addr // or an address
	Port uint16
}

// Direct reports whether the domain's own exchangers are meant.
func (r Relay) Direct() bool { return r.Host == "" && !r.Addr.IsValid() }

var (
	errPort    = errors.New("the port is not a number from 1 to 65535")
	errBracket = errors.New("no address in brackets")
)

// ParseRelay reads "relay", "relay:port", and the same with an address, a bracketed address (as IPv6 needs
// it) or nothing for relay. port is what counts where none is named.
func ParseRelay(s string, port uint16) (Relay, error) {
	host, rest := s, ""
	if strings.HasPrefix(s, "[") {
		i := strings.IndexByte(s, ']')
		if i < 0 {
			return Relay{}, errBracket
		}
		host, rest = s[:i+1], s[i+1:]
	} else if i := strings.IndexByte(s, ':'); i >= 0 {
		host, rest = s[:i], s[i:]
	}
	r := Relay{Port: port}
	if rest != "" {
		named, err := strconv.ParseUint(strings.TrimPrefix(rest, ":"), 10, 16)
		if err != nil || named == 0 || rest[0] != ':' {
			return Relay{}, errPort
		}
		r.Port = uint16(named)
	}
	var ok bool
	switch r.Addr, ok = Literal(host); {
	case ok, host == "":
	case host[0] == '[':
		return Relay{}, errBracket
	default:
		r.Host = host
	}
	return r, nil
}

// Literal reads a host that is an address itself: "1.2.3.4", "[1.2.3.4]", "2001:db8::1", "[2001:db8::1]",
// "[IPv6:2001:db8::1]" (RFC 5321 4.1.3).
func Literal(host string) (netip.Addr, bool) {
	if len(host) > 2 && host[0] == '[' && host[len(host)-1] == ']' {
		host = host[1 : len(host)-1]
		if len(host) > 5 && strings.EqualFold(host[:5], "IPv6:") {
			host = host[5:]
		}
	}
	a, err := netip.ParseAddr(host)
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, false
	}
	return a.Unmap(), true
}

// Exchanger is one MX record.
type Exchanger struct {
	Preference uint16
	Host       string
}

// Pick orders exchangers by preference, at random within one, and keeps the first MaxHosts. random(n) is
// from 0 to n-1.
func Pick(list []Exchanger, random func(n int) int) []Exchanger {
	list = slices.Clone(list)
	for i := len(list) - 1; i > 0; i-- {
		j := random(i + 1)
		list[i], list[j] = list[j], list[i]
	}
	slices.SortStableFunc(list, func(a, b Exchanger) int { return cmp.Compare(a.Preference, b.Preference) })
	return list[:min(len(list), MaxHosts)]
}

// Host is an exchanger and what is known of its addresses.
type Host struct {
	Exchanger
	Addrs   []netip.Addr
	Unknown bool // the DNS could not say, or not all
}

// Target is an address to try.
type Target struct {
	Host       string
	Addr       netip.AddrPort
	Preference uint16
}

// Outcome says what Targets found.
type Outcome byte

const (
	Some    Outcome = iota // there are targets
	None                   // no host has an address
	Unknown                // none is known, but there may be
	Myself                 // all that is left would be us
)

// Targets lists the addresses of hosts, which stand in the order of Pick, each once: those of hosts that
// are better than the best one that mine knows. A host's IPv4 addresses come before its IPv6 ones.
func Targets(hosts []Host, port uint16, mine func(netip.Addr) bool) ([]Target, Outcome) {
	best, self := ownPreference(hosts, mine)
	var list []Target
	unknown := false
	for _, h := range hosts {
		if self && h.Preference >= best {
			break
		}
		unknown = unknown || h.Unknown
		for _, six := range []bool{false, true} {
			for _, a := range h.Addrs {
				if a = a.Unmap(); a.Is6() == six && len(list) < MaxTargets && !listed(list, a) {
					list = append(list, Target{h.Host, netip.AddrPortFrom(a, port), h.Preference})
				}
			}
		}
	}
	switch {
	case len(list) > 0:
		return list, Some
	case unknown:
		return nil, Unknown
	case self:
		return nil, Myself
	}
	return nil, None
}

func ownPreference(hosts []Host, mine func(netip.Addr) bool) (best uint16, self bool) {
	for _, h := range hosts {
		for _, a := range h.Addrs {
			if mine(a.Unmap()) && (!self || h.Preference < best) {
				best, self = h.Preference, true
			}
		}
	}
	return best, self
}

func listed(list []Target, a netip.Addr) bool {
	for _, t := range list {
		if t.Addr.Addr() == a {
			return true
		}
	}
	return false
}
