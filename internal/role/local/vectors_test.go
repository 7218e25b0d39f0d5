package local

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"qmail/internal/system/env"
)

// TestMain is also the qmail-local of these tests, so that it can run as somebody who is not root.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) != "qmail-local" {
		os.Exit(m.Run())
	}
	e, err := env.Process()
	if err != nil {
		panic(err)
	}
	if limit, err := time.ParseDuration(e.Get("TESTPATIENCE")); err == nil { // with programs
		w := newWorker(e, os.Args[2], os.Args[3], os.Args[4])
		w.patience, w.linger = limit, limit/2
		os.Exit(serve(context.Background(), e, w))
	}
	os.Exit(Main(context.Background(), e, os.Args[1:]))
}

// nobody is whom these tests deliver as when they run as root.
const nobody = 7790

// worldDir is a directory that nobody can reach and write to.
func worldDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if os.Getuid() != 0 {
		return dir
	}
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	return dir
}

// asUser makes a command of this test as qmail-local, run as nobody if we are root.
func asUser(dir string, vars []string, args ...string) *exec.Cmd {
	vars = append(vars, "GORACE=atexit_sleep_ms=0") // or each process takes a second to end
	cmd := &exec.Cmd{Path: "/proc/self/exe", Args: append([]string{"qmail-local"}, args...), Env: vars, Dir: dir}
	if os.Getuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	return cmd
}

// value is a byte value of the recordings: a string, or an object that says how to make one.
type value string

func (v *value) UnmarshalJSON(b []byte) error {
	var s string
	if json.Unmarshal(b, &s) == nil {
		*v = value(s)
		return nil
	}
	var o struct {
		B64 []byte
		Cat []value
		Rep []json.RawMessage
	}
	if err := json.Unmarshal(b, &o); err != nil {
		return err
	}
	*v = value(o.B64)
	for _, part := range o.Cat {
		*v += part
	}
	if len(o.Rep) == 2 {
		var part value
		n, err := strconv.Atoi(string(o.Rep[1]))
		if err = errors.Join(err, json.Unmarshal(o.Rep[0], &part)); err != nil {
			return err
		}
		*v = value(strings.Repeat(string(part), n))
	}
	return nil
}

type vector struct {
	Name  string
	Wart  bool
	Args  []value
	Stdin value
	Files []struct {
		Path value
		Data value
		Dir  bool
		Link string
		Mode string
	}
	Queue  struct{ Exit int }
	Expect struct {
		Exit           int
		Stdout, Stderr value
		Queued         []struct {
			Sender  value
			Rcpts   []value
			Message value
		}
		Tree map[string]json.RawMessage
	}
}

// notHere are recordings that need what is not in this package.
var notHere = map[string]string{
	"local-with-forward": "runs forward", "local-with-condredirect": "runs condredirect",
	"local-with-bouncesaying": "runs bouncesaying", "local-with-preline": "runs preline",
	"local-maildir-nl": "the original leaves a backslash in Return-Path where a newline was",
}

// TestRecordings replays what the original program did, to the byte.
func TestRecordings(t *testing.T) {
	ran := 0
	eachLine(t, "testdata/vectors.jsonl", func(line []byte) {
		var v vector
		if err := json.Unmarshal(line, &v); err != nil {
			t.Fatal(err)
		}
		ran++
		t.Run(v.Name, func(t *testing.T) {
			if why := notHere[v.Name]; why != "" {
				t.Skip(why)
			}
			v.replay(t)
		})
	})
	if ran < 90 {
		t.Errorf("only %d recordings", ran)
	}
}

func eachLine(t *testing.T, path string, do func(line []byte)) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	s.Buffer(nil, 16<<20)
	for s.Scan() {
		do(s.Bytes())
	}
	if s.Err() != nil {
		t.Fatal(s.Err())
	}
}

func (v *vector) replay(t *testing.T) {
	dir := worldDir(t)
	in := func(s value) string { return strings.ReplaceAll(string(s), "{{TMP}}", dir) }
	before := v.setUp(t, dir)
	queue := dir + "/queue"
	script := "#!/bin/sh\ncat >" + queue + ".message; cat <&1 >" + queue + ".envelope; exit " + strconv.Itoa(v.Queue.Exit) + "\n"
	must(t, os.WriteFile(queue, []byte(script), 0o755))
	var args []string
	for _, a := range v.Args {
		args = append(args, in(a))
	}
	stdin, err := os.Create(dir + "/stdin")
	must(t, err)
	defer stdin.Close()
	_, err = stdin.WriteString(in(v.Stdin))
	must(t, err)
	_, err = stdin.Seek(0, 0)
	must(t, err)
	cmd := asUser(dir, []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "TZ=UTC0", "QMAILHOME=" + dir, "QMAILQUEUE=" + queue}, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	err = cmd.Run()
	if _, failed := errors.AsType[*exec.ExitError](err); err != nil && !failed {
		t.Fatal(err)
	}
	if code := cmd.ProcessState.ExitCode(); code != v.Expect.Exit {
		t.Errorf("exit %d, want %d", code, v.Expect.Exit)
	}
	v.compare(t, "stdout", stdout.String(), in(v.Expect.Stdout))
	v.compare(t, "stderr", stderr.String(), in(v.Expect.Stderr))
	v.compareQueue(t, queue, in)
	v.compareTree(t, dir, before, in)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// setUp makes the files of a case and returns what is below the home.
func (v *vector) setUp(t *testing.T, dir string) map[string]string {
	for _, f := range v.Files {
		path := filepath.Join(dir, string(f.Path))
		mode := fs.FileMode(0o644)
		if f.Dir {
			mode = 0o755
		}
		if f.Mode != "" {
			n, err := strconv.ParseUint(f.Mode, 8, 32)
			must(t, err)
			mode = fs.FileMode(n & 0o777)
			if n&0o1000 != 0 {
				mode |= fs.ModeSticky
			}
		}
		switch {
		case f.Link != "":
			must(t, os.Symlink(f.Link, path))
			continue
		case f.Dir:
			must(t, os.MkdirAll(path, 0o755))
		default:
			must(t, os.WriteFile(path, []byte(strings.ReplaceAll(string(f.Data), "{{TMP}}", dir)), 0o644))
		}
		if os.Getuid() == 0 {
			must(t, os.Chown(path, nobody, nobody))
		}
		must(t, os.Chmod(path, mode))
	}
	return tree(t, dir)
}

// tree returns the files below dir/home; those in new, cur and tmp by content, since their names are our own.
func tree(t *testing.T, dir string) map[string]string {
	all := map[string]string{}
	err := filepath.WalkDir(dir+"/home", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			if errors.Is(err, fs.ErrNotExist) {
				err = nil
			}
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		b, err := os.ReadFile(path)
		all[path[len(dir)+1:]] = strconv.FormatUint(uint64(info.Mode().Perm()), 8) + " " + string(b)
		return err
	})
	must(t, err)
	return all
}

// tokens are what cannot be the same twice.
var tokens = map[string]string{
	"{{CTIME}}": `[A-Z][a-z]{2} [A-Z][a-z]{2} \d\d \d\d:\d\d:\d\d \d{4}`,
	"{{QP}}":    `[0-9A-Za-z._-]+`,
}

func (v *vector) compare(t *testing.T, what, got, want string) {
	t.Helper()
	if !matches(got, want) {
		t.Errorf("%s\n got %.300q\nwant %.300q", what, got, want)
	}
}

func matches(got, want string) bool {
	if !strings.Contains(want, "{{") {
		return got == want
	}
	pattern := regexp.QuoteMeta(want)
	for token, expression := range tokens {
		pattern = strings.ReplaceAll(pattern, regexp.QuoteMeta(token), expression)
	}
	return regexp.MustCompile(`\A(?s:` + pattern + `)\z`).MatchString(got)
}

func (v *vector) compareQueue(t *testing.T, queue string, in func(value) string) {
	envelope, err := os.ReadFile(queue + ".envelope")
	if v.Queue.Exit != 0 || err != nil && len(v.Expect.Queued) == 0 {
		return
	}
	if len(v.Expect.Queued) != 1 {
		t.Fatalf("queued %q, want %d messages", envelope, len(v.Expect.Queued))
	}
	want := v.Expect.Queued[0]
	e := "F" + in(want.Sender) + "\x00"
	for _, r := range want.Rcpts {
		e += "T" + in(r) + "\x00"
	}
	v.compare(t, "envelope", string(envelope), e+"\x00")
	b, _ := os.ReadFile(queue + ".message")
	v.compare(t, "message", string(b), in(want.Message))
}

// compareTree compares what has changed below the home.
func (v *vector) compareTree(t *testing.T, dir string, before map[string]string, in func(value) string) {
	after := tree(t, dir)
	for path, content := range before {
		if after[path] == content {
			delete(after, path)
		}
	}
	type file struct {
		Mode string
		Data value
	}
	for path, raw := range v.Expect.Tree {
		var list []file
		if json.Unmarshal(raw, &list) != nil {
			list = make([]file, 1)
			must(t, json.Unmarshal(raw, &list[0]))
		}
		for _, want := range list {
			if !take(after, strings.ReplaceAll(path, "{{TMP}}", dir), strings.TrimLeft(want.Mode, "0")+" "+in(want.Data)) {
				t.Errorf("no %s with %.300q", path, in(want.Data))
			}
		}
	}
	for path, content := range after {
		t.Errorf("%s is not expected: %.300q", path, content)
	}
}

// take removes one file that matches.
func take(files map[string]string, pattern, want string) bool {
	for path, content := range files {
		if ok, _ := filepath.Match(pattern, path); ok && matches(content, want) {
			delete(files, path)
			return true
		}
	}
	return false
}

// deadline is a time by which anything in these tests has happened.
const deadline = 20 * time.Second
