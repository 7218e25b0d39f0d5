package jobs

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"qmail/internal/format/text0"
	"qmail/internal/system/ipc"
)

// Client is qmail-send's side: it gives out jobs and hears what became of them. What Load, Forget and Start
// send may go out a moment later, in one write; what fails then, Gone tells.
type Client struct {
	conn *ipc.Conn

	mu      sync.Mutex
	running map[uint32]running
	asked   map[uint32]func([]byte, error)
	last    uint32 // question
}

// running is what a client remembers of a job, to check what the worker says of it.
type running struct {
	recipients int
	reported   [(MaxRecipients + 63) / 64]uint64
}

// Events is how a Client tells what it hears. The calls come from one goroutine, in the worker's order.
type Events interface {
	// Results reports recipients of a job; over means that the job has ended. Each recipient of a job is
	// reported at most once, and nothing is reported of a job that is over.
	Results(job uint32, results []Result, over bool)
	// Gone says that the connection has ended, with the numbers of the jobs that were running. It is the
	// last event.
	Gone(jobs []uint32, err error)
}

// NewClient takes over conn and starts listening.
func NewClient(conn *ipc.Conn, events Events) *Client {
	c := &Client{conn: conn, running: map[uint32]running{}, asked: map[uint32]func([]byte, error){}}
	go c.read(events)
	return c
}

// Close ends the connection; Gone follows.
func (c *Client) Close() error { return c.conn.Close() }

// Load sends a body that is at hand under a number, which must not be in use and not 0.
func (c *Client) Load(body uint32, parts ...[]byte) error {
	if len(parts) == 0 {
		parts = [][]byte{nil}
	}
	for _, p := range parts {
		for first := true; first || len(p) > 0; first = false {
			n := min(len(p), piece)
			if err := c.conn.SendSoon(kindBody, body, p[:n]); err != nil {
				return err
			}
			p = p[n:]
		}
	}
	return nil
}

// LoadFile sends a body that lies in a file; f stays the caller's.
func (c *Client) LoadFile(body uint32, f *os.File, offset, length int64) error {
	records := text0.AppendInt(nil, 'o', offset)
	return c.conn.SendFile(kindFile, body, f, text0.AppendInt(records, 'l', length))
}

// Forget lets the worker drop a body. Jobs that run keep it until they are over.
func (c *Client) Forget(body uint32) error { return c.conn.SendSoon(kindForget, body) }

// Start gives out a job under a number that no running job has.
func (c *Client) Start(number uint32, j *Job) error {
	if err := j.check(); err != nil {
		return err
	}
	c.mu.Lock()
	if _, used := c.running[number]; used {
		c.mu.Unlock()
		return fmt.Errorf("jobs: number %d is in use", number)
	}
	c.running[number] = running{recipients: len(j.Recipients)}
	c.mu.Unlock()
	var space [512]byte
	err := c.conn.SendSoon(kindJob, number, j.append(space[:0]))
	if err == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ours := c.running[number]; !ours {
		return nil // Gone tells, and nobody is to hear of a job twice
	}
	delete(c.running, number)
	return err
}

// ErrNoAnswer is the answer of a worker that has none.
var ErrNoAnswer = errors.New("jobs: no answer")

// Ask puts a question. done is called once, from the goroutine that listens, with the answer, which may be kept, or why
// there is none; it must not wait. An answer is the worker's word and nothing more.
func (c *Client) Ask(q *Question, done func(answer []byte, err error)) error {
	payload, err := q.append(nil)
	if err != nil {
		return err
	}
	c.mu.Lock()
	if c.asked == nil || len(c.asked) >= maxAsked {
		c.mu.Unlock()
		return ErrNoAnswer
	}
	for c.last++; c.asked[c.last] != nil; c.last++ {
	}
	number := c.last
	c.asked[number] = done
	c.mu.Unlock()
	if err := c.conn.Send(kindAsk, number, payload); err != nil {
		if c.forget(number) != nil {
			return err
		}
	}
	return nil
}

// forget takes a question that waits off the list.
func (c *Client) forget(number uint32) (done func([]byte, error)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	done = c.asked[number]
	delete(c.asked, number)
	return done
}

func (c *Client) answer(f ipc.Frame) error {
	if len(f.Payload) > MaxAnswer {
		return errPeer // who asked hears of the end
	}
	done := c.forget(f.Stream)
	if done == nil {
		return errPeer
	}
	if len(f.Payload) == 0 {
		done(nil, ErrNoAnswer)
		return nil
	}
	done(append([]byte(nil), f.Payload...), nil)
	return nil
}

func (c *Client) read(events Events) {
	for {
		f, err := c.conn.Read()
		if err == nil {
			err = c.frame(f, events)
		}
		if err != nil {
			c.conn.Close()
			c.mu.Lock()
			var jobs []uint32
			for number := range c.running {
				jobs = append(jobs, number)
			}
			c.running = map[uint32]running{}
			asked := c.asked
			c.asked = nil
			c.mu.Unlock()
			for _, done := range asked {
				done(nil, err)
			}
			events.Gone(jobs, err)
			return
		}
	}
}

// frame believes nothing: a report of a job never given, of a recipient it does not have or for the second
// time ends the connection.
func (c *Client) frame(f ipc.Frame, events Events) error {
	if f.File != nil {
		f.File.Close()
		return errPeer
	}
	if f.Kind == kindAnswer {
		return c.answer(f)
	}
	if f.Kind != kindResults && f.Kind != kindEnd {
		return errPeer
	}
	results, err := parseResults(f.Payload)
	if err != nil {
		return err
	}
	over := f.Kind == kindEnd
	if err := c.account(f.Stream, results, over); err != nil {
		return err
	}
	events.Results(f.Stream, results, over)
	return nil
}

func (c *Client) account(number uint32, results []Result, over bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	job, ok := c.running[number]
	if !ok {
		return errPeer
	}
	for _, r := range results {
		word, bit := r.Recipient/64, uint64(1)<<(r.Recipient%64)
		if r.Recipient >= job.recipients || job.reported[word]&bit != 0 {
			return errPeer
		}
		job.reported[word] |= bit
	}
	if over {
		delete(c.running, number)
	} else {
		c.running[number] = job
	}
	return nil
}
