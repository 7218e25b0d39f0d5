package local

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"qmail/internal/format/address"
	"qmail/internal/format/dotqmail"
	"qmail/internal/format/envelope"
	"qmail/internal/format/errstr"
	"qmail/internal/format/mbox"
	"qmail/internal/format/reply"
	"qmail/internal/proto/jobs"
	"qmail/internal/store/maildir"
	"qmail/internal/store/mboxfile"
)

// patrn are the bits that neither a home nor a .qmail file may have (conf-patrn): written to by everybody.
const patrn = 0o002

// delivery is one message on its way to one recipient.
type delivery struct {
	user, home    string
	local, domain string // of the recipient, as received
	dash, ext     string
	sender        string
	fallback      string // the default delivery
	dry           bool   // -n: say what would be done
	message       *message
	// The options of the message and of the recipient (RFC 3461), and whether another took over what they ask for.
	options, recipientOptions []string
	passedOn                  bool
}

// site is what deliveries need of the machine.
type site struct {
	maildirs *maildir.Deliverer
	queue    submitter
	vars     []string // the environment that programs start from
	now      func() time.Time
	uid      int
	patience time.Duration // with one program
	linger   time.Duration // of its children
}

// submitter puts a message into the queue; qp is what the report calls it.
type submitter interface {
	submit(ctx context.Context, e *envelope.Envelope, head []byte, m *jobs.Body) (qp string, err error)
}

// The exit codes of qmail-local.
const (
	exitDone  = 0
	exitNever = 100
	exitLater = 111
)

// failure ends a delivery: an exit code, and what is said about it, which may be nothing.
type failure struct {
	code int
	text string
}

func (f *failure) Error() string { return f.text }

func later(text string) *failure { return &failure{exitLater, text} }
func never(text string) *failure { return &failure{exitNever, text} }

// failureOf is any error as a failure; one that nobody classified is temporary.
func failureOf(err error) *failure {
	if f, ok := errors.AsType[*failure](err); ok {
		return f
	}
	e := reply.Of(err)
	f := &failure{exitLater, e.Report()[1:]}
	if e.Letter() == 'D' {
		f.code = exitNever
	}
	return f
}

var errNoMailbox = never("Sorry, no mailbox here by that name. (#5.1.1)")

// run carries out a delivery in the order that qmail-local has always had, and returns its exit code. What
// programs print and the account of what was done go to out, refusals to errs.
func (s *site) run(ctx context.Context, d *delivery, out, errs io.Writer) int {
	defer d.message.close()
	if err := s.deliver(ctx, d, out, errs); err != nil {
		f := failureOf(err)
		if f.text != "" {
			fmt.Fprintln(errs, f.text)
		}
		return f.code
	}
	return exitDone
}

func (s *site) deliver(ctx context.Context, d *delivery, out, errs io.Writer) error {
	if err := checkHome(d, errs); err != nil {
		return err
	}
	if !d.dry {
		if err := checkLoop(d); err != nil {
			return err
		}
	}
	in, err := s.instructions(d)
	if err != nil {
		return err
	}
	sender, err := forwardSender(d)
	if err != nil {
		return err
	}
	lines, err := in.parse()
	if d.dry {
		say(lines, out)
	}
	if err != nil {
		return err // before anything was done: nothing will be done twice
	}
	w := &work{site: s, delivery: d, from: in.from, newSender: sender, out: out, errs: errs}
	if !d.dry {
		err = w.do(ctx, lines)
	} else {
		w.count(lines)
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "did %d+%d+%d\n", w.files, w.forwards, w.programs)
	if w.qp != "" {
		fmt.Fprintf(out, "qp %s\n", w.qp)
	}
	return nil
}

// verify answers whether a delivery would find instructions, without a message.
func (s *site) verify(d *delivery) error {
	if err := checkHome(d, io.Discard); err != nil {
		return err
	}
	_, err := s.instructions(d)
	return err
}

func checkHome(d *delivery, errs io.Writer) error {
	info, err := os.Stat(d.home + "/.") // like a chdir, this needs the right to search it
	if err != nil {
		return later(fmt.Sprintf("Unable to switch to %s: %s. (#4.3.0)", d.home, errstr.Text(err)))
	}
	if info.Mode()&patrn != 0 {
		return later("Uh-oh: home directory is writable. (#4.7.0)")
	}
	if info.Mode()&os.ModeSticky != 0 {
		if !d.dry {
			return later("Home directory is sticky: user is editing his .qmail file. (#4.2.1)")
		}
		fmt.Fprintln(errs, "Warning: home directory is sticky.")
	}
	return nil
}

// checkLoop looks for our own Delivered-To line in the header.
func checkLoop(d *delivery) error {
	mine := bytes.TrimSuffix(d.deliveredTo(), []byte("\n"))
	found, passed, err := headerHas(d.message.body, mine)
	switch {
	case err != nil:
		return later("Unable to read message. (#4.3.0)")
	case found:
		return never("This message is looping: it already has my Delivered-To line. (#5.4.6)")
	case passed >= maxPassed:
		return never("This message is looping: it has too many Delivered-To lines. (#5.4.6)")
	}
	return nil
}

const (
	// maxPassed is how many addresses a message may have passed (RFC 5321 6.3 counts Received fields alike): a chain of them
	// in which each forwards to two is a bomb.
	maxPassed = 100
	// maxForwards is how many addresses one .qmail file may forward to.
	maxForwards = 100_000
)

// deliveredTo begins the line that each address adds.
const deliveredTo = "Delivered-To:"

// parse understands instructions as a whole.
func (in *instructions) parse() ([]dotqmail.Line, error) {
	lines, err := dotqmail.Parse(in.text, in.forwardOnly)
	if err != nil {
		return lines, err
	}
	forwards := 0
	for _, l := range lines {
		if l.Kind == dotqmail.Forward {
			forwards++
		}
	}
	if forwards > maxForwards {
		return lines, later(fmt.Sprintf("Uh-oh: .qmail file has more than %d forwards. (#4.3.5)", maxForwards))
	}
	return lines, nil
}

// headerHas reports whether a message's header has exactly this line, and how many Delivered-To lines there are before it.
func headerHas(b *jobs.Body, want []byte) (found bool, passed int, err error) {
	if all := b.Bytes(); all != nil {
		for len(all) > 0 {
			var line []byte
			line, all, _ = bytes.Cut(all, []byte("\n"))
			if len(line) == 0 {
				break
			}
			if bytes.Equal(line, want) {
				return true, passed, nil
			}
			if bytes.HasPrefix(line, []byte(deliveredTo)) {
				passed++
			}
		}
		return false, passed, nil
	}
	in := bufio.NewReaderSize(b.Reader(), 4096)
	for whole := true; ; {
		part, err := in.ReadSlice('\n')
		line, ended := bytes.CutSuffix(part, []byte("\n"))
		if err == nil && whole && len(line) == 0 {
			return false, passed, nil
		}
		if whole && (ended || err == io.EOF) && bytes.Equal(line, want) {
			return true, passed, nil
		}
		if whole && bytes.HasPrefix(line, []byte(deliveredTo)) {
			passed++
		}
		switch err {
		case io.EOF:
			return false, passed, nil
		case nil, bufio.ErrBufferFull:
			whole = ended // what follows an over-long part is no line of its own
		default:
			return false, passed, err
		}
	}
}

// deliveredTo is DTLINE.
func (d *delivery) deliveredTo() []byte {
	return []byte("Delivered-To: " + oneLine(d.recipient()) + "\n")
}

// returnPath is RPLINE.
func (d *delivery) returnPath() []byte {
	return []byte("Return-Path: <" + address.QuoteAddress(oneLine(d.sender)) + ">\n")
}

func (d *delivery) recipient() string { return d.local + "@" + d.domain }

func oneLine(s string) string { return strings.ReplaceAll(s, "\n", "_") }

// instructions are what a .qmail file, or the default delivery, says.
type instructions struct {
	text        []byte
	forwardOnly bool
	from        dotqmail.Candidate // which file it was; From is -1 if none
	empty       bool               // it was, so that text is the default delivery
}

func (s *site) instructions(d *delivery) (instructions, error) {
	for _, c := range dotqmail.Candidates(d.dash, d.ext) {
		f, info, err := s.open(d.home+"/"+c.Name, c.Name)
		if err != nil {
			return instructions{}, err
		}
		if f == nil {
			continue
		}
		defer f.Close() // at most one: we return
		text, err := io.ReadAll(io.LimitReader(f, dotqmail.MaxFile+1))
		if err == nil && len(text) > dotqmail.MaxFile {
			err = syscall.EFBIG
		}
		if err != nil {
			return instructions{}, later(fmt.Sprintf("Unable to read %s: %s. (#4.3.0)", c.Name, errstr.Text(err)))
		}
		if len(text) == 0 {
			return instructions{text: []byte(d.fallback), from: c, empty: true}, nil
		}
		return instructions{text: text, forwardOnly: info.Mode()&0o100 != 0, from: c}, nil
	}
	if d.dash != "" {
		return instructions{}, errNoMailbox
	}
	return instructions{text: []byte(d.fallback), from: dotqmail.Candidate{From: -1}}, nil
}

// open opens a .qmail file; without one the file is nil. A symbolic link is followed to a file of the user's
// own or of root's.
func (s *site) open(path, name string) (*os.File, os.FileInfo, error) {
	const flags = os.O_RDONLY | syscall.O_NONBLOCK
	f, err := os.OpenFile(path, flags|syscall.O_NOFOLLOW, 0)
	linked := errors.Is(err, syscall.ELOOP)
	if linked {
		f, err = os.OpenFile(path, flags, 0)
	}
	if errstr.Absent(err) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, later(fmt.Sprintf("Unable to open %s: %s. (#4.3.0)", name, errstr.Text(err)))
	}
	info, err := f.Stat()
	switch {
	case err != nil:
		f.Close()
		return nil, nil, later(fmt.Sprintf("Unable to open %s: %s. (#4.3.0)", name, errstr.Text(err)))
	case !info.Mode().IsRegular():
		f.Close()
		return nil, nil, nil
	case info.Mode()&patrn != 0:
		f.Close()
		return nil, nil, later("Uh-oh: .qmail file is writable. (#4.7.0)")
	case linked && !s.trusts(info):
		f.Close()
		return nil, nil, later("Uh-oh: .qmail file leads to a file of another user. (#4.7.0)")
	}
	return f, info, nil
}

func (s *site) trusts(info os.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && (st.Uid == 0 || int(st.Uid) == s.uid)
}

// forwardSender is NEWSENDER: with a file .qmail-ext-owner forwards are sent by LOCAL-owner, and with
// .qmail-ext-owner-default by one sender for each recipient.
func forwardSender(d *delivery) (string, error) {
	if d.sender == "" || d.sender == "#@[]" {
		return d.sender, nil
	}
	has, err := exists(d.home, dotqmail.Owner(d.dash, d.ext))
	if err != nil || !has {
		return d.sender, err
	}
	perRecipient, err := exists(d.home, dotqmail.OwnerDefault(d.dash, d.ext))
	if err != nil {
		return "", err
	}
	if perRecipient {
		return d.local + "-owner-@" + d.domain + "-@[]", nil
	}
	return d.local + "-owner@" + d.domain, nil
}

func exists(home, name string) (bool, error) {
	_, err := os.Stat(home + "/" + name)
	if errstr.Absent(err) {
		return false, nil
	}
	if err != nil {
		return false, later(fmt.Sprintf("Unable to open %s: %s. (#4.3.0)", name, errstr.Text(err)))
	}
	return true, nil
}

func say(lines []dotqmail.Line, out io.Writer) {
	for _, l := range lines {
		fmt.Fprintf(out, "%s %s\n", l.Kind, l.Text)
	}
}

// work is a delivery that is being carried out.
type work struct {
	*site
	*delivery
	from      dotqmail.Candidate
	newSender string
	out, errs io.Writer

	vars                      []string // of programs, made for the first
	to                        []string // collected forwards
	files, forwards, programs int
	qp                        string
}

func (w *work) count(lines []dotqmail.Line) {
	for _, l := range lines {
		switch l.Kind {
		case dotqmail.Program:
			w.programs++
		case dotqmail.Forward:
			w.forwards++
		default:
			w.files++
		}
	}
}

// do carries out the lines from top to bottom, and at last all forwards at once.
func (w *work) do(ctx context.Context, lines []dotqmail.Line) error {
	if err := w.prepare(lines); err != nil {
		return err
	}
	for i, l := range lines {
		w.count(lines[i : i+1])
		var err error
		stop := false
		switch l.Kind {
		case dotqmail.Program:
			stop, err = w.program(ctx, l.Text)
		case dotqmail.Maildir:
			err = w.maildir(ctx, w.path(l.Text))
		case dotqmail.Mbox:
			err = w.mbox(ctx, l.Text)
		case dotqmail.Forward:
			w.to = append(w.to, l.Text)
		}
		if err != nil {
			return err
		}
		if stop {
			break
		}
	}
	return w.forward(ctx)
}

// prepare makes the environment of programs, if there are any, before anything is done.
func (w *work) prepare(lines []dotqmail.Line) (err error) {
	for _, l := range lines {
		if l.Kind == dotqmail.Program {
			w.vars, err = w.environment()
			return err
		}
	}
	return nil
}

// path makes a path of a .qmail file absolute.
func (w *work) path(name string) string {
	if strings.HasPrefix(name, "/") {
		return name
	}
	return w.home + "/" + name
}

func (w *work) head() []byte { return append(w.returnPath(), w.deliveredTo()...) }

func (w *work) maildir(ctx context.Context, path string) error {
	m := maildir.Message{Head: w.head(), Body: w.message.body.Bytes()}
	if m.Body == nil {
		m.Reader, m.Size = w.message.body.Reader(), w.message.body.Size()
	}
	return w.maildirs.Deliver(ctx, path, m)
}

func (w *work) mbox(ctx context.Context, name string) error {
	m := mboxfile.Message{From: mbox.FromLine(w.sender, w.now()), Head: w.head(), Body: whole(w.message.body)}
	return mboxfile.Append(ctx, w.path(name), name, m)
}

func (w *work) forward(ctx context.Context) error {
	if len(w.to) == 0 {
		return nil
	}
	qp, err := w.queue.submit(ctx, w.addressed(), w.deliveredTo(), w.message.body)
	if err != nil {
		r := reply.Of(err)
		f := later("Unable to forward message: " + r.Report()[1:] + ".")
		if r.Letter() == 'D' {
			f.code = exitNever
		}
		return f
	}
	w.qp = qp
	return nil
}
