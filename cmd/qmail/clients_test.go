package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// caller runs a program of somebody else's, without rights, in a directory of its own that is its HOME. It must not need
// more than a minute.
func (h *house) caller(t *testing.T, stdin string, vars []string, argv ...string) {
	t.Helper()
	dir := filepath.Join(filepath.Dir(h.home), strings.ReplaceAll(t.Name(), "/", "-"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := h.give(dir); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Env = append([]string{"QMAILHOME=" + h.home, "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME=" + dir, "TMPDIR=" + dir, "USER=carol", "LOGNAME=carol", "LC_ALL=C"}, vars...)
	cmd.Dir, cmd.Stdin, cmd.WaitDelay = dir, strings.NewReader(stdin), time.Second
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	late := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", argv[0], err, out)
	}
}

// receives waits for the one message of a user that holds a text.
func (h *house) receives(t *testing.T, user, text string) (message string) {
	t.Helper()
	deadline := time.Now().Add(soon)
	for ; message == ""; time.Sleep(5 * time.Millisecond) {
		for _, m := range h.mail(user) {
			if strings.Contains(m, text) {
				message = m
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("%q did not arrive; log:\n%s", text, h.tail())
		}
	}
	return message
}

// has checks that a message has lines.
func has(t *testing.T, message string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if !strings.Contains("\n"+message, "\n"+line) {
			t.Errorf("there is no line %q in\n%.1500s", line, message)
		}
	}
}

// TestRealClientsBySMTP lets programs of others talk to our server.
func TestRealClientsBySMTP(t *testing.T) {
	h := newHouse(t)
	h.start()
	host, port, err := net.SplitHostPort(h.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("swaks", func(t *testing.T) {
		swaks := tool(t, "swaks", "swaks")
		h.caller(t, "", nil, swaks, "--server", host, "--port", port, "--helo", "client.example", "--from", "s@far.example",
			"--to", "alice@test.example,bob@test.example", "--header", "Subject: by swaks", "--body", ".\n..\nhello\n", "--pipeline")
		m := h.receives(t, "alice", "by swaks")
		has(t, m, "Return-Path: <s@far.example>\n", "Delivered-To: alice@test.example\n", ".\n..\nhello\n")
		h.receives(t, "bob", "by swaks")
	})
	t.Run("swaks is refused", func(t *testing.T) {
		swaks := tool(t, "swaks", "swaks")
		cmd := exec.CommandContext(t.Context(), swaks, "--server", host, "--port", port, "--from", "s@far.example", "--to", "nobody-here@test.example")
		out, err := cmd.CombinedOutput()
		var ended *exec.ExitError
		if !errors.As(err, &ended) || ended.ExitCode() != 24 || !bytes.Contains(out, []byte("<** 550 5.1.1 ")) {
			t.Errorf("%v\n%s", err, out)
		}
	})
	t.Run("smtp-source", func(t *testing.T) {
		source := tool(t, "smtp-source", "postfix")
		for _, keep := range [][]string{{"-d"}, nil} { // connections
			before := len(h.mail("bob"))
			args := append(keep, "-s", "5", "-m", "20", "-l", "5000", "-f", "s@far.example", "-t", "bob@test.example", "inet:"+h.address)
			h.caller(t, "", nil, append([]string{source}, args...)...)
			h.until("all of it is there", func() bool { return len(h.mail("bob")) == before+20 })
		}
	})
	t.Run("smtplib", func(t *testing.T) {
		python := tool(t, "python3", "python3")
		if _, err := os.Stat("/usr/bin/python3"); err == nil {
			python = "/usr/bin/python3" // another may be in root's own directory
		}
		const script = `
import smtplib, sys
from email.message import EmailMessage
m = EmailMessage()
m["From"], m["To"], m["Subject"] = "s@far.example", "alice@test.example", "by smtplib"
m.set_content("gr\u00fc\u00dfe\n.\n..x\n", cte="8bit")
with smtplib.SMTP(sys.argv[1], int(sys.argv[2]), timeout=30) as c:
    c.send_message(m)
    c.send_message(m, to_addrs=["bob@test.example"])
    try:
        c.sendmail("s@far.example", ["nobody-here@test.example"], "x")
        sys.exit("taken")
    except smtplib.SMTPRecipientsRefused as e:
        assert e.recipients["nobody-here@test.example"][0] == 550, e.recipients
    assert c.has_extn("size") and c.has_extn("8bitmime") and c.has_extn("smtputf8")
`
		h.caller(t, "", nil, python, "-c", script, host, port)
		has(t, h.receives(t, "alice", "by smtplib"), "Content-Transfer-Encoding: 8bit\n", "gr\u00fc\u00dfe\n.\n..x\n")
		h.receives(t, "bob", "by smtplib")
	})
	h.stop()
}

// TestRealClientsBySendmail lets programs of others call our sendmail.
func TestRealClientsBySendmail(t *testing.T) {
	h := newHouse(t)
	h.start()
	sendmail := h.program("sendmail")
	t.Run("mutt", func(t *testing.T) {
		mutt := tool(t, "mutt", "mutt")
		h.caller(t, "gr\u00fc\u00dfe\n.\nby mutt\n", nil, mutt, "-n", "-F", "/dev/null", "-e", "set sendmail=\""+sendmail+" -oem -oi\" from=carol@test.example realname=Carol use_envelope_from=yes copy=no",
			"-s", "by mutt", "-b", "bob@test.example", "--", "alice@test.example")
		m := h.receives(t, "alice", "by mutt")
		has(t, m, "Return-Path: <carol@test.example>\n", "From: Carol <carol@test.example>\n", "To: alice@test.example\n", ".\nby mutt\n")
		if strings.Contains(m, "bob@") {
			t.Errorf("the blind copy is named: %s", m)
		}
		h.receives(t, "bob", "by mutt")
	})
	t.Run("s-nail", func(t *testing.T) {
		nail := tool(t, "s-nail", "s-nail")
		h.caller(t, "by s-nail\n.\nand more\n", nil, nail, "-:/", "-S", "mta="+sendmail, "-S", "sendwait", "-S", "v15-compat", "-S", "from=carol@test.example", "-r", "carol@test.example",
			"-s", "by s-nail", "-c", "bob@test.example", "alice@test.example")
		has(t, h.receives(t, "alice", "Subject: by s-nail"), "Return-Path: <carol@test.example>\n", "Cc: bob@test.example\n", "by s-nail\n.\nand more\n")
		h.receives(t, "bob", "Subject: by s-nail")
	})
	t.Run("git send-email", func(t *testing.T) {
		git := tool(t, "git", "git")
		if exec.Command(git, "send-email", "--dump-aliases").Run() != nil || exec.Command("perl", "-MMail::Address", "-e1").Run() != nil {
			t.Skip("no git send-email (packages git-email and libmailtools-perl)")
		}
		patch := filepath.Join(filepath.Dir(h.home), "0001-x.patch")
		text := "From 0123456789abcdef0123456789abcdef01234567 Mon Sep 17 00:00:00 2001\nFrom: Carol <carol@test.example>\nDate: Mon, 2 Jan 2026 10:00:00 +0000\n" +
			"Subject: [PATCH] by git\n\nSigned-off-by: Bob <bob@test.example>\n---\n x | 1 +\n\ndiff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -0,0 +1 @@\n+x\n-- \n2.0\n"
		if err := os.WriteFile(patch, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		h.caller(t, "", []string{"GIT_CONFIG_NOSYSTEM=1", "EMAIL=carol@test.example"}, git, "-c", "sendemail.smtpserver="+sendmail, "send-email", "--quiet", "--confirm=never",
			"--from", "Carol <carol@test.example>", "--envelope-sender", "carol@test.example", "--to", "alice@test.example", patch)
		has(t, h.receives(t, "alice", "[PATCH] by git"), "Return-Path: <carol@test.example>\n", "X-Mailer: git-send-email ", "From: Carol <carol@test.example>\n", "+x\n-- \n")
		h.receives(t, "bob", "[PATCH] by git")
	})
	// PHP gives a shell the line of sendmail_path and what mail() adds, and the message on its input.
	t.Run("PHP", func(t *testing.T) {
		h.caller(t, "To: alice@test.example\nSubject: by PHP\nX-PHP-Originating-Script: 33:a.php\nFrom: shop@test.example\nCc: bob@test.example\n\nline\n.\nline\n", nil,
			"/bin/sh", "-c", sendmail+" -t -i -f'bounces@test.example'")
		has(t, h.receives(t, "alice", "by PHP"), "Return-Path: <bounces@test.example>\n", "From: shop@test.example\n", "Date: ", "Message-ID: <", "line\n.\nline\n")
		h.receives(t, "bob", "by PHP")
	})
	t.Run("PHP, with CRLF and UTF-8", func(t *testing.T) {
		h.caller(t, "To: alice@test.example\r\nSubject: PHP und Gr\u00fc\u00dfe\r\nFrom: shop@test.example\r\n\r\nzwei\r\nZeilen\r\n", nil, "/bin/sh", "-c", sendmail+" -t -i")
		m := h.receives(t, "alice", "PHP und Gr\u00fc\u00dfe")
		has(t, m, "Subject: PHP und Gr\u00fc\u00dfe\n")
		if !strings.HasSuffix(strings.ReplaceAll(m, "\r", ""), "\n\nzwei\nZeilen\n") {
			t.Errorf("%q", m)
		}
	})
	// cron has next to no environment. Its daemon knows SHELL, PATH and LOGNAME, but others have less.
	t.Run("cron", func(t *testing.T) {
		for i, vars := range [][]string{{"SHELL=/bin/sh", "PATH=/usr/bin:/bin", "LOGNAME=carol"}, {"PATH=/usr/bin:/bin"}, nil} {
			cmd := h.command("sendmail", "-FCronDaemon", "-i", "-B8BITMIME", "-oem", "alice@test.example")
			cmd.Env = append([]string{"QMAILHOME=" + h.home}, vars...)
			subject := fmt.Sprintf("Cron <carol@mx> %d", i)
			cmd.Stdin = strings.NewReader("From: root@test.example (Cron Daemon)\nTo: alice@test.example\nSubject: " + subject + "\n\nout\n")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%q: %v\n%s", vars, err, out)
			}
			has(t, h.receives(t, "alice", subject), "From: root@test.example (Cron Daemon)\n", "out\n")
		}
	})
	h.stop()
}

// TestNoEnvironmentAtAll: a caller without a single variable finds the home where it always was.
func TestNoEnvironmentAtAll(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can put a home where it always was")
	}
	unshare, setpriv := tool(t, "unshare", "util-linux"), tool(t, "setpriv", "util-linux")
	h := newHouse(t)
	h.start()
	sendmail := h.program("sendmail")
	// Nobody but this shell and its children sees that /var.
	script := fmt.Sprintf(`mount -t tmpfs tmpfs /var && mkdir -m 755 /var/qmail && mount --bind "$1" /var/qmail || exit 77
exec env -i %s --reuid %d --regid %d --clear-groups "$2" -t -i`, setpriv, nobody, nobody)
	cmd := exec.Command(unshare, "--mount", "--propagation", "private", "/bin/sh", "-c", script, "sh", h.home, sendmail)
	cmd.Stdin = strings.NewReader("To: alice@test.example\nSubject: from nowhere\n\nhello\n")
	out, err := cmd.CombinedOutput()
	if code := cmd.ProcessState.ExitCode(); err != nil && (code == 77 || bytes.Contains(out, []byte("unshare failed"))) {
		t.Skipf("this root may not have a mount namespace: %s", out)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	has(t, h.receives(t, "alice", "from nowhere"), "From: anonymous@test.example\n", "To: alice@test.example\n")
	h.stop()
}

// TestUnderSystemd: systemd's own program gives each connection to a server, as a socket unit with Accept=yes does: as
// descriptors 0 and 1 (StandardInput=socket), and as descriptor 3.
func TestUnderSystemd(t *testing.T) {
	activate := tool(t, "systemd-socket-activate", "systemd")
	for _, tt := range []struct {
		name  string
		flags []string
	}{
		{"as standard input", []string{"--inetd"}},
		{"as descriptor 3", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHouse(t)
			h.start()
			address := freeAddress(t)
			args := append(tt.flags, "--accept", "--listen="+address, "--setenv=QMAILHOME="+h.home, h.program("qmail-smtpd"))
			cmd := exec.Command(activate, args...)
			cmd.Env = []string{"PATH=/usr/bin:/bin"}
			if os.Geteuid() == 0 {
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
			var c *client
			h.until("systemd listens", func() bool {
				var err error
				c, err = dial(address)
				return err == nil
			})
			defer c.Close()
			if code, _, err := c.send("s@far.example", "alice@test.example", "Subject: by systemd\r\n\r\nhello\r\n"); code != 250 {
				t.Fatal(code, err)
			}
			if code, err := c.say("QUIT\r\n"); code != 221 {
				t.Error(code, err)
			}
			has(t, h.receives(t, "alice", "by systemd"), "Received: from unknown (HELO client.example) (127.0.0.1)\n")
			h.stop()
		})
	}
}
