package sasl

import (
	"crypto/hmac"
	"crypto/md5"
	"encoding/hex"
	"strings"

	"github.com/xdg-go/scram"
)

// Client is the client's side of one exchange, from Start to Finish.
type Client struct {
	Mechanism string

	login, password string
	scram           *scram.ClientConversation
	step            int
	proved          bool // the server has shown that it knows the password
}

// Options are what a client knows besides its name and its password.
type Options struct {
	// Binding is that of the connection; for mechanisms with -PLUS it must be there.
	Binding *Binding
	// Offered are the mechanisms of the server: if none of them binds though we could, we say so, and a server whose
	// list was changed on the way will notice.
	Offered []string
}

// NewClient begins an exchange; mechanism is one that Choose returned.
func NewClient(mechanism, login, password string, o Options) (*Client, error) {
	c := &Client{Mechanism: mechanism, login: login, password: password}
	if login == "" || len(login) > MaxLogin || len(password) > MaxPassword || strings.IndexByte(login+password, 0) >= 0 {
		return nil, ErrMalformed
	}
	switch mechanism {
	case Plain, Login, CRAMMD5:
		return c, nil
	}
	hash, ok := hashOf(mechanism)
	if !ok || plus(mechanism) && o.Binding == nil {
		return nil, ErrMechanism
	}
	client, err := hash.NewClientUnprepped(Prepare(login), Prepare(password), "")
	if err != nil {
		return nil, err
	}
	client.WithMinIterations(minIterations)
	switch {
	case plus(mechanism):
		c.scram = client.NewConversationWithChannelBinding(o.Binding.scram())
	case o.Binding != nil && !offersBinding(o.Offered):
		c.scram = client.NewConversationAdvertisingChannelBinding()
	default:
		c.scram = client.NewConversation()
	}
	return c, nil
}

func offersBinding(offered []string) bool {
	for _, o := range offered {
		if equalFold(o, ScramSHA1Plus) || equalFold(o, ScramSHA256Plus) {
			return true
		}
	}
	return false
}

// Start returns the initial response; nil if the server speaks first.
func (c *Client) Start() ([]byte, error) {
	switch c.Mechanism {
	case Plain:
		return []byte("\x00" + c.login + "\x00" + c.password), nil
	case Login, CRAMMD5:
		return nil, nil
	}
	first, err := c.scram.Step("")
	return []byte(first), err
}

// Next answers a challenge. An error means that the exchange has to be given up.
func (c *Client) Next(challenge []byte) ([]byte, error) {
	if len(challenge) > MaxMessage {
		return nil, ErrServer
	}
	c.step++
	switch {
	case c.Mechanism == Login && c.step == 1:
		return []byte(c.login), nil // the challenge says "Username:", or something else
	case c.Mechanism == Login && c.step == 2:
		return []byte(c.password), nil
	case c.Mechanism == CRAMMD5 && c.step == 1:
		mac := hmac.New(md5.New, []byte(c.password))
		mac.Write(challenge)
		return []byte(c.login + " " + hex.EncodeToString(mac.Sum(nil))), nil
	case c.scram != nil && c.step == 1:
		if !bearable(challenge) {
			return nil, ErrServer
		}
		return c.scramStep(challenge)
	case c.scram != nil && c.step == 2:
		answer, err := c.scramStep(challenge)
		c.proved = err == nil && c.scram.Valid()
		return answer, err
	}
	return nil, ErrServer
}

func (c *Client) scramStep(challenge []byte) ([]byte, error) {
	answer, err := c.scram.Step(string(challenge))
	if err != nil {
		return nil, ErrServer
	}
	return []byte(answer), nil
}

// Finish says whether a server that says that all is well may be believed: one that used SCRAM has to have shown that
// it knows the password.
func (c *Client) Finish() error {
	if c.scram != nil && !c.proved {
		return ErrServer
	}
	return nil
}

// bearable reports whether SCRAM's first challenge asks for no more work than we are willing to do.
func bearable(challenge []byte) bool {
	for field := range strings.SplitSeq(string(challenge), ",") {
		if digits, ok := strings.CutPrefix(field, "i="); ok {
			n := 0
			for i := 0; i < len(digits); i++ {
				if digits[i] < '0' || digits[i] > '9' || n > maxIterations {
					return false
				}
				n = n*10 + int(digits[i]-'0')
			}
			return n <= maxIterations
		}
	}
	return true // the reader will find that there is none
}
