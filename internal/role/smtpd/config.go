package smtpd

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"qmail/internal/check/relay"
	"qmail/internal/format/address"
	"qmail/internal/format/received"
	"qmail/internal/proto/inlet"
	"qmail/internal/proto/smtp/server"
	"qmail/internal/store/control"
	"qmail/internal/system/env"
	"qmail/internal/system/secure"
)

// Config is what the control files and the environment say. It is replaced whole, never changed.
type Config struct {
	inlet.Bounds
	TLS     secure.Settings
	Session server.Config
	Me      string // our name in Received

	relay       *relay.Policy
	relayClient *string // RELAYCLIENT
	anyHelo     bool    // NOBADHELO
	clients     relay.Certificates
}

// What holds where no file says otherwise.
const (
	maxRecipients = 1000    // maxrecipients
	recipientsTop = 100_000 // a larger maxrecipients means this: the list is in memory
	maxErrors     = 20
	maxIdle       = 1000

	timeout     = 1200 * time.Second // timeoutsmtpd
	commandTime = 5 * time.Minute    // RFC 5321 4.5.3.2.7, and the most that timeoutsmtpd can ask for
	blockTime   = 3 * time.Minute    // RFC 5321 4.5.3.2.5
	transaction = time.Hour
	grace       = 5 * time.Minute
	leastRate   = 256 // bytes per second
)

var errNoName = errors.New("neither control/me nor control/smtpgreeting says who we are")

// ReadConfig reads everything; an error names the file, and the line where there is one. own are the addresses
// of this machine.
func ReadConfig(e *env.Env, own []netip.Addr) (*Config, error) {
	dir := control.Open(e.Home)
	c := &Config{}
	var err error
	if c.relay, err = relay.Load(dir, own); err != nil {
		return nil, err
	}
	if c.clients, err = relay.LoadCertificates(dir); err != nil {
		return nil, err
	}
	if c.Me, err = dir.LineOr("me", ""); err != nil {
		return nil, err
	}
	if c.Session.Greeting, err = greeting(dir); err != nil {
		return nil, err
	}
	if value, set := e.Lookup("RELAYCLIENT"); set {
		c.relayClient = &value
	}
	_, c.anyHelo = e.Lookup("NOBADHELO")
	return c, c.readNumbers(dir, e)
}

// greeting is a line that strangers will see.
func greeting(dir control.Dir) (string, error) {
	text, err := dir.LineOrMe("smtpgreeting", "")
	if err != nil {
		return "", err
	}
	if text == "" {
		return "", errNoName
	}
	for i := 0; i < len(text); i++ {
		if text[i] < ' ' || text[i] > '~' || len(text) > 400 {
			return "", fmt.Errorf("%s:1: not a line of at most 400 printable ASCII characters", dir.Path("smtpgreeting"))
		}
	}
	return text, nil
}

func (c *Config) readNumbers(dir control.Dir, e *env.Env) error {
	var err1, err2 error
	c.Bounds, err1 = inlet.LoadBounds(dir)
	s := &c.Session
	s.Databytes, err2 = inlet.Number(dir, "databytes", 0, 0, 1<<62)
	if value, set := e.Lookup("DATABYTES"); set {
		s.Databytes, _ = control.ScanInt(value)
	}
	recipients, err3 := inlet.Number(dir, "maxrecipients", maxRecipients, 1, recipientsTop)
	s.MaxRecipients, s.MaxErrors, s.MaxIdle = int(recipients), maxErrors, maxIdle
	s.Policy = c
	var err5 error
	c.TLS, err5 = inlet.LoadTLS(dir)
	seconds, err4 := inlet.Number(dir, "timeoutsmtpd", int64(timeout/time.Second), 1, int64(time.Hour/time.Second))
	patience := time.Duration(seconds) * time.Second
	s.Limits = server.Limits{
		Command: min(patience, commandTime), Block: min(patience, blockTime),
		Transaction: transaction, Grace: min(patience, grace), Rate: leastRate,
	}
	return errors.Join(err1, err2, err3, err4, err5)
}

// peer makes a session's Peer; whether it may relay is settled here, once.
func (c *Config) peer(from received.From, address netip.Addr) *server.Peer {
	p := &server.Peer{Address: address, IP: from.IP, Host: from.Host, Info: from.Info, Local: from.Local}
	switch {
	case c.relayClient != nil:
		p.Relay = c.relayClient
	case c.relay.Client(address):
		p.Relay = new(string)
	}
	return p
}

// secured gives a peer the right that its certificate brings.
func (c *Config) secured(p *server.Peer, now time.Time) {
	if p.Relay == nil && c.clients.Has(p.TLS, now) {
		p.Relay = new(string)
	}
}

// Sender is server.Policy.
func (c *Config) Sender(p *server.Peer, path address.Path) (string, error) {
	return c.relay.Sender(p.Relay != nil, path)
}

// Recipient is server.Policy.
func (c *Config) Recipient(p *server.Peer, sender string, path address.Path) (string, error) {
	if !c.anyHelo {
		if err := c.relay.Helo(p.Relay != nil, p.Helo); err != nil {
			return "", err
		}
	}
	recipient, err := c.relay.Recipient(p.Relay != nil, sender, path)
	if err == nil && p.Relay != nil {
		recipient += *p.Relay
	}
	return recipient, err
}
