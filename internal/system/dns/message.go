package dns

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"time"

	wire "github.com/miekg/dns"
)

const (
	udpSize    = 1232     // what we say we take by UDP (RFC 9715)
	maxMessage = 64 << 10 // of any transport
	maxChain   = 16       // CNAME steps inside one answer
	headerSize = 12

	maxAbsence  = 5 * time.Minute
	rcodeFormat = wire.RcodeFormatError
	rcodeNotImp = wire.RcodeNotImplemented
)

func understood(t Type) bool {
	switch t {
	case TypeA, TypeAAAA, TypeMX, TypeTXT, TypePTR, TypeTLSA:
		return true
	}
	return false
}

// pack writes a question. edns adds the OPT record, without which some old servers do better.
func pack(q question, id uint16, edns bool) ([]byte, error) {
	m := wire.Msg{}
	m.Id = id
	m.RecursionDesired = true
	m.AuthenticatedData = true // RFC 6840 5.7: we understand AD in the answer
	m.Question = []wire.Question{{Name: q.name + ".", Qtype: uint16(q.kind), Qclass: wire.ClassINET}}
	if edns {
		m.SetEdns0(udpSize, false)
	}
	return m.Pack()
}

// isAnswer reports whether b claims to be the answer to the message with this id: what does not is
// somebody else's and is to be overheard, not believed.
func isAnswer(b []byte, id uint16) bool {
	return len(b) >= headerSize && binary.BigEndian.Uint16(b) == id && b[2]&0x80 != 0
}

// parsed is an answer, or a reason to go on asking.
type parsed struct {
	answer    Answer
	truncated bool // ask again by TCP; nothing of the answer is used
}

// parse reads the answer to q. now is when its TTLs begin to run. Nothing is used of a message that does
// not parse to its end.
func parse(b []byte, q question, now time.Time) (parsed, error) {
	var m wire.Msg
	if len(b) < headerSize || len(b) > maxMessage {
		return parsed{}, errMalformed
	}
	if err := m.Unpack(b); err != nil {
		return parsed{}, errMalformed
	}
	if !countsHold(b, &m) {
		return parsed{}, errMalformed
	}
	if !m.Response || m.Opcode != wire.OpcodeQuery || len(m.Question) != 1 {
		return parsed{}, errForeign
	}
	asked := m.Question[0]
	if name, ok := fromWire(asked.Name); !ok || name != q.name || asked.Qtype != uint16(q.kind) || asked.Qclass != wire.ClassINET {
		return parsed{}, errForeign
	}
	if m.Truncated {
		return parsed{truncated: true}, nil
	}
	if m.Rcode != wire.RcodeSuccess && m.Rcode != wire.RcodeNameError {
		return parsed{}, rcodeError(m.Rcode)
	}
	a, err := collect(&m, q, now)
	return parsed{answer: a}, err
}

// countsHold checks that the message holds as many records as its header promises; the library stops early
// without a word.
func countsHold(b []byte, m *wire.Msg) bool {
	for i, n := range []int{len(m.Question), len(m.Answer), len(m.Ns), len(m.Extra)} {
		if int(binary.BigEndian.Uint16(b[4+2*i:])) != n {
			return false
		}
	}
	return true
}

// collect walks from the question along the CNAMEs to the records that were asked for.
func collect(m *wire.Msg, q question, now time.Time) (Answer, error) {
	a := Answer{Secure: m.AuthenticatedData}
	ttl := MaxTTL
	owner := q.name
	for step := 0; ; step++ {
		var next string
		for _, rr := range m.Answer {
			h := rr.Header()
			if name, ok := fromWire(h.Name); !ok || name != owner || h.Class != wire.ClassINET {
				continue // somebody else's record
			}
			switch {
			case h.Rrtype == uint16(q.kind):
				if err := a.add(rr); err != nil {
					return Answer{}, err
				}
				ttl = min(ttl, time.Duration(h.Ttl)*time.Second)
			case h.Rrtype == wire.TypeCNAME:
				var ok bool
				if next, ok = fromWire(rr.(*wire.CNAME).Target); !ok {
					return Answer{}, errMalformed
				}
				ttl = min(ttl, time.Duration(h.Ttl)*time.Second)
			}
		}
		if a.Status == Found || next == "" {
			break
		}
		if step == maxChain {
			return Answer{}, errChain
		}
		owner = next
	}
	a.finish()
	switch {
	case a.Status == Found:
	case m.Rcode == wire.RcodeNameError:
		a.Status, ttl = NoName, absence(m, ttl)
	default:
		a.Status, ttl = NoData, absence(m, ttl)
	}
	a.Expires = now.Add(ttl)
	return a, nil
}

// absence is how long a missing record may be remembered: RFC 2308 5, not at all without an SOA.
func absence(m *wire.Msg, ttl time.Duration) time.Duration {
	for _, rr := range m.Ns {
		if soa, ok := rr.(*wire.SOA); ok {
			return min(ttl, maxAbsence, time.Duration(min(soa.Hdr.Ttl, soa.Minttl))*time.Second)
		}
	}
	return 0
}

func (a *Answer) add(rr wire.RR) error {
	a.Status = Found
	switch rr := rr.(type) {
	case *wire.A:
		addr, ok := netip.AddrFromSlice(rr.A)
		if !ok {
			return errMalformed
		}
		a.Addrs = append(a.Addrs, addr.Unmap())
	case *wire.AAAA:
		addr, ok := netip.AddrFromSlice(rr.AAAA)
		if !ok {
			return errMalformed
		}
		a.Addrs = append(a.Addrs, addr.Unmap()) // a mapped address connects by IPv4, so it is one
	case *wire.MX:
		if rr.Mx == "" { // the library stops after a preference without a name
			return errMalformed
		}
		mx := MX{Preference: rr.Preference}
		if rr.Mx != "." {
			var ok bool
			mx.Host, ok = fromWire(rr.Mx)
			mx.Bad = !ok
		}
		a.MX = append(a.MX, mx)
	case *wire.TXT:
		if rr.Hdr.Rdlength == 0 {
			return errMalformed
		}
		a.Texts = append(a.Texts, unescape(strings.Join(rr.Txt, "")))
	case *wire.PTR:
		if name, ok := fromWire(rr.Ptr); ok {
			a.Names = append(a.Names, name)
		}
	case *wire.TLSA:
		if rr.Hdr.Rdlength < 4 {
			return errMalformed
		}
		data, err := hex.DecodeString(rr.Certificate)
		if err != nil {
			return errMalformed
		}
		a.TLSA = append(a.TLSA, TLSA{rr.Usage, rr.Selector, rr.MatchingType, data})
	default:
		return errMalformed
	}
	return nil
}

// finish sorts and cuts what was collected.
func (a *Answer) finish() {
	slices.SortStableFunc(a.MX, func(x, y MX) int { return cmp.Compare(x.Preference, y.Preference) })
	a.MX = cut(a.MX)
	a.Addrs = cut(a.Addrs)
	a.Texts = cut(a.Texts)
	a.Names = cut(a.Names)
	a.TLSA = cut(a.TLSA)
}

// cut keeps the first MaxRecords, in memory of their own size.
func cut[T any](s []T) []T { return slices.Clip(slices.Clone(s[:min(len(s), MaxRecords)])) }

// fromWire takes a name as the library spells it, and gives it only if it can be a host's.
func fromWire(name string) (string, bool) { return hostName(strings.TrimSuffix(name, ".")) }

// unescape undoes the \DDD and \X of the library's spelling.
func unescape(s string) string {
	if strings.IndexByte(s, '\\') < 0 {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			b = append(b, s[i])
			continue
		}
		if i+3 < len(s) && digit(s[i+1]) && digit(s[i+2]) && digit(s[i+3]) {
			b = append(b, (s[i+1]-'0')*100+(s[i+2]-'0')*10+s[i+3]-'0')
			i += 3
			continue
		}
		i++
		b = append(b, s[i])
	}
	return string(b)
}

func digit(c byte) bool { return '0' <= c && c <= '9' }
