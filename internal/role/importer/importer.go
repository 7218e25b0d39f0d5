// Package importer is qmail-import(8): it brings the mail that waits in the queue of an older qmail into the queue of the
// qmail-send that runs here, with its senders, those of its recipients that are left, and its age.
//
// It reads control/virtualdomains of the old home, to undo what was done to addresses, and control/bouncefrom, bouncehost,
// doublebouncehost and doublebounceto, to send the bounces that were still to be sent. Nothing is changed in the old home.
// What has been taken is written down in queue/imported of ours, a line each, so that nothing is taken twice.
package importer

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"qmail/internal/format/address"
	"qmail/internal/format/bounce"
	"qmail/internal/format/envelope"
	"qmail/internal/proto/enqueue"
	"qmail/internal/store/control"
	"qmail/internal/store/oldqueue"
	"qmail/internal/system/env"
)

const usage = "usage: qmail import [-n] OLDHOME"

// commitTime is how long one message may take to be queued.
const commitTime = 10 * time.Minute

// Main imports, or with -n says what it would import.
func Main(ctx context.Context, e *env.Env, args []string) int {
	flags := flag.NewFlagSet("qmail import", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	dry := flags.Bool("n", false, "")
	if flags.Parse(args) != nil || flags.NArg() != 1 {
		fmt.Fprintln(e.Stderr, usage)
		return 100
	}
	old, err := filepath.Abs(flags.Arg(0))
	if err == nil {
		err = run(ctx, e, old, *dry)
	}
	if err != nil {
		fmt.Fprintln(e.Stderr, "qmail-import: fatal:", err)
		return 111
	}
	return 0
}

// importer is one run.
type importer struct {
	*env.Env
	dry     bool
	id      string // of the old queue, in the list of what has been taken
	virtual control.Map
	notice  bounce.Notice // what all bounces have in common
	double  string        // who gets bounces of bounces
	taken   *taken
	door    *enqueue.Client

	messages, bounces, before, failed int
}

func run(ctx context.Context, e *env.Env, old string, dry bool) (err error) {
	i := &importer{Env: e, dry: dry}
	if err := i.settings(control.Open(old)); err != nil {
		return err
	}
	dir := filepath.Join(old, "queue")
	q, err := oldqueue.Open(dir)
	if err != nil {
		return err
	}
	defer q.Close()
	if i.id, err = identify(dir); err != nil {
		return err
	}
	if i.taken, err = openTaken(filepath.Join(e.Home, "queue", "imported"), dry); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, i.taken.close()) }()
	if !dry {
		if i.door, err = enqueue.Dial(e.Home); err != nil {
			return fmt.Errorf("unable to reach qmail-send, which has to run: %w", err)
		}
		defer i.door.Close()
	}
	err = q.Messages(func(m *oldqueue.Message, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil {
			err = i.one(ctx, m)
		}
		if err != nil {
			i.failed++
			fmt.Fprintln(e.Stderr, "qmail-import: warning:", err)
		}
		return nil
	})
	fmt.Fprintf(e.Stdout, "%d messages, %d bounces; %d had been taken before, %d failed\n", i.messages, i.bounces, i.before, i.failed)
	if err == nil && i.failed > 0 {
		err = errors.New("not everything was taken; call this again when the cause is gone")
	}
	return err
}

// settings reads what counts of the old home's control files.
func (i *importer) settings(dir control.Dir) error {
	list, _, err := dir.List("virtualdomains")
	from, err2 := dir.LineOr("bouncefrom", "MAILER-DAEMON")
	host, err3 := dir.LineOrMe("bouncehost", "bouncehost")
	doubleHost, err4 := dir.LineOrMe("doublebouncehost", "doublebouncehost")
	doubleTo, err5 := dir.LineOr("doublebounceto", "postmaster")
	i.virtual = control.NewMap(list)
	i.notice = bounce.Notice{Date: i.Now(), From: from, Host: host}
	i.double = doubleTo + "@" + doubleHost
	return errors.Join(err, err2, err3, err4, err5)
}

// identify names a queue so that it is the same one tomorrow, and a copy of it another.
func identify(dir string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return "", &fs.PathError{Op: "stat", Path: dir, Err: err}
	}
	return fmt.Sprintf("%x.%x", st.Dev, st.Ino), nil
}

// one takes a message, and the bounce that it owes.
func (i *importer) one(ctx context.Context, m *oldqueue.Message) error {
	e := &envelope.Envelope{Sender: m.Sender}
	for _, r := range m.Local {
		e.Recipients = append(e.Recipients, i.strip(r))
	}
	e.Recipients = append(e.Recipients, m.Remote...)
	key := fmt.Sprintf("%s %d %d", i.id, m.Number, m.Birth.UnixNano())
	switch {
	case len(e.Recipients) == 0: // nothing is left but perhaps a bounce
	case i.taken.has(key):
		i.before++
	default:
		if err := i.message(ctx, m, e, key); err != nil {
			return err
		}
	}
	if len(m.Failures) == 0 {
		return nil
	}
	if key += " bounce"; i.taken.has(key) {
		i.before++
		return nil
	}
	return i.bounce(ctx, m, key)
}

func (i *importer) message(ctx context.Context, m *oldqueue.Message, e *envelope.Envelope, key string) error {
	fmt.Fprintf(i.Stdout, "%d: from <%s> of %s, %d recipients, %d done\n", m.Number, clean(m.Sender), m.Birth.UTC().Format(time.RFC3339), len(e.Recipients), m.Done)
	i.messages++
	e.Options = []string{enqueue.BirthOption(m.Birth)}
	return i.submit(ctx, m, e, nil, key)
}

// bounce tells the sender of what has failed already.
func (i *importer) bounce(ctx context.Context, m *oldqueue.Message, key string) error {
	from, to, ok := bounce.Envelope(m.Sender, i.double)
	if !ok || to == "@" || strings.HasPrefix(to, "@") {
		fmt.Fprintf(i.Stdout, "%d: a bounce to nobody is thrown away\n", m.Number)
		return i.taken.add(key)
	}
	fmt.Fprintf(i.Stdout, "%d: a bounce to <%s>\n", m.Number, clean(to))
	i.bounces++
	n := i.notice
	n.Sender, n.To, n.Failures = m.Sender, to, m.Failures
	return i.submit(ctx, m, &envelope.Envelope{Sender: from, Recipients: []string{to}}, bounce.Append(nil, n), key)
}

// submit queues a message with a head before it, and writes that down. If we die in between it is taken twice.
func (i *importer) submit(ctx context.Context, m *oldqueue.Message, e *envelope.Envelope, head []byte, key string) error {
	if i.dry {
		return nil
	}
	body, err := m.Body()
	if err != nil {
		return fmt.Errorf("message %d: %w", m.Number, err)
	}
	defer body.Close()
	ctx, cancel := context.WithTimeout(ctx, commitTime)
	defer cancel()
	out, err := i.door.Begin(e)
	if err != nil {
		return fmt.Errorf("message %d: %w", m.Number, err)
	}
	defer out.Abort() // does nothing after Commit
	if _, err = out.Write(head); err == nil {
		_, err = io.Copy(out, body)
	}
	if err == nil {
		_, err = out.Commit(ctx)
	}
	if err != nil {
		return fmt.Errorf("message %d: %w", m.Number, err)
	}
	return i.taken.add(key)
}

// strip undoes what a virtual domain has done to an address, so that it is done again and not twice.
func (i *importer) strip(recipient string) string {
	local, domain, ok := address.Split(recipient)
	if !ok {
		return recipient
	}
	for key, value := range i.virtual { // those for single addresses come first
		user, host, ok := address.Split(key)
		if ok && value != "" && address.EqualFold(host, domain) && address.EqualFold(local, value+"-"+user) {
			return local[len(value)+1:] + "@" + domain
		}
	}
	if value, _, ok := i.virtual.Domain(domain); ok && value != "" {
		if rest, ok := strings.CutPrefix(local, value+"-"); ok {
			return rest + "@" + domain
		}
	}
	return recipient
}

// clean is text for a terminal.
func clean(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c < 32 || c > 126 {
			b[i] = '?'
		}
	}
	return string(b)
}

// taken is the list of what has been taken, in a file.
type taken struct {
	keys map[string]bool
	file *os.File // nil where nothing is to be written
}

func openTaken(path string, dry bool) (*taken, error) {
	t := &taken{keys: map[string]bool{}}
	how := os.O_RDWR | os.O_CREATE | os.O_APPEND
	if dry {
		how = os.O_RDONLY
	}
	f, err := os.OpenFile(path, how|unix.O_NOFOLLOW, 0o600)
	if dry && errors.Is(err, fs.ErrNotExist) {
		return t, nil
	}
	if err != nil {
		return nil, err
	}
	t.file = f
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil && !dry {
		f.Close()
		return nil, fmt.Errorf("%s: another import is at work: %w", path, err)
	}
	var end int64
	r := bufio.NewReader(f)
	for {
		line, err := r.ReadString('\n')
		if err == io.EOF { // what has no end was never finished
			break
		}
		if err != nil {
			f.Close()
			return nil, err
		}
		end += int64(len(line))
		t.keys[strings.TrimSuffix(line, "\n")] = true
	}
	if dry {
		t.file = nil
		return t, f.Close()
	}
	if err := f.Truncate(end); err != nil {
		f.Close()
		return nil, err
	}
	return t, nil
}

func (t *taken) has(key string) bool { return t.keys[key] }

func (t *taken) add(key string) error {
	if t.file == nil {
		return nil
	}
	if _, err := t.file.WriteString(key + "\n"); err != nil {
		return err
	}
	t.keys[key] = true
	return t.file.Sync()
}

func (t *taken) close() error {
	if t.file == nil {
		return nil
	}
	return t.file.Close()
}
