package popup

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	dovecotIMAP = "/usr/lib/dovecot/imap"
	// reader is whom the clients run as, if we are root: some want a user that exists.
	reader = 65534
)

// letters are messages that clients have got wrong before.
func letters() []string {
	return []string{
		"From: a@b.example\nSubject: plain\n\nbody\n",
		"From: a@b.example\nSubject: dots\n\n.\n..\n.x\nend\n",
		"From: a@b.example\nSubject: no end of line\n\nx",
		"From: a@b.example\nSubject: long\n\n" + strings.Repeat("x", 5000) + "\n",
		"From: a@b.example\nSubject: latin\n\n\xe4\xf6\xfc\n",
		"From: a@b.example\nSubject: empty lines\n\n\n\na\n\n\n",
		"From: a@b.example\nSubject: no body\n\n",
	}
}

// TestRealClients lets programs of others fetch and remove mail, while Dovecot has the same Maildir open and
// changes flags all the time.
func TestRealClients(t *testing.T) {
	for name, setUp := range map[string]func(dir, host, port string) (files map[string]string, argv []string){
		"mpop": func(dir, host, port string) (map[string]string, []string) {
			return nil, []string{
				"mpop", "--host=" + host, "--port=" + port, "--user=alice", "--passwordeval=echo " + password, "--auth=user",
				"--tls=off", "--keep=off", "--uidls-file=" + dir + "/uidls", "--delivery=maildir," + dir + "/got",
			}
		},
		"fetchmail": func(dir, host, port string) (map[string]string, []string) {
			rc := fmt.Sprintf("poll %s service %s protocol pop3 user alice password \"%s\" mda \"cat >%s/got/new/$$.fetchmail\" sslproto '' fetchall\n",
				host, port, password, dir)
			return map[string]string{"rc": rc}, []string{"fetchmail", "-f", dir + "/rc", "--nodetach", "--nosyslog", "--pidfile", dir + "/pid"}
		},
		"getmail": func(dir, host, port string) (map[string]string, []string) {
			rc := fmt.Sprintf("[retriever]\ntype = SimplePOP3Retriever\nserver = %s\nport = %s\nusername = alice\npassword = %s\n\n"+
				"[destination]\ntype = Maildir\npath = %s/got/\n\n[options]\ndelete = true\nreceived = false\ndelivered_to = false\n",
				host, port, password, dir)
			return map[string]string{"rc": rc}, []string{"getmail", "--getmaildir", dir, "--rcfile", dir + "/rc"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := exec.LookPath(name); err != nil {
				t.Skipf("%s is not installed", name)
			}
			t.Parallel()
			s := newSite(t, letters()...)
			stop := s.dovecot(t)
			dir := filepath.Join(s.dir, "client")
			for _, d := range []string{dir, dir + "/got", dir + "/got/new", dir + "/got/cur", dir + "/got/tmp"} {
				must(t, os.Mkdir(d, 0o700))
			}
			host, port, err := net.SplitHostPort(s.address)
			must(t, err)
			files, argv := setUp(dir, host, port)
			for file, text := range files {
				must(t, os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600))
			}
			if os.Getuid() == 0 {
				for _, path := range append(tree(t, dir), dir) {
					must(t, os.Lchown(path, reader, reader))
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			// A directory listed while Dovecot renames in it may lack a name: what one session does not see is there
			// for the next, as with any two readers of a maildir.
			var left []string
			for session := 0; session == 0 || len(left) > 0 && session < 5; session++ {
				cmd := as(reader, exec.CommandContext(ctx, argv[0], argv[1:]...), dir)
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				left, _ = filepath.Glob(filepath.Join(s.dir, "alice/Maildir/[nc]*/*"))
			}
			stop()
			compareLetters(t, dir)
			if len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// tree is what is below dir.
func tree(t *testing.T, dir string) (paths []string) {
	must(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		paths = append(paths, path)
		return err
	}))
	return paths
}

// as makes cmd one of a user's, if we are root.
func as(uid int, cmd *exec.Cmd, home string) *exec.Cmd {
	cmd.Env = []string{"HOME=" + home, "USER=alice", "LOGNAME=alice", "PATH=/usr/local/bin:/usr/bin:/bin", "LC_ALL=C.UTF-8", "FETCHMAILHOME=" + home}
	cmd.Dir = home
	if os.Getuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	return cmd
}

// compareLetters wants each message once, with the end of its text as it was, whatever header fields the client
// has put before it.
func compareLetters(t *testing.T, dir string) {
	t.Helper()
	paths, err := filepath.Glob(dir + "/got/new/*")
	must(t, err)
	var got []string
	for _, path := range paths {
		b, err := os.ReadFile(path)
		must(t, err)
		got = append(got, strings.ReplaceAll(string(b), "\r\n", "\n"))
	}
	for _, want := range letters() {
		subject := want[strings.Index(want, "Subject"):]
		if !strings.HasSuffix(subject, "\n") {
			subject += "\n"
		}
		found := 0
		for _, text := range got {
			if strings.HasSuffix(text, subject) {
				found++
			}
		}
		if found != 1 {
			t.Errorf("%d copies of %.80q", found, subject)
		}
	}
	if len(got) != len(letters()) {
		t.Errorf("%d messages, not %d", len(got), len(letters()))
	}
}

// dovecot opens alice's Maildir with Dovecot's IMAP server and changes flags until stop, if it is installed.
func (s *site) dovecot(t *testing.T) (stop func()) {
	if _, err := os.Stat(dovecotIMAP); err != nil {
		t.Logf("without Dovecot: %v", err)
		return func() {}
	}
	home := filepath.Join(s.dir, "alice")
	conf := fmt.Sprintf("mail_location = maildir:%[1]s/Maildir\nlog_path = %[1]s/dovecot.log\nbase_dir = %[1]s/run\nstate_dir = %[1]s/state\n"+
		"ssl = no\nfirst_valid_uid = 1\n", home)
	must(t, os.WriteFile(filepath.Join(home, "dovecot.conf"), []byte(conf), 0o644))
	s.own(t)
	cmd := as(nobody, exec.Command(dovecotIMAP, "-c", filepath.Join(home, "dovecot.conf")), home)
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	must(t, cmd.Start())
	lines := bufio.NewReader(out)
	say := func(command string) error {
		if _, err := io.WriteString(in, "x "+command+"\r\n"); err != nil {
			return err
		}
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				return err
			}
			if answer, ok := strings.CutPrefix(line, "x "); ok {
				if !strings.HasPrefix(answer, "OK") && !strings.Contains(answer, "EXPUNGEISSUED") && !strings.Contains(answer, "No matching messages") {
					return fmt.Errorf("%s: %s", command, answer)
				}
				return nil
			}
		}
	}
	if err := say("SELECT INBOX"); err != nil {
		t.Fatalf("dovecot: %v: %s", err, errs.String())
	}
	over, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for sign := "+"; ; sign = map[string]string{"+": "-", "-": "+"}[sign] {
			select {
			case <-over:
				done <- nil
				return
			default:
			}
			err := say("UID STORE 1:* " + sign + "FLAGS (\\Flagged)")
			if err == nil {
				err = say("CHECK")
			}
			if err != nil {
				done <- err
				<-over
				return
			}
		}
	}()
	return func() {
		close(over)
		if err := <-done; err != nil {
			t.Errorf("dovecot: %v", err)
		}
		say("LOGOUT")
		in.Close()
		cmd.Wait() // it has said what it had to say
	}
}
