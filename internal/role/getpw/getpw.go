// Package getpw is qmail-getpw: it prints the account that a local part belongs to by the rules for passwd, as
// user, uid, gid, home, dash and extension, each ended by a NUL. qmail-lspawn knows the same rules by itself;
// the program is for scripts, and for who wants to know.
package getpw

import (
	"context"
	"errors"
	"fmt"

	"qmail/internal/store/users"
	"qmail/internal/system/env"
)

const (
	passwdFile = "/etc/passwd"
	exitUsage  = 100
	exitLater  = 111
)

// Main prints the account of args[0].
func Main(_ context.Context, e *env.Env, args []string) int { return run(e, passwdFile, args) }

func run(e *env.Env, passwd string, args []string) int {
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		return exitUsage
	}
	a, err := users.New("", passwd).Getpw(args[0])
	if err != nil {
		if e, ok := errors.AsType[*users.Error](err); ok {
			return e.Exit
		}
		return exitLater
	}
	_, err = fmt.Fprintf(e.Stdout, "%s\x00%d\x00%d\x00%s\x00%s\x00%s\x00", a.User, a.UID, a.GID, a.Home, a.Dash, a.Ext)
	if err != nil {
		return exitLater
	}
	return 0
}
