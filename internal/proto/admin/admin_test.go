package admin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"qmail/internal/format/reply"
	"qmail/internal/system/ipc"
)

// play is a backend with a queue made up.
type play struct {
	messages, recipients int
	body                 string
	orders               chan Order
}

var when = time.Unix(1_800_000_000, 123)

func (p *play) List(_ context.Context, peer Peer, f *Filter, out *Out) (t Totals, err error) {
	for i := range p.messages {
		t.Messages++
		if f.CountOnly {
			continue
		}
		if err := p.one(uint64(i+1), peer, f.Recipients, out); err != nil {
			return t, err
		}
	}
	return t, nil
}

func (p *play) one(id uint64, peer Peer, recipients bool, out *Out) error {
	m := &Message{ID: id, Birth: when, Size: 77, Sender: "s@x", UID: peer.UID, Recipients: p.recipients, Waiting: p.recipients, Next: when}
	if err := out.Message(m); err != nil || !recipients {
		return err
	}
	for i := range p.recipients {
		if err := out.Recipient(&Recipient{Index: i, Address: fmt.Sprintf("r%d@x", i), Channel: Remote, State: Waiting, Next: when}); err != nil {
			return err
		}
	}
	return nil
}

func (p *play) Show(_ context.Context, peer Peer, id uint64, out *Out) error {
	if id > uint64(p.messages) {
		return reply.Permanent("5.1.1", "no such message", nil)
	}
	return p.one(id, peer, true, out)
}

type memory struct{ *strings.Reader }

func (memory) Close() error { return nil }

func (p *play) Body(context.Context, Peer, uint64) (Body, error) {
	return memory{strings.NewReader(p.body)}, nil
}

func (p *play) Life(_ context.Context, _ Peer, id uint64, out func(*Event) error) error {
	for i := range 3 {
		if err := out(&Event{Time: when, What: "deferred", Recipients: "0-2", Next: when, Text: fmt.Sprint(i), As: id}); err != nil {
			return err
		}
	}
	return nil
}

func (p *play) Order(_ context.Context, _ Peer, o *Order) (Effect, error) {
	p.orders <- *o
	return Effect{3, 1}, nil
}

func (p *play) Explain(_ context.Context, _ Peer, address string) ([]Step, error) {
	if address == "" {
		return nil, errors.New("a secret of ours")
	}
	return []Step{{"locals", "yes", "it is local", "control/locals", 3}, {Topic: "verdict", Value: address}}, nil
}

func (p *play) Slow(_ context.Context, _ Peer, forget bool) ([]Slow, error) {
	if forget {
		return nil, nil
	}
	return []Slow{{netip.MustParseAddr("192.0.2.1"), 2, when, true}, {netip.MustParseAddr("2001:db8::1"), 1, when, false}}, nil
}

func (p *play) Size(context.Context, Peer) (Size, error) { return Size{Messages: 5, Dropped: 1}, nil }

// open makes a client of a server for p.
func open(t testing.TB, p Backend) *Client {
	t.Helper()
	a, b, err := ipc.LocalPair()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- Serve(context.Background(), a, Peer{UID: 7}, p) }()
	c := NewClient(b)
	t.Cleanup(func() {
		c.Close()
		if err := <-ended; err == nil {
			t.Error("Serve ended without an error")
		}
	})
	return c
}

func TestQuestionsAreAnswered(t *testing.T) {
	p := &play{messages: 3, recipients: 2, body: "Subject: x\n\nhello\n", orders: make(chan Order, 1)}
	c := open(t, p)
	var got []string
	message := func(m *Message) error {
		got = append(got, fmt.Sprintf("%d %s %d %d %v %v", m.ID, m.Sender, m.UID, m.Size, m.Birth.Equal(when), m.Next.Equal(when)))
		return nil
	}
	recipient := func(r *Recipient) error {
		got = append(got, fmt.Sprintf("%d %s %c %v", r.Index, r.Address, r.Channel, r.State))
		return nil
	}
	want := func(lines ...string) {
		t.Helper()
		if fmt.Sprint(got) != fmt.Sprint(lines) {
			t.Errorf("got %q\nwant %q", got, lines)
		}
		got = nil
	}
	totals, err := c.List(&Filter{}, message, recipient)
	if err != nil || totals.Messages != 3 {
		t.Errorf("%+v %v", totals, err)
	}
	want("1 s@x 7 77 true true", "2 s@x 7 77 true true", "3 s@x 7 77 true true")
	if totals, err = c.List(&Filter{CountOnly: true}, message, recipient); err != nil || totals.Messages != 3 {
		t.Errorf("%+v %v", totals, err)
	}
	want()
	if err := c.Show(2, message, recipient); err != nil {
		t.Error(err)
	}
	want("2 s@x 7 77 true true", "0 r0@x r waiting", "1 r1@x r waiting")
	if err := c.Show(4, message, recipient); reply.Letter(err) != 'D' || reply.Of(err).Text != "no such message" {
		t.Errorf("%v", err)
	}
	var copied bytes.Buffer
	if err := c.Copy(1, &copied); err != nil || copied.String() != p.body {
		t.Errorf("%q %v", copied.String(), err)
	}
	if err := c.Life(9, func(e *Event) error { got = append(got, e.Text+e.Recipients); return nil }); err != nil {
		t.Error(err)
	}
	want("00-2", "10-2", "20-2")
	o := Order{Bounce, 5, "because"}
	if e, err := c.Order(&o); err != nil || e != (Effect{3, 1}) || <-p.orders != o {
		t.Errorf("%+v %v", e, err)
	}
	if steps, err := c.Explain("a@x"); err != nil || len(steps) != 2 || steps[0].Line != 3 || steps[1].Value != "a@x" {
		t.Errorf("%+v %v", steps, err)
	}
	if _, err := c.Explain(""); reply.Letter(err) != 'Z' || strings.Contains(err.Error(), "secret") {
		t.Errorf("%v", err)
	}
	if list, err := c.Slow(false); err != nil || len(list) != 2 || list[0].Addr.String() != "192.0.2.1" || !list[0].Skipped || list[1].Count != 1 {
		t.Errorf("%+v %v", list, err)
	}
	if list, err := c.Slow(true); err != nil || len(list) != 0 {
		t.Errorf("%+v %v", list, err)
	}
	if s, err := c.Size(); err != nil || s.Messages != 5 || s.Dropped != 1 {
		t.Errorf("%+v %v", s, err)
	}
}

func TestAMillionMessagesNeedNoMemory(t *testing.T) {
	n := 200_000
	if testing.Short() {
		n = 20_000
	}
	c := open(t, &play{messages: n, recipients: 2})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	seen := 0
	_, err := c.List(&Filter{Recipients: true}, func(*Message) error {
		if seen++; seen == n {
			runtime.GC()
			runtime.ReadMemStats(&after)
		}
		return nil
	}, func(*Recipient) error { return nil })
	if err != nil || seen != n {
		t.Fatalf("%d of %d: %v", seen, n, err)
	}
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 4<<20 {
		t.Errorf("both sides hold %d bytes", grown)
	}
}

func TestASlowReaderHoldsNothing(t *testing.T) {
	c := open(t, &play{messages: 100_000, recipients: 1})
	first := make(chan bool)
	go func() {
		if _, err := c.List(&Filter{}, func(m *Message) error {
			if m.ID == 1 {
				first <- true
				<-first
			}
			return nil
		}, nil); err != nil {
			t.Error(err)
		}
		close(first)
	}()
	<-first
	// While it sleeps the server waits for its N and has sent one page.
	var stats runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&stats)
	if stats.HeapAlloc > 64<<20 {
		t.Errorf("%d bytes", stats.HeapAlloc)
	}
	first <- true
	<-first
}

func TestALargeBodyIsCopied(t *testing.T) {
	p := &play{body: strings.Repeat("0123456789abcde\n", 200_000)}
	c := open(t, p)
	var b bytes.Buffer
	if err := c.Copy(1, &b); err != nil || b.String() != p.body {
		t.Errorf("%d bytes of %d, %v", b.Len(), len(p.body), err)
	}
	if _, err := c.Size(); err != nil { // the next question on the same connection
		t.Error(err)
	}
}

func TestTheFirstErrorOfTheReaderEndsIt(t *testing.T) {
	c := open(t, &play{messages: 100_000})
	stop := errors.New("enough")
	if _, err := c.List(&Filter{}, func(*Message) error { return stop }, nil); err != stop {
		t.Errorf("%v", err)
	}
	if _, err := c.Size(); err == nil {
		t.Error("the connection goes on in the middle of an answer")
	}
}

func TestNobodyBehindTheDoor(t *testing.T) {
	if _, err := Dial(t.TempDir()); err != ErrNotRunning {
		t.Errorf("%v", err)
	}
}

// codecs are all records, with a value each that uses every field.
func codecs() []struct {
	name string
	full codec
	zero func() codec
} {
	return []struct {
		name string
		full codec
		zero func() codec
	}{
		{"filter", (&Filter{"s", "r", "d", Held, time.Hour, time.Minute, "<m>", true, true}).codec(), func() codec { return (&Filter{}).codec() }},
		{"message", (&Message{9, when, 3, "s", 0, 5, 20, 1, 2, 3, 4, 5, true, true, when}).codec(), func() codec { return (&Message{}).codec() }},
		{"recipient", (&Recipient{0, "a", "b", Local, Done, when, "x"}).codec(), func() codec { return (&Recipient{}).codec() }},
		{"totals", (&Totals{1, 2, 3, 4, 5, when}).codec(), func() codec { return (&Totals{}).codec() }},
		{"size", (&Size{1, 2, 3, 4, 5, 6, true}).codec(), func() codec { return (&Size{}).codec() }},
		{"order", (&Order{Bounce, 1 << 63, "r"}).codec(), func() codec { return (&Order{}).codec() }},
		{"effect", (&Effect{1, 2}).codec(), func() codec { return (&Effect{}).codec() }},
		{"event", (&Event{when, "w", "r", "a", when, "t", 7}).codec(), func() codec { return (&Event{}).codec() }},
		{"step", (&Step{"t", "v", "x", "f", 4}).codec(), func() codec { return (&Step{}).codec() }},
		{"slow", (&Slow{netip.MustParseAddr("::1"), 3, when, true}).codec(), func() codec { return (&Slow{}).codec() }},
		{"which", (&which{4}).codec(), func() codec { return (&which{}).codec() }},
		{"address", (&address{"a"}).codec(), func() codec { return (&address{}).codec() }},
		{"forget", (&slowQuestion{true}).codec(), func() codec { return (&slowQuestion{}).codec() }},
	}
}

func TestRecordsComeBack(t *testing.T) {
	m := Message{9, when, 3, "s@x", 0, 5, 20, 1, 2, 3, 4, 5, true, true, when}
	var again Message
	if err := again.codec().parse(m.codec().append(nil)); err != nil || !reflect.DeepEqual(again, m) {
		t.Errorf("%+v %v", again, err)
	}
	f := Filter{"s", "r", "d", Held, time.Hour, time.Minute, "<m>", true, true}
	var filter Filter
	if err := filter.codec().parse(f.codec().append(nil)); err != nil || filter != f {
		t.Errorf("%+v %v", filter, err)
	}
	r := Recipient{0, "a@b", "c@d", Local, Failed, when, "two\nlines"}
	var recipient Recipient
	if err := recipient.codec().parse(r.codec().append(nil)); err != nil || !reflect.DeepEqual(recipient, r) {
		t.Errorf("%+v %v", recipient, err)
	}
}

func TestWhatCannotBeSaidIsCut(t *testing.T) {
	s := Step{Topic: "t", Text: strings.Repeat("x", 10_000), Value: "a\x00b"}
	var again Step
	if err := again.codec().parse(s.codec().append(nil)); err != nil || len(again.Text) != MaxText || again.Value != "a?b" {
		t.Errorf("%d %q %v", len(again.Text), again.Value, err)
	}
}

// FuzzRecords states that a payload is either refused or has one spelling.
func FuzzRecords(f *testing.F) {
	for i, c := range codecs() {
		f.Add(byte(i), c.full.append(nil))
	}
	f.Fuzz(func(t *testing.T, which byte, b []byte) {
		c := codecs()[int(which)%len(codecs())]
		z := c.zero()
		rest, err := parseFields(b, z.fields)
		if err != nil || len(rest) > 0 {
			return
		}
		if got := z.append(nil); !bytes.Equal(got, b) {
			t.Fatalf("%s: %q is a second spelling of %q", c.name, b, got)
		}
		_ = z.checked() // must not panic
	})
}

// FuzzServer throws frames at a server: it answers or ends the connection, and asks its backend nothing impossible.
func FuzzServer(f *testing.F) {
	for i, c := range codecs() {
		f.Add([]byte("LSCHOXTQN")[i%9], c.full.append(nil), uint32(0))
	}
	f.Fuzz(func(t *testing.T, kind byte, payload []byte, stream uint32) {
		a, b, err := ipc.LocalPair()
		if err != nil {
			t.Skip()
		}
		ended := make(chan error, 1)
		go func() {
			ended <- Serve(context.Background(), a, Peer{}, &play{messages: 2, recipients: 1, body: "x", orders: make(chan Order, 1)})
		}()
		if len(payload) <= ipc.MaxPayload {
			_ = b.Send(kind, stream, payload)
		}
		b.SetReadDeadline(time.Now().Add(20 * time.Second))
		for {
			f, err := b.Read()
			if err != nil {
				if !errors.Is(err, io.EOF) && !errors.Is(err, ipc.ErrClosed) && !strings.Contains(err.Error(), "reset") {
					t.Fatalf("%q %q: %v", kind, payload, err)
				}
				break
			}
			if f.Kind == kindEnd || f.Kind == kindRefusal {
				break
			}
		}
		b.Close()
		<-ended
	})
}

// FuzzClient lets a server lie: the client has an answer or an error, and never waits for what cannot come.
func FuzzClient(f *testing.F) {
	m := (&Message{ID: 1, Recipients: 1, Waiting: 1}).codec().append(nil)
	f.Add(byte(0), byte(kindMessage), m, byte(kindEnd), []byte(nil))
	f.Add(byte(0), byte(kindRecipients), m, byte(kindEnd), []byte(nil))
	f.Add(byte(1), byte(kindEvents), m, byte(kindRefusal), []byte("Dno\n"))
	f.Add(byte(2), byte(kindBytes), m, byte(kindRefusal), []byte("K"))
	f.Add(byte(3), byte(kindSteps), m, byte(kindMore), []byte(nil))
	f.Fuzz(func(t *testing.T, question, kind1 byte, payload1 []byte, kind2 byte, payload2 []byte) {
		a, b, err := ipc.LocalPair()
		if err != nil {
			t.Skip()
		}
		go func() {
			a.SetReadDeadline(time.Now().Add(20 * time.Second))
			if _, err := a.Read(); err == nil {
				_ = a.Send(kind1, 0, payload1)
				_ = a.Send(kind2, 0, payload2)
			}
			a.Close()
		}()
		c := NewClient(b)
		defer c.Close()
		switch question % 8 {
		case 0:
			_, err = c.List(&Filter{}, func(m *Message) error {
				if m.ID == 0 || m.Done() < 0 {
					t.Errorf("%+v", m)
				}
				return nil
			}, func(r *Recipient) error {
				if r.Index < 0 || r.State.String() == "unknown" {
					t.Errorf("%+v", r)
				}
				return nil
			})
		case 1:
			err = c.Life(1, func(*Event) error { return nil })
		case 2:
			err = c.Copy(1, io.Discard)
		case 3:
			_, err = c.Explain("x")
		case 4:
			_, err = c.Slow(false)
		case 5:
			_, err = c.Size()
		case 6:
			_, err = c.Order(&Order{Verb: Hold, ID: 1})
		case 7:
			err = c.Show(1, func(*Message) error { return nil }, func(*Recipient) error { return nil })
		}
		if err == nil && kind1 != kindEnd && kind2 != kindEnd {
			t.Errorf("an answer without an end")
		}
	})
}

func TestALyingClientIsDropped(t *testing.T) {
	tests := []struct {
		name    string
		kind    byte
		stream  uint32
		payload string
	}{
		{"an unknown question", '?', 0, ""},
		{"another stream", kindSize, 1, ""},
		{"an N that nobody waits for", kindNext, 0, ""},
		{"records of something else", kindList, 0, "Zx\x00"},
		{"records in another order", kindList, 0, "dx\x00sx\x00"},
		{"the same record twice", kindList, 0, "sx\x00sx\x00"},
		{"an empty value", kindList, 0, "s\x00"},
		{"a value too long", kindList, 0, "s" + strings.Repeat("x", MaxText+1) + "\x00"},
		{"a cut record", kindList, 0, "sx"},
		{"a state that is none", kindList, 0, "t99\x00"},
		{"a negative age", kindList, 0, "o-1\x00"},
		{"an order without a message", kindOrder, 0, "v114\x00"},
		{"a number with a zero before it", kindShow, 0, "i01\x00"},
		{"a size with a question", kindSize, 0, "i1\x00"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, b, err := ipc.LocalPair()
			if err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			p := &play{messages: 1, orders: make(chan Order, 1)}
			go func() { ended <- Serve(context.Background(), a, Peer{}, p) }()
			if err := b.Send(tt.kind, tt.stream, []byte(tt.payload)); err != nil {
				t.Fatal(err)
			}
			if err := <-ended; err == nil || errors.Is(err, io.EOF) {
				t.Errorf("%v", err)
			}
			b.SetReadDeadline(time.Now().Add(10 * time.Second))
			if f, err := b.Read(); err == nil {
				t.Errorf("answered %c %q", f.Kind, f.Payload)
			}
			if len(p.orders) > 0 {
				t.Error("it was obeyed")
			}
		})
	}
}

func TestTheServerGoesWhenToldTo(t *testing.T) {
	a, b, err := ipc.LocalPair()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, a, Peer{}, &play{messages: 1_000_000}) }()
	if err := b.Send(kindList, 0); err != nil { // and never says N
		t.Fatal(err)
	}
	b.SetReadDeadline(time.Now().Add(10 * time.Second))
	for {
		f, err := b.Read()
		if err != nil {
			t.Fatal(err)
		}
		if f.Kind == kindMore {
			break
		}
	}
	cancel()
	if err := <-ended; err == nil {
		t.Error("no error")
	}
}

// FuzzSteps states that what a worker may say of its steps and addresses has one spelling.
func FuzzSteps(f *testing.F) {
	f.Add(AppendSteps(nil, []Step{{"t", "v", "x", "f", 4}, Verdict("Dno\n")}))
	f.Add(AppendSlow(nil, []Slow{{netip.MustParseAddr("::1"), 3, when, true}, {netip.MustParseAddr("192.0.2.1"), 1, when, false}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if steps, err := ParseSteps(b); err == nil && len(b) <= MaxSteps && !bytes.Equal(AppendSteps(nil, steps), b) {
			t.Fatalf("%q is a second spelling of %+v", b, steps)
		}
		if list, err := ParseSlow(b); err == nil && !bytes.Equal(AppendSlow(nil, list), b) {
			t.Fatalf("%q is a second spelling of %+v", b, list)
		}
	})
}

func TestALongExplanationKeepsItsVerdict(t *testing.T) {
	steps := make([]Step, 100)
	for i := range steps {
		steps[i] = Step{Topic: "line", Text: strings.Repeat("x", MaxText)}
	}
	steps = append(steps, Verdict("Zlater\n"))
	b := AppendSteps(nil, steps)
	got, err := ParseSteps(b)
	if err != nil || len(b) > MaxSteps+MaxText || len(got) < 20 || got[len(got)-1] != steps[100] {
		t.Errorf("%d bytes, %d steps, %v", len(b), len(got), err)
	}
}
