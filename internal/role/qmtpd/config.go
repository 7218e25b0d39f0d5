package qmtpd

import (
	"errors"
	"net/netip"
	"time"

	"qmail/internal/check/relay"
	"qmail/internal/format/received"
	"qmail/internal/proto/inlet"
	"qmail/internal/proto/qmtp"
	"qmail/internal/store/control"
	"qmail/internal/system/env"
	"qmail/internal/system/secure"
	"qmail/internal/system/serve"
)

// Config is what the control files and the environment say. It is replaced whole, never changed.
type Config struct {
	inlet.Bounds
	TLS     secure.Settings
	Session qmtp.Config
	Me      string // our name in Received

	relay       *relay.Policy
	relayClient *string // RELAYCLIENT
	clients     relay.Certificates
}

// What holds where no file says otherwise.
const (
	maxRecipients = 1000    // maxrecipients
	recipientsTop = 100_000 // a larger maxrecipients means this: the list is in memory

	// sessionTime is qmail-qmtpd's alarm. It had no other.
	sessionTime = time.Hour
	waitTime    = 5 * time.Minute
	grace       = 5 * time.Minute
	leastRate   = 256 // bytes per second
)

// ReadConfig reads everything; an error names the file, and the line where there is one.
func ReadConfig(e *env.Env) (*Config, error) {
	dir := control.Open(e.Home)
	c := &Config{}
	var err error
	if c.relay, err = relay.Load(dir, nil); err != nil {
		return nil, err
	}
	if c.Me, err = dir.LineOr("me", ""); err != nil {
		return nil, err
	}
	if value, set := e.Lookup("RELAYCLIENT"); set {
		c.relayClient = &value
	}
	if c.clients, err = relay.LoadCertificates(dir); err != nil {
		return nil, err
	}
	if c.TLS, err = inlet.LoadTLS(dir); err != nil {
		return nil, err
	}
	if c.Bounds, err = inlet.LoadBounds(dir); err != nil {
		return nil, err
	}
	return c, c.readSession(dir, e)
}

func (c *Config) readSession(dir control.Dir, e *env.Env) error {
	databytes, err1 := inlet.Number(dir, "databytes", 0, 0, 1<<62)
	if value, set := e.Lookup("DATABYTES"); set {
		databytes, _ = control.ScanInt(value)
	}
	recipients, err2 := inlet.Number(dir, "maxrecipients", maxRecipients, 1, recipientsTop)
	c.Session = qmtp.Config{
		Databytes: databytes, MaxRecipients: int(recipients), Policy: c,
		Patience: serve.Patience{Wait: waitTime, Total: sessionTime, Grace: grace, Rate: leastRate},
	}
	return errors.Join(err1, err2)
}

// peer makes a session's Peer; whether it may relay is settled here, once.
func (c *Config) peer(from received.From, address netip.Addr) *qmtp.Peer {
	p := &qmtp.Peer{From: from}
	switch {
	case c.relayClient != nil:
		p.Relay = c.relayClient
	case c.relay.Client(address):
		p.Relay = new(string)
	}
	return p
}

// Recipient is qmtp.Policy.
func (c *Config) Recipient(p *qmtp.Peer, _, recipient string) (string, error) {
	recipient, err := c.relay.Raw(p.Relay != nil, recipient)
	if err == nil && p.Relay != nil {
		recipient += *p.Relay
	}
	return recipient, err
}
