// Package qreceipt is qreceipt(1): in a .qmail file it tells the sender of a message that it has arrived, if the
// message asks for that in a field Notice-Requested-Upon-Delivery-To.
package qreceipt

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"strings"
	"syscall"

	"qmail/internal/format/address"
	"qmail/internal/format/envelope"
	"qmail/internal/format/header"
	"qmail/internal/proto/qq"
	"qmail/internal/system/env"
)

const (
	exitNever = 100
	exitLater = 111
	// maxHeader bounds what is read of a message, in bytes. A longer header asks for nothing.
	maxHeader = 1 << 20
)

// Main runs the role and returns its exit code.
func Main(ctx context.Context, e *env.Env, args []string) int {
	fatal := func(code int, text string) int {
		fmt.Fprintf(e.Stderr, "qreceipt: fatal: %s\n", text)
		return code
	}
	if len(args) == 0 {
		fmt.Fprintln(e.Stderr, "qreceipt: usage: qreceipt deliveryaddress")
		return exitNever
	}
	sender, ok := e.Lookup("SENDER")
	if !ok {
		return fatal(exitNever, "SENDER not set")
	}
	head, err := readHeader(e.Stdin)
	if err != nil {
		return fatal(exitLater, "unable to read message")
	}
	if !reachable(sender) || !asks(head, args[0]) {
		return 0
	}
	signal.Ignore(syscall.SIGPIPE)
	to := &envelope.Envelope{Recipients: []string{sender}}
	if _, err := qq.New(e).Put(ctx, to, bytes.NewReader(notice(head, args[0], sender))); err != nil {
		text, code := qq.Explain(err)
		return fatal(code, text)
	}
	return 0
}

// reachable reports whether a notice to sender goes to somebody: not for bounces, nor where the address would
// break the notice's header.
func reachable(sender string) bool {
	return sender != "" && sender != "#@[]" && !strings.ContainsAny(sender, "\x00\r\n")
}

// readHeader reads up to the first empty line; nothing if that is too far away.
func readHeader(r io.Reader) ([]byte, error) {
	in := bufio.NewReader(io.LimitReader(r, maxHeader))
	var head []byte
	for {
		line, err := in.ReadBytes('\n')
		if len(line) == 1 && line[0] == '\n' || errors.Is(err, io.EOF) {
			if len(head)+len(line) >= maxHeader {
				return nil, nil
			}
			return append(head, line...), nil
		}
		if err != nil {
			return nil, err
		}
		head = append(head, line...)
	}
}

// asks reports whether the header asks for a notice upon delivery to addr, in exactly this spelling.
func asks(head []byte, addr string) bool {
	found := false
	for f := range header.Fields(head) {
		if !f.Is("Notice-Requested-Upon-Delivery-To") {
			continue
		}
		tokens, ok := header.Tokenize(string(f.Body()))
		if !ok {
			continue
		}
		_, err := header.List(tokens, func(a []header.Token) []header.Token {
			found = found || header.Address(a) == addr
			return a
		})
		if err != nil { // not a list: what was read of it does not count
			found = false
		}
	}
	return found
}

// notice is the message that tells of a delivery.
func notice(head []byte, addr, sender string) []byte {
	var b bytes.Buffer
	to := address.QuoteAddress(sender)
	fmt.Fprintf(&b, "From: DELIVERY NOTICE SYSTEM <%s>\nTo: <%s>\nSubject: success notice\n\n", to, to)
	fmt.Fprintf(&b, "Hi! This is the qreceipt program. Your message was delivered to the\nfollowing address: %s. Thanks for asking.\n", addr)
	for f := range header.Fields(head) {
		if f.Is("Message-ID") {
			fmt.Fprintf(&b, "Your %s", f)
			break
		}
	}
	return b.Bytes()
}
