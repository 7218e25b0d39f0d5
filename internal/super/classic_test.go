package super

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// output is a file that a supervisor, whoever it runs as, has as its standard output.
func (h *house) output() string {
	h.t.Helper()
	path := filepath.Join(h.t.TempDir(), "stdout")
	f, err := os.Create(path)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { f.Close() })
	h.stdout = f
	return path
}

func (h *house) says(path, text string) {
	h.t.Helper()
	h.until(fmt.Sprintf("%q is in %s", text, path), func() bool {
		b, err := os.ReadFile(path)
		return err == nil && strings.Contains(string(b), text)
	})
}

// TestClassicArguments: the default delivery is lspawn's argument, the log is on standard output, and nobody listens
// where tcpserver may.
func TestClassicArguments(t *testing.T) {
	h := newHouse(t)
	h.args = []string{"./Maildir/\n&root"}
	h.vars = []string{"QMAILREMOTE=/opt/remote", "QMAILLOCAL=/opt/local"}
	if err := os.Remove(filepath.Join(h.home, "control", "listen")); err != nil {
		t.Fatal(err)
	}
	for _, role := range []string{"send", "lspawn", "rspawn"} {
		h.write("mood-"+role, "tell")
	}
	out := h.output()
	h.start()
	h.says(out, "qmail-lspawn: [./Maildir/|&root]  /opt/local")
	h.says(out, "qmail-rspawn: [] /opt/remote ")
	h.says(out, "qmail-send: [] /opt/remote ")
	h.signal(unix.SIGTERM)
	if code := h.end(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if h.read() != "" {
		t.Errorf("not silent: %q", h.read())
	}
	b, err := os.ReadFile(out)
	if err != nil || strings.Contains(string(b), "smtpd") {
		t.Errorf("%v %s", err, b)
	}
}

// TestALoggerReadsAllOfTheLog, also when it is run again, and ends at the end.
func TestALoggerReadsAllOfTheLog(t *testing.T) {
	h := newHouse(t)
	h.vars = []string{"PATH=/usr/bin:/bin"}
	h.args = []string{"./Mailbox", "sh", "-c", `head -n 1; echo logger $1 says so`, "-", "one two"}
	h.write("mood-lspawn", "tell")
	out := h.output()
	h.start()
	h.says(out, "qmail-lspawn: [./Mailbox]") // head reads more than it prints
	h.says(out, "logger one two says so")
	h.logged("the logger ended; starting another", 1)
	h.signal(unix.SIGTERM)
	if code := h.end(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	h.logged("the logger does not end", 0)
}

func TestALoggerThatCannotBeRunIsSaidAtOnce(t *testing.T) {
	h := newHouse(t)
	h.args = []string{"./Mailbox", "/no/such/logger"}
	h.output()
	h.start()
	if code := h.end(); code != exitLater {
		t.Errorf("exit code %d", code)
	}
	h.logged("unable to run the logger", 1)
}
