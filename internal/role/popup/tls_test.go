package popup

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"qmail/internal/proto/keyd"
	"qmail/internal/store/keys"
	"qmail/internal/system/env"
	"qmail/internal/system/ipc"
)

// secure gives the listener a keeper of keys, and a door that begins with TLS, whose address it returns.
func (s *site) secure(t testing.TB) string {
	t.Helper()
	text, err := keys.SelfSigned("mx.test.example", time.Now(), 24*time.Hour)
	must(t, err)
	must(t, os.MkdirAll(keys.Dir(s.dir), 0o700))
	must(t, os.WriteFile(filepath.Join(keys.Dir(s.dir), "mx.pem"), text, 0o600))
	pairs, _, err := keys.Load(s.dir)
	must(t, err)
	id, err := keyd.IDOf(pairs[0].Key.Public())
	must(t, err)
	server := &keyd.Server{}
	server.Replace([]keyd.Key{{ID: id, Use: keyd.TLS, Signer: pairs[0].Key, Chain: pairs[0].Chain}})
	ours, theirs, err := ipc.LocalPair()
	must(t, err)
	go server.Serve(context.Background(), theirs, "popup", keyd.Rights{Uses: "t", Rate: 1000})
	t.Cleanup(func() { theirs.Close() })
	s.orders <- env.Order{Kind: env.Link, Name: keyd.Role, Link: ours}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	s.orders <- env.Order{Kind: env.Listen, Name: "pop3s", Listener: ln}
	return ln.Addr().String()
}

// session is a client in lockstep.
type session struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
}

func open(t *testing.T, address string, config *tls.Config) *session {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	must(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	s := &session{t: t, conn: conn, in: bufio.NewReader(conn)}
	if config != nil {
		s.handshake(config)
	}
	s.line("+OK <")
	return s
}

func (s *session) handshake(config *tls.Config) {
	s.t.Helper()
	c := tls.Client(s.conn, config)
	must(s.t, c.Handshake())
	s.conn, s.in = c, bufio.NewReader(c)
}

func (s *session) line(want string) {
	s.t.Helper()
	line, err := s.in.ReadString('\n')
	if err != nil || !strings.HasPrefix(line, want) {
		s.t.Fatalf("%q %v, wanted %s", line, err, want)
	}
}

func (s *session) say(text, want string) {
	s.t.Helper()
	_, err := io.WriteString(s.conn, text+"\r\n")
	must(s.t, err)
	s.line(want)
}

func (s *session) login() {
	s.t.Helper()
	s.say("USER alice", "+OK")
	s.say("PASS "+password, "+OK")
}

func (s *session) list(text string) string {
	s.t.Helper()
	var lines strings.Builder
	s.say(text, "+OK")
	for {
		line, err := s.in.ReadString('\n')
		must(s.t, err)
		if line == ".\r\n" {
			return lines.String()
		}
		lines.WriteString(line)
	}
}

func anyServer() *tls.Config { return &tls.Config{InsecureSkipVerify: true} }

func TestMailIsFetchedThroughTLS(t *testing.T) {
	large := "Subject: large\n\n" + strings.Repeat(strings.Repeat("x", 70)+"\n", 20000)
	s := newSite(t, "Subject: one\n\none\n", large)
	address := s.secure(t)
	for name, begin := range map[string]func() *session{
		"pop3s": func() *session { return open(t, address, anyServer()) },
		"STLS": func() *session {
			c := open(t, s.address, nil)
			if !strings.Contains(c.list("CAPA"), "STLS\r\n") {
				t.Error("STLS is not offered")
			}
			c.say("USER mallory", "+OK")
			c.say("STLS", "+OK begin TLS")
			c.handshake(anyServer())
			c.say("PASS x", "-ERR USER first") // what was said before is forgotten
			if strings.Contains(c.list("CAPA"), "STLS") {
				t.Error("STLS is offered inside TLS")
			}
			return c
		},
	} {
		c := begin()
		c.login()
		c.say("STAT", "+OK 2 ")
		if got := c.list("RETR 2"); strings.ReplaceAll(got, "\r\n", "\n") != large {
			t.Errorf("%s: %d bytes of %d came", name, len(got), len(large))
		}
		c.say("QUIT", "+OK")
		if _, err := c.in.ReadByte(); err != io.EOF { // a close_notify, not a cut
			t.Errorf("%s: the end is %v", name, err)
		}
	}
}

func TestWhoIsNotLetInHearsItThroughTLS(t *testing.T) {
	s := newSite(t)
	c := open(t, s.secure(t), anyServer())
	c.say("USER alice", "+OK")
	c.say("PASS wrong", "-ERR authorization failed")
	if _, err := c.in.ReadByte(); err != io.EOF {
		t.Errorf("the end is %v", err)
	}
}

func TestAClientThatGoesAwayEndsItsSession(t *testing.T) {
	s := newSite(t, "Subject: one\n\none\n")
	c := open(t, s.secure(t), anyServer())
	c.login()
	c.conn.Close()
	s.stop(t) // within the grace of sessions, or it fails
}

// TestWhatIsInjectedBeforeTLSIsNotExecuted: what follows STLS in the same segment is no part of what comes inside.
func TestWhatIsInjectedBeforeTLSIsNotExecuted(t *testing.T) {
	s := newSite(t)
	must(t, os.WriteFile(filepath.Join(s.dir, "control/timeouttls"), []byte("1\n"), 0o644))
	s.orders <- env.Order{Kind: env.Reload}
	s.secure(t)
	for _, injected := range []string{"NOOP\r\n", "USER mallory\r\nPASS x\r\n", "\n", "\x16\x03\x01"} {
		c := open(t, s.address, nil)
		c.say("STLS\r\n"+strings.TrimSuffix(injected, "\r\n"), "+OK begin TLS")
		if err := tls.Client(c.conn, anyServer()).Handshake(); err == nil {
			t.Errorf("after %q there is TLS", injected)
		}
	}
}

func TestClientsOverPOP3S(t *testing.T) {
	for name, setUp := range map[string]func(dir, host, port string) (rc string, argv []string){
		"fetchmail": func(dir, host, port string) (string, []string) {
			return fmt.Sprintf("poll %s service %s protocol pop3 user alice password \"%s\" mda \"cat >%s/got/new/$$.fetchmail\" ssl no sslcertck fetchall\n",
				host, port, password, dir), []string{"fetchmail", "-f", dir + "/rc", "--nodetach", "--nosyslog", "--pidfile", dir + "/pid"}
		},
		"getmail": func(dir, host, port string) (string, []string) {
			return fmt.Sprintf("[retriever]\ntype = SimplePOP3SSLRetriever\nserver = %s\nport = %s\nusername = alice\npassword = %s\n\n"+
					"[destination]\ntype = Maildir\npath = %s/got/\n\n[options]\ndelete = true\n", host, port, password, dir),
				[]string{"getmail", "--getmaildir", dir, "--rcfile", dir + "/rc"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := exec.LookPath(name); err != nil {
				t.Skipf("%s is not installed", name)
			}
			s := newSite(t, letters()...)
			host, port, err := net.SplitHostPort(s.secure(t))
			must(t, err)
			dir := filepath.Join(s.dir, "client")
			for _, d := range []string{dir, dir + "/got", dir + "/got/new", dir + "/got/cur", dir + "/got/tmp"} {
				must(t, os.Mkdir(d, 0o700))
			}
			rc, argv := setUp(dir, host, port)
			must(t, os.WriteFile(filepath.Join(dir, "rc"), []byte(rc), 0o600))
			if os.Getuid() == 0 {
				for _, path := range append(tree(t, dir), dir) {
					must(t, os.Lchown(path, reader, reader))
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if out, err := as(reader, exec.CommandContext(ctx, argv[0], argv[1:]...), dir).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			got, err := os.ReadDir(filepath.Join(dir, "got/new"))
			must(t, err)
			if len(got) != len(letters()) {
				t.Errorf("%d messages of %d came", len(got), len(letters()))
			}
		})
	}
}
