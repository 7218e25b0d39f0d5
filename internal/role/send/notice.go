package send

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"qmail/internal/format/bounce"
	"qmail/internal/format/dsn"
	"qmail/internal/format/envelope"
	"qmail/internal/proto/enqueue"
	"qmail/internal/store/queue"
)

const (
	// maxInjecting bounds the notices that are written at once.
	maxInjecting = 16
	// maxNoticeInMemory is the largest original message that goes into a notice without a spool, in bytes.
	maxNoticeInMemory = 256 << 10
	// maxQSBMF is the largest original message that is quoted in full in front of a report, too, in bytes.
	maxQSBMF = 8 << 10
	// maxHeaderBack is how much of a message's header goes back where only that does, in bytes.
	maxHeaderBack = 64 << 10
)

// notice is a message to the sender of another one. It enters the queue in one record with what it tells of.
type notice struct {
	kind     bounce.Kind
	of       queue.ID
	original *envelope.Envelope
	outcomes []dsn.Outcome
	until    time.Time     // of a delay
	closes   []queue.Close // As is filled in
	notes    []queue.Note

	// Of the message that it becomes.
	accept queue.Accept
	size   int64
}

// queued is the event of a notice that is in the queue, or could not be put there.
type queued struct {
	*notice
	err error
}

// notify queues a notice; its event tells what came of it. Without anybody to tell it is false.
func (c *core) notify(ctx context.Context, n *notice) bool {
	from, to, ok := bounce.Envelope(n.original.Sender, c.config.DoubleBounce)
	if !ok {
		return false
	}
	e := &envelope.Envelope{
		UID: os.Getuid(), Birth: c.now(), Sender: from, Recipients: []string{to},
		RecipientOptions: map[int][]string{0: {"NOTIFY=" + dsn.Never.String()}}, // RFC 3461 6.1
	}
	n.accept = queue.Accept{ID: c.store.NewID(), Envelope: e}
	e.QP = int64(n.accept.ID)
	for i := range n.closes {
		n.closes[i].As = n.accept.ID
	}
	c.flush() // what this message's last job closed goes first
	c.bouncing++
	config := c.config
	go func() {
		c.injecting <- struct{}{}
		defer func() { <-c.injecting }()
		if err := c.write(ctx, n, config); err != nil {
			c.post(queued{n, err})
			return
		}
		spool := n.accept.Spool
		c.store.Commit(queue.Batch{Accepts: []queue.Accept{n.accept}, Closes: n.closes, Notes: n.notes}, func(err error) {
			if spool != nil {
				spool.Close()
			}
			c.post(queued{n, err})
		})
	}()
	return true
}

// write gives a notice its body.
func (c *core) write(ctx context.Context, n *notice, config *Config) error {
	original, err := c.store.Body(ctx, n.of)
	if err != nil {
		return err
	}
	defer original.Close()
	text := n.text(config)
	head := enqueue.AppendReceived(nil, n.accept.Envelope.QP, "for bounce", text.Date)
	if n.kind == bounce.Failed && config.QSBMF {
		return c.writeQSBMF(n, config, bounce.Append(head, text), original)
	}
	return c.writeReport(n, config, head, text, original)
}

// text is what there is to say to people.
func (n *notice) text(config *Config) bounce.Notice {
	var paragraphs []byte
	for _, o := range n.outcomes {
		report := o.Report
		if n.kind == bounce.Delivered {
			report = string(o.Action) + "\n" // what was said of a delivery is for its recipient
		}
		paragraphs = bounce.AppendFailure(paragraphs, o.Recipient, report)
	}
	return bounce.Notice{
		Kind: n.kind, Date: n.accept.Envelope.Birth, From: config.BounceFrom, Host: config.BounceHost,
		Sender: n.original.Sender, To: n.accept.Envelope.Recipients[0], Failures: paragraphs, Until: n.until,
	}
}

// writeQSBMF sends back the beginning of the message in any case, and marks where it was cut.
func (c *core) writeQSBMF(n *notice, config *Config, head []byte, original queue.Body) error {
	n.accept.Envelope.Options = carriedOver(n.original.Options)
	take, tail := original.Size(), ""
	if config.BounceMax > 0 && take > config.BounceMax {
		take, tail = config.BounceMax, bounce.Stripped
	}
	return c.join(n, head, io.NewSectionReader(original, 0, take), []byte(tail))
}

// writeReport sends back the message if the sender wants it and it is not too large, else its header.
func (c *core) writeReport(n *notice, config *Config, head []byte, text bounce.Notice, original queue.Body) error {
	wishes := dsn.OfMessage(n.original.Options)
	r := &dsn.Report{
		Fields: bounce.AppendFields(nil, text), ID: noticeID(n.accept.ID, text.Date), Host: config.BounceHost, MTA: config.Me,
		Text:       bounce.AppendText(nil, text),
		EnvelopeID: wishes.ID, Arrival: n.original.Birth, Outcomes: n.outcomes,
		UTF8:  hasOption(n.original.Options, "SMTPUTF8"),
		Whole: n.kind == bounce.Failed && !wishes.Headers && (config.BounceMax == 0 || original.Size() <= config.BounceMax),
	}
	if r.Whole && original.Size() > maxNoticeInMemory {
		r.EightBit = true // perhaps
		return c.finishReport(n, r, head, text, nil, io.NewSectionReader(original, 0, original.Size()))
	}
	limit := original.Size()
	if !r.Whole {
		limit = min(limit, maxHeaderBack)
	}
	back := make([]byte, limit)
	if got, err := original.ReadAt(back, 0); got < len(back) {
		return fmt.Errorf("the message ends after %d bytes: %w", got, err)
	}
	if !r.Whole {
		back = headerOf(back)
	}
	r.EightBit = bytes.ContainsFunc(back, func(c rune) bool { return c >= 0x80 })
	return c.finishReport(n, r, head, text, back, nil)
}

// finishReport puts a report together: with back, which is at hand, or with what rest reads.
func (c *core) finishReport(n *notice, r *dsn.Report, head []byte, text bounce.Notice, back []byte, rest *io.SectionReader) error {
	var random [16]byte
	rand.Read(random[:]) // never fails
	if n.kind == bounce.Failed {
		r.Preamble = qsbmf(text, r.Whole, back)
	}
	r.Boundary = dsn.NewBoundary(hex.EncodeToString(random[:]), r.Text, r.Preamble, back)
	n.accept.Envelope.Options = r.Options()
	head = r.Append(head)
	head = append(bounce.AppendReturnPath(head, text), back...)
	if rest == nil {
		rest = io.NewSectionReader(bytes.NewReader(nil), 0, 0)
	}
	return c.join(n, head, rest, r.AppendEnd(nil))
}

// qsbmf is the bounce that qmail-send has always written, for the preamble of a report: programs that know nothing of
// MIME find in it what they look for. Of a message that is not small, or does not go back whole, it has the header.
func qsbmf(text bounce.Notice, whole bool, back []byte) []byte {
	b := bounce.AppendReturnPath(bounce.AppendText(nil, text), text)
	if whole && len(back) <= maxQSBMF && back != nil {
		b = append(b, back...)
	} else {
		header := headerOf(back)
		b = append(append(b, header[:min(len(header), maxQSBMF)]...), bounce.Stripped...)
	}
	if b[len(b)-1] != '\n' {
		b = append(b, '\n')
	}
	return b
}

// join makes the body of a notice: small ones in memory, large ones by a file.
func (c *core) join(n *notice, head []byte, rest *io.SectionReader, tail []byte) error {
	n.size = int64(len(head)+len(tail)) + rest.Size()
	if rest.Size() <= maxNoticeInMemory && n.size <= 2*maxNoticeInMemory {
		all := make([]byte, n.size)
		copy(all, head)
		if got, err := io.ReadFull(rest, all[len(head):len(head)+int(rest.Size())]); err != nil {
			return fmt.Errorf("the message ends after %d bytes: %w", got, err)
		}
		copy(all[len(all)-len(tail):], tail)
		n.accept.Body = [][]byte{all}
		return nil
	}
	spool, err := c.store.Spool()
	if err != nil {
		return err
	}
	_, err = spool.Write(head)
	if err == nil {
		var copied int64
		if copied, err = io.Copy(struct{ io.Writer }{spool}, rest); err == nil && copied != rest.Size() {
			err = io.ErrUnexpectedEOF
		}
	}
	if err == nil {
		_, err = spool.Write(tail)
	}
	if err != nil {
		spool.Close()
		return err
	}
	n.accept.Spool = spool
	return nil
}

// noticed goes on when a notice is in the queue, or could not be put there.
func (c *core) noticed(ctx context.Context, e queued) {
	c.bouncing--
	switch e.kind {
	case bounce.Failed:
		c.bounced(ctx, e)
	case bounce.Delayed:
		c.warnedOf(e)
	case bounce.Delivered:
		c.told(ctx, e)
	}
	if e.err != nil {
		return
	}
	id := e.accept.ID
	c.log.New(uint64(id))
	c.log.Info(uint64(id), e.size, e.accept.Envelope.Sender, e.accept.Envelope.QP, e.accept.Envelope.UID)
	c.add(id, e.accept.Envelope, e.accept.Envelope.Birth, false)
}

func noticeID(id queue.ID, t time.Time) string {
	return strconv.FormatInt(t.Unix(), 10) + "." + id.String() + ".qmail"
}

// headerOf is the part of a message before the first empty line, or as much of it as has whole lines.
func headerOf(b []byte) []byte {
	if bytes.HasPrefix(b, []byte("\n")) {
		return nil
	}
	if i := bytes.Index(b, []byte("\n\n")); i >= 0 {
		return b[:i+1]
	}
	if i := bytes.Index(b, []byte("\n\r\n")); i >= 0 {
		return b[:i+1]
	}
	if i := bytes.LastIndexByte(b, '\n'); i >= 0 {
		return b[:i+1]
	}
	return b
}

// carriedOver are the options that a message and one that quotes it have in common.
func carriedOver(options []string) (kept []string) {
	for _, o := range [...]string{"BODY=8BITMIME", "SMTPUTF8"} {
		if hasOption(options, o) {
			kept = append(kept, o)
		}
	}
	return kept
}
