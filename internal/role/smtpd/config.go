package smtpd

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"qmail/internal/check/relay"
	"qmail/internal/check/senders"
	"qmail/internal/format/address"
	"qmail/internal/format/header"
	"qmail/internal/format/received"
	"qmail/internal/format/reply"
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

	// Of those who log in.
	insecure    relay.Networks // authinsecure
	authSMTP    bool           // authsmtp
	senders     *senders.Policy
	submitLimit int // submitlimit
	completion  *header.Completion
	// Of machines before us.
	proxies, xclient, xforward relay.Networks
}

// What holds where no file says otherwise.
const (
	maxRecipients = 1000    // maxrecipients
	recipientsTop = 100_000 // a larger maxrecipients means this: the list is in memory
	maxErrors     = 20      // maxerrors
	tarpitAfter   = 10      // tarpitcount
	tarpitSeconds = 1       // tarpitdelay
	maxIdle       = 1000

	timeout     = 1200 * time.Second // timeoutsmtpd
	commandTime = 5 * time.Minute    // RFC 5321 4.5.3.2.7, and the most that timeoutsmtpd can ask for
	blockTime   = 3 * time.Minute    // RFC 5321 4.5.3.2.5
	transaction = time.Hour
	grace       = 5 * time.Minute
	leastRate   = 256 // bytes per second

	submitLimit = 1000 // submitlimit
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
	return c, errors.Join(c.readNumbers(dir, e), c.readPeople(dir), c.readTrust(dir))
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
	s.MaxRecipients, s.MaxIdle = int(recipients), maxIdle
	err0 := c.readPatience(dir)
	s.Policy = c
	var err5 error
	c.TLS, err5 = inlet.LoadTLS(dir)
	seconds, err4 := inlet.Number(dir, "timeoutsmtpd", int64(timeout/time.Second), 1, int64(time.Hour/time.Second))
	patience := time.Duration(seconds) * time.Second
	s.Limits = server.Limits{
		Command: min(patience, commandTime), Block: min(patience, blockTime),
		Transaction: transaction, Grace: min(patience, grace), Rate: leastRate,
	}
	return errors.Join(err0, err1, err2, err3, err4, err5)
}

// readPatience reads how often a client may be refused, and from when on it waits for that.
func (c *Config) readPatience(dir control.Dir) error {
	most, err1 := inlet.Number(dir, "maxerrors", maxErrors, 1, 10_000)
	after, err2 := inlet.Number(dir, "tarpitcount", tarpitAfter, 0, 10_000)
	seconds, err3 := inlet.Number(dir, "tarpitdelay", tarpitSeconds, 0, 60)
	s := &c.Session
	s.MaxErrors, s.TarpitAfter, s.Tarpit = int(most), int(after), time.Duration(seconds)*time.Second
	return errors.Join(err1, err2, err3)
}

// readPeople reads what is about those who log in.
func (c *Config) readPeople(dir control.Dir) error {
	var err [7]error
	var id int64
	c.insecure, _, err[0] = relay.LoadNetworks(dir, "authinsecure")
	c.senders, err[1] = senders.Load(dir)
	c.completion, err[2] = dir.Completion()
	c.Session.IDHost, err[3] = dir.LineOrMe("idhost", "")
	id, err[4] = inlet.Number(dir, "authsmtp", 0, 0, 1)
	c.authSMTP = id > 0
	id, err[5] = inlet.Number(dir, "showlogin", 0, 0, 1)
	c.Session.ShowLogin = id > 0
	id, err[6] = inlet.Number(dir, "submitlimit", submitLimit, 0, 1<<30)
	c.submitLimit = int(id)
	return errors.Join(err[:]...)
}

// readTrust reads who may speak for others.
func (c *Config) readTrust(dir control.Dir) error {
	var err [4]error
	var chunking int64
	c.proxies, _, err[0] = relay.LoadNetworks(dir, "proxyclients")
	c.xclient, _, err[1] = relay.LoadNetworks(dir, "xclient")
	c.xforward, _, err[2] = relay.LoadNetworks(dir, "xforward")
	chunking, err[3] = inlet.Number(dir, "chunking", 1, 0, 1)
	c.Session.NoChunking = chunking == 0
	c.Session.Moved = c.settle
	return errors.Join(err[:]...)
}

// kindOf is what a listener of control/listen is for.
func kindOf(service string) server.Kind {
	switch service {
	case "submission", "submissions":
		return server.Submission
	case "lmtp":
		return server.LMTP
	}
	return server.Relay
}

// peer makes a session's Peer; whether it may relay is settled here, once.
func (c *Config) peer(from received.From, address netip.Addr, kind server.Kind) *server.Peer {
	p := &server.Peer{Address: address, IP: from.IP, Host: from.Host, Info: from.Info, Local: from.Local, Kind: kind}
	c.settle(p)
	return p
}

// settle gives a peer the rights of its address. Where one has to log in, nothing else gives the right to relay.
func (c *Config) settle(p *server.Peer) {
	p.Trust = server.Trust{XClient: c.xclient.Has(p.Address), XForward: c.xforward.Has(p.Address)}
	switch {
	case p.Kind == server.Submission:
	case c.relayClient != nil:
		p.Relay = c.relayClient
	case c.relay.Client(p.Address):
		p.Relay = new(string)
	}
}

// secured gives a peer the right that its certificate brings.
func (c *Config) secured(p *server.Peer, now time.Time) {
	if p.Kind != server.Submission && p.Relay == nil && c.clients.Has(p.TLS, now) {
		p.Relay = new(string)
	}
}

// errSender refuses a sender that is not the client's.
var errSender = &reply.Error{Code: 553, Status: "5.7.1", Text: "sorry, you may not send as that address (#5.7.1)"}

// Sender is server.Policy.
func (c *Config) Sender(p *server.Peer, path address.Path) (string, error) {
	if p.Login == "" {
		return c.relay.Sender(p.Relay != nil, path)
	}
	sender, err := c.relay.Sender(true, c.complete(path))
	if err == nil && p.Relay == nil && !c.senders.May(p.Login, sender) {
		return "", errSender
	}
	return sender, err
}

// Recipient is server.Policy.
func (c *Config) Recipient(p *server.Peer, sender string, path address.Path) (string, error) {
	if p.Login != "" {
		return c.relay.Recipient(true, sender, c.complete(path))
	}
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

// complete gives an address of one of our users the host that it lacks, as qmail-inject does.
func (c *Config) complete(path address.Path) address.Path {
	if !path.Bare || path.Address == "" {
		return path
	}
	tokens, ok := header.Tokenize(address.QuoteAddress(path.Address))
	if !ok {
		return path
	}
	path.Address, path.Bare = header.Address(c.completion.Complete(tokens)), false
	return path
}
