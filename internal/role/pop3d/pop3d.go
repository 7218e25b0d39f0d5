// Package pop3d is qmail-pop3d(8): it gives out the mail of one Maildir by POP3, as the user whose mail it is, to
// a client that has been let in already (qmail-popup, and a program of the checkpassword kind). The connection is
// descriptors 0 and 1.
package pop3d

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"qmail/internal/proto/pop3"
	"qmail/internal/store/maildrop"
	"qmail/internal/system/env"
	"qmail/internal/system/serve"
)

// refuseTime is how long a client may take to hear that there is no session.
const refuseTime = time.Minute

// Main serves one session. Its exit code is 0 whatever the client did, and 1 if there was none.
func Main(_ context.Context, e *env.Env, args []string) int {
	if os.Geteuid() == 0 { // whoever could log in as root would read everybody's mail
		fmt.Fprintln(e.Stderr, "qmail-pop3d: fatal: root has no mail here")
		return 1
	}
	conn, err := serve.NewStdio(e)
	if err != nil {
		fmt.Fprintf(e.Stderr, "qmail-pop3d: fatal: unable to use descriptors 0 and 1: %v\n", err)
		return 1
	}
	defer conn.Close()
	session(conn, e.Now(), args)
	return 0
}

// session serves a client; how it ends is of interest to nobody else.
func session(conn pop3.Conn, now time.Time, args []string) {
	refuse := func(text string) {
		conn.SetWriteDeadline(time.Now().Add(refuseTime))
		fmt.Fprintf(conn, "-ERR %s\r\n", text)
	}
	if len(args) == 0 {
		refuse("this user has no $HOME/Maildir")
		return
	}
	drop, err := maildrop.Open(args[0])
	if err != nil {
		refuse("this user has no $HOME/Maildir")
		return
	}
	defer drop.Close()
	drop.Sweep(now)
	list, err := drop.List(now)
	if err != nil {
		refuse("unable to scan $HOME/Maildir")
		return
	}
	_ = pop3.Serve(conn, pop3.NewTransaction(newMailbox(drop, list)))
}

// mailbox is a Maildir as it was at the beginning of the session.
type mailbox struct {
	drop *maildrop.Drop
	list []maildrop.Message
	uids map[int]string // of messages whose own would not be the only one of its kind
}

func newMailbox(drop *maildrop.Drop, list []maildrop.Message) *mailbox {
	b := &mailbox{drop: drop, list: list, uids: map[int]string{}}
	seen := make(map[string]bool, len(list))
	for i, m := range list {
		uid := pop3.UID(m.Name)
		if seen[uid] {
			// Two files differ in their flags or directories alone. The second is told from the first by
			// all of its name, with a blank, so that no other name gives the same.
			uid = pop3.UID(m.Dir + " " + strings.ReplaceAll(m.Name, ":", " "))
			b.uids[i] = uid
		}
		seen[uid] = true
	}
	return b
}

func (b *mailbox) Len() int         { return len(b.list) }
func (b *mailbox) Size(i int) int64 { return b.list[i].Size }

func (b *mailbox) UID(i int) string {
	if uid, ok := b.uids[i]; ok {
		return uid
	}
	return pop3.UID(b.list[i].Name)
}

func (b *mailbox) Read(i int) (io.ReadCloser, error) {
	f, err := b.drop.Read(&b.list[i])
	if err != nil {
		return nil, err
	}
	return f, nil
}

// Update removes messages and takes the others out of new. Of those nothing is lost when that fails.
func (b *mailbox) Update(remove func(i int) bool) error {
	var failed error
	for i := range b.list {
		if remove(i) {
			failed = errors.Join(failed, b.drop.Remove(&b.list[i]))
		} else {
			_ = b.drop.Settle(&b.list[i])
		}
	}
	return failed
}
