// Package adversarial plays hostile input against the programs of a directory, as processes of their own with homes of
// their own, and judges what came of it. A case is a JSON line: what a client, a server, a file or a message says, the
// classes of outcome that are welcome, and what must not happen.
//
// Servers are played in both ways, by the long-lived roles of a running home and by one process for a connection, and
// both must do the same.
//
// It is part of the tests; nothing that is installed uses it.
package adversarial

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"
)

// Case is one hostile thing.
type Case struct {
	Name, Protocol, Side string
	Setup                Setup
	Input                []byte `json:"input_b64"`
	Chunks               []Chunk
	Expect               Expect

	bad error // what of it this package does not know
}

// Setup is what is different from the fixture.
type Setup struct {
	// For servers.
	Listener            string            `json:"listener"`
	TLS                 bool              `json:"tls"`
	Chunking            *bool             `json:"chunking"`
	Env                 map[string]string `json:"env"`
	NoMessage           bool              `json:"no_message"`
	ClientReads         *bool             `json:"client_reads"`
	QMQPAllowed         bool              `json:"qmqp_client_allowed"`
	DotQmailAlice       *string           `json:"dotqmail_alice"`
	DotQmailDefault     *string           `json:"dotqmail_alice_default"`
	RemoveControl       []string          `json:"remove_control"`
	ChmodControl        map[string]string `json:"chmod_control"`
	WriteControl        map[string]string `json:"write_control"`
	MaildirMessages     int               `json:"maildir_messages"`
	MaildirMessage      []byte            `json:"maildir_message_b64"`
	MaildirSymlink      string            `json:"maildir_symlink"`
	MaildirFIFO         bool              `json:"maildir_fifo"`
	Role                string            `json:"role"`
	Message             []byte            `json:"message_b64"`
	MessageAppend       []byte            `json:"message_append_b64"`
	MessageAppendRepeat int               `json:"message_append_repeat"`
	Rcpts               []string          `json:"rcpts"`

	// For messages, addresses and files.
	Sender      *[]byte           `json:"sender_b64"`
	Failure     string            `json:"failure"`
	BodyRepeat  *repeat           `json:"body_repeat"`
	Kind        string            `json:"kind"`
	File        string            `json:"file"`
	Key         []byte            `json:"key_b64"`
	Mode        string            `json:"mode"`
	Owner       string            `json:"owner"`
	Type        string            `json:"type"`
	TargetOwner string            `json:"target_owner"`
	Home        string            `json:"home"`
	HomeMode    string            `json:"home_mode"`
	Patrn       string            `json:"patrn"`
	Ext         string            `json:"ext"`
	DaemonEnv   map[string]string `json:"daemon_env"`
	MailboxLink string            `json:"mailbox_symlink"`
	MailboxHard string            `json:"mailbox_hardlink"`
	MailboxFIFO bool              `json:"mailbox_fifo"`
	MaildirTmp  string            `json:"maildir_tmp_symlink"`
	Inject      string            `json:"inject"`

	// For names.
	Qname, Qtype string
	ID           uint16
	Resolver     string
	TrustAD      *bool `json:"trust_ad"`
	Zone         json.RawMessage
	Repeat       int
}

// repeat is a line and how often it comes.
type repeat struct {
	line  string
	times int
}

// UnmarshalJSON reads [line, n].
func (r *repeat) UnmarshalJSON(in []byte) error {
	parts := []any{&r.line, &r.times}
	return json.Unmarshal(in, &parts)
}

// Chunk is something that is sent, by whichever side the case plays, or done.
type Chunk struct {
	B64    []byte
	Repeat int
	Delay  int `json:"delay_ms"`
	Await  string
	Before bool `json:"before_banner"`

	Gen   string
	Count int
	Users []string

	Server  []byte `json:"server_b64"`
	After   string
	Segment int
	Again   []byte `json:"repeat_b64"`
	Tail    []byte `json:"tail_b64"`
	Sink    string
	Close   bool
	Reset   bool
	Stop    bool `json:"stop_reading"`
	DNS     string
}

// Expect is what may come of it, and what must not.
type Expect struct {
	Class      string
	Or         []string
	MustNot    []string `json:"must_not"`
	Queued     *int
	QueuedMax  *int `json:"queued_max"`
	Final      string
	Rcpts      []string
	Suffix     []byte `json:"stored_suffix_b64"`
	Value      json.RawMessage
	OrValue    json.RawMessage `json:"or_value"`
	QmailValue json.RawMessage `json:"qmail_value"`
	TLSReplies *int            `json:"tls_replies"`
	Note       string
}

// ErrSkip is a case that is in the list of those that are left out, or cannot run here.
var ErrSkip = errors.New("left out")

// Load reads a file of cases. What it does not understand of a case fails that case when it is run.
func Load(path string) (list []Case, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	number := 0
	for line := range bytes.Lines(b) {
		number++
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		var name struct{ Name, Protocol, Side string }
		if err := json.Unmarshal(line, &name); err != nil || name.Name == "" {
			return nil, fmt.Errorf("%s:%d: not a case: %v", path, number, err)
		}
		c := Case{}
		d := json.NewDecoder(bytes.NewReader(line))
		d.DisallowUnknownFields()
		var form struct {
			*Case
			Tag, Ref json.RawMessage
		}
		form.Case = &c
		if err := d.Decode(&form); err != nil {
			c = Case{bad: fmt.Errorf("there is something in it that is not understood: %w", err)}
		}
		c.Name, c.Protocol, c.Side = name.Name, name.Protocol, name.Side
		list = append(list, c)
	}
	return list, nil
}

// classes are the outcomes that are welcome.
func (c *Case) classes() []string { return append([]string{c.Expect.Class}, c.Expect.Or...) }

// input is what a case for a file or a message has in all.
func (c *Case) input() []byte {
	in := bytes.Clone(c.Input)
	for _, chunk := range c.Chunks {
		in = append(in, bytes.Repeat(chunk.B64, max(1, chunk.Repeat))...)
	}
	return in
}

// Waits is how long the case itself lets pass.
func (c *Case) Waits() (all time.Duration) {
	for _, chunk := range c.Chunks {
		times := max(1, chunk.Repeat)
		if chunk.Segment > 0 {
			times = len(chunk.Server)/chunk.Segment + 1
		}
		all += time.Duration(chunk.Delay*times) * time.Millisecond
		if chunk.Stop || chunk.Await == "close" && len(chunk.B64) == 0 {
			all += time.Minute // for the other side to give up
		}
	}
	return all
}
