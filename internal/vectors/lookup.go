package vectors

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"qmail/internal/store/users"
)

// lookup plays recipients through qmail-newu, the lookup in users/cdb and passwd, and qmail-local as the user who
// was found; reports are what qmail-lspawn would report. The .qmail files of these cases print what they know.
func (x *run) lookup() (result, error) {
	newu := exec.Command(filepath.Join(x.Bin, "qmail-newu"))
	newu.Env = x.environ()
	if out, err := newu.CombinedOutput(); err != nil {
		return result{}, fmt.Errorf("qmail-newu: %w: %s", err, out)
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

func (x *run) report(recipient string) ([]byte, error) {
	i := strings.LastIndexByte(recipient, '@')
	if i < 0 {
		return []byte("DSorry, address must include host name. (#5.1.3)\n"), nil
	}
	if i == 0 {
		return []byte("DSorry, no mailbox here by that name. (#5.1.1)\n"), nil
	}
	a, err := users.New(filepath.Join(x.home, "users", "cdb"), "/etc/passwd").Find(recipient[:i])
	if refused, ok := errors.AsType[*users.Error](err); ok {
		return []byte(refused.Report), nil
	}
	if err != nil {
		return nil, err
	}
	fallback := x.c.AliasEmpty
	if fallback == "" {
		fallback = "./Mailbox"
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(x.Bin, "qmail-local"), "--", a.User, a.Home, recipient[:i], a.Dash, a.Ext,
		recipient[i+1:], "s@s.example", fallback)
	cmd.Env, cmd.Dir, cmd.WaitDelay = x.environ(), "/", time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(a.UID), Gid: uint32(a.GID)}}
	message, err := os.CreateTemp(filepath.Dir(x.tmp), "message")
	if err != nil {
		return nil, err
	}
	defer message.Close()
	if _, err := message.WriteString("Subject: lookup\n\nx\n"); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = message, &out, &out
	if err := cmd.Run(); cmd.ProcessState == nil || ctx.Err() != nil {
		return nil, errors.Join(err, ctx.Err())
	}
	letter := map[int]string{0: "K", 111: "Z"}[exitCode(cmd.ProcessState)]
	if letter == "" {
		letter = "D"
	}
	return append([]byte(letter), out.Bytes()...), nil
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
