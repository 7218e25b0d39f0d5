package adversarial

import "strings"

// rule leaves out what a pattern names: a protocol, a case or a condition. A pattern may end in *.
type rule struct{ kind, pattern, reason string }

// rules are all that `make adversarial` leaves out, and why. There is no other such list for it, and each line must be
// about something that exists.
func rules() []rule {
	return []rule{
		{"protocol", "dkim", "no program verifies signatures by itself"},
		{"protocol", "spf", "no program evaluates policies by itself"},

		// TLS and AUTH of the server, TLS of the client
		{"case", "starttls/*", "this runner does not speak TLS; the tests of the servers do"},
		{"case", "smtp-misc/auth-*", "this runner does not speak TLS; the tests of the servers do"},
		{"case", "relay/failed-auth-then-relay", "this runner does not speak TLS; the tests of the servers do"},
		{"case", "pop3/stls-injection", "this runner does not speak TLS; the tests of the servers do"},
		{"case", "pop3/pass-before-tls", "this runner does not speak TLS; the tests of the servers do"},

		// CHUNKING cannot be turned off
		{"case", "smuggling/bdat-not-offered-body-as-commands", "CHUNKING is always offered"},

		// Messages to programs that are not there
		{"case", "header/autoresponder-*", "there is no autoresponder"},

		// Faults of the machine, which need a program under a tracer
		{"case", "dotqmail/qmail-eio", "the test of qmail-local has it"},
		{"case", "dotqmail/qmail-short-read-then-eio", "the test of qmail-local has it"},

		{"case", "dotqmail/program-sleeps-forever", "qmail-local gives a program an hour; its test has it with less"},

		// What is an address to a parser, and two fields in a message
		{"case", "address/list-fold-no-space", "for qmail-inject these are two fields"},

		// Questions that no program asks the DNS
		{"case", "dns/txt-*", "nobody asks for TXT records"},
		{"case", "dns/mta-sts-txt-two-records", "nobody asks for MTA-STS policies"},
		{"case", "dns/srv-short", "nobody asks for SRV records"},
		{"case", "dns/tlsa-*", "nobody asks for TLSA records"},
		{"case", "dns/ad-bit-from-remote-resolver", "nobody asks for TLSA records"},
		{"case", "dns/servfail-not-absent", "nobody asks for TLSA records"},

		{"condition", "time_differs", "it takes a quiet machine; qmail-send asks the same of everybody's name"},
		{"condition", "dns_queries", "qmail-smtpd asks no resolver"},
		{"condition", "dkim_signed", "nobody signs"},
		{"condition", "dmarc_*", "nobody evaluates DMARC"},
		{"condition", "authres_kept", "nobody writes Authentication-Results, and nobody reads them"},
		{"condition", "received_spf_topmost_forged", "nobody writes Received-SPF, and nobody reads them"},
	}
}

func (r rule) matches(kind, name string) bool {
	if prefix, ok := strings.CutSuffix(r.pattern, "*"); ok && kind == r.kind {
		return strings.HasPrefix(name, prefix)
	}
	return kind == r.kind && name == r.pattern
}

// leftOut says why something is left out, or "".
func leftOut(kind, name string) string {
	for _, r := range rules() {
		if r.matches(kind, name) {
			return r.reason
		}
	}
	return ""
}
