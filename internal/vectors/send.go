package vectors

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Action is one step of a case of the kind send.
type Action struct {
	Inject *struct {
		Sender     Value
		Recipients []Value `json:"rcpts"`
		Message    Value
		UID        *int
	}
	Await   *Await
	Signal  string
	Sleep   float64
	Control map[string]ControlFile
}

// Await is what to wait for: "settled", or a text seen a number of times in the log.
type Await struct {
	Settled bool
	Text    Value
	Count   int
}

// UnmarshalJSON takes a string and an object.
func (a *Await) UnmarshalJSON(in []byte) error {
	var word string
	if err := json.Unmarshal(in, &word); err == nil {
		a.Settled = word == "settled"
		if !a.Settled {
			return fmt.Errorf("cannot wait for %q", word)
		}
		return nil
	}
	var form struct {
		Text  Value
		Count int
	}
	err := json.Unmarshal(in, &form)
	a.Text, a.Count = form.Text, max(form.Count, 1)
	return err
}

// Traced is a message as the log tells of it.
type Traced struct {
	From       Value
	UID        Value
	Deliveries []Delivery
	Bounced    bool
	Discarded  bool
	Ended      bool
}

// Delivery is one attempt.
type Delivery struct {
	Channel, Result string
	To, Text        Value
}

// daemon is a whole mail system that runs for a case.
type daemon struct {
	*run
	cmd      *exec.Cmd
	ended    chan struct{}
	log      string
	injected int
}

// send runs the whole daemon, by qmail-start ./Mailbox as the original did.
func (x *run) send() (result, error) {
	if err := x.ready(); err != nil {
		return result{}, err
	}
	d := &daemon{run: x, log: filepath.Join(filepath.Dir(x.tmp), "log"), ended: make(chan struct{})}
	if err := d.start(); err != nil {
		return result{}, err
	}
	err := d.until("the start", func(log []byte) bool { return bytes.Contains(log, []byte("status:")) })
	for _, a := range x.c.Actions {
		if err == nil {
			err = d.do(&a)
		}
	}
	if stopped := d.stop(); err == nil {
		err = stopped
	}
	if err != nil {
		return result{}, err
	}
	log, err := os.ReadFile(d.log)
	return result{trace: traceOf(log)}, err
}

// ready makes a home of what setUp has made.
func (x *run) ready() error {
	sender, err := accountOf("qmails")
	if err != nil {
		return err
	}
	drop, journal := filepath.Join(x.home, "queue", "drop"), filepath.Join(x.home, "queue", "journal")
	if err := errors.Join(os.Mkdir(journal, 0o700), os.Chown(journal, sender, -1), os.Chown(drop, sender, -1)); err != nil {
		return err
	}
	newu := exec.Command(filepath.Join(x.Bin, "qmail-newu"))
	newu.Env = x.daemonEnv()
	if out, err := newu.CombinedOutput(); err != nil {
		return fmt.Errorf("qmail-newu: %w: %s", err, out)
	}
	return nil
}

func accountOf(name string) (uid int, err error) {
	u, err := user.Lookup(name)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(u.Uid)
}

func (x *run) daemonEnv() []string {
	return slices.DeleteFunc(x.environ(), func(v string) bool { return strings.HasPrefix(v, "QMAILQUEUE=") })
}

func (d *daemon) start() error {
	log, err := os.Create(d.log)
	if err != nil {
		return err
	}
	defer log.Close()
	d.cmd = exec.Command(filepath.Join(d.Bin, "qmail-start"), "./Mailbox")
	d.cmd.Env, d.cmd.Dir, d.cmd.Stdout, d.cmd.Stderr = d.daemonEnv(), "/", log, log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.cmd.Start(); err != nil {
		return err
	}
	go func() { _ = d.cmd.Wait(); close(d.ended) }()
	return nil
}

// stop ends it in order, or by force.
func (d *daemon) stop() error {
	d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.ended:
		return nil
	case <-time.After(timeout):
		d.cmd.Process.Kill() // its roles die with it
		<-d.ended
		return errors.New("the daemon does not stop")
	}
}

// until waits for something to be in the log.
func (d *daemon) until(what string, ok func(log []byte) bool) error {
	deadline := time.Now().Add(timeout)
	for {
		log, err := os.ReadFile(d.log)
		if err != nil {
			return err
		}
		if ok(log) {
			return nil
		}
		select {
		case <-d.ended:
			return fmt.Errorf("the daemon ended; log: %s", log)
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("no %s; log: %s", what, log)
		}
	}
}

func (d *daemon) do(a *Action) error {
	switch {
	case a.Inject != nil:
		return d.inject(a)
	case a.Await != nil && a.Await.Settled:
		return d.until("end of all messages", d.settled)
	case a.Await != nil:
		return d.until(string(a.Await.Text), func(log []byte) bool { return bytes.Count(log, d.expand(a.Await.Text)) >= a.Await.Count })
	case a.Signal != "":
		sig, ok := map[string]syscall.Signal{"ALRM": syscall.SIGALRM, "HUP": syscall.SIGHUP}[a.Signal]
		if !ok {
			return fmt.Errorf("unknown signal %q", a.Signal)
		}
		return d.cmd.Process.Signal(sig)
	case a.Sleep > 0: // what is tried is whether time counts
		time.Sleep(time.Duration(a.Sleep * float64(time.Second)))
		return nil
	}
	for name, f := range a.Control {
		if err := d.write(filepath.Join(d.home, "control", name), d.expand(f.Data), 0o644, 0, oldTime()); err != nil {
			return err
		}
	}
	return nil
}

func (d *daemon) inject(a *Action) error {
	d.injected++
	base := filepath.Join(filepath.Dir(d.tmp), "inject"+strconv.Itoa(d.injected))
	envelope := append([]byte{'F'}, d.expand(a.Inject.Sender)...)
	for _, r := range a.Inject.Recipients {
		envelope = append(append(envelope, 0, 'T'), d.expand(r)...)
	}
	if err := errors.Join(os.WriteFile(base+".m", d.expand(a.Inject.Message), 0o644), os.WriteFile(base+".e", append(envelope, 0, 0), 0o644)); err != nil {
		return err
	}
	message, err1 := os.Open(base + ".m")
	record, err2 := os.Open(base + ".e")
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	defer message.Close()
	defer record.Close()
	uid := unprivileged
	if a.Inject.UID != nil {
		uid = *a.Inject.UID
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(d.Bin, "qmail-queue"))
	cmd.Env, cmd.Dir, cmd.Stdin, cmd.Stdout = d.daemonEnv(), "/", message, record
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	return cmd.Run()
}

// settled reports whether every message that is known so far has ended: those injected, their bounces and what was
// forwarded.
func (d *daemon) settled(log []byte) bool {
	total := d.injected + bytes.Count(log, []byte("\nbounce msg ")) + len(regexp.MustCompile(`success: did_\d+\+\d+\+\d+/qp_`).FindAll(log, -1))
	begun := len(regexp.MustCompile(`(?m)^new msg `).FindAll(log, -1))
	return begun == total && bytes.Count(log, []byte("\nend msg ")) == total
}

// traceOf reads qmail-send's log, message by message in order of arrival.
func traceOf(log []byte) (list []*Traced) {
	messages, deliveries := map[string]*Traced{}, map[string]*Delivery{}
	of := map[string]*Traced{} // whose delivery it is
	for line := range strings.Lines(string(log)) {
		line = strings.TrimSuffix(line, "\n")
		words := strings.SplitN(line, " ", 4)
		switch {
		case strings.HasPrefix(line, "new msg "):
			m := &Traced{}
			messages[words[2]] = m
			list = append(list, m)
		case strings.HasPrefix(line, "info msg "):
			if m := messages[strings.TrimSuffix(words[2], ":")]; m != nil {
				_, rest, _ := strings.Cut(line, " from ")
				from, rest, _ := strings.Cut(rest, " qp ")
				_, uid, _ := strings.Cut(rest, " uid ")
				m.From, m.UID = []byte(from), []byte(uid)
			}
		case strings.HasPrefix(line, "starting delivery "):
			number := strings.TrimSuffix(words[2], ":")
			rest := strings.SplitN(words[3], " ", 5) // msg N to CHANNEL ADDRESS
			if m := messages[rest[1]]; m != nil && len(rest) == 5 {
				deliveries[number], of[number] = &Delivery{Channel: rest[3], To: []byte(rest[4])}, m
			}
		case strings.HasPrefix(line, "delivery "):
			number := strings.TrimSuffix(words[1], ":")
			if one := deliveries[number]; one != nil {
				one.Result = strings.TrimSuffix(words[2], ":")
				one.Text = []byte(line[len("delivery "+number+": "+one.Result+": "):])
				of[number].Deliveries = append(of[number].Deliveries, *one)
			}
		case strings.HasPrefix(line, "bounce msg "):
			messages[words[2]].Bounced = true
		case strings.HasPrefix(line, "triple bounce: discarding bounce/"):
			messages[strings.TrimPrefix(line, "triple bounce: discarding bounce/")].Discarded = true
		case strings.HasPrefix(line, "end msg "):
			messages[words[2]].Ended = true
		}
	}
	for _, m := range list {
		slices.SortStableFunc(m.Deliveries, func(a, b Delivery) int {
			return strings.Compare(a.Channel+" "+string(a.To), b.Channel+" "+string(b.To))
		})
	}
	return list
}

// compareTrace compares what the log tells. Words are free but in local successes, where programs speak for themselves.
func (x *run) compareTrace(got []*Traced) string {
	if len(got) != len(x.c.Expect.Trace) {
		return fmt.Sprintf("%d messages in the log, want %d", len(got), len(x.c.Expect.Trace))
	}
	for i, w := range x.c.Expect.Trace {
		g := got[i]
		if !bytes.Equal(x.expand(w.From), g.From) || !bytes.Equal(x.expand(w.UID), g.UID) ||
			w.Bounced != g.Bounced || w.Discarded != g.Discarded || w.Ended != g.Ended || len(w.Deliveries) != len(g.Deliveries) {
			return fmt.Sprintf("message %d: %+v, want %+v", i+1, g, w)
		}
		for j, a := range w.Deliveries {
			b := g.Deliveries[j]
			if a.Channel != b.Channel || a.Result != b.Result || !bytes.Equal(x.expand(a.To), b.To) {
				return fmt.Sprintf("message %d: delivery %s %q %s, want %s %q %s", i+1, b.Channel, b.To, b.Result, a.Channel, a.To, a.Result)
			}
			text := x.expand(a.Text)
			if a.Channel == "local" && a.Result == "success" && !match(text, b.Text) || codesIn(text, b.Text) != "" {
				return fmt.Sprintf("message %d: %q, want %q", i+1, b.Text, text)
			}
		}
	}
	return ""
}

// likeBounce compares a bounce of another form with a recorded one: it has the same recipients, the same lines about
// each, and the original message's body.
func likeBounce(want, got []byte) bool {
	failures, original, ok := cutBounce(want)
	if !ok {
		return false
	}
	for line := range bytes.SplitSeq(failures, []byte("\n")) {
		if line = bytes.Trim(line, "/ "); len(line) > 0 && !bytes.Contains(got, line) {
			return false
		}
	}
	if !containsLike(original, got) {
		return false
	}
	same, _, ok := cutBounce(got)
	return !bytes.Contains(got, []byte("\nHi. This is the")) || ok && slices.Equal(addressLines(failures), addressLines(same))
}

// cutBounce finds in a bounce the paragraphs about recipients, and the original message's body.
func cutBounce(message []byte) (failures, original []byte, ok bool) {
	_, body, ok1 := bytes.Cut(message, []byte("\n\n"))
	line := regexp.MustCompile(`(?m)^---[^\n]*\n`).FindIndex(body)
	if !ok1 || line == nil {
		return nil, nil, false
	}
	_, failures, _ = bytes.Cut(body[:line[0]], []byte("\n\n")) // after the introduction
	rest := bytes.SplitN(body[line[1]:], []byte("\n\n"), 2)    // after Return-Path and header
	return failures, bytes.TrimSpace(rest[len(rest)-1]), true
}

// addressLines are the first lines of paragraphs.
func addressLines(paragraphs []byte) (list []string) {
	for p := range bytes.SplitSeq(bytes.Trim(paragraphs, "\n"), []byte("\n\n")) {
		first, _, _ := bytes.Cut(p, []byte("\n"))
		list = append(list, string(first))
	}
	return list
}

// containsLike reports whether a template occurs somewhere in a text.
func containsLike(template, got []byte) bool {
	before, token, _ := cutToken(template)
	if token == nil {
		return bytes.Contains(got, template)
	}
	for at := 0; ; at++ {
		i := bytes.Index(got[at:], before)
		if i < 0 {
			return false
		}
		at += i
		for end := len(got); end >= at+len(before); end-- {
			if match(template, got[at:end]) {
				return true
			}
		}
	}
}
