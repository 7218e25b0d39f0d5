package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"qmail/internal/format/envelope"
	"qmail/internal/proto/admin"
	"qmail/internal/proto/enqueue"
)

// town is a house full of generated users, domains and .qmail files.
type town struct {
	*house
	rnd   *rand.Rand
	sinks []*farHost
	uid   int
	homes []string // without the house's
}

// pick chooses one of several.
func pick[T any](rnd *rand.Rand, list ...T) T { return list[rnd.IntN(len(list))] }

var (
	townUsers   = []string{"alice", "bob", "carol"}
	townExts    = []string{"", "a", "a-b", "A.b-c", "list", "list-x", "default", "v1-box", "v1-", "sp-x"}
	townDomains = []string{"test.example", "two.example", "virt.example", "x.wild.example", "not.wild.example", "hack.example", "far.example", "b.far.example", "other.example"}
)

// build makes a configuration anew.
func (w *town) build() {
	w.t.Helper()
	rnd := w.rnd
	w.write("control/locals", "# ours\n\ntest.example\ntwo.example\n")
	w.write("control/percenthack", "test.example\nhack.example\n")
	w.write("control/rcpthosts", "test.example\n.example\n")
	w.write("control/defaultdelivery", "./Default/\n")
	w.write("control/resolvers", "127.0.0.1:1\n") // nobody there: what is not routed waits
	virtual := []string{"# virtual"}
	for range 2 + rnd.IntN(5) {
		key := pick(rnd, "virt.example", "a@virt.example", ".wild.example", "not.wild.example", "hack.example", "bob@two.example", "VIRT.example", ".example")
		virtual = append(virtual, key+":"+pick(rnd, "alice-v1", "bob", "carol-sp", "nobody", ""))
	}
	w.write("control/virtualdomains", strings.Join(virtual, "\n")+"\n")
	routes := []string{}
	for range 1 + rnd.IntN(4) {
		to := pick(rnd, w.sinks[0].route(), w.sinks[1].route(), "127.0.0.1:1", "")
		routes = append(routes, pick(rnd, "far.example", ".far.example", ".example", "other.example", "FAR.example")+":"+to)
	}
	w.write("control/smtproutes", strings.Join(routes, "\n")+"\n")
	w.assign()
	for _, home := range w.homes {
		w.fill(filepath.Join(w.home, home))
	}
}

// assign writes users/assign and has qmail-newu make users/cdb of it.
func (w *town) assign() {
	w.t.Helper()
	var text strings.Builder
	for i, user := range townUsers {
		home := filepath.Join(w.home, w.homes[i])
		fmt.Fprintf(&text, "=%s:%s:%d:%d:%s:::\n", user, user, w.uid, w.uid, home)
		if w.rnd.IntN(4) > 0 {
			fmt.Fprintf(&text, "+%s-:%s:%d:%d:%s:-::\n", user, user, w.uid, w.uid, home)
		}
	}
	if w.rnd.IntN(2) == 0 {
		fmt.Fprintf(&text, "+alice-a:bob:%d:%d:%s:-:sp-:\n", w.uid, w.uid, filepath.Join(w.home, w.homes[1]))
	}
	fmt.Fprintf(&text, "+:alias:%d:%d:%s:-::\n.\n", w.uid, w.uid, filepath.Join(w.home, w.homes[3]))
	w.write("users/assign", text.String())
	w.good("qmail-newu")
}

// fill puts other .qmail files into a home.
func (w *town) fill(home string) {
	w.t.Helper()
	old, err := filepath.Glob(filepath.Join(home, ".qmail*"))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, path := range old {
		if err := os.RemoveAll(path); err != nil {
			w.t.Fatal(err)
		}
	}
	for _, name := range []string{"", "-a", "-a-default", "-a-b", "-list", "-list-default", "-list-owner", "-default", "-v1-default", "-v1-box", "-sp-default"} {
		if w.rnd.IntN(3) == 0 {
			continue
		}
		mine := "./box" + name + "/\n" // tells which file it was
		text := pick(w.rnd, mine, mine, "# a comment\n\n"+mine+"&someone@far.example\n", mine+"|true\n", mine+"./mbox\n",
			"&a@far.example\nb@far.example\n", "# nothing\n", "", "\n"+mine, mine+"./x\x01y\n", "|true\n", mine+"|exit 99\n./never/\n")
		path := filepath.Join(home, ".qmail"+name)
		mode := pick[fs.FileMode](w.rnd, 0o644, 0o644, 0o644, 0o644, 0o744, 0o666)
		if w.rnd.IntN(12) == 0 {
			err = os.Mkdir(path, 0o755) // which is no file
		} else {
			err = errors.Join(os.WriteFile(path, []byte(text), 0o644), os.Chmod(path, mode))
		}
		box := filepath.Join(home, "box"+name)
		for _, dir := range []string{box, box + "/tmp", box + "/new", box + "/cur"} {
			if merr := os.Mkdir(dir, 0o755); merr != nil && !errors.Is(merr, fs.ErrExist) {
				err = merr
			}
			err = errors.Join(err, w.give(dir))
		}
		if err = errors.Join(err, w.give(path)); err != nil {
			w.t.Fatal(err)
		}
	}
}

// found is what an explanation says, or what happened, in a form that can be compared.
type found struct {
	channel, recipient string
	verdict            string // K, Z or D
	text               string // of Z and D, as the log has it
	boxes              []string
	counts             string // "did 1+0+0", of K and local
	sink               int    // of K and remote; else -1
}

// foretold makes it of an explanation.
func (w *town) foretold(steps []admin.Step) (f found) {
	f.sink = -1
	kinds := map[string]int{}
	home := ""
	for _, s := range steps {
		switch s.Topic {
		case "channel":
			f.channel = s.Value
		case "recipient":
			f.recipient = safeText(s.Value)
		case "home":
			home = s.Value
		case "maildir":
			if s.Value == "./never/" {
				kinds["maildir"]-- // the program before it says stop, which only running it tells
			} else {
				f.boxes = append(f.boxes, filepath.Join(home, s.Value))
			}
		case "target":
			for i, sink := range w.sinks {
				if s.Value == sink.route() && f.sink < 0 {
					f.sink = i
				}
			}
		case "verdict":
			f.verdict = s.Value
			if f.verdict != "K" {
				f.text = safeText(s.Text)
			}
		}
		kinds[s.Topic]++
	}
	if f.verdict != "K" || f.channel == "local" {
		f.sink = -1
	}
	if f.verdict == "K" && f.channel == "remote" && f.sink < 0 { // an address at which nobody listens
		f.verdict, f.text = "Z", "Sorry,_I_wasn't_able_to_establish_an_SMTP_connection._(#4.4.1)"
	}
	if f.verdict != "K" {
		f.boxes = nil
	} else if f.channel == "local" {
		f.counts = fmt.Sprintf("did_%d+%d+%d/", kinds["maildir"]+kinds["mbox"], kinds["forward"], kinds["program"])
	}
	slices.Sort(f.boxes)
	return f
}

// safeText is a report as qmail-send's log has it.
func safeText(s string) string {
	b := []byte(s)
	for i, c := range b {
		switch {
		case c == '\n':
			b[i] = '/'
		case c < 33 || c > 126 || c == '%':
			b[i] = '_'
		}
	}
	return string(b)
}

var (
	startLine  = regexp.MustCompile(`(?m)^starting delivery (\d+): msg (\d+) to (local|remote) (.*)$`)
	resultLine = regexp.MustCompile(`(?m)^delivery (\d+): (success|failure|deferral): (.*)$`)
)

// happened reads from the log what became of messages with one recipient each.
func (w *town) happened(log string) map[string]found {
	deliveries, all := map[string]string{}, map[string]found{}
	for _, m := range startLine.FindAllStringSubmatch(log, -1) {
		deliveries[m[1]] = m[2]
		all[m[2]] = found{channel: m[3], recipient: m[4], sink: -1}
	}
	for _, m := range resultLine.FindAllStringSubmatch(log, -1) {
		id := deliveries[m[1]]
		f := all[id]
		f.verdict = map[string]string{"success": "K", "failure": "D", "deferral": "Z"}[m[2]]
		switch {
		case f.verdict != "K":
			f.text = strings.TrimRight(m[3], "/")
		case f.channel == "local":
			f.counts = m[3]
			if i := strings.Index(f.counts, "qp_"); i >= 0 { // the number of what was forwarded
				f.counts = f.counts[:i]
			}
		}
		all[id] = f
	}
	return all
}

// where looks for a token in all maildirs and sinks. Bounces, and what was forwarded, are other mail.
func (w *town) where(token string, boxes map[string][]string, f *found) {
	for path, messages := range boxes {
		for _, m := range messages {
			if strings.Contains(m, token) && strings.HasPrefix(m, "Return-Path: <someone@far.example>\n") && strings.Count(m, "Delivered-To: ") == 1 {
				f.boxes = append(f.boxes, path)
			}
		}
	}
	slices.Sort(f.boxes)
	if f.channel == "remote" {
		for i, sink := range w.sinks {
			if slices.ContainsFunc(sink.mail(), func(m string) bool { return strings.Contains(m, token) && !strings.Contains(m, "Delivered-To") }) {
				f.sink = i
			}
		}
	}
}

// boxes reads all maildirs.
func (w *town) boxes() map[string][]string {
	all := map[string][]string{}
	for _, home := range w.homes {
		dirs, err := filepath.Glob(filepath.Join(w.home, home, "*", "new"))
		if err != nil {
			w.t.Fatal(err)
		}
		for _, dir := range dirs {
			entries, err := os.ReadDir(dir)
			if err != nil {
				w.t.Fatal(err)
			}
			for _, e := range entries {
				b, err := os.ReadFile(filepath.Join(dir, e.Name()))
				if err != nil {
					w.t.Fatal(err)
				}
				all[filepath.Dir(dir)] = append(all[filepath.Dir(dir)], string(b))
			}
		}
	}
	return all
}

func newTown(t *testing.T, seed uint64) *town {
	w := &town{house: newHouse(t), rnd: rand.New(rand.NewPCG(seed, 1)), sinks: []*farHost{newFarHost(t), newFarHost(t)}, uid: os.Geteuid()}
	if w.uid == 0 {
		w.uid = nobody
	}
	for _, user := range append(slices.Clone(townUsers), "lost") {
		home := "mail/of-" + user
		w.homes = append(w.homes, home)
		for _, dir := range []string{"", "/Default", "/Default/tmp", "/Default/new", "/Default/cur"} {
			path := filepath.Join(w.home, home+dir)
			if err := errors.Join(os.Mkdir(path, 0o755), w.give(path)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return w
}

// address makes one up.
func (w *town) address(i int) string {
	local := pick(w.rnd, townUsers...)
	if ext := pick(w.rnd, townExts...); ext != "" {
		local += "-" + ext
	}
	switch w.rnd.IntN(14) {
	case 0:
		local = pick(w.rnd, "nobody", "a", "a-b", strings.ToUpper(local), "list-x")
	case 1:
		local = local + "%" + pick(w.rnd, townDomains...)
	case 2:
		return local // without a domain
	}
	return local + "@" + pick(w.rnd, townDomains...)
}

// TestAnExplanationIsWhatHappens compares explanations of many addresses in many configurations with what then becomes
// of mail to them.
func TestAnExplanationIsWhatHappens(t *testing.T) {
	configurations, addresses := 6, 60
	if testing.Short() {
		configurations, addresses = 2, 25
	}
	w := newTown(t, 20)
	w.build()
	w.start()
	asked, err := admin.Dial(w.home)
	if err != nil {
		t.Fatal(err)
	}
	defer asked.Close()
	queue, err := enqueue.Dial(w.home)
	if err != nil {
		t.Fatal(err)
	}
	defer queue.Close()
	kinds := map[string]int{}
	for round := range configurations {
		if round > 0 {
			w.build()
			before := strings.Count(w.read(), "qmail-start: reloaded")
			if err := w.cmd.Process.Signal(syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
			w.until("it was reloaded", func() bool { return strings.Count(w.read(), "qmail-start: reloaded") > before })
			// Each role takes it in at its own time: ask until all have.
			w.until("the accounts of before are forgotten", func() bool { return w.settled(asked) })
		}
		w.compare(asked, queue, round, addresses, kinds)
		if t.Failed() {
			return
		}
	}
	t.Logf("%v", kinds)
	for _, kind := range []string{"local K", "local Z", "local D", "remote K", "remote Z"} {
		if kinds[kind] < 3 && !testing.Short() {
			t.Errorf("only %d addresses were %s", kinds[kind], kind)
		}
	}
	w.stop()
}

// settled reports whether a new configuration is in force everywhere: no step says that its file has changed since it
// was read, nor that a role is not there, as one is that starts anew to have other rights. qmail-send forgets accounts after two seconds, or when it reads its files again.
func (w *town) settled(asked *admin.Client) bool {
	for _, domain := range townDomains {
		steps, err := asked.Explain("alice-a@" + domain)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, s := range steps {
			if strings.Contains(s.Text, "has changed since") || strings.Contains(s.Text, "is not there") {
				return false
			}
		}
	}
	return true
}

func (w *town) compare(asked *admin.Client, queue *enqueue.Client, round, addresses int, kinds map[string]int) {
	t := w.t
	type one struct {
		address, token string
		steps          []admin.Step
		id             uint64
	}
	var all []one
	for i := range addresses {
		o := one{address: w.address(i), token: fmt.Sprintf("token-%d-%d-end", round, i)}
		var err error
		if o.steps, err = asked.Explain(o.address); err != nil {
			t.Fatal(err)
		}
		all = append(all, o)
	}
	before := w.boxes()
	for i := range all {
		a, err := queue.Submit(context.Background(), &envelope.Envelope{Sender: "someone@far.example", Recipients: []string{all[i].address}}, []byte("Subject: x\n\n"+all[i].token+"\n"))
		if err != nil {
			t.Fatal(err)
		}
		all[i].id = a.ID
	}
	var happened map[string]found
	w.until("all were tried", func() bool {
		happened = w.happened(w.read())
		done := true
		for _, o := range all {
			if happened[fmt.Sprint(o.id)].verdict == "" {
				done = false // where nobody answers the others are not tried at once: insist
				_, _ = asked.Order(&admin.Order{Verb: admin.Retry, ID: o.id})
			}
		}
		return done
	})
	boxes := w.boxes()
	if len(boxes) < len(before) {
		t.Fatal("mail vanished")
	}
	for _, o := range all {
		want := happened[fmt.Sprint(o.id)]
		w.where(o.token, boxes, &want)
		got := w.foretold(o.steps)
		kinds[want.channel+" "+want.verdict]++
		if fmt.Sprint(got) != fmt.Sprint(want) {
			var b strings.Builder
			for _, s := range o.steps {
				fmt.Fprintf(&b, "%+v\n", s)
			}
			t.Errorf("round %d, %s:\nforetold %+v\nhappened %+v\n%s", round, o.address, got, want, b.String())
		}
	}
}

func TestExplainForPeople(t *testing.T) {
	h := newHouse(t)
	h.write("control/virtualdomains", "# virtual\nvirt.example:bob-v\n")
	h.write("control/smtproutes", "far.example:127.0.0.1:1\n")
	h.write("mail/bob/.qmail-v-default", "# a comment\n&alice@test.example\n|true\n")
	if _, errs, code := h.tool("", "qmail", "explain", "x@y"); code != 111 || errs != "qmail-explain: qmail-send is not running\n" {
		t.Errorf("exit %d, %s", code, errs)
	}
	h.start()
	want := strings.NewReplacer("HOME", h.home).Replace(`box@virt.example
  rcpthosts      refused  (from strangers: sorry, that domain isn't in my list of allowed rcpthosts (#5.7.1))  [HOME/control/rcpthosts]
  virtualdomains bob-v-box@virt.example  (virt.example:bob-v)  [HOME/control/virtualdomains:2]
  channel        local
  recipient      bob-v-box@virt.example
  account        bob  (+bob-)  [HOME/users/assign:LINE]
  uid            UID  (group GID)
  home           HOME/mail/bob
  extension      -v-box  (dash "-", extension "v-box")
  qmail          HOME/mail/bob/.qmail-v-default
  forward        alice@test.example  [HOME/mail/bob/.qmail-v-default:2]
  program        true  [HOME/mail/bob/.qmail-v-default:3]
  verdict        it would be taken
`)
	got := h.good("qmail", "explain", "box@virt.example")
	pattern := strings.NewReplacer(`LINE`, `\d+`, `UID`, `\d+`, `GID`, `\d+`).Replace(regexp.QuoteMeta(want))
	if !regexp.MustCompile("^" + pattern + "$").MatchString(got) {
		t.Errorf("explain says\n%swanted\n%s", got, want)
	}
	if out, _, code := h.tool("", "qmail", "explain", "nobody-here@test.example"); code != 100 || !strings.Contains(out, "  sought         .qmail-nobody-here .qmail-nobody-default .qmail-default") ||
		!strings.Contains(out, "  verdict        it would bounce  (Sorry, no mailbox here by that name. (#5.1.1))\n") {
		t.Errorf("exit %d\n%s", code, out)
	}
	var answer struct {
		Address string
		Steps   []struct {
			Topic, Value, File string
			Line               int
		}
	}
	if err := json.Unmarshal([]byte(h.good("qmail", "explain", "-json", "a@far.example")), &answer); err != nil {
		t.Fatal(err)
	}
	topics := ""
	for _, s := range answer.Steps {
		topics += s.Topic + "=" + s.Value + " "
		if s.Topic == "smtproutes" && (s.Line != 1 || !strings.HasSuffix(s.File, "/control/smtproutes")) {
			t.Errorf("%+v", s)
		}
	}
	if topics != "rcpthosts=refused channel=remote recipient=a@far.example smtproutes=127.0.0.1 port 1 target=127.0.0.1:1 verdict=K " {
		t.Error(topics)
	}
	h.inject("alice@test.example", "x@far.example")
	h.logged("deferral:")
	id := startLine.FindStringSubmatch(h.read())[2]
	life := h.good("qmail", "explain", id)
	for _, text := range []string{"message " + id + "\n", "  accepted: ", "  deferred x@far.example, next ", ": Sorry, I wasn't able to establish an SMTP connection. (#4.4.1)\n", "  now: 1 waiting, 0 ready"} {
		if !strings.Contains(life, text) {
			t.Errorf("the life lacks %q:\n%s", text, life)
		}
	}
	body := h.good("qmail", "queue", "cat", id)
	messageID := regexp.MustCompile(`(?m)^Message-ID: (<.*>)$`).FindStringSubmatch(body)
	if messageID == nil {
		t.Fatal(body)
	}
	if got := h.good("qmail", "explain", messageID[1]); !strings.HasPrefix(got, "message "+id+"\n") {
		t.Errorf("by Message-ID:\n%s", got)
	}
	if _, errs, code := h.tool("", "qmail", "explain", "<none@x>"); code != 100 || !strings.Contains(errs, "no message in the queue has that Message-ID") {
		t.Errorf("exit %d %s", code, errs)
	}
	h.good("qmail", "queue", "delete", id)
	if life = h.good("qmail", "explain", id); !strings.Contains(life, "  dropped x@far.example\n") || !strings.HasSuffix(life, "  it is no longer in the queue\n") {
		t.Errorf("the life ends\n%s", life)
	}
	if err := json.Unmarshal([]byte(strings.SplitN(h.good("qmail", "explain", "-json", id), "\n", 2)[0]), &struct{ Message int }{}); err != nil {
		t.Error(err)
	}
	h.stop()
}
