package local

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"qmail/internal/format/reply"
	"qmail/internal/proto/enqueue"
	"qmail/internal/proto/jobs"
	"qmail/internal/system/ipc"
)

// queue is a qmail-send that keeps what it is given.
type queue struct {
	mu      sync.Mutex
	refuse  error
	arrived []*enqueue.Arrival
	ids     uint64
}

type spool struct{ bytes.Buffer }

func (*spool) Close() error { return nil }

func (q *queue) NewID() uint64                 { q.mu.Lock(); defer q.mu.Unlock(); q.ids++; return q.ids }
func (q *queue) Spool() (enqueue.Spool, error) { return &spool{}, nil }
func (q *queue) Verify(_ string, done func(error)) {
	done(nil)
}
func (q *queue) Now() time.Time { return time.Unix(1700000000, 0) }
func (q *queue) Accept(a *enqueue.Arrival, done func(error)) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.refuse == nil {
		q.arrived = append(q.arrived, a)
	}
	done(q.refuse)
}

// openQueue serves a queue at the door of a home.
func openQueue(t testing.TB, home string) *queue {
	t.Helper()
	must(t, os.MkdirAll(home+"/queue", 0o755))
	path := enqueue.SocketPath(home)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	must(t, err)
	must(t, os.Chmod(path, 0o666))
	t.Cleanup(func() { ln.Close() })
	q := &queue{}
	go func() {
		for {
			c, err := ln.AcceptUnix()
			if err != nil {
				return
			}
			go enqueue.Serve(ipc.New(ipc.Unix(c)), enqueue.Peer{UID: 1, PID: 2, How: "by uid 1"}, q)
		}
	}()
	return q
}

// sender is the side of qmail-send.
type sender struct {
	*jobs.Client
	mu       sync.Mutex
	changed  sync.Cond
	results  map[uint32]string
	passedOn bool // the last result says so
	gone     bool
	last     uint32
	pid      int
}

func (s *sender) Results(job uint32, results []jobs.Result, over bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range results {
		s.results[job] += r.Text
		s.passedOn = r.PassedOn
	}
	if over {
		s.results[job] += "\x00"
	}
	s.changed.Broadcast()
}

func (s *sender) Gone([]uint32, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone = true
	s.changed.Broadcast()
}

// await waits for the end of a job and returns its report.
func (s *sender) await(t testing.TB, job uint32) string {
	t.Helper()
	stop := time.AfterFunc(deadline, func() { s.Close() })
	defer stop.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for !strings.HasSuffix(s.results[job], "\x00") && !s.gone {
		s.changed.Wait()
	}
	report, ended := strings.CutSuffix(s.results[job], "\x00")
	if !ended {
		t.Errorf("the worker is gone; job %d: %q", job, report)
	}
	return report
}

// start gives out a job with the message.
func (s *sender) start(t testing.TB, j *jobs.Job, text string) uint32 {
	t.Helper()
	s.last++
	if !j.Verify {
		j.Body = s.last
		must(t, s.Load(j.Body, []byte(text)))
	}
	must(t, s.Start(s.last, j))
	return s.last
}

// world is a worker in a process of its own, with a home, its user's home and a queue.
type world struct {
	*sender
	home, user string // directories
	queue      *queue
	uid        uint32 // whose they are, if we are root
}

func newWorld(t testing.TB, vars ...string) *world {
	t.Helper()
	return newWorldOf(t, nobody, vars...)
}

// newWorldOf is newWorld for a certain user.
func newWorldOf(t testing.TB, uid uint32, vars ...string) *world {
	t.Helper()
	home := worldDir(t)
	w := &world{home: home, user: home + "/user", queue: openQueue(t, home), uid: uid}
	for _, dir := range []string{"", "/Maildir", "/Maildir/tmp", "/Maildir/new", "/Maildir/cur"} {
		must(t, os.Mkdir(w.user+dir, 0o755))
		w.own(t, w.user+dir)
	}
	w.sender = w.spawn(t, vars...)
	return w
}

// spawn starts another worker, as qmail-lspawn does.
func (w *world) spawn(t testing.TB, vars ...string) *sender {
	t.Helper()
	return w.spawnFor(t, "alice", vars...)
}

// spawnFor starts one that believes to be another user's.
func (w *world) spawnFor(t testing.TB, user string, vars ...string) *sender {
	t.Helper()
	ours, theirs, err := ipc.Pair()
	must(t, err)
	defer theirs.Close()
	cmd := asUser("/", append([]string{"QMAILHOME=" + w.home, "PATH=/usr/bin:/bin"}, vars...), "--serve", user, w.user, "./Maildir/")
	if os.Getuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: w.uid, Gid: w.uid}
	}
	var said bytes.Buffer
	cmd.Stdin, cmd.Stderr = theirs, &said
	must(t, cmd.Start())
	s := &sender{results: map[uint32]string{}, pid: cmd.Process.Pid}
	conn, err := ipc.FromFile(ours)
	must(t, err)
	s.changed.L = &s.mu
	s.Client = jobs.NewClient(conn, s)
	t.Cleanup(func() {
		s.Close()
		stop := time.AfterFunc(deadline, func() { cmd.Process.Kill() })
		defer stop.Stop()
		if err := cmd.Wait(); err != nil {
			t.Errorf("worker: %v, %s", err, said.String())
		}
	})
	return s
}

func (w *world) own(t testing.TB, path string) {
	t.Helper()
	if os.Getuid() == 0 {
		must(t, os.Lchown(path, int(w.uid), int(w.uid)))
	}
}

// write makes a file of the user's.
func (w *world) write(t testing.TB, name, text string, mode fs.FileMode) {
	t.Helper()
	path := w.user + "/" + name
	must(t, os.WriteFile(path, []byte(text), 0o600))
	w.own(t, path)
	must(t, os.Chmod(path, mode))
}

func (w *world) deliver(t testing.TB, dash, ext, text string) string {
	t.Helper()
	j := &jobs.Job{Sender: "s@remote.example", Dash: dash, Ext: ext, Recipients: []string{"alice" + dash + ext + "@test.example"}}
	return w.await(t, w.start(t, j, text))
}

// mailbox returns the messages in a maildir of the user's.
func (w *world) mailbox(t testing.TB, name string) []string {
	t.Helper()
	list, err := os.ReadDir(w.user + "/" + name + "/new")
	must(t, err)
	var all []string
	for _, e := range list {
		b, err := os.ReadFile(w.user + "/" + name + "/new/" + e.Name())
		must(t, err)
		all = append(all, string(b))
	}
	return all
}

const head = "Return-Path: <s@remote.example>\nDelivered-To: alice@test.example\n"

func TestWorkerDeliversByTheDefault(t *testing.T) {
	w := newWorld(t)
	if got := w.deliver(t, "", "", "Subject: x\n\nhi\n"); got != "Kdid 1+0+0\n" {
		t.Errorf("report %q", got)
	}
	if got := w.mailbox(t, "Maildir"); len(got) != 1 || got[0] != head+"Subject: x\n\nhi\n" {
		t.Errorf("mailbox %q", got)
	}
}

func TestWorkerReports(t *testing.T) {
	w := newWorld(t)
	w.write(t, ".qmail-fwd", "a@x.example\n&b@y.example\n", 0o600)
	w.write(t, ".qmail-quiet", "#\n", 0o600)
	w.write(t, ".qmail-loop", "./Maildir/\n", 0o600)
	w.write(t, ".qmail-prog", "|echo heard $LOCAL; cat >$HOME/heard\n", 0o600)
	w.write(t, ".qmail-no", "|echo no; exit 100\n./Maildir/\n", 0o600)
	w.write(t, ".qmail-long", "|yes x | head -c 5000; exit 100\n", 0o600)
	w.write(t, ".qmail-nul", "|printf 'a\\000b'; exit 111\n", 0o600)
	w.write(t, ".qmail-all", "./Maildir/\n./box\n|true\nc@z.example\n", 0o600)
	w.write(t, ".qmail-none", "./nosuch/\n", 0o600)
	tests := []struct {
		name, dash, ext, text, want string
	}{
		{"nobody", "-", "nosuch", "x\n", "DSorry, no mailbox here by that name. (#5.1.1)\n"},
		{"a forward", "-", "fwd", "x\n", "Kdid 0+2+0\nqp PID\n"},
		{"nothing at all", "-", "quiet", "x\n", "Kdid 0+0+0\n"},
		{"a loop", "-", "loop", "Delivered-To: alice-loop@test.example\n\nx", "DThis message is looping: it already has my Delivered-To line. (#5.4.6)\n"},
		{"the same line in the body is no loop", "-", "quiet", "A: b\n\nDelivered-To: alice-quiet@test.example\n", "Kdid 0+0+0\n"},
		{"a program and what it says", "-", "prog", "A: b\n\nthe body\n", "Kheard alice-prog\ndid 0+0+1\n"},
		{"a program that says no", "-", "no", "x\n", "Dno\n"},
		{"a program that says too much", "-", "long", "x\n", "D" + strings.Repeat("x\n", 1500)[:2997-len(tooLong)] + tooLong},
		{"a NUL ends a report", "-", "nul", "x\n", "Za"},
		{"all kinds together", "-", "all", "x\n", "Kdid 2+1+1\nqp PID\n"},
		{"a maildir that is not there", "-", "none", "x\n", "ZUnable to chdir to maildir. (#4.2.1)\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := w.deliver(t, tt.dash, tt.ext, tt.text)
			if i := strings.Index(got, "qp "); i >= 0 {
				got = got[:i] + "qp PID\n"
			}
			if got != tt.want {
				t.Errorf("report %.200q\nwant %.200q", got, tt.want)
			}
		})
	}
	if b, _ := os.ReadFile(w.user + "/heard"); string(b) != "A: b\n\nthe body\n" {
		t.Errorf("the program read %q", b)
	}
	w.queue.mu.Lock()
	defer w.queue.mu.Unlock()
	if len(w.queue.arrived) != 2 {
		t.Fatalf("%d messages forwarded", len(w.queue.arrived))
	}
	a := w.queue.arrived[0]
	if fmt.Sprint(a.Envelope.Sender, a.Envelope.Recipients) != "s@remote.example[a@x.example b@y.example]" ||
		!bytes.HasSuffix(a.Body, []byte("\nDelivered-To: alice-fwd@test.example\nx\n")) {
		t.Errorf("forwarded %+v %q", a.Envelope, a.Body)
	}
}

func TestAQueueThatRefusesOrIsGone(t *testing.T) {
	w := newWorld(t)
	w.write(t, ".qmail", "a@x.example\n", 0o600)
	w.queue.mu.Lock()
	w.queue.refuse = reply.Permanent("5.3.0", "mail server permanently rejected message", nil)
	w.queue.mu.Unlock()
	if got := w.deliver(t, "", "", "x"); got != "DUnable to forward message: mail server permanently rejected message (#5.3.0).\n" {
		t.Errorf("refused: %q", got)
	}
	must(t, os.Remove(enqueue.SocketPath(w.home)))
	other := &world{home: w.home, user: w.user, queue: w.queue}
	other.sender = other.spawn(t) // one that has no connection yet
	if got := other.deliver(t, "", "", "x"); got != "ZUnable to forward message: unable to reach the queue (#4.3.0).\n" {
		t.Errorf("gone: %q", got)
	}
}

func TestLargeMessagesComeAsFiles(t *testing.T) {
	w := newWorld(t)
	w.write(t, ".qmail", "./Maildir/\n./box\n|cat >copy\n|head -c 9 >short\n|wc -c >count\na@x.example\n", 0o600)
	text := "Subject: large\n\n" + strings.Repeat("0123456789abcde\n", 200000) // 3 MB
	f, err := os.CreateTemp(t.TempDir(), "body")
	must(t, err)
	defer f.Close()
	_, err = f.WriteString("before" + text + "after")
	must(t, err)
	must(t, w.LoadFile(9, f, 6, int64(len(text))))
	must(t, w.Start(9, &jobs.Job{Body: 9, Sender: "s@remote.example", Recipients: []string{"alice@test.example"}}))
	if got := w.await(t, 9); !strings.HasPrefix(got, "Kdid 2+1+3\nqp ") {
		t.Errorf("report %q", got)
	}
	if got := w.mailbox(t, "Maildir"); len(got) != 1 || got[0] != head+text {
		t.Error("the maildir has something else")
	}
	for name, want := range map[string]string{"copy": text, "short": text[:9], "count": strconv.Itoa(len(text)) + "\n"} {
		if b, _ := os.ReadFile(w.user + "/" + name); string(b) != want {
			t.Errorf("%s: %d bytes", name, len(b))
		}
	}
	if b, _ := os.ReadFile(w.user + "/box"); !strings.HasSuffix(string(b), head+text+"\n") {
		t.Errorf("box: %d bytes", len(b))
	}
	w.queue.mu.Lock()
	defer w.queue.mu.Unlock()
	if s, ok := w.queue.arrived[0].Spool.(*spool); !ok || !strings.HasSuffix(s.String(), "\nDelivered-To: alice@test.example\n"+text) {
		t.Error("something else was forwarded")
	}
	must(t, w.LoadFile(10, f, 6, int64(len(text))+100)) // it is not that long
	must(t, w.Start(10, &jobs.Job{Body: 10, Recipients: []string{"alice@test.example"}}))
	if got := w.await(t, 10); got != "ZUnable to read message. (#4.3.0)\n" {
		t.Errorf("a message that ends early: %q", got)
	}
	if len(w.mailbox(t, "Maildir")) != 1 {
		t.Error("half a message was delivered")
	}
}

func TestVerify(t *testing.T) {
	w := newWorld(t)
	w.write(t, ".qmail-list-default", "|touch ran\n", 0o600)
	w.write(t, ".qmail-bad", "./x\n", 0o602)
	tests := []struct{ name, dash, ext, want string }{
		{"the user", "", "", "K"},
		{"an extension", "-", "list-x", "K"},
		{"no such extension", "-", "other", "D"},
		{"a file that anybody may write is not decided", "-", "bad", "Z"},
	}
	for _, tt := range tests {
		j := &jobs.Job{Verify: true, Dash: tt.dash, Ext: tt.ext, Recipients: []string{"alice@test.example"}}
		if got := w.await(t, w.start(t, j, "")); got[:1] != tt.want {
			t.Errorf("%s: %q, want %s", tt.name, got, tt.want)
		}
	}
	must(t, os.Chmod(w.user, 0o777))
	j := &jobs.Job{Verify: true, Recipients: []string{"alice@test.example"}}
	if got := w.await(t, w.start(t, j, "")); got != "ZUh-oh: home directory is writable. (#4.7.0)\n" {
		t.Errorf("a writable home: %q", got)
	}
	if _, err := os.Stat(w.user + "/ran"); err == nil {
		t.Error("verify ran a program")
	}
}

func TestHostileJobs(t *testing.T) {
	w := newWorld(t)
	must(t, os.Mkdir(w.user+"/.qmail", 0o755))
	must(t, os.WriteFile(w.home+"/trap", []byte("|touch "+w.home+"/sprung\n"), 0o644))
	tests := []struct{ name, dash, ext, rcpt string }{
		{"a dash that climbs out of the home", "/../../trap", "", "alice@test.example"},
		{"a recipient without a host", "", "", "alice"},
	}
	for _, tt := range tests {
		j := &jobs.Job{Sender: "s@x.example", Dash: tt.dash, Ext: tt.ext, Recipients: []string{tt.rcpt}}
		if got := w.await(t, w.start(t, j, "x")); got[0] == 'K' {
			t.Errorf("%s: %q", tt.name, got)
		}
	}
	if _, err := os.Stat(w.home + "/sprung"); err == nil {
		t.Error("instructions from outside the home were followed")
	}
}

func TestManyDeliveriesAtOnce(t *testing.T) {
	w := newWorld(t)
	const n = 200
	var numbers []uint32
	for i := range n {
		j := &jobs.Job{Sender: "s@remote.example", Recipients: []string{"alice@test.example"}}
		numbers = append(numbers, w.start(t, j, fmt.Sprintf("message %d\n", i)))
	}
	for _, number := range numbers {
		if got := w.await(t, number); got != "Kdid 1+0+0\n" {
			t.Errorf("job %d: %q", number, got)
		}
	}
	seen := map[string]bool{}
	for _, m := range w.mailbox(t, "Maildir") {
		seen[m] = true
	}
	if len(seen) != n {
		t.Errorf("%d different messages of %d", len(seen), n)
	}
}

func TestUnreadableInstructionsDefer(t *testing.T) {
	w := newWorld(t)
	must(t, os.Symlink("/proc/self/mem", w.user+"/.qmail")) // a regular file of its reader's whose first read fails
	w.own(t, w.user+"/.qmail")
	if got := w.deliver(t, "", "", "x"); got != "ZUnable to read .qmail: input/output error. (#4.3.0)\n" {
		t.Errorf("report %q", got)
	}
}

func TestAWorkerFinishesWhatItHasBegun(t *testing.T) {
	w := newWorld(t)
	must(t, syscall.Mkfifo(w.user+"/go", 0o600))
	w.own(t, w.user+"/go")
	w.write(t, ".qmail", "|read x <go\n./Maildir/\n", 0o600)
	s := w.spawn(t)
	j := &jobs.Job{Body: 1, Sender: "s@remote.example", Recipients: []string{"alice@test.example"}}
	must(t, s.Load(1, []byte("x\n")))
	must(t, s.Start(1, j))
	f, err := os.OpenFile(w.user+"/go", os.O_WRONLY, 0) // waits for the program
	must(t, err)
	s.Close() // qmail-send dies
	_, err = io.WriteString(f, "go\n")
	must(t, err)
	f.Close()
	for end := time.Now().Add(deadline); len(w.mailbox(t, "Maildir")) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the delivery was given up")
		}
	}
}
