package vectors

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// compare returns nil if a run was as recorded, as far as it matters.
func (x *run) compare(got *result) error {
	var diff string
	switch x.c.Kind {
	case "session":
		diff = x.compareSession(got)
	case "lookup":
		diff = x.compareReports(got.reports)
	case "send":
		diff = x.compareTrace(got.trace)
	default:
		diff = x.compareExec(got)
	}
	if diff == "" {
		diff = x.compareQueued("queued", x.c.Expect.Queued, got.queued)
	}
	if diff == "" {
		diff = x.compareQueued("stored", x.c.Expect.Stored, got.stored)
	}
	if diff == "" {
		diff = x.compareSaw(got.saw)
	}
	if diff == "" {
		diff = x.compareHome(got.homeFiles)
	}
	if diff == "" {
		diff = x.compareTree(got.tree)
	}
	if diff != "" {
		return errors.New(diff)
	}
	return nil
}

func (x *run) compareExec(got *result) string {
	want := &x.c.Expect
	if want.Exit != got.exit {
		return fmt.Sprintf("exit %d, want %d; stderr %q", got.exit, want.Exit, got.stderr)
	}
	partial := x.c.Family == "users" && want.Exit != 0
	if want.Stdout != nil && got.stdoutSeen && !partial {
		w := x.expand(*want.Stdout)
		if !match(w, got.stdout) && (x.c.Family != "remote" || remoteReport(w, got.stdout) != "") {
			return fmt.Sprintf("stdout %q, want %q", got.stdout, w)
		}
	}
	return x.compareStderr(got.stderr)
}

// compareStderr wants something to be said where something was said, with the same status codes.
func (x *run) compareStderr(got []byte) string {
	want := x.expand(x.c.Expect.Stderr)
	if match(want, got) {
		return ""
	}
	if (len(want) == 0) != (len(got) == 0) {
		return fmt.Sprintf("stderr %q, want %q", got, want)
	}
	return codesIn(want, got)
}

// codesIn wants each status code of one text in the other.
func codesIn(want, got []byte) string {
	wanted := regexp.MustCompile(`\(#(\d\.\d{1,3}\.\d{1,3})\)`).FindAllSubmatch(want, -1)
	found := regexp.MustCompile(`#?(\d\.\d{1,3}\.\d{1,3})`).FindAllSubmatch(got, -1)
	for _, w := range wanted {
		if !slices.ContainsFunc(found, func(f [][]byte) bool { return bytes.Equal(f[1], w[1]) }) {
			return fmt.Sprintf("status code %s missing in %q", w[1], got)
		}
	}
	return ""
}

func (x *run) compareQueued(what string, want, got []Queued) string {
	if len(want) != len(got) {
		return fmt.Sprintf("%s %d messages, want %d", what, len(got), len(want))
	}
	for i, w := range want {
		g := got[i]
		if s := x.expand(w.Sender); !match(s, g.Sender) {
			return fmt.Sprintf("%s sender %q, want %q", what, g.Sender, s)
		}
		var wr []Value
		for _, r := range w.Recipients {
			wr = append(wr, x.expand(r))
		}
		gr := slices.Clone(g.Recipients)
		if x.c.Family == "inject" || x.c.Family == "sendmail" { // the order does not matter
			slices.SortFunc(wr, func(a, b Value) int { return bytes.Compare(a, b) })
			slices.SortFunc(gr, func(a, b Value) int { return bytes.Compare(a, b) })
		}
		if !slices.EqualFunc(wr, gr, func(a, b Value) bool { return match(a, b) }) {
			return fmt.Sprintf("%s recipients %q, want %q", what, gr, wr)
		}
		message := x.expand(w.Message)
		if match(message, g.Message) {
			continue
		}
		if x.c.Kind != "session" {
			return fmt.Sprintf("%s message %q, want %q", what, g.Message, message)
		}
		if diff := afterTrace(message, g.Message); diff != "" {
			return what + " message: " + diff
		}
	}
	return ""
}

// afterTrace wants the client's bytes, below trace fields that may be others than the recorded one but name the
// client's address.
func afterTrace(want, got []byte) string {
	received := regexp.MustCompile(`^Received: (?:[^\n]*\n[ \t])*[^\n]*\n`).Find(want)
	rest := want[len(received):]
	if received == nil || !bytes.HasSuffix(got, rest) {
		return fmt.Sprintf("%q does not end with %q", got, rest)
	}
	head := got[:len(got)-len(rest)]
	if !regexp.MustCompile(`(?mi)^Received:`).Match(head) {
		return fmt.Sprintf("no Received field in %q", head)
	}
	field := regexp.MustCompile(`^(?:[!-9;-~]+:|[ \t])`)
	for line := range bytes.Lines(head) {
		if !field.Match(line) {
			return fmt.Sprintf("%q is no trace field", line)
		}
	}
	for _, ip := range regexp.MustCompile(`\((?:[^()]*@)?([0-9a-zA-Z.:]+)\)\n`).FindAllSubmatch(received, -1) {
		if !bytes.Contains(head, ip[1]) {
			return fmt.Sprintf("%s is not in %q", ip[1], head)
		}
	}
	return ""
}

func (x *run) compareSession(got *result) string {
	want := &x.c.Expect
	if got.bad != "" {
		return got.bad
	}
	for i, w := range want.Recv {
		if diff := dialogue(x.c.Proto, x.expand(w), got.recv[i]); diff != "" {
			return fmt.Sprintf("step %d: %s", i, diff)
		}
	}
	return dialogue(x.c.Proto, x.expand(want.Tail), got.tail)
}

// dialogue compares what a server said; "" means that it will do.
func dialogue(proto string, want, got []byte) string {
	switch proto {
	case "smtp":
		return smtpDialogue(want, got)
	case "qmtp", "qmqp":
		return netstringDialogue(want, got)
	case "pop3":
		return pop3Dialogue(want, got)
	}
	if !match(want, got) {
		return fmt.Sprintf("%q, want %q", got, want)
	}
	return ""
}

type smtpReply struct {
	code  string
	lines []string
}

// smtpReplies cuts replies; whole is false if something is left over.
func smtpReplies(b []byte) (list []smtpReply, whole bool) {
	var lines []string
	for line := range bytes.Lines(b) {
		text, ended := bytes.CutSuffix(line, []byte("\n"))
		if !ended || len(text) < 3 {
			return list, false
		}
		lines = append(lines, strings.TrimSuffix(string(text), "\r"))
		if len(text) > 3 && text[3] == '-' {
			continue
		}
		list = append(list, smtpReply{string(text[:3]), lines})
		lines = nil
	}
	return list, lines == nil
}

// class puts reply codes together that count as one.
func class(code string) string {
	switch code {
	case "500", "501", "502", "504", "555":
		return "syntax"
	case "550", "553", "554":
		return "refused"
	case "451", "452":
		return "temporary"
	}
	return code
}

func sameCode(a, b string) bool {
	return class(a) == class(b) || a == "503" && b == "554" || a == "554" && b == "503"
}

func smtpDialogue(want, got []byte) string {
	w, _ := smtpReplies(want)
	g, whole := smtpReplies(got)
	if !whole || !slices.EqualFunc(w, g, func(a, b smtpReply) bool { return sameCode(a.code, b.code) }) {
		return fmt.Sprintf("%q, want %q", got, want)
	}
	for i := range w {
		if class(w[i].code) == "refused" || w[i].code == "552" {
			if diff := codesIn([]byte(strings.Join(w[i].lines, "\n")), []byte(strings.Join(g[i].lines, "\n"))); diff != "" {
				return diff
			}
		}
		first := func(r smtpReply) string {
			name, _, _ := strings.Cut(r.lines[0][min(4, len(r.lines[0])):], " ")
			return name
		}
		ehlo := w[i].code == "250" && len(w[i].lines) > 1
		if (w[i].code == "220" || ehlo) && first(w[i]) != first(g[i]) {
			return fmt.Sprintf("%q, want %q", g[i].lines[0], w[i].lines[0])
		}
		if !ehlo {
			continue
		}
		for _, line := range w[i].lines[1:] {
			word, _, _ := strings.Cut(line[4:], " ")
			if !slices.ContainsFunc(g[i].lines[1:], func(have string) bool {
				w, _, _ := strings.Cut(have[4:], " ")
				return strings.EqualFold(w, word)
			}) {
				return fmt.Sprintf("EHLO keyword %s missing in %q", word, got)
			}
		}
	}
	return ""
}

func netstrings(b []byte) (list [][]byte, whole bool) {
	for len(b) > 0 {
		digits, rest, ok := bytes.Cut(b, []byte(":"))
		n, err := strconv.Atoi(string(digits))
		if !ok || err != nil || len(rest) < n+1 {
			return list, false
		}
		list, b = append(list, rest[:n]), rest[n+1:]
	}
	return list, true
}

func netstringDialogue(want, got []byte) string {
	// The length of an answer depends on the numbers in it.
	length := regexp.MustCompile(`\{\{LEN\}\}:(Kok \{\{TIME\}\} qp \{\{QP\}\}),`)
	want = length.ReplaceAllFunc(want, func(b []byte) []byte {
		text := length.FindSubmatch(b)[1]
		return fmt.Appendf(nil, "%d:%s,", len(text), text)
	})
	w, _ := netstrings(want)
	g, whole := netstrings(got)
	if !whole || !slices.EqualFunc(w, g, func(a, b []byte) bool { return len(a) > 0 && len(b) > 0 && a[0] == b[0] }) {
		return fmt.Sprintf("%q, want %q", got, want)
	}
	for i := range w {
		if diff := codesIn(w[i], g[i]); diff != "" {
			return diff
		}
	}
	return ""
}

// pop3Unit is a status line, and the lines up to a dot that follow it.
type pop3Unit struct {
	line, body string
	hasBody    bool
}

func pop3Units(b []byte) (list []pop3Unit, whole bool) {
	s := string(b)
	for s != "" {
		line, rest, ok := strings.Cut(s, "\r\n")
		if !ok {
			return list, false
		}
		u := pop3Unit{line: line}
		if s = rest; s != "" && !strings.HasPrefix(s, "+OK") && !strings.HasPrefix(s, "-ERR") {
			u.hasBody = true
			if s, ok = strings.CutPrefix(s, ".\r\n"); !ok {
				if u.body, s, ok = strings.Cut(s, "\r\n.\r\n"); !ok {
					return list, false
				}
				u.body = strings.TrimSuffix(u.body, "\r\n")
			}
		}
		list = append(list, u)
	}
	return list, true
}

func pop3Dialogue(want, got []byte) string {
	w, wholeWant := pop3Units(want)
	g, whole := pop3Units(got)
	if !wholeWant {
		if match(want, got) {
			return ""
		}
		return fmt.Sprintf("%q, want %q", got, want)
	}
	number := regexp.MustCompile(`^\+OK \d`)
	same := func(a, b pop3Unit) bool {
		return a.line[:3] == b.line[:min(3, len(b.line))] && (!number.MatchString(a.line) || strings.HasPrefix(b.line, a.line)) &&
			a.hasBody == b.hasBody && a.body == b.body
	}
	if !whole || !slices.EqualFunc(w, g, same) {
		return fmt.Sprintf("%q, want %q", got, want)
	}
	return ""
}

func remoteReport(want, got []byte) string {
	w, g := bytes.Split(want, []byte{0}), bytes.Split(got, []byte{0})
	if len(w) != len(g) {
		return "another number of records"
	}
	said := regexp.MustCompile(`(?s)Remote host said: (.*)`)
	squeeze := func(b []byte) []byte { return bytes.Join(bytes.Fields(b), nil) }
	for i := range w {
		if len(w[i]) == 0 && len(g[i]) == 0 {
			continue
		}
		if len(w[i]) == 0 || len(g[i]) == 0 || w[i][0] != g[i][0] || codesIn(w[i], g[i]) != "" ||
			bytes.Contains(w[i], []byte("ossible duplicate")) && !bytes.Contains(g[i], []byte("ossible duplicate")) {
			return "another report"
		}
		if m := said.FindSubmatch(w[i]); m != nil && !bytes.Contains(squeeze(g[i]), squeeze(m[1])) {
			return "the remote host's words are missing"
		}
	}
	return ""
}

// compareSaw compares what servers saw: of SMTP only the envelopes and messages.
func (x *run) compareSaw(got [][]*Seen) string {
	for i, want := range x.c.Expect.Saw {
		smtp := x.c.Servers[i].Proto != "qmqp"
		w, g := x.essence(want, smtp, x.expand), x.essence(got[i], smtp, func(b []byte) []byte { return b })
		if !slices.EqualFunc(w, g, match) {
			return fmt.Sprintf("server %d saw %q, want %q", i, g, w)
		}
	}
	return ""
}

// essence leaves of what an SMTP client said its paths and the message, if it got as far as MAIL.
func (x *run) essence(conns []*Seen, smtp bool, expand func([]byte) []byte) (list [][]byte) {
	path := regexp.MustCompile(`(?i)^(?:MAIL FROM|RCPT TO):\s*(<.*>)(?: [A-Z0-9]+(?:=\S+)?)*\r?\n$`)
	for _, c := range conns {
		if !smtp {
			list = append(list, expand(c.Raw))
			continue
		}
		var out []byte
		mail, data := false, false
		for _, line := range c.Commands {
			line := expand(line)
			verb := strings.ToUpper(string(line[:min(4, len(line))]))
			mail, data = mail || verb == "MAIL", data || verb == "DATA"
			if m := path.FindSubmatch(line); m != nil {
				line = append(m[1], '\n')
			}
			if verb == "MAIL" || verb == "RCPT" || verb == "DATA" {
				out = append(out, line...)
			}
		}
		if data {
			out = append(out, expand(c.Body)...)
		}
		if mail {
			list = append(list, out)
		}
	}
	return list
}

func (x *run) compareHome(got map[string][]byte) string {
	for name, want := range x.c.Expect.Home {
		g, present := got[name]
		if (want != nil) != present {
			return fmt.Sprintf("%s: present %v, want %v", name, present, want != nil)
		}
		if want == nil || bytes.Equal(*want, g) {
			continue
		}
		w, err1 := cdbRecords(*want)
		have, err2 := cdbRecords(g)
		if !strings.HasSuffix(name, "cdb") || err1 != nil || err2 != nil || !slices.Equal(w, have) {
			return fmt.Sprintf("%s: %q, want %q (%v)", name, g, *want, err2)
		}
	}
	return ""
}

// cdbRecords are the records of a cdb file in their order, each of which must be found by its key.
func cdbRecords(b []byte) (list []string, err error) {
	defer func() {
		if recover() != nil {
			err = errors.New("a broken cdb file")
		}
	}()
	pair := func(pos uint32) (uint32, uint32) {
		return binary.LittleEndian.Uint32(b[pos:]), binary.LittleEndian.Uint32(b[pos+4:])
	}
	end := uint32(len(b))
	for i := range uint32(256) {
		table, _ := pair(i * 8)
		end = min(end, table)
	}
	first := map[string]uint32{}
	for pos := uint32(2048); pos < end; {
		k, d := pair(pos)
		key := string(b[pos+8 : pos+8+k])
		list = append(list, key+"\x00"+string(b[pos+8+k:pos+8+k+d]))
		if _, ok := first[key]; !ok {
			first[key] = pos
		}
		pos += 8 + k + d
	}
	for key, pos := range first {
		h := uint32(5381)
		for i := range len(key) {
			h = h<<5 + h ^ uint32(key[i])
		}
		table, slots := pair(h & 255 * 8)
		for i := h >> 8; ; i++ {
			hash, p := pair(table + i%slots*8)
			if p == 0 {
				return nil, fmt.Errorf("the key %q is not found", key)
			}
			if k, _ := pair(p); hash == h && string(b[p+8:p+8+k]) == key {
				if p != pos {
					return nil, fmt.Errorf("the key %q is found elsewhere", key)
				}
				break
			}
		}
	}
	return list, nil
}
