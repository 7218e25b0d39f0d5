package server

import (
	"net/netip"
	"strings"

	"qmail/internal/format/address"
	"qmail/internal/format/dsn"
)

// Trust is what the network of a client is trusted to say of others.
type Trust struct {
	XClient  bool // who it speaks for (XCLIENT)
	XForward bool // where a message came from (XFORWARD), for the log
}

// noAttribute is the value of one that is not known, or not now.
const (
	unavailable = "[UNAVAILABLE]"
	notNow      = "[TEMPUNAVAIL]"
)

const (
	notTrusted   = "550 5.7.0 not for you (#5.7.0)\r\n"
	badAttribute = "501 5.5.4 bad attribute (#5.5.4)\r\n"
)

// attributes reads "NAME=value ..." whose values are xtext. Those that are not known are an error, as for Postfix.
func attributes(arg []byte, known func(name, value string) bool) bool {
	if len(arg) == 0 {
		return false
	}
	for word := range strings.SplitSeq(string(arg), " ") {
		if word == "" {
			continue
		}
		name, value, valued := strings.Cut(word, "=")
		if value == unavailable || value == notNow {
			value = "" // the brackets are not xtext
		} else {
			var ok bool
			if value, ok = dsn.ParseXtext(value); !ok {
				return false
			}
		}
		if !valued || len(value) > maxHelo || !printable([]byte(value)) || !known(string(address.Lower(name)), value) {
			return false
		}
	}
	return true
}

// parseAddress reads an address of these commands: IPv4, or IPv6 with "IPV6:" in front. None is the zero value.
func parseAddress(value string) (netip.Addr, bool) {
	if value == "" {
		return netip.Addr{}, true
	}
	if len(value) > 5 && address.EqualFold(value[:5], "ipv6:") {
		value = value[5:]
	}
	ip, err := netip.ParseAddr(value)
	return ip.Unmap(), err == nil && ip.Zone() == ""
}

// xclient lets a machine before us say for whom it speaks (https://www.postfix.org/XCLIENT_README.html). The session
// begins anew, with the rights of that client; who it is logged in as is up to the client to prove to us.
func (s *Session) xclient(dst, arg []byte) ([]byte, Next) {
	switch {
	case !s.peer.Trust.XClient:
		return append(dst, notTrusted...), More
	case s.at != greeted && s.at != hello:
		return append(dst, mailOpen...), More
	}
	p := *s.peer
	ok := attributes(arg, func(name, value string) bool {
		switch name {
		case "addr":
			ip, ok := parseAddress(value)
			p.Address, p.IP, p.Host = ip, "", ""
			if ip.IsValid() {
				p.IP = ip.String()
			}
			return ok
		case "name":
			p.Host = value
		case "helo":
			p.Helo = value
		case "port", "proto":
		default:
			return false
		}
		return true
	})
	if !ok {
		return append(dst, badAttribute...), More
	}
	s.reset()
	p.Login, p.Relay, p.Trust, p.Origin = "", nil, Trust{}, ""
	*s.peer = p
	s.at, s.extended, s.login = greeted, false, login{}
	if s.config.Moved != nil {
		s.config.Moved(s.peer)
	}
	return s.Banner(dst), More
}

// xforward lets a machine before us say where it has a message from (https://www.postfix.org/XFORWARD_README.html). It
// is for the log, and gives nobody a right.
func (s *Session) xforward(dst, arg []byte) ([]byte, Next) {
	switch {
	case !s.peer.Trust.XForward:
		return append(dst, notTrusted...), More
	case s.at != hello:
		return append(dst, s.order(command{in: hello})...), More
	}
	origin := s.peer.Origin
	ok := attributes(arg, func(name, value string) bool {
		switch name {
		case "addr":
			ip, ok := parseAddress(value)
			if origin = ""; ip.IsValid() {
				origin = ip.String()
			}
			return ok
		case "name", "port", "proto", "helo", "ident", "source":
			return true
		}
		return false
	})
	if !ok {
		return append(dst, badAttribute...), More
	}
	s.peer.Origin = origin
	return append(dst, "250 2.0.0 ok\r\n"...), More
}
