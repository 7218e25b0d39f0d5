package relay

import (
	"net/netip"

	"qmail/internal/store/control"
)

// Networks is a list of addresses and networks.
type Networks []netip.Prefix

// LoadNetworks reads a control file with an address or a network in CIDR form per line; present is whether there
// is one. An error names file and line.
func LoadNetworks(dir control.Dir, name string) (list Networks, present bool, err error) {
	entries, present, err := dir.Entries(name)
	if err != nil {
		return nil, false, err
	}
	for _, e := range entries {
		prefix, ok := parseNetwork(e.Text)
		if !ok {
			return nil, false, malformed(dir, name, e)
		}
		list = append(list, prefix)
	}
	return list, present, nil
}

// parseNetwork reads "192.0.2.7", "192.0.2.0/24" or an IPv6 form. IPv4 mapped into IPv6 is unmapped, so that
// each peer has one form. Bits beyond the length are an error: such a line means less, or more, than it says.
func parseNetwork(s string) (netip.Prefix, bool) {
	if ip, err := netip.ParseAddr(s); err == nil && ip.Zone() == "" {
		ip = ip.Unmap()
		return netip.PrefixFrom(ip, ip.BitLen()), true
	}
	p, err := netip.ParsePrefix(s)
	if err != nil || p != p.Masked() {
		return netip.Prefix{}, false
	}
	if p.Addr().Is4In6() {
		if p.Bits() < 96 {
			return netip.Prefix{}, false
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p, true
}

// Has reports whether the list covers an address.
func (n Networks) Has(ip netip.Addr) bool {
	if !ip.IsValid() {
		return false
	}
	ip = ip.Unmap().WithZone("")
	for _, p := range n {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}
