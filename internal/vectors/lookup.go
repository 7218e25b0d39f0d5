package vectors

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"qmail/internal/format/spawn"
)

// lookup gives recipients to qmail-lspawn, each in an order of its own, after qmail-newu. The .qmail files of these cases
// print what they know.
func (x *run) lookup() (result, error) {
	newu := exec.Command(filepath.Join(x.Bin, "qmail-newu"))
	newu.Env = x.environ()
	if out, err := newu.CombinedOutput(); err != nil {
		return result{}, fmt.Errorf("qmail-newu: %w: %s", err, out)
	}
	if err := x.message(); err != nil {
		return result{}, err
	}
	var got result
	for _, recipient := range x.c.Recipients {
		report, err := x.report(string(x.expand(recipient)))
		if err != nil {
			return got, err
		}
		got.reports = append(got.reports, report)
	}
	return got, nil
}

// message puts one into the place where a classic queue has it.
func (x *run) message() error {
	owner, err := accountOf("qmailq")
	if err != nil {
		return err
	}
	path := filepath.Join(x.home, "queue", "mess", "1", "1")
	return errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("Subject: lookup\n\nx\n"), 0o644), os.Chown(path, owner, -1))
}

func (x *run) report(recipient string) ([]byte, error) {
	fallback := x.c.AliasEmpty
	if fallback == "" {
		fallback = "./Mailbox"
	}
	order, err := spawn.AppendOrder(nil, spawn.Order{Message: "1/1", Sender: "s@s.example", Recipient: recipient})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(x.Bin, "qmail-lspawn"), fallback)
	cmd.Env, cmd.Dir, cmd.WaitDelay = x.environ(), "/", time.Second
	cmd.Stdin = bytes.NewReader(order)
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("qmail-lspawn: %w", err)
	}
	r := bufio.NewReader(bytes.NewReader(out))
	if _, err := r.Discard(2); err != nil { // how many slots there are, and the one that was used
		return nil, fmt.Errorf("qmail-lspawn said %q", out)
	}
	report, err := r.ReadBytes(0)
	if err != nil || r.Buffered() > 0 {
		return nil, fmt.Errorf("qmail-lspawn said %q", out)
	}
	return report[:len(report)-1], nil
}

// compareReports wants the words of a success, and of a failure the class and the status code.
func (x *run) compareReports(got [][]byte) string {
	if len(got) != len(x.c.Expect.Reports) {
		return fmt.Sprintf("%d reports, want %d", len(got), len(x.c.Expect.Reports))
	}
	for i, w := range x.c.Expect.Reports {
		want, have := x.expand(w), got[i]
		if match(want, have) {
			continue
		}
		if want[0] == 'K' || len(have) == 0 || want[0] != have[0] || codesIn(want, have) != "" {
			return fmt.Sprintf("%s: report %q, want %q", x.c.Recipients[i], have, want)
		}
	}
	return ""
}
