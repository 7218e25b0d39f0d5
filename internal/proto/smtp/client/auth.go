package client

import (
	"bytes"
	"encoding/base64"
	"strings"

	"qmail/internal/proto/sasl"
)

// maxExchange is how many challenges a server may send.
const maxExchange = 8

// authenticate shows who we are (RFC 4954). By then the server has shown who it is. No refusal here says anything of the
// message, so that none is for good.
func (c *Conn) authenticate(login *Login) Report {
	binding := c.binding()
	mechanism := sasl.Choose(c.auth, binding != nil)
	if mechanism == "" {
		return c.refused('Z', "Connected to "+c.addr+" but it offers no way to log in that I know. (#4.7.0)\n")
	}
	x, err := sasl.NewClient(mechanism, login.Name, login.Password, sasl.Options{Binding: binding, Offered: c.auth})
	if err != nil {
		return c.noLogin(err)
	}
	first, err := x.Start()
	if err != nil {
		return c.noLogin(err)
	}
	line := "AUTH " + mechanism
	if first != nil {
		line += " " + initial(first)
	}
	code, err := c.command(line, nil)
	for range maxExchange {
		if err != nil {
			return c.died("")
		}
		if code != 334 {
			break
		}
		var response []byte
		challenge, bad := c.challenge()
		if bad == nil {
			response, bad = x.Next(challenge)
		}
		if bad != nil {
			c.command("*", nil)
			return c.noLogin(bad)
		}
		code, err = c.command(base64.StdEncoding.EncodeToString(response), nil)
	}
	if err != nil {
		return c.died("")
	}
	if code != 235 {
		return c.refused('Z', "Connected to "+c.addr+" but my login was rejected.\n")
	}
	if err := x.Finish(); err != nil {
		return c.noLogin(err)
	}
	return Report{}
}

// initial is base64; nothing is "=" where it stands behind a command.
func initial(b []byte) string {
	if len(b) == 0 {
		return "="
	}
	return base64.StdEncoding.EncodeToString(b)
}

// challenge is what the last reply holds.
func (c *Conn) challenge() ([]byte, error) {
	line, _, _ := bytes.Cut(c.in.text, []byte{'\n'})
	if len(line) < 4 {
		return nil, nil
	}
	return base64.StdEncoding.DecodeString(string(bytes.TrimSpace(line[4:])))
}

func (c *Conn) noLogin(err error) Report {
	c.dead = true
	return Report{'Z', "Connected to " + c.addr + " but could not log in: " + visible(err.Error()) + ". (#4.7.0)\n"}
}

// binding is the best there is of the connection, nil without TLS.
func (c *Conn) binding() *sasl.Binding {
	if c.secure == nil {
		return nil
	}
	state := c.secure.ConnectionState()
	if len(state.PeerCertificates) == 0 {
		return nil
	}
	all := sasl.Bindings(&state, state.PeerCertificates[0])
	if len(all) == 0 {
		return nil
	}
	return &all[0]
}

// offersAuth takes the mechanisms of the EHLO reply; some servers of old write "AUTH=".
func (c *Conn) offersAuth(arg string) {
	const most = 32
	if names := strings.Fields(strings.ToUpper(arg)); len(c.auth)+len(names) <= most {
		c.auth = append(c.auth, names...)
	}
}
