// Package lookup is the conversation between qmail-send and qmail-lspawn: whose mail is this local part, and
// a pipe to a qmail-local that runs as that user.
//
// A request is a frame of kind 'L' (look up), 'P' (look up, and a pipe) or 'W' (look up, and say why), its payload one text0 record
// "l<local part>\0". The answer has the stream number of the request: kind 'K' with the account,
//
//	U<user>\0 u<uid>\0 g<gid>\0 h<home>\0 d<dash>\0 e<ext>\0
//
// and for 'P' one descriptor, a connected Unix stream socket, and for 'W' three more records, f<file>\0 n<line>\0
// t<text>\0, where the account was found; or kind 'Z' or 'D', whose payload is the text of
// a report without its letter. Answers come in any order. The spawner is root and trusts no request: one that
// breaks these rules is refused with Z, and the conversation goes on.
package lookup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"qmail/internal/format/envelope"
	"qmail/internal/format/reply"
	"qmail/internal/format/text0"
	"qmail/internal/store/users"
	"qmail/internal/system/ipc"
)

// The kinds of frames.
const (
	kindLookup = 'L'
	kindPipe   = 'P'
	kindWhy    = 'W'
	kindDone   = 'K'
	kindLater  = 'Z'
	kindNever  = 'D'
)

// maxLocal is the longest local part, in bytes: that of the longest address.
const maxLocal = envelope.MaxAddress

// Refusal is an answer that is no account: a report such as "ZUnable to find alias user!\n".
type Refusal struct{ Report string }

func (r *Refusal) Error() string { return "qmail-lspawn: " + r.Report }

// Unwrap gives the refusal as a *reply.Error.
func (r *Refusal) Unwrap() error { return reply.Parse(r.Report) }

// Later is the refusal of a spawner that gives no sensible answer.
func later(text string) *Refusal { return &Refusal{"Z" + text + " (#4.3.0)\n"} }

var errGarbled = errors.New("lookup: garbled")

func appendRequest(dst []byte, local string) []byte { return text0.Append(dst, 'l', local) }

// parseRequest returns the local part of a well-formed request.
func parseRequest(f ipc.Frame) (local string, err error) {
	if f.Kind != kindLookup && f.Kind != kindPipe && f.Kind != kindWhy || f.File != nil {
		return "", errGarbled
	}
	letter, value, rest, err := text0.Cut(f.Payload)
	if err != nil || letter != 'l' || len(rest) != 0 || len(value) > maxLocal {
		return "", errGarbled
	}
	return string(value), nil
}

// letters are the records of an account, in order.
const letters = "Uughde"

func appendAccount(dst []byte, a users.Account) []byte {
	dst = text0.Append(dst, 'U', a.User)
	dst = text0.AppendInt(dst, 'u', int64(a.UID))
	dst = text0.AppendInt(dst, 'g', int64(a.GID))
	dst = text0.Append(dst, 'h', a.Home)
	dst = text0.Append(dst, 'd', a.Dash)
	return text0.Append(dst, 'e', a.Ext)
}

func parseAccount(b []byte) (a users.Account, rest []byte, err error) {
	var field [len(letters)][]byte
	if b, err = parseFields(b, letters, field[:]); err != nil {
		return users.Account{}, nil, err
	}
	uid, err1 := text0.Int(field[1])
	gid, err2 := text0.Int(field[2])
	if err1 != nil || err2 != nil {
		return users.Account{}, nil, errGarbled
	}
	return users.Account{
		User: string(field[0]), UID: int(uid), GID: int(gid),
		Home: string(field[3]), Dash: string(field[4]), Ext: string(field[5]),
	}, b, nil
}

// parseFields reads one record for each letter.
func parseFields(b []byte, letters string, fields [][]byte) (rest []byte, err error) {
	for i := range fields {
		letter, value, rest, err := text0.Cut(b)
		if err != nil || letter != letters[i] {
			return nil, errGarbled
		}
		fields[i], b = value, rest
	}
	return b, nil
}

// sourceLetters are the records of a source, in order.
const sourceLetters = "fnt"

func appendSource(dst []byte, s users.Source) []byte {
	clean := func(text string) string { return strings.ReplaceAll(text, "\x00", "?") }
	dst = text0.Append(dst, 'f', clean(s.File))
	dst = text0.AppendInt(dst, 'n', int64(s.Line))
	return text0.Append(dst, 't', clean(s.Text))
}

func parseSource(b []byte) (users.Source, error) {
	var field [len(sourceLetters)][]byte
	rest, err := parseFields(b, sourceLetters, field[:])
	if err != nil || len(rest) != 0 {
		return users.Source{}, errGarbled
	}
	line, err := text0.Int(field[1])
	if err != nil || line < 0 || line > 1<<31 {
		return users.Source{}, errGarbled
	}
	return users.Source{File: string(field[0]), Line: int(line), Text: string(field[2])}, nil
}

// Handler finds the account of a local part and, if pipe is asked for, starts a qmail-local and returns our
// end of its pipe. Its error's report is the answer; an error without one is temporary.
type Handler func(ctx context.Context, local string, pipe bool) (users.Account, *os.File, error)

// maxServed bounds the requests that are being answered at once.
const maxServed = 16

// Explainer finds the account of a local part and says where.
type Explainer func(ctx context.Context, local string) (users.Account, users.Source, error)

// Serve answers requests until the connection ends, whose error it returns, or ctx does.
func Serve(ctx context.Context, conn *ipc.Conn, handle Handler) error {
	return ServeWhy(ctx, conn, handle, func(context.Context, string) (users.Account, users.Source, error) {
		return users.Account{}, users.Source{}, later("qmail-lspawn does not say why")
	})
}

// ServeWhy is Serve for a spawner that can say why.
func ServeWhy(ctx context.Context, conn *ipc.Conn, handle Handler, why Explainer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	slots := make(chan struct{}, maxServed)
	defer func() { // wait for all that still run
		for range maxServed {
			slots <- struct{}{}
		}
	}()
	for {
		f, err := conn.Read()
		if err != nil {
			cancel()
			return err
		}
		local, err := parseRequest(f)
		if f.File != nil {
			f.File.Close()
		}
		if err != nil {
			answer(conn, f.Stream, users.Account{}, nil, later("garbled request to qmail-lspawn"))
			continue
		}
		slots <- struct{}{}
		go func() {
			defer func() { <-slots }()
			if f.Kind == kindWhy {
				answerWhy(ctx, conn, f.Stream, local, why)
				return
			}
			account, pipe, err := handle(ctx, local, f.Kind == kindPipe)
			answer(conn, f.Stream, account, pipe, err)
		}()
	}
}

// answer sends one answer and closes pipe. A failed send has ended the connection, which the reader sees.
func answer(conn *ipc.Conn, stream uint32, account users.Account, pipe *os.File, err error) {
	if pipe != nil {
		defer pipe.Close()
	}
	switch {
	case err != nil:
		report := ReportOf(err)
		_ = conn.Send(report[0], stream, []byte(report[1:]))
	case pipe != nil:
		_ = conn.SendFile(kindDone, stream, pipe, appendAccount(nil, account))
	default:
		_ = conn.Send(kindDone, stream, appendAccount(nil, account))
	}
}

func answerWhy(ctx context.Context, conn *ipc.Conn, stream uint32, local string, why Explainer) {
	account, source, err := why(ctx, local)
	if err != nil {
		answer(conn, stream, account, nil, err)
		return
	}
	_ = conn.Send(kindDone, stream, appendSource(appendAccount(nil, account), source))
}

// ReportOf is the report that an error stands for.
func ReportOf(err error) string {
	report := ""
	if e, ok := errors.AsType[*users.Error](err); ok {
		report = e.Report
	} else if e, ok := errors.AsType[*Refusal](err); ok {
		report = e.Report
	}
	if report == "" || report[0] != kindLater && report[0] != kindNever {
		report = fmt.Sprintf("%s\n", reply.Of(err).Report())
	}
	return report
}
