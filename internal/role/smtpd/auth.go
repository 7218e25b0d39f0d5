package smtpd

import (
	"context"

	"qmail/internal/proto/checker"
	"qmail/internal/proto/sasl"
	"qmail/internal/proto/smtp/server"
	"qmail/internal/system/ipc"
)

// authLink is how the supervisor names the link to qmail-authd.
const authLink = "authd"

// partner takes over links other than that to qmail-send.
func (r *role) partner(name string, link *ipc.Conn) {
	if name == authLink || link == nil {
		r.auth.Connect(link)
	}
	if name != authLink {
		r.keys.Partner(name, link)
	}
}

// mechanisms are those that a peer is offered: inside TLS, or in a network of control/authinsecure; on port 25 only if
// control/authsmtp says so.
func (c *Config) mechanisms(auth *checker.Agent, p *server.Peer) (list []string, inTLS bool) {
	if p.Kind == server.Relay && !c.authSMTP || p.Kind == server.LMTP {
		return nil, false
	}
	bound := len(bindings(p)) > 0
	list = auth.Mechanisms(bound)
	inTLS = len(list) > 0
	if p.TLS == nil && !c.insecure.Has(p.Address) {
		list = nil
	}
	return list, inTLS
}

// bindings are the channel bindings of a peer's connection.
func bindings(p *server.Peer) []sasl.Binding {
	if p.TLS == nil {
		return nil
	}
	return sasl.Bindings(&p.TLS.ConnectionState, p.TLS.Own)
}

// authority is qmail-authd as SMTP sessions see it.
type authority struct{ agent *checker.Agent }

// Begin is server.Auth.
func (a authority) Begin(ctx context.Context, p *server.Peer, mechanism string, initial []byte) (server.Exchange, server.Answer) {
	who := checker.Who{Service: serviceOf(p), IP: p.IP, Secure: p.TLS != nil}
	for _, b := range bindings(p) {
		who.Bindings = append(who.Bindings, checker.Binding(b))
	}
	x, answer := a.agent.Begin(ctx, who, mechanism, initial)
	return exchange{x}, answerOf(answer)
}

// serviceOf is what qmail-authd calls a peer's listener.
func serviceOf(p *server.Peer) string {
	if p.Kind == server.Submission {
		return "submission"
	}
	return "smtp"
}

type exchange struct{ *checker.Exchange }

// Next is server.Exchange.
func (x exchange) Next(ctx context.Context, response []byte) server.Answer {
	return answerOf(x.Exchange.Next(ctx, response))
}

func answerOf(a checker.Answer) server.Answer {
	answer := server.Answer{Challenge: a.Challenge, Login: a.Login, Text: a.Text}
	switch a.Verdict {
	case checker.More:
		answer.Outcome = server.Challenged
	case checker.Yes:
		answer.Outcome = server.Accepted
	case checker.No:
		answer.Outcome = server.Rejected
	case checker.Malformed:
		answer.Outcome = server.Malformed
	}
	return answer
}
