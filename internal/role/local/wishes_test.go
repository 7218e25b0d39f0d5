package local

import (
	"reflect"
	"testing"

	"qmail/internal/format/envelope"
	"qmail/internal/proto/jobs"
)

func TestForwardsKeepWhatTheSenderWants(t *testing.T) {
	message := []string{"BODY=8BITMIME", "RET=HDRS", "ENVID=x", "UNKNOWN=1"}
	kept := []string{"BODY=8BITMIME", "RET=HDRS", "ENVID=x"}
	tests := []struct {
		name, file string
		wishes     []string
		options    []string
		forwarded  []string // of each recipient
		passedOn   bool
	}{
		{"one address takes all over", "&a@far.example\n", []string{"NOTIFY=SUCCESS,DELAY", "ORCPT=rfc822;o@x"}, kept,
			[]string{"NOTIFY=SUCCESS,DELAY", "ORCPT=rfc822;o@x"}, true},
		{"several do not", "&a@far.example\n&b@far.example\n", []string{"NOTIFY=SUCCESS,DELAY", "ORCPT=rfc822;o@x"}, kept,
			[]string{"NOTIFY=DELAY", "ORCPT=rfc822;o@x"}, false},
		{"nor one beside a mailbox", "./Maildir/\n&a@far.example\n", []string{"NOTIFY=SUCCESS"}, kept, []string{"NOTIFY=NEVER"}, false},
		{"nor one beside a program", "&a@far.example\n|true\n", []string{"NOTIFY=FAILURE"}, kept, []string{"NOTIFY=FAILURE"}, false},
		{"never means never for all", "&a@far.example\n&b@far.example\n", []string{"NOTIFY=NEVER"}, kept, []string{"NOTIFY=NEVER"}, false},
		{"nothing was said", "&a@far.example\n", nil, kept, nil, true},
		{"nonsense was said", "&a@far.example\n", []string{"NOTIFY=MAYBE", "ORCPT=a\r\nb"}, kept, nil, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.write(t, ".qmail", tt.file, 0o600)
			j := &jobs.Job{Sender: "s@far.example", Options: message, Recipients: []string{"alice@test.example"}, RecipientOptions: map[int][]string{0: tt.wishes}}
			if got := w.await(t, w.start(t, j, "x\n")); got[0] != 'K' {
				t.Fatal(got)
			}
			e := w.forwarded(t)
			var all map[int][]string
			if tt.forwarded != nil {
				all = map[int][]string{}
				for i := range e.Recipients {
					all[i] = tt.forwarded
				}
			}
			if !reflect.DeepEqual(e.Options, tt.options) || !reflect.DeepEqual(e.RecipientOptions, all) {
				t.Errorf("%q %v", e.Options, e.RecipientOptions)
			}
			if w.passedOn != tt.passedOn {
				t.Errorf("passed on: %v", w.passedOn)
			}
		})
	}
}

func TestAListPassesNoWishesOn(t *testing.T) {
	w := newWorld(t)
	w.write(t, ".qmail-list", "&a@far.example\n", 0o600)
	w.write(t, ".qmail-list-owner", "./Maildir/\n", 0o600)
	j := &jobs.Job{
		Sender: "s@far.example", Dash: "-", Ext: "list", Options: []string{"SMTPUTF8", "RET=FULL", "ENVID=x"},
		Recipients: []string{"alice-list@test.example"}, RecipientOptions: map[int][]string{0: {"NOTIFY=NEVER", "ORCPT=rfc822;o@x"}},
	}
	if got := w.await(t, w.start(t, j, "x\n")); got[0] != 'K' {
		t.Fatal(got)
	}
	e := w.forwarded(t)
	if e.Sender != "alice-list-owner@test.example" || !reflect.DeepEqual(e.Options, []string{"SMTPUTF8"}) || e.RecipientOptions != nil || w.passedOn {
		t.Errorf("%+v", e)
	}
}

// forwarded is the envelope of the one message that came to the queue.
func (w *world) forwarded(t *testing.T) *envelope.Envelope {
	t.Helper()
	w.queue.mu.Lock()
	defer w.queue.mu.Unlock()
	if len(w.queue.arrived) != 1 {
		t.Fatalf("%d messages", len(w.queue.arrived))
	}
	return w.queue.arrived[0].Envelope
}
