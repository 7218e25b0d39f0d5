// Package qread is qmail-qread: the messages of the queue and their recipients in the form that qmail-qread has always
// had, for people and for the scripts that read it. It asks a running qmail-send (proto/admin), so that its owners see
// all messages, and others their own.
package qread

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"

	"qmail/internal/format/date822"
	"qmail/internal/format/reply"
	"qmail/internal/proto/admin"
	"qmail/internal/system/env"
)

// maxRemote bounds the lines of remote recipients that wait until a message's local ones are written, in bytes; beyond,
// they are written as they come.
const maxRemote = 1 << 20

// Main runs qmail-qread. It returns 0, or 111 if there is nobody to ask.
func Main(_ context.Context, e *env.Env, _ []string) int {
	c, err := admin.Dial(e.Home)
	if err == nil {
		defer c.Close()
		p := &printer{out: bufio.NewWriterSize(e.Stdout, 32<<10)}
		_, err = c.List(&admin.Filter{Recipients: true}, p.message, p.recipient)
		err = errors.Join(err, p.end(), p.out.Flush())
	}
	if err != nil {
		text := err.Error()
		if refusal, ok := errors.AsType[*reply.Error](err); ok {
			text = refusal.Text
		}
		fmt.Fprintf(e.Stderr, "qmail-qread: fatal: %s\n", text)
		return 111
	}
	return 0
}

// printer writes local recipients before remote ones, since they were in two files.
type printer struct {
	out    *bufio.Writer
	remote []byte
}

func (p *printer) message(m *admin.Message) error {
	if err := p.end(); err != nil {
		return err
	}
	bouncing := ""
	if m.Failed > 0 {
		bouncing = " bouncing"
	}
	date := strings.TrimSuffix(date822.Format(m.Birth), " -0000")
	_, err := fmt.Fprintf(p.out, "%s GMT  #%d  %d  <%s> %s\n", date, m.ID, m.Size, safe(m.Sender), bouncing)
	return err
}

func (p *printer) recipient(r *admin.Recipient) error {
	line := make([]byte, 0, 64)
	if r.State == admin.Done || r.State == admin.Failed { // both are no longer to be tried
		line = append(line, "  done"...)
	}
	if r.Channel == admin.Local {
		line = append(line, "\tlocal\t"...)
	} else {
		line = append(line, "\tremote\t"...)
	}
	line = append(append(line, safe(r.To)...), '\n')
	if r.Channel != admin.Local && len(p.remote) < maxRemote {
		p.remote = append(p.remote, line...)
		return nil
	}
	_, err := p.out.Write(line)
	return err
}

func (p *printer) end() error {
	_, err := p.out.Write(p.remote)
	p.remote = p.remote[:0]
	return err
}

// safe makes what is not printable, and blanks, an underscore.
func safe(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c < 33 || c > 126 {
			b[i] = '_'
		}
	}
	return string(b)
}
