package local

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"qmail/internal/proto/jobs"
)

type hostile struct {
	Name  string
	Setup struct {
		File, Mode, Type string
		Owner            string
		TargetOwner      string `json:"target_owner"`
		Home             string
		HomeMode         string `json:"home_mode"`
		Patrn, Ext       string
		Sender           []byte            `json:"sender_b64"`
		DaemonEnv        map[string]string `json:"daemon_env"`
		MailboxSymlink   string            `json:"mailbox_symlink"`
		MailboxHardlink  string            `json:"mailbox_hardlink"`
		MailboxFIFO      bool              `json:"mailbox_fifo"`
		MaildirTmp       string            `json:"maildir_tmp_symlink"`
		Inject           string
	}
	Input  []byte `json:"input_b64"`
	Chunks []struct {
		B64    []byte
		Repeat int
	}
	Expect struct {
		Class   string
		Or      []string
		MustNot []string `json:"must_not"`
	}
}

// elsewhere are cases that other tests have.
var elsewhere = map[string]string{
	"dotqmail/qmail-eio":                 "TestUnreadableInstructionsDefer",
	"dotqmail/qmail-short-read-then-eio": "TestUnreadableInstructionsDefer: nothing is done before all is read",
}

func TestAdversarial(t *testing.T) {
	ran := 0
	eachLine(t, "testdata/adversarial.jsonl", func(line []byte) {
		d := json.NewDecoder(bytes.NewReader(line))
		var c hostile
		if err := d.Decode(&c); err != nil {
			t.Fatal(err)
		}
		ran++
		t.Run(c.Name, func(t *testing.T) {
			if where := elsewhere[c.Name]; where != "" {
				t.Skip("see " + where)
			}
			t.Parallel()
			c.run(t)
		})
	})
	if ran < 45 {
		t.Errorf("only %d cases", ran)
	}
}

func (c *hostile) run(t *testing.T) {
	vars := []string{"TESTPATIENCE=2s"}
	for name, value := range c.Setup.DaemonEnv {
		if name != "LD_PRELOAD" { // it would be this test's own
			vars = append(vars, name+"="+value)
		}
	}
	w := newWorld(t, vars...)
	c.setUp(t, w)
	j := &jobs.Job{Sender: "s@remote.example", Recipients: []string{"alice@test.example"}}
	if c.Setup.Sender != nil {
		j.Sender = string(c.Setup.Sender)
	}
	if c.Setup.Ext != "" {
		j.Dash, j.Ext, j.Recipients = "-", c.Setup.Ext, []string{"alice-" + c.Setup.Ext + "@test.example"}
	}
	began := time.Now()
	report := w.await(t, w.start(t, j, "Subject: x\n\nhi\n"))
	took := time.Since(began)
	class := map[byte]string{'K': "accept", 'Z': "tempfail", 'D': "reject"}[report[0]]
	if class != c.Expect.Class && !slices.Contains(c.Expect.Or, class) {
		t.Errorf("%s (%.200q), want %s %v", class, report, c.Expect.Class, c.Expect.Or)
	}
	for _, word := range c.Expect.MustNot {
		c.check(t, w, word, report, took)
	}
	if c.Name == "dotqmail/default-vars" {
		if b, _ := os.ReadFile(w.user + "/vars"); string(b) != "a-b-c|b-c|c|a-b-c\n" {
			t.Errorf("variables %q", b)
		}
	}
}

func (c *hostile) setUp(t *testing.T, w *world) {
	canary := w.home + "/canary"
	text := c.Input
	for _, chunk := range c.Chunks {
		text = append(text, bytes.Repeat(chunk.B64, max(1, chunk.Repeat))...)
	}
	text = bytes.ReplaceAll(text, []byte("/tmp/canary"), []byte(canary))
	text = bytes.ReplaceAll(text, []byte("sleep 1000"), []byte("sleep 20")) // do not outlive the test for long
	name := c.Setup.File
	if name == "" {
		name = ".qmail"
		w.write(t, ".qmail-default", "./Maildir/\n", 0o644)
		if c.Setup.Ext != "" {
			name = ".qmail-default"
		}
	}
	mode := fs.FileMode(0o644)
	if c.Setup.Mode != "" {
		mode = octal(t, c.Setup.Mode)
	}
	path := w.user + "/" + name
	switch c.Setup.Type {
	case "":
		if c.Setup.Home == "" && (text != nil || strings.HasSuffix(c.Name, "/empty-file")) {
			w.write(t, name, string(text), mode)
		}
	case "fifo":
		must(t, syscall.Mkfifo(path, 0o644))
	case "dir":
		must(t, os.Mkdir(path, 0o755))
	case "chardev-zero":
		must(t, os.Symlink("/dev/zero", path))
	case "symlink":
		must(t, os.WriteFile(w.home+"/bobs", text, 0o644)) // ours, and so not the user's
		if os.Getuid() == 0 {
			must(t, os.Chown(w.home+"/bobs", nobody+1, nobody+1))
		}
		must(t, os.Symlink(w.home+"/bobs", path))
	default:
		t.Fatalf("type %q", c.Setup.Type)
	}
	if c.Setup.MailboxSymlink != "" {
		must(t, os.Symlink(canary, w.user+"/Mailbox"))
	}
	if c.Setup.MailboxHardlink != "" {
		must(t, os.WriteFile(w.home+"/bobs", []byte("bob's\n"), 0o600))
		must(t, os.Link(w.home+"/bobs", w.user+"/Mailbox"))
	}
	if c.Setup.MailboxFIFO {
		must(t, syscall.Mkfifo(w.user+"/fifo", 0o666))
		w.own(t, w.user+"/fifo")
	}
	if c.Setup.MaildirTmp != "" {
		must(t, os.Mkdir(w.home+"/elsewhere", 0o777))
		must(t, os.Remove(w.user+"/Maildir/tmp"))
		must(t, os.Symlink(w.home+"/elsewhere", w.user+"/Maildir/tmp"))
	}
	switch c.Setup.Home {
	case "absent", "file":
		must(t, os.Rename(w.user, w.home+"/gone"))
		if c.Setup.Home == "file" {
			must(t, os.WriteFile(w.user, nil, 0o644))
		}
	}
	if c.Setup.HomeMode != "" {
		must(t, os.Chmod(w.user, octal(t, c.Setup.HomeMode)))
	}
}

func octal(t *testing.T, s string) fs.FileMode {
	n, err := strconv.ParseUint(s, 8, 32)
	must(t, err)
	mode := fs.FileMode(n & 0o777)
	if n&0o1000 != 0 {
		mode |= fs.ModeSticky
	}
	return mode
}

// check is one thing that must not be.
func (c *hostile) check(t *testing.T, w *world, word, report string, took time.Duration) {
	lines := func(name string) []string {
		b, err := os.ReadFile(w.user + "/" + name)
		if err != nil {
			t.Errorf("%s: %v", word, err)
		}
		return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	}
	absent := func(path string) {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s: %s is there", word, path)
		}
	}
	name, arg, _ := strings.Cut(word, ":")
	limit, isTime := strings.CutPrefix(word, "time>")
	switch {
	case isTime:
		most, err := time.ParseDuration(limit)
		must(t, err)
		if took > most {
			t.Errorf("%s: took %v", word, took)
		}
	case word == "panic": // the cleanup of the world sees how the worker ended
	case word == "exec", word == "file:/tmp/canary":
		absent(w.home + "/canary")
	case word == "delivered":
		absent(w.user + "/Mailbox")
		if c.Setup.Home == "" && len(w.mailbox(t, "Maildir")) != 0 {
			t.Error(word)
		}
		w.queue.mu.Lock()
		defer w.queue.mu.Unlock()
		if len(w.queue.arrived) != 0 {
			t.Error(word)
		}
	case word == "file:Maildir/new/*":
		if len(w.mailbox(t, "Maildir")) != 0 {
			t.Error(word)
		}
	case word == "file:Maildir/\r":
		absent(w.user + "/Maildir/\r")
		absent(w.user + "/Maildir\r")
	case word == "file:/tmp/":
		if list, err := os.ReadDir(w.home + "/elsewhere"); err != nil || len(list) != 0 {
			t.Errorf("%s: %v %v", word, list, err)
		}
	case word == "file:../": // nothing was looked for above the home: the name has no dots left
	case strings.HasPrefix(word, "rss>"):
		most, err := strconv.Atoi(strings.TrimSuffix(word[4:], "MiB"))
		must(t, err)
		if got := w.peak(t); got > most<<10 && !raceDetector() {
			t.Errorf("%s: %d KiB", word, got)
		}
	case word == "log_control_chars": // they are qmail-send's to hide; what we owe is the class, and one end
		if strings.ContainsRune(report, 0) {
			t.Errorf("%s: %q", word, report)
		}
	case name == "env":
		for _, v := range lines("env-out") {
			if strings.HasPrefix(v, arg+"=") {
				t.Errorf("%s: %s", word, v)
			}
		}
	case word == "fd>2": // ls has the directory open as 3
		if got := lines("fds"); !slices.Equal(got, []string{"0", "1", "2", "3"}) {
			t.Errorf("%s: %v", word, got)
		}
	case word == "uid:0", word == "gid:0", word == "groups:extra":
		want := fmt.Sprintf("uid=%d gid=%d groups=%d", nobody, nobody, nobody)
		if got := lines("id-out"); os.Getuid() == 0 && got[0] != want {
			t.Errorf("%s: %q", word, got)
		}
	case word == "append:bob":
		if b, err := os.ReadFile(w.home + "/bobs"); err != nil || string(b) != "bob's\n" {
			t.Errorf("%s: %q %v", word, b, err)
		}
	case word == "loops":
		w.queue.mu.Lock()
		again := string(w.queue.arrived[0].Body)
		w.queue.mu.Unlock()
		if got := w.deliver(t, "", "", again); got[0] != 'D' {
			t.Errorf("%s: the second time %q", word, got)
		}
	case word == "header_injected":
		w.queue.mu.Lock()
		defer w.queue.mu.Unlock()
		for _, a := range w.queue.arrived {
			if strings.ContainsAny(strings.Join(a.Envelope.Recipients, ""), "\r\n") {
				t.Errorf("%s: %q", word, a.Envelope.Recipients)
			}
		}
	default:
		t.Fatalf("this test does not know %q", word)
	}
}

// raceDetector reports whether this test is built with it: it takes several times the memory.
func raceDetector() bool {
	info, _ := debug.ReadBuildInfo()
	return slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// peak is the most memory that the worker had, in KiB.
func (w *world) peak(t *testing.T) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", w.pid))
	must(t, err)
	_, rest, _ := strings.Cut(string(b), "VmHWM:")
	n, err := strconv.Atoi(strings.TrimSpace(strings.SplitN(rest, "kB", 2)[0]))
	must(t, err)
	return n
}
