// Package dovecot asks the authentication process of a Dovecot on this machine whether a name and a password belong
// together: the client's side of its auth protocol, version 1.1, over the Unix socket that Dovecot's configuration makes
// for mail servers (service auth, unix_listener).
//
// Each question has a connection of its own. Lines are bounded, as is their number, and all of it has a deadline.
package dovecot

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	maxLine  = 16 << 10
	maxLines = 200
)

var (
	// ErrRefused is a name or a password that is wrong.
	ErrRefused = errors.New("dovecot: wrong name or password")
	// ErrTrouble is a Dovecot that cannot say now.
	ErrTrouble  = errors.New("dovecot: temporary trouble")
	errProtocol = errors.New("dovecot: not the auth protocol, or no version of it that is known here")
)

// Question is what is asked.
type Question struct {
	Login, Password string
	Service         string // as Dovecot calls it: smtp, pop3
	IP              string // the client's; may be empty
	Secure          bool   // the client came by TLS
}

// Check asks the Dovecot behind a socket. It returns the name by which Dovecot knows the user, or one of the errors
// above, or one of the connection.
func Check(ctx context.Context, socket string, q Question) (user string, err error) {
	if strings.IndexByte(q.Login, 0) >= 0 || strings.IndexByte(q.Password, 0) >= 0 {
		return "", ErrRefused
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", socket)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	return ask(conn, q)
}

// ask holds the conversation.
func ask(conn io.ReadWriter, q Question) (string, error) {
	if _, err := io.WriteString(conn, "VERSION\t1\t1\nCPID\t"+strconv.Itoa(os.Getpid())+"\n"); err != nil {
		return "", err
	}
	r := bufio.NewReaderSize(conn, maxLine)
	var spoken, plain bool
	for range maxLines {
		fields, err := line(r)
		if err != nil {
			return "", err
		}
		switch fields[0] {
		case "VERSION":
			spoken = len(fields) > 1 && fields[1] == "1"
		case "MECH":
			plain = plain || len(fields) > 1 && fields[1] == "PLAIN"
		case "DONE":
			if !spoken || !plain {
				return "", errProtocol
			}
			if _, err := io.WriteString(conn, request(q)); err != nil {
				return "", err
			}
		case "OK", "FAIL", "CONT":
			return verdict(fields)
		}
	}
	return "", errProtocol
}

func line(r *bufio.Reader) ([]string, error) {
	b, err := r.ReadSlice('\n')
	if err != nil {
		if errors.Is(err, bufio.ErrBufferFull) {
			err = errProtocol
		}
		return nil, err
	}
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\t"), nil
}

// request is the question, as number 1. The name goes into base64 only, so that it cannot be a field of its own.
func request(q Question) string {
	var b strings.Builder
	b.WriteString("AUTH\t1\tPLAIN\tservice=" + q.Service + "\tnologin")
	if q.Secure {
		b.WriteString("\tsecured")
	}
	if q.IP != "" {
		b.WriteString("\trip=" + q.IP)
	}
	b.WriteString("\tresp=" + base64.StdEncoding.EncodeToString([]byte("\x00"+q.Login+"\x00"+q.Password)) + "\n")
	return b.String()
}

// verdict reads the answer to question 1.
func verdict(fields []string) (string, error) {
	if len(fields) < 2 || fields[1] != "1" || fields[0] == "CONT" {
		return "", errProtocol
	}
	if fields[0] == "FAIL" {
		for _, f := range fields[2:] {
			if f == "temp" || f == "code=temp_fail" {
				return "", ErrTrouble
			}
		}
		return "", ErrRefused
	}
	for _, f := range fields[2:] {
		if user, ok := strings.CutPrefix(f, "user="); ok && user != "" {
			return unescape(user), nil
		}
	}
	return "", errProtocol
}

// unescape undoes Dovecot's \001 escapes.
func unescape(s string) string {
	return strings.NewReplacer("\x011", "\x01", "\x01t", "\t", "\x01n", "\n", "\x01r", "\r", "\x010", "\x00").Replace(s)
}
