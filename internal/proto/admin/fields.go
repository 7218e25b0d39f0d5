package admin

import (
	"errors"
	"net/netip"
	"strings"
	"time"

	"qmail/internal/format/text0"
)

var errRecords = errors.New("admin: malformed records")

// field is one record of a payload: a letter and the place of its value. Empty values are left out, and what is left
// out is empty, so a value has one spelling.
type field struct {
	letter byte
	text   *string
	num    *int64
	time   *time.Time
	flag   *bool
}

func text(letter byte, p *string) field  { return field{letter: letter, text: p} }
func num(letter byte, p *int64) field    { return field{letter: letter, num: p} }
func at(letter byte, p *time.Time) field { return field{letter: letter, time: p} }
func flag(letter byte, p *bool) field    { return field{letter: letter, flag: p} }

// appendFields writes values in order. Texts are cut to MaxText, and NULs in them replaced: what comes from
// elsewhere may be anything.
func appendFields(dst []byte, fields []field) []byte {
	for _, f := range fields {
		switch {
		case f.text != nil && *f.text != "":
			v := *f.text
			if len(v) > MaxText {
				v = v[:MaxText]
			}
			if !text0.Clean(v) {
				v = strings.ReplaceAll(v, "\x00", "?")
			}
			dst = text0.Append(dst, f.letter, v)
		case f.num != nil && *f.num != 0:
			dst = text0.AppendInt(dst, f.letter, *f.num)
		case f.time != nil && !f.time.IsZero():
			dst = text0.AppendInt(dst, f.letter, nanoseconds(*f.time))
		case f.flag != nil && *f.flag:
			dst = text0.Append(dst, f.letter, "")
		}
	}
	return dst
}

// nanoseconds of a time; one that cannot be told apart from none is moved by one.
func nanoseconds(t time.Time) int64 {
	if n := t.UnixNano(); n != 0 {
		return n
	}
	return 1
}

// parseFields reads what appendFields writes, up to the first record that is none of them.
func parseFields(b []byte, fields []field) (rest []byte, err error) {
	for _, f := range fields {
		f.clear()
	}
	for len(b) > 0 {
		letter, value, after, err := text0.Cut(b)
		if err != nil {
			return nil, err
		}
		for len(fields) > 0 && fields[0].letter != letter {
			fields = fields[1:]
		}
		if len(fields) == 0 {
			return b, nil
		}
		if err := fields[0].set(value); err != nil {
			return nil, err
		}
		fields, b = fields[1:], after
	}
	return nil, nil
}

// parseAll is parseFields for a payload that holds nothing else.
func parseAll(b []byte, fields []field) error {
	rest, err := parseFields(b, fields)
	if err == nil && len(rest) > 0 {
		err = errRecords
	}
	return err
}

func (f *field) clear() {
	switch {
	case f.text != nil:
		*f.text = ""
	case f.num != nil:
		*f.num = 0
	case f.time != nil:
		*f.time = time.Time{}
	default:
		*f.flag = false
	}
}

func (f *field) set(value []byte) error {
	if f.flag != nil {
		*f.flag = true
		if len(value) > 0 {
			return errRecords
		}
		return nil
	}
	if len(value) == 0 || len(value) > MaxText {
		return errRecords
	}
	if f.text != nil {
		*f.text = string(value)
		return nil
	}
	n, err := text0.Int(value)
	if err != nil || n == 0 {
		return errRecords
	}
	if f.num != nil {
		*f.num = n
	} else {
		*f.time = time.Unix(0, n)
	}
	return nil
}

// ints reads and writes ints by way of int64: load before writing, store after reading.
type ints struct {
	places []*int
	values []int64
}

func newInts(places ...*int) *ints {
	i := &ints{places: places, values: make([]int64, len(places))}
	for n, p := range places {
		i.values[n] = int64(*p)
	}
	return i
}

// store refuses what no count, index or line can be.
func (i *ints) store() error {
	for n, p := range i.places {
		if i.values[n] < 0 || i.values[n] > 1<<40 {
			return errRecords
		}
		*p = int(i.values[n])
	}
	return nil
}

// codec is the fields of a value, and what has to be done once they are read.
type codec struct {
	fields []field
	check  func() error
}

func (c codec) append(dst []byte) []byte { return appendFields(dst, c.fields) }

func (c codec) parse(b []byte) error {
	if err := parseAll(b, c.fields); err != nil {
		return err
	}
	return c.checked()
}

func (c codec) checked() error {
	if c.check != nil {
		return c.check()
	}
	return nil
}

func id(letter byte, p *uint64, n *int64) field { *n = int64(*p); return num(letter, n) }

func (f *Filter) codec() codec {
	state, older, younger := int64(f.State), int64(f.OlderThan/time.Second), int64(f.YoungerThan/time.Second)
	return codec{[]field{
		text('s', &f.Sender), text('r', &f.Recipient), text('d', &f.Domain), num('t', &state),
		num('o', &older), num('y', &younger), text('m', &f.MessageID), flag('R', &f.Recipients), flag('c', &f.CountOnly),
	}, func() error {
		const most = 1 << 33
		if state < 0 || state >= int64(states) || older < 0 || older > most || younger < 0 || younger > most {
			return errRecords
		}
		f.State, f.OlderThan, f.YoungerThan = State(state), time.Duration(older)*time.Second, time.Duration(younger)*time.Second
		return nil
	}}
}

func (m *Message) codec() codec {
	n := new(int64)
	uid := int64(m.UID) + 1 // 0 is root's
	i := newInts(&m.Recipients, &m.Waiting, &m.Ready, &m.Running, &m.Held, &m.Failed)
	return codec{[]field{
		id('i', &m.ID, n), at('t', &m.Birth), num('b', &m.Size), text('s', &m.Sender), num('u', &uid), num('q', &m.QP),
		num('n', &i.values[0]), num('w', &i.values[1]), num('r', &i.values[2]), num('R', &i.values[3]), num('h', &i.values[4]), num('f', &i.values[5]),
		flag('H', &m.OnHold), flag('D', &m.Damaged), at('N', &m.Next),
	}, func() error {
		m.ID, m.UID = uint64(*n), int(uid-1)
		if err := i.store(); err != nil {
			return err
		}
		if *n == 0 || m.Size < 0 || m.Done() < 0 || uid < 1 || uid > 1<<32 {
			return errRecords
		}
		return nil
	}}
}

func (r *Recipient) codec() codec {
	index, channel, state := int64(r.Index)+1, int64(r.Channel), int64(r.State)
	return codec{[]field{
		num('n', &index), text('a', &r.Address), text('o', &r.To), num('c', &channel), num('s', &state),
		at('N', &r.Next), text('x', &r.Text),
	}, func() error {
		if index < 1 || index > 1<<31 || channel != Local && channel != Remote || state < 1 || state >= int64(states) {
			return errRecords
		}
		r.Index, r.Channel, r.State = int(index-1), byte(channel), State(state)
		return nil
	}}
}

func (t *Totals) codec() codec {
	return codec{[]field{
		num('m', &t.Messages), num('r', &t.Recipients), num('b', &t.Bytes), num('f', &t.Failed), num('h', &t.OnHold), at('o', &t.Oldest),
	}, nil}
}

func (s *Size) codec() codec {
	return codec{[]field{
		num('m', &s.Messages), num('r', &s.Recipients), num('h', &s.OnHold), num('d', &s.Dropped), num('b', &s.Bytes), num('l', &s.LiveBytes), flag('f', &s.Full),
	}, nil}
}

func (o *Order) codec() codec {
	n, verb := new(int64), int64(o.Verb)
	return codec{[]field{num('v', &verb), id('i', &o.ID, n), text('x', &o.Reason)}, func() error {
		if *n == 0 || verb <= 0 || verb > 255 {
			return errRecords
		}
		o.ID, o.Verb = uint64(*n), Verb(verb)
		return nil
	}}
}

func (e *Effect) codec() codec {
	return codec{[]field{num('n', &e.Recipients), num('r', &e.Running)}, nil}
}

// which is a question about one message.
type which struct{ id uint64 }

func (w *which) codec() codec {
	n := new(int64)
	return codec{[]field{id('i', &w.id, n)}, func() error {
		w.id = uint64(*n)
		if *n == 0 {
			return errRecords
		}
		return nil
	}}
}

type address struct{ address string }

func (a *address) codec() codec { return codec{[]field{text('a', &a.address)}, nil} }

type slowQuestion struct{ forget bool }

func (q *slowQuestion) codec() codec { return codec{[]field{flag('f', &q.forget)}, nil} }

func (e *Event) codec() codec {
	n := new(int64)
	return codec{[]field{
		text('w', &e.What), at('t', &e.Time), text('r', &e.Recipients), text('a', &e.Addresses), at('N', &e.Next), text('x', &e.Text), id('m', &e.As, n),
	}, func() error { e.As = uint64(*n); return nonEmpty(e.What) }}
}

func (s *Step) codec() codec {
	i := newInts(&s.Line)
	return codec{[]field{
		text('p', &s.Topic), text('v', &s.Value), text('x', &s.Text), text('f', &s.File), num('l', &i.values[0]),
	}, func() error {
		if err := i.store(); err != nil {
			return err
		}
		return nonEmpty(s.Topic)
	}}
}

func nonEmpty(s string) error {
	if s == "" {
		return errRecords
	}
	return nil
}

func (s *Slow) codec() codec {
	addr := ""
	if s.Addr.IsValid() {
		addr = s.Addr.String()
	}
	i := newInts(&s.Count)
	return codec{[]field{text('a', &addr), num('c', &i.values[0]), at('t', &s.Last), flag('s', &s.Skipped)}, func() error {
		a, err := netip.ParseAddr(addr)
		if err != nil || a.String() != addr {
			return errRecords
		}
		s.Addr = a
		return i.store()
	}}
}

// AppendSteps writes steps, for those who explain to qmail-send. Beyond MaxSteps bytes only the last, the verdict, is
// written.
func AppendSteps(dst []byte, steps []Step) []byte {
	for i := range steps {
		one := steps[i].codec().append(nil)
		if len(dst)+len(one) > MaxSteps && i < len(steps)-1 {
			continue
		}
		dst = append(dst, one...)
	}
	return dst
}

// ParseSteps reads what AppendSteps writes.
func ParseSteps(b []byte) (steps []Step, err error) {
	err = each(b, (*Step).codec, func(s *Step) error { steps = append(steps, *s); return nil })
	return steps, err
}

// AppendSlow and ParseSlow do the same with addresses that timed out.
func AppendSlow(dst []byte, list []Slow) []byte {
	for i := range list {
		dst = list[i].codec().append(dst)
	}
	return dst
}

// ParseSlow reads what AppendSlow writes.
func ParseSlow(b []byte) (list []Slow, err error) {
	err = each(b, (*Slow).codec, func(s *Slow) error { list = append(list, *s); return nil })
	return list, err
}
