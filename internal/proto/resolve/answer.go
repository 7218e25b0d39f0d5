package resolve

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"

	"qmail/internal/system/dns"
)

// An answer is
//
//	status, 1 byte: 1 found, 2 no data, 3 no such name
//	flags, 1 byte: 1 if the resolver vouches for it (AD)
//	seconds that it holds, 4 bytes
//	records to the end, only if found; each has a length, 2 bytes, and
//	  A, AAAA  4 or 16 bytes
//	  MX       preference, 2 bytes, and a name: empty for ".", "!" for one that no host has
//	  TXT      the strings joined
//	  PTR      a name
//	  TLSA     usage, selector, matching type, data
//
// Numbers have their most significant byte first.
const (
	answerHeader = 6
	flagSecure   = 1
	badName      = "!"
)

var errAnswer = errors.New("resolve: malformed answer")

// appendAnswer writes an answer as of now.
func appendAnswer(dst []byte, a dns.Answer, kind dns.Type, now time.Time) []byte {
	flags := byte(0)
	if a.Secure {
		flags = flagSecure
	}
	left := min(max(a.Expires.Sub(now), 0), dns.MaxTTL)
	dst = append(dst, byte(a.Status), flags)
	dst = binary.BigEndian.AppendUint32(dst, uint32(left/time.Second))
	switch kind {
	case dns.TypeA, dns.TypeAAAA:
		for _, ip := range a.Addrs {
			dst = appendRecord(dst, ip.AsSlice())
		}
	case dns.TypeMX:
		for _, mx := range a.MX {
			name := mx.Host
			if mx.Bad {
				name = badName
			}
			dst = appendRecord(dst, binary.BigEndian.AppendUint16(nil, mx.Preference), []byte(name))
		}
	case dns.TypeTXT:
		for _, s := range a.Texts {
			dst = appendRecord(dst, []byte(s))
		}
	case dns.TypePTR:
		for _, s := range a.Names {
			dst = appendRecord(dst, []byte(s))
		}
	case dns.TypeTLSA:
		for _, t := range a.TLSA {
			dst = appendRecord(dst, []byte{t.Usage, t.Selector, t.Matching}, t.Data)
		}
	}
	return dst
}

// appendRecord writes the parts joined. They come from a message of 64 KiB at most, so the length fits.
func appendRecord(dst []byte, parts ...[]byte) []byte {
	size := 0
	for _, p := range parts {
		size += len(p)
	}
	dst = binary.BigEndian.AppendUint16(dst, uint16(size))
	for _, p := range parts {
		dst = append(dst, p...)
	}
	return dst
}

// parseAnswer reads the answer to a question about records of a type. Nothing in it is b's memory.
func parseAnswer(b []byte, kind dns.Type, now time.Time) (dns.Answer, error) {
	if len(b) < answerHeader || b[1]&^flagSecure != 0 {
		return dns.Answer{}, errAnswer
	}
	a := dns.Answer{Status: dns.Status(b[0]), Secure: b[1] == flagSecure}
	left := time.Duration(binary.BigEndian.Uint32(b[2:])) * time.Second
	if a.Status < dns.Found || a.Status > dns.NoName || left > dns.MaxTTL {
		return dns.Answer{}, errAnswer
	}
	a.Expires = now.Add(left)
	b = b[answerHeader:]
	if (len(b) > 0) != (a.Status == dns.Found) && kind != dns.TypePTR { // pointers that are no names are left out
		return dns.Answer{}, errAnswer
	}
	for n := 0; len(b) > 0; n++ {
		if len(b) < 2 || len(b)-2 < int(binary.BigEndian.Uint16(b)) || n == dns.MaxRecords || a.Status != dns.Found {
			return dns.Answer{}, errAnswer
		}
		size := int(binary.BigEndian.Uint16(b))
		if !addRecord(&a, b[2:2+size], kind) {
			return dns.Answer{}, errAnswer
		}
		b = b[2+size:]
	}
	return a, nil
}

// addRecord adds one record; it is false for what no answer has.
func addRecord(a *dns.Answer, r []byte, kind dns.Type) bool {
	switch kind {
	case dns.TypeA, dns.TypeAAAA:
		ip, ok := netip.AddrFromSlice(r)
		if !ok || ip.Is4In6() || kind == dns.TypeA && !ip.Is4() {
			return false
		}
		a.Addrs = append(a.Addrs, ip)
	case dns.TypeMX:
		if len(r) < 2 {
			return false
		}
		mx := dns.MX{Preference: binary.BigEndian.Uint16(r), Host: string(r[2:])}
		if mx.Host == badName {
			mx.Host, mx.Bad = "", true
		}
		if n := len(a.MX); mx.Host != "" && !clean(mx.Host) || n > 0 && a.MX[n-1].Preference > mx.Preference {
			return false
		}
		a.MX = append(a.MX, mx)
	case dns.TypeTXT:
		a.Texts = append(a.Texts, string(r))
	case dns.TypePTR:
		if !clean(string(r)) {
			return false
		}
		a.Names = append(a.Names, string(r))
	case dns.TypeTLSA:
		if len(r) < 3 {
			return false
		}
		a.TLSA = append(a.TLSA, dns.TLSA{Usage: r[0], Selector: r[1], Matching: r[2], Data: append([]byte(nil), r[3:]...)})
	default:
		return false
	}
	return true
}

// clean reports whether a name is one that the resolver gives out.
func clean(name string) bool {
	ascii, ok := dns.ASCII(name)
	return ok && ascii == name
}
