package main

import (
	"bufio"
	"bytes"
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

	"qmail/internal/format/netstring"
	"qmail/internal/proto/enqueue"
)

// tool is a program that a test wants; without it the test is skipped, by the name of its package.
func tool(t *testing.T, name, pkg string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if path = "/usr/sbin/" + name; exec.Command(path).Err != nil {
			t.Skipf("no %s (package %s)", name, pkg)
		}
		if _, err := os.Stat(path); err != nil {
			t.Skipf("no %s (package %s)", name, pkg)
		}
	}
	return path
}

// program gives a copy of this binary, which others may run, another name.
func (h *house) program(name string) string {
	h.t.Helper()
	dir := filepath.Dir(h.home)
	shared, path := filepath.Join(dir, "qmail"), filepath.Join(dir, name)
	if _, err := os.Stat(shared); err != nil {
		b, err := os.ReadFile("/proc/self/exe")
		if err == nil {
			err = os.WriteFile(shared, b, 0o755)
		}
		if err != nil {
			h.t.Fatal(err)
		}
	}
	if err := os.Symlink("qmail", path); err != nil {
		h.t.Fatal(err)
	}
	return path
}

// tcpserver runs a program for each connection to the address that it returns. rules are lines for tcprules.
func (h *house) tcpserver(rules string, program ...string) string {
	t := h.t
	t.Helper()
	server, maker := tool(t, "tcpserver", "ucspi-tcp"), tool(t, "tcprules", "ucspi-tcp")
	cdb := filepath.Join(filepath.Dir(h.home), "rules.cdb")
	make := exec.Command(maker, cdb, cdb+".tmp")
	make.Stdin = strings.NewReader(rules)
	if out, err := make.CombinedOutput(); err != nil {
		t.Fatalf("tcprules: %v\n%s", err, out)
	}
	args := append([]string{"-1", "-R", "-H", "-l", "mx.test.example", "-x", cdb, "127.0.0.1", "0"}, program...)
	cmd := exec.Command(server, args...)
	cmd.Env = []string{"QMAILHOME=" + h.home, "PATH=/usr/bin:/bin"}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	log, err := os.OpenFile(h.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stderr = log
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	port, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return "127.0.0.1:" + strings.TrimSpace(port)
}

// dialFrom connects from an address of the loopback.
func dialFrom(t *testing.T, ip, address string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}, Timeout: soon}
	conn, err := d.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(soon))
	return conn
}

// smtpFrom plays a whole SMTP session in lockstep and returns the codes of the replies.
func smtpFrom(t *testing.T, ip, address string, lines ...string) string {
	t.Helper()
	conn := dialFrom(t, ip, address)
	return smtpOver(conn, lines...)
}

func smtpOver(conn net.Conn, lines ...string) string {
	c := &client{conn, bufio.NewReader(conn)}
	var codes []string
	for _, line := range append([]string{""}, lines...) {
		code, err := c.say(line)
		if err != nil {
			codes = append(codes, "end")
			break
		}
		codes = append(codes, fmt.Sprint(code))
	}
	return strings.Join(codes, " ")
}

const mailFrom, rcptAlice, rcptNobody, rcptFar = "MAIL FROM:<s@far.example>\r\n", "RCPT TO:<alice@test.example>\r\n", "RCPT TO:<nobody-here@test.example>\r\n", "RCPT TO:<x@far.example>\r\n"

// TestUnderTcpserver: the rules of tcpserver decide what a client may do, whether qmail-send runs or not.
func TestUnderTcpserver(t *testing.T) {
	for _, running := range []bool{false, true} {
		t.Run(fmt.Sprintf("qmail-send runs: %v", running), func(t *testing.T) {
			h := newHouse(t)
			h.write("control/relayclients", "")
			if running {
				h.start()
			}
			script := filepath.Join(filepath.Dir(h.home), "refuse")
			text := "#!/bin/sh\ncat >/dev/null\nprintf 'Dno such luck (#5.7.1)' >&6\nexit 82\n"
			if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
				t.Fatal(err)
			}
			rules := "127.0.0.2:allow,RELAYCLIENT=\"\"\n127.0.0.3:allow,DATABYTES=\"20\"\n127.0.0.4:allow,RBLSMTPD=\"-go away\"\n" +
				"127.0.0.5:allow,QMAILQUEUE=\"" + script + "\"\n127.0.0.6:deny\n:allow\n"
			address := h.tcpserver(rules, tool(t, "rblsmtpd", "ucspi-tcp"), h.program("qmail-smtpd"))
			unknown := "250" // found out about later, if nobody can be asked
			if running {
				unknown = "550"
			}
			hello, text := "EHLO c.example\r\n", "Subject: x\r\n\r\nthis is more than twenty bytes\r\n.\r\n"
			tests := []struct {
				name, ip string
				lines    []string
				want     string
			}{
				{"an ordinary client", "127.0.0.9", []string{hello, mailFrom, rcptFar, rcptNobody, rcptAlice, "DATA\r\n", text, "QUIT\r\n"}, "220 250 250 553 " + unknown + " 250 354 250 221"},
				{"RELAYCLIENT", "127.0.0.2", []string{hello, mailFrom, rcptFar}, "220 250 250 250"},
				{"DATABYTES", "127.0.0.3", []string{hello, mailFrom, rcptAlice, "DATA\r\n", text}, "220 250 250 250 354 552"},
				{"RBLSMTPD", "127.0.0.4", []string{"EHLO c.example\r\n", mailFrom, rcptAlice}, "220 250 250 553"},
				{"QMAILQUEUE", "127.0.0.5", []string{hello, mailFrom, rcptAlice, "DATA\r\n", text}, "220 250 250 250 354 554"},
				{"deny", "127.0.0.6", nil, "end"},
			}
			for _, tt := range tests {
				if got := smtpFrom(t, tt.ip, address, tt.lines...); got != tt.want {
					t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
				}
			}
			dropped, err := enqueue.ListDropped(h.home)
			if err != nil {
				t.Fatal(err)
			}
			if running {
				h.until("alice has her mail", func() bool { return h.have("alice", "ESMTP") == 1 })
				if m := h.mail("alice")[0]; !strings.Contains(m, "\nReceived: from unknown (HELO c.example) (127.0.0.9)\n  by mx.test.example with ESMTP; ") {
					t.Errorf("trace: %.500s", m)
				}
			} else if len(dropped) != 1 {
				t.Errorf("%d messages wait for qmail-send", len(dropped))
			}
		})
	}
}

// pack makes a QMTP package.
func pack(message, sender string, recipients ...string) []byte {
	var list []byte
	for _, r := range recipients {
		list = netstring.Append(list, r)
	}
	return netstring.Append(netstring.Append(netstring.Append(nil, message), sender), list)
}

// answers reads netstrings until the other side has said n, or nothing more.
func answers(t *testing.T, conn net.Conn, n int) (list []string) {
	t.Helper()
	r := bufio.NewReader(conn)
	for len(list) < n {
		var length int
		if _, err := fmt.Fscanf(r, "%d:", &length); err != nil {
			return list
		}
		b := make([]byte, length+1)
		if _, err := io.ReadFull(r, b); err != nil || b[length] != ',' {
			t.Fatalf("%q, %v", b, err)
		}
		list = append(list, string(b[:length]))
	}
	return list
}

// begin cuts answers down to what they begin with.
func begin(list []string) string {
	var out []string
	for _, s := range list {
		word, _, _ := strings.Cut(s, " ")
		if i := strings.Index(s, "(#"); i >= 0 {
			word = s[:1] + s[i:]
		}
		out = append(out, word)
	}
	return strings.Join(out, " ")
}

// have counts a user's messages that came by a protocol.
func (h *house) have(user, with string) (n int) {
	for _, m := range h.mail(user) {
		if strings.Contains(m, " with "+with+"; ") && !strings.Contains(m, "Delivered-To: postmaster") {
			n++
		}
	}
	return n
}

// TestQMTPAndQMQPUnderTcpserver is the same for the other two.
func TestQMTPAndQMQPUnderTcpserver(t *testing.T) {
	h := newHouse(t)
	h.write("control/relayclients", "")
	h.start()
	rules := "127.0.0.2:allow,RELAYCLIENT=\"\"\n127.0.0.3:allow,DATABYTES=\"10\"\n:allow\n"
	address := h.tcpserver(rules, h.program("qmail-qmtpd"))
	list := []string{"alice@test.example", "nobody-here@test.example", "x@far.example"}
	for _, tt := range []struct{ name, ip, want string }{
		{"an ordinary client", "127.0.0.9", "Kok D(#5.1.1) D(#5.7.1)"},
		{"RELAYCLIENT", "127.0.0.2", "Kok D(#5.1.1) Kok"},
		{"DATABYTES", "127.0.0.3", "D(#5.3.4) D(#5.3.4) D(#5.7.1)"},
	} {
		conn := dialFrom(t, tt.ip, address)
		conn.Write(pack("\nSubject: "+tt.name+"\n\nhello\n", "s@far.example", list...))
		if got := begin(answers(t, conn, 3)); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
		conn.Close()
	}
	h.until("alice has her mail", func() bool { return h.have("alice", "QMTP") == 2 })

	address = h.tcpserver(":allow\n", h.program("qmail-qmqpd"))
	request := netstring.Append(nil, append(netstring.Append(netstring.Append(nil, "Subject: x\n\nhello\n"), "s@far.example"), netstring.Append(nil, "alice@test.example")...))
	for _, tt := range []struct{ clients, want string }{{"", "Kok"}, {"127.0.0.0/8\n", "Kok"}, {"192.0.2.0/24\n", ""}} {
		if tt.clients != "" {
			h.write("control/qmqpclients", tt.clients)
		}
		conn := dialFrom(t, "127.0.0.9", address)
		conn.Write(request)
		if got := begin(answers(t, conn, 1)); got != tt.want {
			t.Errorf("with qmqpclients %q: %s, want %s", tt.clients, got, tt.want)
		}
		if n, err := conn.Read(make([]byte, 1)); n > 0 || err == nil {
			t.Error("the connection stays open")
		}
	}
	h.until("alice has her mail", func() bool { return h.have("alice", "QMQP") == 2 })
}

// TestSocketActivation: inetd gives the connection as descriptors 0, 1 and 2; systemd with Accept=yes gives it as
// descriptor 3, or as 0 and 1 with StandardInput=socket.
func TestSocketActivation(t *testing.T) {
	tests := []struct {
		name   string
		inetd  bool
		script string
	}{
		{"inetd", true, `exec "$0"`},
		{"systemd", false, `export LISTEN_FDS=1 LISTEN_PID=$$; exec "$0" </dev/null >/dev/null`},
		{"systemd, with the socket as standard input", true, `export LISTEN_FDS=1 LISTEN_PID=$$; exec "$0" 3<&0`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHouse(t)
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			conn := dialFrom(t, "127.0.0.9", ln.Addr().String())
			theirs, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			file, err := theirs.(*net.TCPConn).File()
			theirs.Close()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("/bin/sh", "-c", tt.script, h.program("qmail-smtpd"))
			cmd.Env = []string{"QMAILHOME=" + h.home}
			if os.Geteuid() == 0 {
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
			}
			if tt.inetd {
				cmd.Stdin, cmd.Stdout, cmd.Stderr = file, file, file
			} else {
				cmd.ExtraFiles = []*os.File{file}
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			file.Close()
			got := smtpOver(conn, "EHLO c.example\r\n", mailFrom, rcptFar, rcptAlice, "DATA\r\n", "hello\r\n.\r\n", "QUIT\r\n")
			if want := "220 250 250 250 250 354 250 221"; got != want { // 127.0.0.0/8 may relay: the kernel knows who it is
				t.Errorf("%s, want %s", got, want)
			}
			conn.Close()
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
			dropped, err := enqueue.ListDropped(h.home)
			if err != nil || len(dropped) != 1 {
				t.Fatalf("%q, %v", dropped, err)
			}
			if b, err := os.ReadFile(dropped[0]); err != nil || !bytes.Contains(b, []byte("Received: from unknown (HELO c.example) (127.0.0.9)\n  by 127.0.0.1 with ESMTP; ")) {
				t.Errorf("%q, %v", b, err)
			}
		})
	}
}

// TestQMTPAndQMQP are the long-lived servers, from socket to mailbox.
func TestQMTPAndQMQP(t *testing.T) {
	h := newHouse(t)
	qmtp, qmqp := freeAddress(t), freeAddress(t)
	h.write("control/listen", "smtp "+h.address+"\nqmtp "+qmtp+"\nqmqp "+qmqp+"\n")
	h.write("control/relayclients", "127.0.0.2\n")
	h.start()

	conn := dialFrom(t, "127.0.0.9", qmtp)
	const n = 40
	var all []byte
	for i := range n {
		all = append(all, pack(fmt.Sprintf("\nSubject: %d\n\nhello\n", i), "s@far.example", "alice@test.example", "nobody-here@test.example")...)
	}
	all = append(all, pack("\r"+strings.Repeat(strings.Repeat("x", 98)+"\r\n", 10000), "s@far.example", "x@far.example", "bob@test.example")...)
	go conn.Write(all)
	got := answers(t, conn, 2*n+2)
	if len(got) != 2*n+2 || strings.Count(begin(got), "Kok") != n+1 || strings.Count(begin(got), "D(#5.1.1)") != n || !strings.HasSuffix(begin(got), " D(#5.7.1) Kok") {
		t.Errorf("%d answers: %s", len(got), begin(got))
	}
	h.until("alice and bob have their mail", func() bool { return len(h.mail("alice")) == n && len(h.mail("bob")) == 1 })
	if m := h.mail("bob")[0]; !strings.Contains(m, " with QMTP; ") || strings.Contains(m, "\r") || len(m) < 990000 {
		t.Errorf("%d bytes, %.600s", len(m), m)
	}

	request := netstring.Append(nil, append(netstring.Append(netstring.Append(nil, "Subject: x\n\nhello\n"), "s@far.example"), netstring.Append(nil, "bob@test.example")...))
	stranger := dialFrom(t, "127.0.0.9", qmqp)
	stranger.Write(request)
	if got := answers(t, stranger, 1); len(got) > 0 {
		t.Errorf("a client that is not listed was told %q", got)
	}
	h.logged("qmail-qmqpd: refused 127.0.0.9: \"\": not a client of ours\n")
	h.write("control/qmqpclients", "127.0.0.0/8\n")
	_ = h.cmd.Process.Signal(syscall.SIGHUP)
	h.until("a client that is listed is served", func() bool {
		friend := dialFrom(t, "127.0.0.9", qmqp)
		friend.Write(request)
		return begin(answers(t, friend, 1)) == "Kok"
	})
	h.until("bob has his mail", func() bool { return len(h.mail("bob")) >= 2 })

	t.Run("qmqp-source", func(t *testing.T) {
		source := tool(t, "qmqp-source", "postfix")
		before := len(h.mail("bob"))
		cmd := exec.Command(source, "-s", "4", "-m", "20", "-l", "5000", "-f", "s@far.example", "-t", "bob@test.example", "inet:"+qmqp)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		h.until("all of it is there", func() bool { return len(h.mail("bob")) == before+20 })
	})
	h.stop()
}

// TestMailTravelsByQMTP: from one home to another by control/qmtproutes, many messages over few connections, with a
// bounce for whom nobody knows there.
func TestMailTravelsByQMTP(t *testing.T) {
	far := newHouse(t)
	qmtp := freeAddress(t)
	far.write("control/listen", "smtp "+far.address+"\nqmtp "+qmtp+"\n")
	far.write("control/locals", "far.example\n")
	far.write("control/rcpthosts", "far.example\n")
	far.write("control/relayclients", "")
	far.start()
	near := newHouse(t)
	near.write("control/qmtproutes", "far.example:"+qmtp+"\n")
	near.start()

	c, err := dial(near.address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const n = 30
	for i := range n {
		if code, _, err := c.send("alice@test.example", "bob@far.example", fmt.Sprintf("Subject: %d\r\n\r\nhello\r\n", i)); code != 250 {
			t.Fatal(code, err)
		}
	}
	large := strings.Repeat(strings.Repeat("x", 98)+"\r\n", 20000)
	if code, _, err := c.send("alice@test.example", "bob@far.example", large); code != 250 {
		t.Fatal(code, err)
	}
	if code, _, err := c.send("alice@test.example", "nobody-here@far.example", "hello\r\n"); code != 250 {
		t.Fatal(code, err)
	}
	far.until("bob has all of it", func() bool { return far.have("bob", "QMTP") == n+1 })
	near.until("alice has the bounce", func() bool {
		return strings.Contains(strings.Join(near.mail("alice"), ""), "127.0.0.1 does not like recipient.\nRemote host said: Sorry, no mailbox here by that name")
	})
	near.logged("success: 127.0.0.1_accepted_message./Remote_host_said:_ok_")
	for _, m := range far.mail("bob") {
		if strings.Contains(m, "\r") || len(m) > 100_000 && !strings.HasSuffix(m, strings.ReplaceAll(large, "\r", "")) {
			t.Errorf("%d bytes that are not what was sent", len(m))
		}
	}
	near.stop()
	far.stop()
}

// TestRecipientsWithoutADomain get that of envnoathost, here our own, whichever way they come.
func TestRecipientsWithoutADomain(t *testing.T) {
	h := newHouse(t)
	qmtp := freeAddress(t)
	h.write("control/listen", "smtp "+h.address+"\nqmtp "+qmtp+"\n")
	h.write("control/relayclients", "")
	h.write("control/percenthack", "test.example\n")
	h.start()
	conn := dialFrom(t, "127.0.0.9", qmtp)
	conn.Write(pack("\nhello\n", "s@far.example", "bob", "nobody-here", "x%far.example"))
	if got := begin(answers(t, conn, 3)); got != "Kok D(#5.1.1) D(#5.7.1)" {
		t.Errorf("%s", got)
	}
	h.until("bob has his mail", func() bool { return h.have("bob", "QMTP") == 1 })
	h.stop()
}

// TestQMQPClientAndPostfix: our null client hands its mail to Postfix's qmqp-sink. The port is a privileged one.
func TestQMQPClientAndPostfix(t *testing.T) {
	sink := tool(t, "qmqp-sink", "postfix")
	const address = "127.9.28.91"
	ln, err := net.Listen("tcp", address+":628")
	if err != nil {
		t.Skip(err)
	}
	ln.Close()
	h := newHouse(t)
	h.write("control/qmqpservers", address+"\n")
	cmd := exec.Command(sink, "-c", "inet:"+address+":628", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	h.until("the sink listens", func() bool { // it does not like to be asked
		b, err := os.ReadFile("/proc/net/tcp")
		return err == nil && strings.Contains(string(b), ": 5B1C097F:0274 00000000:0000 0A ")
	})
	for _, size := range []int{0, 10, 1_000_000} {
		client := h.command("qmail-qmqpc")
		message, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer message.Close()
		fmt.Fprintf(message, "Subject: x\n\n%s\n", strings.Repeat("x", size))
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, "Fs@test.example\x00Tu@far.example\x00Tv@far.example\x00\x00")
		w.Close()
		message.Seek(0, io.SeekStart)
		client.Stdin, client.Stdout = message, r
		err = client.Run()
		r.Close()
		if err != nil {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}
