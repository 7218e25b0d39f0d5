// Package fastforward is fastforward(1): in a .qmail file it forwards mail by a table that newaliases(1) or
// setforward(1) has made, a cdb file of any size of which only what is needed is read.
//
// What is to be done is found out before any of it is done.
package fastforward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"qmail/internal/format/address"
	"qmail/internal/format/aliases"
	"qmail/internal/format/cdb"
	"qmail/internal/format/envelope"
	"qmail/internal/format/errstr"
	"qmail/internal/format/getopt"
	"qmail/internal/proto/qq"
	"qmail/internal/system/child"
	"qmail/internal/system/env"
)

const (
	exitStop  = 99
	exitNever = 100
	exitLater = 111
	// maxList bounds a file of commands, in bytes, maxCommands what one message may lead to.
	maxList     = 64 << 20
	maxCommands = 1 << 20
)

// failure is why the program gives up.
type failure struct {
	code int
	text string
}

func (f *failure) Error() string { return f.text }

func later(text string) error { return &failure{exitLater, text} }

// Main runs the role and returns its exit code.
func Main(ctx context.Context, e *env.Env, args []string) int {
	code, err := run(ctx, e, args)
	if err == nil {
		return code
	}
	f, ok := errors.AsType[*failure](err)
	if !ok {
		f = &failure{exitLater, err.Error()}
	}
	if f.code == exitNever && strings.HasPrefix(f.text, "Sorry, ") { // for the sender of the message
		fmt.Fprintln(e.Stderr, f.text)
	} else {
		fmt.Fprintf(e.Stderr, "fastforward: fatal: %s\n", f.text)
	}
	return f.code
}

type options struct {
	dry         bool // -n: say what would be done
	passThrough bool // -p: leave unknown addresses to the next line, and stop after known ones
	byDefault   bool // -d: the address is $DEFAULT@$HOST
	table       string
}

func readOptions(args []string) (o options, err error) {
	parsed, rest, err := getopt.Parse(args, "nNpPdD")
	if err != nil || len(rest) != 1 {
		return o, &failure{exitNever, "usage: fastforward [ -nNpPdD ] data.cdb"}
	}
	for _, p := range parsed {
		switch p.Letter {
		case 'n', 'N':
			o.dry = p.Letter == 'n'
		case 'p', 'P':
			o.passThrough = p.Letter == 'p'
		case 'd', 'D':
			o.byDefault = p.Letter == 'd'
		}
	}
	o.table = rest[0]
	return o, nil
}

func run(ctx context.Context, e *env.Env, args []string) (int, error) {
	o, err := readOptions(args)
	if err != nil {
		return 0, err
	}
	recipient, err := incoming(e, o)
	if err != nil {
		return 0, err
	}
	sender, ok := e.Lookup("NEWSENDER")
	if !ok {
		if sender, ok = e.Lookup("SENDER"); !ok {
			return 0, &failure{exitNever, "SENDER not set"}
		}
	}
	db, done, err := open(o.table)
	if err != nil {
		return 0, err
	}
	defer done()
	p := &plan{db: db, sender: sender, host: e.Get("HOST"), seen: map[string]bool{}}
	found, err := p.start(recipient)
	switch {
	case err != nil:
		return 0, err
	case !found && o.passThrough:
		return 0, nil
	case !found:
		return 0, &failure{exitNever, "Sorry, no mailbox here by that name. (#5.1.1)"}
	case o.dry:
		p.print(e.Stdout)
	default:
		if err := p.act(ctx, e); err != nil {
			return 0, err
		}
	}
	if o.passThrough {
		return exitStop, nil
	}
	return 0, nil
}

// incoming is the address that the message has come to.
func incoming(e *env.Env, o options) (string, error) {
	if !o.byDefault {
		recipient, ok := e.Lookup("RECIPIENT")
		if !ok {
			return "", &failure{exitNever, "RECIPIENT not set"}
		}
		return recipient, nil
	}
	local, ok := e.Lookup("DEFAULT")
	if !ok {
		if local, ok = e.Lookup("EXT"); !ok {
			return "", &failure{exitNever, "DEFAULT not set"}
		}
	}
	host, ok := e.Lookup("HOST")
	if !ok {
		return "", &failure{exitNever, "HOST not set"}
	}
	return local + "@" + host, nil
}

func open(path string) (*cdb.DB, func() error, error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, nil, later("unable to open " + path + ": " + errstr.Text(err))
	}
	info, err := f.Stat()
	if err == nil {
		var db *cdb.DB
		if db, err = cdb.NewReaderAt(f, info.Size()); err == nil {
			return db, f.Close, nil
		}
	}
	f.Close()
	return nil, nil, later("unable to read " + path + ": " + err.Error())
}

func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO in its place must not stop us
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: path, Err: syscall.EINVAL}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// plan is what a message leads to.
type plan struct {
	db       *cdb.DB
	sender   string
	host     string // of the incoming address
	seen     map[string]bool
	forward  []string
	programs []string // with their signs
}

func (p *plan) find(sign, addr string) (value string, found bool, err error) {
	b, found, err := p.db.Find([]byte(sign + address.Lower(addr)))
	if err != nil {
		return "", false, later("unable to read the table: " + err.Error())
	}
	return string(b), found, nil
}

// start finds the target of the incoming address, which may be one for its whole host or its user at any host,
// and goes on from there.
func (p *plan) start(recipient string) (found bool, err error) {
	keys := []string{recipient}
	if user, host, ok := address.Split(recipient); ok {
		keys = append(keys, "@"+host, user+"@")
	}
	for _, key := range keys {
		owner, owned, err := p.find("?", key)
		if err != nil {
			return false, err
		}
		commands, found, err := p.find(":", key)
		if err != nil {
			return false, err
		}
		if !found {
			continue
		}
		if owned && p.sender != "" && p.sender != "#@[]" { // bounces have no owner
			p.sender = p.complete(owner)
		}
		return true, p.follow([]byte(commands))
	}
	return false, nil
}

// complete gives an address of a table that is meant for any host the one of the incoming address.
func (p *plan) complete(addr string) string {
	if strings.HasSuffix(addr, "@") {
		return addr + p.host
	}
	return addr
}

// follow works through commands, and those that they lead to, each once.
func (p *plan) follow(first []byte) error {
	todo, err := aliases.Split(first)
	if err != nil {
		return later("unable to read the table: " + err.Error())
	}
	for n := 0; len(todo) > 0; n++ {
		if n == maxCommands {
			return later("too much is to be done for one message")
		}
		c := todo[0]
		todo = todo[1:]
		if p.seen[c] {
			continue
		}
		p.seen[c] = true
		more, err := p.command(c)
		if err != nil {
			return err
		}
		todo = append(more, todo...)
	}
	return nil
}

// command notes what a command says, or returns the commands that it stands for.
func (p *plan) command(c string) (more []string, err error) {
	switch c[0] {
	case '|', '!':
		p.programs = append(p.programs, c)
		return nil, nil
	case '.', '/':
		return list(c)
	}
	addr := c[1:]
	_, owned, err := p.find("?", addr)
	if err != nil {
		return nil, err
	}
	commands, found, err := p.find(":", addr)
	if err != nil {
		return nil, err
	}
	if !found || owned { // its owner shall be the sender, so it gets a message of its own
		p.forward = append(p.forward, p.complete(addr))
		return nil, nil
	}
	if more, err = aliases.Split([]byte(commands)); err != nil {
		err = later("unable to read the table: " + err.Error())
	}
	return more, err
}

// list reads a file of commands. Everybody must be able to read it: others must not be made to send their
// secrets around.
func list(path string) ([]string, error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, later("unable to open " + path + ": " + errstr.Text(err))
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, later("unable to read " + path + ": " + errstr.Text(err))
	}
	if info.Mode()&0o004 == 0 {
		return nil, later("unable to read " + path + ": not world-readable")
	}
	b, err := io.ReadAll(io.LimitReader(f, maxList+1))
	if err != nil {
		return nil, later("unable to read " + path + ": " + errstr.Text(err))
	}
	if len(b) > maxList {
		return nil, later(path + " is too large")
	}
	commands, err := aliases.Split(b)
	if err != nil {
		return nil, later("unable to read " + path + ": " + err.Error())
	}
	return commands, nil
}

func (p *plan) print(w io.Writer) {
	fmt.Fprintf(w, "from <%s>\n", p.sender)
	for _, c := range p.programs {
		fmt.Fprintf(w, "run %s\n", c)
	}
	for _, a := range p.forward {
		fmt.Fprintf(w, "forward <%s>\n", a)
	}
}

// act runs the programs, then forwards.
func (p *plan) act(ctx context.Context, e *env.Env) error {
	signal.Ignore(syscall.SIGPIPE)
	dtline, ok := e.Lookup("DTLINE")
	if !ok {
		return &failure{exitNever, "DTLINE not set"}
	}
	for _, c := range p.programs {
		if err := p.run(ctx, e, c); err != nil {
			return err
		}
	}
	if len(p.forward) == 0 {
		return nil
	}
	if _, err := e.Stdin.Seek(0, io.SeekStart); err != nil {
		return later("unable to rewind message: " + errstr.Text(err))
	}
	to := &envelope.Envelope{Sender: p.sender, Recipients: p.forward}
	a, err := qq.New(e).Put(ctx, to, strings.NewReader(dtline), e.Stdin)
	if err != nil {
		text, code := qq.Explain(err)
		return &failure{code, text}
	}
	fmt.Fprintf(e.Stderr, "fastforward: qp %d\n", a.QP)
	return nil
}

// run runs a program; one with an exclamation mark gets the lines before the message.
func (p *plan) run(ctx context.Context, e *env.Env, c string) error {
	head := ""
	if c[0] == '!' {
		for _, name := range []string{"UFLINE", "RPLINE", "DTLINE"} {
			line, ok := e.Lookup(name)
			if !ok {
				return &failure{exitNever, name + " not set"}
			}
			head += line
		}
	}
	code, err := child.Shell(ctx, c[1:], e.Vars, head, e.Stdin)
	if err != nil {
		return later("unable to run " + c[1:] + ": " + err.Error())
	}
	switch child.Verdict(code) {
	case 'K', 'S':
		return nil
	case 'D':
		return &failure{exitNever, "permanent error of " + c[1:]}
	}
	return later("temporary error of " + c[1:])
}
