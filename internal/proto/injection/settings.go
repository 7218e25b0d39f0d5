package injection

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"qmail/internal/format/address"
	"qmail/internal/format/header"
	"qmail/internal/store/control"
	"qmail/internal/system/env"
)

// settings are what control files and the environment say.
type settings struct {
	completion header.Completion
	idHost     string
	now        time.Time
	pid        int

	user, host             string // of From
	hasHost                bool
	senderUser, senderHost string
	hasSenderHost          bool
	name                   string // personal name; empty: none
	// The letters of QMAILINJECT.
	nameInComment, ignoreReturnPath, dropFrom, dropMessageID bool
	perRecipient, perMessage                                 bool

	followup control.Set // of QMAILMFTFILE
}

func readSettings(e *env.Env, c control.Dir, dir string) (*settings, error) {
	s := &settings{now: e.Now(), pid: os.Getpid()}
	for _, v := range []struct {
		variable, file string
		tokens         *[]header.Token
	}{
		{"QMAILDEFAULTDOMAIN", "defaultdomain", &s.completion.Domain},
		{"QMAILDEFAULTHOST", "defaulthost", &s.completion.Host},
		{"QMAILPLUSDOMAIN", "plusdomain", &s.completion.Plus},
	} {
		value, err := setting(e, c, v.variable, v.file)
		if err != nil {
			return nil, err
		}
		tokens, ok := header.Tokenize(value)
		if !ok {
			return nil, permanent("unable to parse this line:\n" + v.file + ": " + clean(value, '?'))
		}
		*v.tokens = tokens
	}
	var err error
	if s.idHost, err = setting(e, c, "QMAILIDHOST", "idhost"); err != nil {
		return nil, err
	}
	s.idHost = clean(s.idHost, '?')
	s.identity(e)
	if name, ok := e.Lookup("QMAILMFTFILE"); ok {
		if s.followup, err = addresses(dir, name); err != nil {
			return nil, temporary("read error", err)
		}
	}
	return s, nil
}

// setting is a variable, else a control file, else me, else the name of the control file.
func setting(e *env.Env, c control.Dir, variable, file string) (string, error) {
	if v, ok := e.Lookup(variable); ok {
		return v, nil
	}
	v, err := c.LineOrMe(file, file)
	if err != nil {
		return "", temporary("read error", err)
	}
	return v, nil
}

func (s *settings) identity(e *env.Env) {
	first := func(names ...string) (string, bool) {
		for _, n := range names {
			if v, ok := e.Lookup(n); ok {
				return v, true
			}
		}
		return "", false
	}
	var ok bool
	if s.user, ok = first("QMAILUSER", "MAILUSER", "USER", "LOGNAME"); !ok {
		s.user = "anonymous"
	}
	s.host, s.hasHost = first("QMAILHOST", "MAILHOST")
	if s.senderUser, ok = first("QMAILSUSER"); !ok {
		s.senderUser = s.user
	}
	if s.senderHost, s.hasSenderHost = first("QMAILSHOST"); !s.hasSenderHost {
		s.senderHost, s.hasSenderHost = s.host, s.hasHost
	}
	name, _ := first("QMAILNAME", "MAILNAME", "NAME")
	// The environment may be a stranger's: nothing in it ends a line of the header.
	s.name = strings.TrimSpace(clean(name, ' '))
	s.user, s.senderUser = clean(s.user, '?'), clean(s.senderUser, '?')
	for _, letter := range e.Get("QMAILINJECT") {
		switch letter {
		case 'c':
			s.nameInComment = true
		case 's':
			s.ignoreReturnPath = true
		case 'f':
			s.dropFrom = true
		case 'i':
			s.dropMessageID = true
		case 'r':
			s.perRecipient = true
		case 'm':
			s.perMessage = true
		}
	}
}

// clean replaces control bytes.
func clean(s string, by byte) string {
	b := []byte(s)
	for i, c := range b {
		if c < 32 || c == 127 {
			b[i] = by
		}
	}
	return string(b)
}

// mailbox is user@host, completed.
func (s *settings) mailbox(user, host string, hasHost bool) []header.Token {
	kind := header.Atom
	if address.Quote(user) != user {
		kind = header.Quoted
	}
	tokens := []header.Token{{Kind: kind, Text: user}}
	if hasHost {
		tokens = append(append(tokens, header.Token{Kind: header.At}), hostTokens(host)...)
	}
	return s.completion.Complete(tokens)
}

// hostTokens reads a host name of the environment. One that is no host name becomes one by force.
func hostTokens(host string) []header.Token {
	tokens, ok := header.Tokenize(host)
	for _, t := range tokens {
		ok = ok && (t.Kind == header.Atom || t.Kind == header.Dot || t.Kind == header.Literal)
	}
	if ok {
		return tokens
	}
	b := []byte(host)
	for i, c := range b {
		if c <= 32 || c >= 127 || strings.IndexByte(`()[]<>@,;:\"`, c) >= 0 {
			b[i] = '?'
		}
	}
	tokens, _ = header.Tokenize(string(b))
	return tokens
}

// from is the From field, or with "Resent-" before it that one.
func (s *settings) from(dst []byte, prefix string) []byte {
	mailbox := s.mailbox(s.user, s.host, s.hasHost)
	var tokens []header.Token
	switch {
	case s.name == "":
		tokens = mailbox
	case s.nameInComment:
		tokens = append(mailbox, header.Token{Kind: header.Comment, Text: s.name})
	default:
		tokens = append(tokens, header.Token{Kind: header.Quoted, Text: s.name}, header.Token{Kind: header.Left})
		tokens = append(append(tokens, mailbox...), header.Token{Kind: header.Right})
	}
	return header.Append(dst, prefix+"From", tokens)
}

// sender is the envelope sender when nobody names one.
func (s *settings) sender() string {
	user := s.senderUser
	if s.perMessage {
		user += "-" + strconv.FormatInt(s.now.Unix(), 10) + "." + strconv.Itoa(s.pid)
	}
	if s.perRecipient {
		user += "-"
	}
	sender := header.Address(s.mailbox(user, s.senderHost, s.hasSenderHost))
	if s.perRecipient {
		sender += "-@[]"
	}
	return sender
}

// addresses reads the file that QMAILMFTFILE names: one address per line, as in a control file.
func addresses(dir, name string) (control.Set, error) {
	if dir != "" && !filepath.IsAbs(name) {
		name = filepath.Join(dir, name)
	}
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []string
	for line := range bytes.Lines(b) {
		if text := string(bytes.TrimRight(line, " \t\n")); text != "" && text[0] != '#' {
			list = append(list, text)
		}
	}
	return control.NewSet(list), nil
}
