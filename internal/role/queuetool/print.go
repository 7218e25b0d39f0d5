package queuetool

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"qmail/internal/proto/admin"
)

// printer writes messages and recipients as they come.
type printer struct {
	out        io.Writer
	json       bool
	recipients bool // a list of recipients follows each message
	details    bool
	now        time.Time
	zone       *time.Location

	open bool // a JSON object is, and its array of recipients
	any  bool // recipients in it
}

func (t *tool) printer() *printer {
	now := t.env.Now()
	return &printer{out: t.out, json: t.json, recipients: t.filter.Recipients, now: now, zone: now.Location()}
}

// jsonMessage is a message in JSON. Recipients follow where the object is left open.
type jsonMessage struct {
	ID         uint64     `json:"id"`
	Accepted   *time.Time `json:"accepted,omitempty"`
	Age        int64      `json:"age"` // seconds
	Size       int64      `json:"size"`
	Sender     string     `json:"sender"`
	UID        int        `json:"uid"`
	QP         int64      `json:"qp"`
	Recipients int        `json:"recipients_total"`
	Waiting    int        `json:"waiting"`
	Ready      int        `json:"ready"`
	Running    int        `json:"running"`
	Held       int        `json:"held"`
	Failed     int        `json:"failed"`
	Done       int        `json:"done"`
	OnHold     bool       `json:"on_hold"`
	Damaged    bool       `json:"damaged"`
	Next       *time.Time `json:"next,omitempty"`
}

type jsonRecipient struct {
	Address string     `json:"address"`
	To      string     `json:"to"`
	Channel string     `json:"channel"`
	State   string     `json:"state"`
	Next    *time.Time `json:"next,omitempty"`
	Text    string     `json:"text,omitempty"`
}

// when is a time in JSON; none is left out.
func when(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

func (p *printer) message(m *admin.Message) error {
	if err := p.end(); err != nil {
		return err
	}
	if p.json {
		return p.jsonMessage(m)
	}
	if p.details {
		return p.show(m)
	}
	state := states(m)
	if m.Damaged {
		state = "damaged"
	}
	_, err := fmt.Fprintf(p.out, "%d  %s  %d  <%s>  %s\n", m.ID, p.age(m.Birth), m.Size, clean(m.Sender), state)
	return err
}

func (p *printer) jsonMessage(m *admin.Message) error {
	age := int64(0)
	if !m.Birth.IsZero() {
		age = max(int64(p.now.Sub(m.Birth)/time.Second), 0)
	}
	b, err := json.Marshal(jsonMessage{
		m.ID, when(m.Birth), age, m.Size, m.Sender, m.UID, m.QP, m.Recipients,
		m.Waiting, m.Ready, m.Running, m.Held, m.Failed, m.Done(), m.OnHold, m.Damaged, when(m.Next),
	})
	if err != nil {
		return err
	}
	if p.recipients || p.details {
		p.open, p.any = true, false
		b = append(b[:len(b)-1], `,"recipients":[`...)
	} else {
		b = append(b, '\n')
	}
	_, err = p.out.Write(b)
	return err
}

// end closes what a message has left open.
func (p *printer) end() error {
	if !p.open {
		return nil
	}
	p.open = false
	_, err := io.WriteString(p.out, "]}\n")
	return err
}

func (p *printer) recipient(r *admin.Recipient) error {
	channel := "remote"
	if r.Channel == admin.Local {
		channel = "local"
	}
	if !p.json {
		return p.line(r, channel)
	}
	b, err := json.Marshal(jsonRecipient{r.Address, r.To, channel, r.State.String(), when(r.Next), r.Text})
	if err != nil {
		return err
	}
	if p.any {
		b = append([]byte{','}, b...)
	}
	p.any = true
	_, err = p.out.Write(b)
	return err
}

func (p *printer) line(r *admin.Recipient, channel string) error {
	to := clean(r.Address)
	if r.To != r.Address {
		to += " (" + clean(r.To) + ")"
	}
	text := fmt.Sprintf("    %-7s  %-6s  %s", r.State, channel, to)
	if !r.Next.IsZero() {
		text += "  next " + p.time(r.Next)
	}
	if r.Text != "" {
		text += "\n        " + clean(strings.ReplaceAll(r.Text, "\n", " / "))
	}
	_, err := fmt.Fprintln(p.out, text)
	return err
}

// show prints a message with everything that is known of it.
func (p *printer) show(m *admin.Message) error {
	w := bufio.NewWriter(p.out)
	fmt.Fprintf(w, "message %d\n", m.ID)
	if m.Damaged {
		fmt.Fprintln(w, "  its envelope cannot be read")
		return w.Flush()
	}
	fmt.Fprintf(w, "  sender   <%s>\n  accepted %s, %s ago, by uid %d, qp %d\n  size     %d bytes\n",
		clean(m.Sender), p.time(m.Birth), p.age(m.Birth), m.UID, m.QP, m.Size)
	fmt.Fprintf(w, "  state    %s\n", states(m))
	return w.Flush()
}

// states sums up the recipients.
func states(m *admin.Message) string {
	var parts []string
	for _, s := range [...]struct {
		n    int
		name admin.State
	}{{m.Waiting, admin.Waiting}, {m.Ready, admin.Ready}, {m.Running, admin.Running}, {m.Held, admin.Held}, {m.Failed, admin.Failed}, {m.Done(), admin.Done}} {
		if s.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %v", s.n, s.name))
		}
	}
	text := strings.Join(parts, ", ")
	if m.OnHold && m.Held == 0 {
		text += ", on hold"
	}
	return text
}

func (p *printer) time(t time.Time) string { return t.In(p.zone).Format("2006-01-02 15:04:05 -0700") }

// age is how long something has been, in one or two units.
func (p *printer) age(t time.Time) string {
	if t.IsZero() {
		return "?"
	}
	s := max(int64(p.now.Sub(t)/time.Second), 0)
	switch {
	case s < 120:
		return fmt.Sprintf("%ds", s)
	case s < 2*3600:
		return fmt.Sprintf("%dm", s/60)
	case s < 48*3600:
		return fmt.Sprintf("%dh%02dm", s/3600, s/60%60)
	}
	return fmt.Sprintf("%dd%02dh", s/86400, s/3600%24)
}

// totals prints what count counts.
func (t *tool) totals(n admin.Totals) error {
	if t.json {
		b, err := json.Marshal(struct {
			Messages   int64      `json:"messages"`
			Recipients int64      `json:"recipients"`
			Failed     int64      `json:"failed"`
			OnHold     int64      `json:"on_hold"`
			Bytes      int64      `json:"bytes"`
			Oldest     *time.Time `json:"oldest,omitempty"`
		}{n.Messages, n.Recipients, n.Failed, n.OnHold, n.Bytes, when(n.Oldest)})
		if err == nil {
			_, err = t.out.Write(append(b, '\n'))
		}
		return err
	}
	text := fmt.Sprintf("%d messages, %d recipients to be done, of them %d failed, %d messages on hold, %d bytes", n.Messages, n.Recipients, n.Failed, n.OnHold, n.Bytes)
	if !n.Oldest.IsZero() {
		p := t.printer()
		text += ", the oldest " + p.age(n.Oldest)
	}
	_, err := fmt.Fprintln(t.out, text)
	return err
}

// clean makes text safe for a terminal: what is not printable ASCII is a question mark.
func clean(s string) string {
	for i := 0; i < len(s); i++ {
		if s[i] < 32 || s[i] > 126 {
			b := []byte(s)
			for ; i < len(b); i++ {
				if b[i] < 32 || b[i] > 126 {
					b[i] = '?'
				}
			}
			return string(b)
		}
	}
	return s
}
