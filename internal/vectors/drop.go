package vectors

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/user"
	"strconv"
	"time"
	"unicode/utf8"

	"qmail/internal/proto/enqueue"
)

// Dropped takes what qmail-queue has left in a home for a qmail-send that is not running, with the line that
// qmail-send puts above it.
func Dropped(home string) ([]Queued, error) {
	paths, err := enqueue.ListDropped(home)
	if err != nil {
		return nil, err
	}
	list := []Queued{}
	for _, path := range paths {
		d, err := enqueue.OpenDropped(path)
		if err != nil {
			return nil, err
		}
		body, err := io.ReadAll(d.Body)
		if err := errors.Join(err, d.Done()); err != nil {
			return nil, err
		}
		q := Queued{Sender: Value(d.Envelope.Sender), Message: append(enqueue.AppendReceived(nil, 1, how(d.UID), time.Now()), body...)}
		for _, r := range d.Envelope.Recipients {
			q.Recipients = append(q.Recipients, Value(r))
		}
		list = append(list, q)
	}
	return list, nil
}

func how(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		switch u.Username {
		case "alias":
			return "by alias"
		case "qmaild":
			return "from network"
		case "qmails":
			return "for bounce"
		}
	}
	return fmt.Sprintf("by uid %d", uid)
}

// MarshalJSON writes what UnmarshalJSON reads.
func (v Value) MarshalJSON() ([]byte, error) {
	if utf8.Valid(v) {
		return json.Marshal(string(v))
	}
	return json.Marshal(map[string][]byte{"b64": v})
}

// MarshalJSON names the parts as recordings do.
func (q Queued) MarshalJSON() ([]byte, error) {
	rcpts := q.Recipients
	if rcpts == nil {
		rcpts = []Value{}
	}
	return json.Marshal(map[string]any{"sender": q.Sender, "rcpts": rcpts, "message": q.Message})
}
