package mailsubj

import (
	"bytes"
	"context"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"qmail/internal/proto/enqueue"
	"qmail/internal/system/env"
)

func TestMain(t *testing.T) {
	home := t.TempDir()
	if err := os.MkdirAll(enqueue.DropDir(home), 0o755); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w.WriteString("body\n")
	w.Close()
	var out bytes.Buffer
	e := &env.Env{Home: home, Stdin: r, Stderr: &out, Now: time.Now}
	// A subject that comes from elsewhere brings no fields of its own.
	if code := Main(context.Background(), e, []string{"hello\nBcc: v@w.x\n\n", "a@b.c", "d@e.f"}); code != 0 {
		t.Fatal(code, out.String())
	}
	paths, err := enqueue.ListDropped(home)
	if err != nil || len(paths) != 1 {
		t.Fatal(paths, err)
	}
	d, err := enqueue.OpenDropped(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	b, err := io.ReadAll(d.Body)
	if err != nil || !strings.HasSuffix(string(b), "\nSubject: hello Bcc: v@w.x  \nTo: a@b.c, d@e.f\n\nbody\n") || !slices.Equal(d.Envelope.Recipients, []string{"d@e.f", "a@b.c"}) {
		t.Errorf("%+v %q %v", d.Envelope, b, err)
	}
}

func TestNoQueue(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	var out bytes.Buffer
	if code := Main(context.Background(), &env.Env{Home: t.TempDir(), Stdin: null, Stderr: &out, Now: time.Now}, []string{"s", "a"}); code != 111 ||
		!strings.Contains(out.String(), "qq trouble creating files in queue (#4.3.0)") {
		t.Errorf("%d %s", code, out.String())
	}
}
