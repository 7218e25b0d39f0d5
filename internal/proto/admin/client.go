package admin

import (
	"errors"
	"io"
	"io/fs"
	"syscall"
	"time"

	"qmail/internal/format/reply"
	"qmail/internal/system/ipc"
)

const (
	dialTime = 5 * time.Second
	// answerTime is how long the client waits for the next frame of an answer.
	answerTime = 5 * time.Minute
	// maxSteps and maxSlow bound answers that the client holds whole.
	maxSteps = 100_000
	maxSlow  = 100_000
)

// ErrNotRunning means that nobody is behind the door.
var ErrNotRunning = errors.New("qmail-send is not running")

var errGarbled = errors.New("garbled answer of qmail-send")

// Client asks. It is for one goroutine.
type Client struct {
	conn *ipc.Conn
}

// Dial connects to the qmail-send of a home.
func Dial(home string) (*Client, error) {
	c, err := ipc.Dial(SocketPath(home), dialTime)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, ErrNotRunning
	}
	if err != nil {
		return nil, err
	}
	return NewClient(ipc.New(ipc.Unix(c))), nil
}

// NewClient takes over a connection.
func NewClient(conn *ipc.Conn) *Client { return &Client{conn: conn} }

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// ask sends a question and gives each frame of the answer to take, until the last, which it returns. A refusal is an
// error of its own. An error of take leaves the connection unusable.
func (c *Client) ask(kind byte, payload []byte, take func(kind byte, payload []byte) error) ([]byte, error) {
	if err := c.conn.Send(kind, 0, payload); err != nil {
		return nil, gone(err)
	}
	for {
		if err := c.conn.SetReadDeadline(time.Now().Add(answerTime)); err != nil {
			return nil, gone(err)
		}
		f, err := c.conn.Read()
		if err != nil {
			return nil, gone(err)
		}
		if f.File != nil {
			f.File.Close()
			return nil, c.garbled()
		}
		switch f.Kind {
		case kindEnd:
			return append([]byte(nil), f.Payload...), nil
		case kindRefusal:
			return nil, c.refusal(f.Payload)
		case kindMore:
			if err := c.conn.Send(kindNext, 0); err != nil {
				return nil, gone(err)
			}
		default:
			if err := take(f.Kind, f.Payload); err != nil {
				c.Close()
				return nil, err
			}
		}
	}
}

// gone is the error of a connection that ended.
func gone(err error) error {
	if errors.Is(err, ipc.ErrFrame) {
		return errGarbled
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		return errors.New("the connection to qmail-send is lost")
	}
	return err
}

func (c *Client) garbled() error {
	c.Close()
	return errGarbled
}

func (c *Client) refusal(report []byte) error {
	if len(report) < 2 || len(report) > MaxText || report[0] != 'Z' && report[0] != 'D' {
		return c.garbled()
	}
	return reply.Parse(string(report))
}

// nothing takes no frame but the last.
func nothing(byte, []byte) error { return errGarbled }

// each parses the items of a frame.
func each[T any](b []byte, codecOf func(*T) codec, f func(*T) error) error {
	for len(b) > 0 {
		v := new(T)
		c := codecOf(v)
		rest, err := parseFields(b, c.fields)
		if err == nil {
			err = c.checked()
		}
		if err != nil || len(rest) == len(b) {
			return errGarbled
		}
		if err := f(v); err != nil {
			return err
		}
		b = rest
	}
	return nil
}

// last parses the last frame of an answer.
func (c *Client) last(b []byte, into codec, err error) error {
	if err != nil {
		return err
	}
	if into.parse(b) != nil {
		return c.garbled()
	}
	return nil
}

// messages takes messages and recipients.
func messages(message func(*Message) error, recipient func(*Recipient) error) func(byte, []byte) error {
	any := false
	return func(kind byte, payload []byte) error {
		switch {
		case kind == kindMessage:
			any = true
			m := &Message{}
			if m.codec().parse(payload) != nil {
				return errGarbled
			}
			return message(m)
		case kind == kindRecipients && any:
			return each(payload, (*Recipient).codec, recipient)
		}
		return errGarbled
	}
}

// List calls message for each message that passes the filter and, if that asks for them, recipient for its recipients.
func (c *Client) List(f *Filter, message func(*Message) error, recipient func(*Recipient) error) (Totals, error) {
	var t Totals
	b, err := c.ask(kindList, f.codec().append(nil), messages(message, recipient))
	err = c.last(b, t.codec(), err)
	return t, err
}

// Show is List for one message.
func (c *Client) Show(id uint64, message func(*Message) error, recipient func(*Recipient) error) error {
	b, err := c.ask(kindShow, (&which{id}).codec().append(nil), messages(message, recipient))
	return c.last(b, codec{}, err)
}

// Copy writes a message's bytes.
func (c *Client) Copy(id uint64, w io.Writer) error {
	b, err := c.ask(kindCopy, (&which{id}).codec().append(nil), func(kind byte, p []byte) error {
		if kind != kindBytes {
			return errGarbled
		}
		_, err := w.Write(p)
		return err
	})
	return c.last(b, codec{}, err)
}

// Life calls f for what is known to have happened to a message, in order.
func (c *Client) Life(id uint64, f func(*Event) error) error {
	b, err := c.ask(kindLife, (&which{id}).codec().append(nil), func(kind byte, p []byte) error {
		if kind != kindEvents {
			return errGarbled
		}
		return each(p, (*Event).codec, f)
	})
	return c.last(b, codec{}, err)
}

// Order has something done.
func (c *Client) Order(o *Order) (Effect, error) {
	var e Effect
	b, err := c.ask(kindOrder, o.codec().append(nil), nothing)
	err = c.last(b, e.codec(), err)
	return e, err
}

// Explain says what would happen to mail for an address.
func (c *Client) Explain(addr string) ([]Step, error) {
	var steps []Step
	b, err := c.ask(kindExplain, (&address{addr}).codec().append(nil), func(kind byte, p []byte) error {
		if kind != kindSteps {
			return errGarbled
		}
		return each(p, (*Step).codec, func(s *Step) error {
			if len(steps) >= maxSteps {
				return errGarbled
			}
			steps = append(steps, *s)
			return nil
		})
	})
	err = c.last(b, codec{}, err)
	return steps, err
}

// Slow lists the addresses that timed out, or has them forgotten.
func (c *Client) Slow(forget bool) ([]Slow, error) {
	var list []Slow
	b, err := c.ask(kindSlow, (&slowQuestion{forget}).codec().append(nil), func(kind byte, p []byte) error {
		if kind != kindAddresses {
			return errGarbled
		}
		return each(p, (*Slow).codec, func(s *Slow) error {
			if len(list) >= maxSlow {
				return errGarbled
			}
			list = append(list, *s)
			return nil
		})
	})
	err = c.last(b, codec{}, err)
	return list, err
}

// Size asks how much there is.
func (c *Client) Size() (Size, error) {
	var s Size
	b, err := c.ask(kindSize, nil, nothing)
	err = c.last(b, s.codec(), err)
	return s, err
}
