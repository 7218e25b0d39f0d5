package inlet

import (
	"net/netip"

	"qmail/internal/format/received"
	"qmail/internal/system/env"
)

// Peer is who is at the other end, and under which name it found us, by the variables of tcpserver (tcp-environ(5)).
// Where they do not say, it is what the kernel knows: remote and local may be invalid. address is the
// IP address for lookups, not valid if there is none.
func Peer(e *env.Env, remote, local netip.AddrPort) (from received.From, address netip.Addr) {
	from = received.From{IP: e.Get("TCPREMOTEIP"), Host: e.Get("TCPREMOTEHOST"), Info: e.Get("TCPREMOTEINFO"), Local: e.Get("TCPLOCALHOST")}
	if from.IP == "" && remote.IsValid() {
		from.IP = remote.Addr().String()
	}
	if from.Local == "" {
		from.Local = e.Get("TCPLOCALIP")
	}
	if from.Local == "" && local.IsValid() {
		from.Local = local.Addr().String()
	}
	if ip, err := netip.ParseAddr(from.IP); err == nil {
		address = ip.Unmap().WithZone("")
	}
	return from, address
}
