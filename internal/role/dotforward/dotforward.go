// Package dotforward is dot-forward(1): in a .qmail file it does what a .forward file in sendmail's syntax says.
// Addresses are completed with the control files defaulthost, defaultdomain and plusdomain.
//
// The file is understood as a whole before anything is done about it.
package dotforward

import (
	"bytes"
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
	"qmail/internal/format/envelope"
	"qmail/internal/format/errstr"
	"qmail/internal/format/getopt"
	"qmail/internal/format/header"
	"qmail/internal/proto/qq"
	"qmail/internal/store/control"
	"qmail/internal/system/child"
	"qmail/internal/system/env"
)

// Exit codes (qmail-command(8)).
const (
	exitGoOn  = 0 // with the next line of the .qmail file
	exitStop  = 99
	exitNever = 100
	exitLater = 111
	maxFile   = 1 << 20
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
	fmt.Fprintf(e.Stderr, "dot-forward: fatal: %v\n", err)
	if f, ok := errors.AsType[*failure](err); ok {
		return f.code
	}
	return exitLater
}

func run(ctx context.Context, e *env.Env, args []string) (int, error) {
	options, files, err := getopt.Parse(args, "nN")
	if err != nil || len(files) == 0 {
		return 0, &failure{exitNever, "usage: dot-forward [ -nN ] file ..."}
	}
	dry := false
	for _, o := range options {
		dry = o.Letter == 'n'
	}
	vars, err := variables(e)
	if err != nil {
		return 0, err
	}
	complete, err := control.Open(e.Home).Completion()
	if err != nil {
		return 0, later("unable to read controls: " + err.Error())
	}
	text, err := firstOf(files)
	if err != nil || text == nil {
		return exitGoOn, err
	}
	p, err := parse(text, complete, vars)
	if err != nil || p.empty() {
		return exitGoOn, err
	}
	if dry {
		p.print(e.Stdout)
	} else if err := p.act(ctx, e, vars); err != nil {
		return 0, err
	}
	if p.direct {
		return exitGoOn, nil
	}
	return exitStop, nil
}

// variables are those of qmail-local that are needed.
func variables(e *env.Env) (map[string]string, error) {
	vars := map[string]string{}
	for _, name := range []string{"USER", "HOST", "NEWSENDER", "DTLINE", "RPLINE", "UFLINE"} {
		value, ok := e.Lookup(name)
		if !ok {
			return nil, &failure{exitNever, name + " not set"}
		}
		vars[name] = value
	}
	return vars, nil
}

// firstOf reads the first file that exists and is not empty; nil if there is none.
func firstOf(files []string) ([]byte, error) {
	for _, name := range files {
		f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO in its place must not stop us
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, later("unable to open " + name + ": " + errstr.Text(err))
		}
		b, err := read(f)
		f.Close()
		if err != nil {
			return nil, later("unable to read " + name + ": " + err.Error())
		}
		if len(b) > 0 {
			return b, nil
		}
	}
	return nil, nil
}

func read(f *os.File) ([]byte, error) {
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("larger than %d bytes", maxFile)
	}
	return b, err
}

// plan is what a file says.
type plan struct {
	forward  []string
	programs []string
	direct   bool // mail goes to the user as well
}

func (p *plan) empty() bool { return len(p.forward) == 0 && len(p.programs) == 0 && !p.direct }

func parse(text []byte, complete *header.Completion, vars map[string]string) (*plan, error) {
	p := &plan{}
	for line := range bytes.Lines(text) {
		if line[0] == '#' {
			continue
		}
		items, err := aliases.Items(string(line), complete)
		if err != nil {
			return nil, later("unable to parse this line: " + string(bytes.TrimRight(line, "\r\n")))
		}
		for _, i := range items {
			if err := p.add(i, vars); err != nil {
				return nil, err
			}
		}
	}
	return p, nil
}

func (p *plan) add(i aliases.Item, vars map[string]string) error {
	switch i.Kind {
	case aliases.Program:
		p.programs = append(p.programs, i.Text)
	case aliases.Address:
		if address.EqualFold(i.Given, vars["USER"]) || address.EqualFold(i.Given, vars["USER"]+"@"+vars["HOST"]) {
			p.direct = true
		} else {
			p.forward = append(p.forward, i.Text)
		}
	case aliases.Include:
		return later(":include: " + i.Text + " not supported")
	default:
		return later(i.Unsupported())
	}
	return nil
}

func (p *plan) print(w io.Writer) {
	for _, a := range p.forward {
		fmt.Fprintf(w, "forward %s\n", a)
	}
	for _, c := range p.programs {
		fmt.Fprintf(w, "pipe through %s\n", c)
	}
	if p.direct {
		fmt.Fprintln(w, "direct delivery")
	}
}

// act runs the programs, then forwards: what may fail for long comes before what cannot be taken back.
func (p *plan) act(ctx context.Context, e *env.Env, vars map[string]string) error {
	signal.Ignore(syscall.SIGPIPE)
	head := vars["UFLINE"] + vars["RPLINE"] + vars["DTLINE"]
	for _, c := range p.programs {
		code, err := child.Shell(ctx, c, e.Vars, head, e.Stdin)
		if err != nil {
			return later("unable to run " + c + ": " + err.Error())
		}
		switch child.Verdict(code) {
		case 'K':
		case 'D':
			return &failure{exitNever, "permanent error of " + c}
		default: // an end of all delivery is not for one of several to ask for
			return later("temporary error of " + c)
		}
	}
	if len(p.forward) == 0 {
		return nil
	}
	if _, err := e.Stdin.Seek(0, io.SeekStart); err != nil {
		return later("unable to rewind message: " + errstr.Text(err))
	}
	to := &envelope.Envelope{Sender: vars["NEWSENDER"], Recipients: p.forward}
	a, err := qq.New(e).Put(ctx, to, strings.NewReader(vars["DTLINE"]), e.Stdin)
	if err != nil {
		text, code := qq.Explain(err)
		return &failure{code, text}
	}
	fmt.Fprintf(e.Stderr, "dot-forward: qp %d\n", a.QP)
	return nil
}
