package serve

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// The PROXY protocol, versions 1 and 2 (https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt): a header before
// the first byte of a connection, in which a machine before us says whose connection it passes on. It is read only from
// those that are named for it, and from them it has to be there: what it says decides who may do what.

const (
	proxyTime  = 10 * time.Second
	proxyLine  = 107  // the longest header of version 1, its CRLF counted
	proxyFixed = 16   // of a header of version 2, the bytes whose number is known
	proxyRest  = 4096 // the most that may follow them
	proxyMagic = "\r\n\r\n\x00\r\nQUIT\n"
)

var errProxy = errors.New("serve: not a PROXY header")

// ReadProxy reads the header from r, and no byte beyond it. The zero address means that the connection is the proxy's
// own, or that it does not know whose it is.
func ReadProxy(r io.Reader) (netip.Addr, error) {
	var b [proxyLine]byte
	if _, err := io.ReadFull(r, b[:1]); err != nil {
		return netip.Addr{}, err
	}
	if b[0] == proxyMagic[0] {
		return readProxy2(r, b[:1])
	}
	for n := 1; n < len(b); n++ { // one by one: what follows is not ours to take
		if _, err := io.ReadFull(r, b[n:n+1]); err != nil {
			return netip.Addr{}, err
		}
		if b[n] == '\n' {
			return parseProxy1(string(b[:n+1]))
		}
		if n == 5 && string(b[:6]) != "PROXY " {
			break
		}
	}
	return netip.Addr{}, errProxy
}

// parseProxy1 reads "PROXY TCP4 source destination port port" and its CRLF; or "PROXY UNKNOWN" and anything.
func parseProxy1(line string) (netip.Addr, error) {
	text, ok := strings.CutSuffix(line, "\r\n")
	fields := strings.Split(text, " ")
	if !ok || fields[0] != "PROXY" || len(fields) < 2 {
		return netip.Addr{}, errProxy
	}
	if fields[1] == "UNKNOWN" {
		return netip.Addr{}, nil
	}
	if len(fields) != 6 || fields[1] != "TCP4" && fields[1] != "TCP6" {
		return netip.Addr{}, errProxy
	}
	source, err1 := netip.ParseAddr(fields[2])
	target, err2 := netip.ParseAddr(fields[3])
	_, err3 := strconv.ParseUint(fields[4], 10, 16)
	_, err4 := strconv.ParseUint(fields[5], 10, 16)
	four := fields[1] == "TCP4"
	if errors.Join(err1, err2, err3, err4) != nil || source.Is4() != four || target.Is4() != four || source.Zone() != "" {
		return netip.Addr{}, errProxy
	}
	return source.Unmap(), nil
}

// readProxy2 reads the binary form, of which the first byte is at hand.
func readProxy2(r io.Reader, first []byte) (netip.Addr, error) {
	var b [proxyFixed]byte
	copy(b[:], first)
	if _, err := io.ReadFull(r, b[len(first):]); err != nil {
		return netip.Addr{}, err
	}
	size := int(binary.BigEndian.Uint16(b[14:]))
	command, family := b[12], b[13]
	if string(b[:12]) != proxyMagic || command != 0x20 && command != 0x21 || size > proxyRest {
		return netip.Addr{}, errProxy
	}
	rest := make([]byte, size)
	if _, err := io.ReadFull(r, rest); err != nil {
		return netip.Addr{}, err
	}
	switch {
	case command == 0x20: // LOCAL: the proxy itself, to see whether we are there
		return netip.Addr{}, nil
	case family == 0x11 && size >= 12:
		return netip.AddrFrom4([4]byte(rest)), nil
	case family == 0x21 && size >= 36:
		return netip.AddrFrom16([16]byte(rest)).Unmap(), nil
	case family == 0x00:
		return netip.Addr{}, nil
	}
	return netip.Addr{}, errProxy // a family that mail does not come by
}

// origin finds out whose connection a proxy passes on, and takes a place for him. There are as many as for somebody
// who comes himself.
func (d *Daemon) origin(conn net.Conn) (client netip.Addr, leave func(), err error) {
	if err := conn.SetReadDeadline(time.Now().Add(proxyTime)); err != nil {
		return netip.Addr{}, nil, err
	}
	if client, err = ReadProxy(conn); err != nil {
		return netip.Addr{}, nil, err
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return netip.Addr{}, nil, err
	}
	if !client.IsValid() { // nobody that is known, and so nobody with rights; the proxy's own are not for it
		return client, func() {}, nil
	}
	leave, ok := d.group.admit(client)
	if !ok {
		return client, nil, errTooMany
	}
	return client, leave, nil
}

var errTooMany = errors.New("serve: too many connections")
