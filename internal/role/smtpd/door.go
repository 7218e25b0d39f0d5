package smtpd

import (
	"qmail/internal/format/envelope"
	"qmail/internal/proto/inlet"
	"qmail/internal/proto/smtp/server"
)

// door is a queue as SMTP sessions see it.
type door struct{ inlet.Queue }

// Open is server.Queue.
func (d door) Open(e *envelope.Envelope) (server.Message, error) {
	m, err := d.Queue.Open(e)
	if err != nil {
		return nil, err
	}
	return message{m, e}, nil
}

// message is a message and its envelope.
type message struct {
	inlet.Message
	envelope *envelope.Envelope
}

// Commit is server.Message.
func (m message) Commit() (uint64, error) { return m.Message.Commit(m.envelope) }
