package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

const (
	postfixMaster = "/usr/lib/postfix/sbin/master"
	postfixSCRAM  = "/usr/lib/x86_64-linux-gnu/sasl2/libscram.so"
)

// A Postfix whose smarthost we are logs in with each of the mechanisms, by STARTTLS on port 587.
func TestPostfixLogsIn(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a Postfix of our own has to be started by root")
	}
	for _, file := range []string{postfixMaster, postfixSCRAM} {
		if _, err := os.Stat(file); err != nil {
			t.Skipf("%s is not installed", file)
		}
	}
	o := newOffice(t, nil, login)
	o.start()
	defer o.stop()
	for _, mechanism := range []string{"PLAIN", "LOGIN", "SCRAM-SHA-256", "SCRAM-SHA-1"} {
		t.Run(mechanism, func(t *testing.T) {
			address := startPostfix(t, o.submission, mechanism)
			var c *client
			o.until("Postfix answers", func() bool {
				var err error
				c, err = dial(address)
				return err == nil
			})
			defer c.Close()
			if code, _, err := c.send(login, "bob@test.example", "Subject: by "+mechanism+"\r\n\r\nhi\r\n"); code != 250 || err != nil {
				t.Fatal(code, err)
			}
			o.until("the message is there", func() bool {
				for _, m := range o.mail("bob") {
					if strings.Contains(m, "\nSubject: by "+mechanism+"\n") && strings.Contains(m, " with ESMTPSA ") {
						return true
					}
				}
				return false
			})
			if !strings.Contains(o.read(), "login service=submission ip=127.0.0.1 mechanism="+mechanism+" ") {
				t.Errorf("it logged in otherwise:\n%s", o.tail())
			}
		})
	}
}

// startPostfix runs an instance in a directory of its own that sends everything to a smarthost, and returns its address.
func startPostfix(t *testing.T, smarthost, mechanism string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "qmail-postfix-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	address := freeAddress(t)
	host, port, _ := net.SplitHostPort(smarthost)
	path := func(name string) string { return filepath.Join(dir, name) }
	main := fmt.Sprintf(`compatibility_level = 3.6
queue_directory = %[1]s/queue
data_directory = %[1]s/data
maillog_file = %[1]s/log
maillog_file_prefixes = %[1]s
myhostname = postfix.example
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
mydestination =
local_recipient_maps =
alias_maps =
relayhost = [%[2]s]:%[3]s
disable_dns_lookups = yes
smtpd_relay_restrictions = permit_mynetworks, reject
smtp_tls_security_level = encrypt
smtp_sasl_auth_enable = yes
smtp_sasl_security_options = noanonymous
smtp_sasl_mechanism_filter = %[4]s
smtp_sasl_password_maps = texthash:%[1]s/conf/secrets
biff = no
`, dir, host, port, strings.ToLower(mechanism))
	services := address + ` inet n - n - 5 smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
smtp unix - - n - - smtp
error unix - - n - - error
tlsmgr unix - - n 1000? 1 tlsmgr
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
`
	err = errors.Join(os.Chmod(dir, 0o755), os.Mkdir(path("conf"), 0o755), os.Mkdir(path("queue"), 0o755),
		os.WriteFile(path("conf/main.cf"), []byte(main), 0o644), os.WriteFile(path("conf/master.cf"), []byte(services), 0o644),
		os.WriteFile(path("conf/secrets"), []byte("["+host+"]:"+port+" "+login+":"+secret+"\n"), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	for _, argv := range [][]string{{"install", "-d", "-o", "postfix", path("data")}, {"postfix", "-c", path("conf"), "check"}} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", argv, err, out)
		}
	}
	cmd := exec.Command(postfixMaster, "-c", path("conf"), "-s")
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "MAIL_CONFIG=" + path("conf")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if b, err := os.ReadFile(path("log")); err == nil && t.Failed() {
			t.Logf("%s", b)
		}
	})
	return address
}
