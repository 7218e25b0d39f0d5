package sendlog

import (
	"errors"
	"io"
	"strings"
	"testing"
)

func TestLines(t *testing.T) {
	tests := []struct {
		write func(w *Writer)
		want  string
	}{
		{func(w *Writer) { w.Status(1, 10, 2, 20, false) }, "status: local 1/10 remote 2/20"},
		{func(w *Writer) { w.Status(0, 10, 0, 20, true) }, "status: local 0/10 remote 0/20 exitasap"},
		{func(w *Writer) { w.Exiting() }, "status: exiting"},
		{func(w *Writer) { w.New(18446744073709551615) }, "new msg 18446744073709551615"},
		{func(w *Writer) { w.Info(7, 346, "a b@c", 991, 1000) }, "info msg 7: bytes 346 from <a_b@c> qp 991 uid 1000"},
		{func(w *Writer) { w.Info(7, 346, "", 991, 0) }, "info msg 7: bytes 346 from <> qp 991 uid 0"},
		{func(w *Writer) { w.Starting(1, 7, true, "a b%c\tä@local.example") }, "starting delivery 1: msg 7 to local a_b_c___@local.example"},
		{func(w *Writer) { w.Starting(2, 7, false, "u@far.example") }, "starting delivery 2: msg 7 to remote u@far.example"},
		{func(w *Writer) { w.Success(1, "did 1+0+0\n") }, "delivery 1: success: did_1+0+0/"},
		{func(w *Writer) { w.Success(1, "") }, "delivery 1: success: "},
		{func(w *Writer) { w.Failure(2, "Sorry, no mailbox here by that name. (#5.1.1)\n") }, "delivery 2: failure: Sorry,_no_mailbox_here_by_that_name._(#5.1.1)/"},
		{func(w *Writer) { w.Failure(2, "line one\n\nline three\n\n\nline six\n") }, "delivery 2: failure: line_one//line_three///line_six/"},
		{func(w *Writer) { w.Deferral(3, "x\r\nstatus: exiting\x00\x7f") }, "delivery 3: deferral: x_/status:_exiting__"},
		{func(w *Writer) { w.Mangled(3) }, "delivery 3: report mangled, will defer"},
		{func(w *Writer) { w.Bounce(7, 8) }, "bounce msg 7 qp 8"},
		{func(w *Writer) { w.TripleBounce(7) }, "triple bounce: discarding bounce/7"},
		{func(w *Writer) { w.End(7) }, "end msg 7"},
		{func(w *Writer) { w.Alert("cannot start: unable to read controls") }, "alert: cannot start: unable to read controls"},
		{func(w *Writer) { w.Warning("trouble reading a\nb\x1b") }, "warning: trouble reading a/b_"},
	}
	var all, got strings.Builder
	together := NewWriter(&got)
	for _, tt := range tests {
		var b strings.Builder
		w := NewWriter(&b)
		tt.write(w)
		if b.Len() != 0 {
			t.Errorf("%q: written without Flush", tt.want)
		}
		if err := w.Flush(); err != nil || b.String() != tt.want+"\n" {
			t.Errorf("got %q %v, want %q", b.String(), err, tt.want)
		}
		tt.write(together)
		all.WriteString(tt.want + "\n")
	}
	if err := together.Flush(); err != nil || got.String() != all.String() {
		t.Errorf("together: %q %v", got.String(), err)
	}
}

// counter counts writes, and fails when told to.
type counter struct {
	writes, bytes int
	err           error
}

func (c *counter) Write(p []byte) (int, error) {
	c.writes++
	c.bytes += len(p)
	return len(p), c.err
}

func TestOneWrite(t *testing.T) {
	c := &counter{}
	w := NewWriter(c)
	for i := range uint64(100) {
		w.New(i)
	}
	w.Flush()
	w.Flush()
	if c.writes != 1 {
		t.Errorf("%d writes", c.writes)
	}
	for i := range uint64(20000) {
		w.Success(i, "did 1+0+0\n")
		if len(w.buf) > maxHeld+100 {
			t.Fatal("holds without end")
		}
	}
	w.Flush()
	if c.writes > 15 {
		t.Errorf("%d writes of %d bytes", c.writes, c.bytes)
	}
}

func TestErrors(t *testing.T) { // are told once, and stop nothing
	c := &counter{err: errors.New("pipe broke")}
	w := NewWriter(c)
	w.New(1)
	if err := w.Flush(); !errors.Is(err, c.err) {
		t.Errorf("got %v", err)
	}
	if err := w.Flush(); err != nil || c.writes != 1 {
		t.Errorf("again: %v, %d writes", err, c.writes)
	}
	for range 5000 {
		w.Success(1, "a report that nobody can read")
	}
	c.err = nil
	if err := w.Flush(); err == nil {
		t.Error("an error between flushes is lost")
	}
	w.New(2)
	if err := w.Flush(); err != nil {
		t.Errorf("does not recover: %v", err)
	}
}

func TestNoAllocations(t *testing.T) {
	w := NewWriter(io.Discard)
	text := strings.Repeat("some text\n", 20)
	if n := testing.AllocsPerRun(1000, func() {
		w.New(12345678901)
		w.Info(12345678901, 4096, "someone@example.org", 12345678901, 1000)
		w.Starting(1, 12345678901, false, "someone@example.net")
		w.Status(1, 10, 2, 20, false)
		w.Deferral(1, text)
		w.End(12345678901)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzAppendSafe(f *testing.F) { // as many bytes as came, and none that could break a line or a field
	f.Add("a b%c\t\xe4\n\x00")
	f.Fuzz(func(t *testing.T, text string) {
		got := AppendSafe(nil, text)
		if len(got) != len(text) {
			t.Fatal("the length changed")
		}
		for i, c := range got {
			if c <= ' ' || c > '~' || c == '%' {
				t.Fatalf("%q has %q", got, c)
			}
			if c != text[i] && c != '_' && (c != '/' || text[i] != '\n') {
				t.Fatalf("%q became %q", text[i], c)
			}
		}
	})
}

func BenchmarkDelivery(b *testing.B) {
	w := NewWriter(io.Discard)
	b.ReportAllocs()
	for b.Loop() {
		w.Starting(1, 12345678901, false, "someone@example.net")
		w.Status(1, 10, 2, 20, false)
		w.Success(1, "192.0.2.1 accepted message.\nRemote host said: 250 ok 1234567890 qp 4711\n")
		w.Status(0, 10, 2, 20, false)
	}
}
