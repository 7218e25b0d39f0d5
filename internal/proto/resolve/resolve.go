// Package resolve is how roles that have no sockets ask the DNS: they put questions over a link (system/ipc) to
// qmail-resolve, whose cache is everybody's.
//
//	asker    Q  a question; stream is its number: the record's type, 2 bytes, most significant first, and a name
//	resolve  A  the answer to it (answer.go)
//	         Z  there is none for now; the payload says why, for the asker's log
//
// Each question has one answer. Names are those that dns.ASCII returns. Link is the asking side, a dns.Source: with
// dns.Over in front of it, equal questions share one, and what was just answered is not asked again. Types, the AD bit
// and everything else mean what they mean in package system/dns, so that who asks need not know whether it
// asks over a link or, started alone, the network itself.
//
// Neither side trusts the other. Who asks can make qmail-resolve ask the configured servers for names, a bounded number
// at once, and nothing else. Who answers can lie about the DNS, as the DNS can; what it says has the form of an answer
// all the same: names are checked again, records and times are bounded.
package resolve

import (
	"fmt"

	"qmail/internal/store/control"
	"qmail/internal/system/dns"
)

// Frame kinds.
const (
	kindQuestion = 'Q'
	kindAnswer   = 'A'
	kindTrouble  = 'Z'
)

// resolvConf is where the machine says whom to ask.
const resolvConf = "/etc/resolv.conf"

// Servers reads control/resolvers, a line "ip" or "ip:port" for each resolver to ask; without the file
// the machine's own configuration counts.
func Servers(dir control.Dir) (dns.Config, error) {
	entries, present, err := dir.Entries("resolvers")
	if err != nil {
		return dns.Config{}, err
	}
	if !present {
		return dns.ReadConf(resolvConf)
	}
	var c dns.Config
	for _, e := range entries {
		server, err := dns.ParseServer(e.Text)
		if err != nil {
			return dns.Config{}, fmt.Errorf("%s: line %d: %w", dir.Path("resolvers"), e.Number, err)
		}
		c.Servers = append(c.Servers, server)
	}
	return c, nil
}
