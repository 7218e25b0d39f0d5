// Package rights says what each role of qmail start may do, in one table, and builds the walls around it (system/wall).
//
// It runs in the role's own process, before the role itself; the supervisor has nothing to do with it. What a
// control file changes of a role's rights (a port in smtproutes, a program in the place of ours) counts when the role
// starts: on a reload that would widen them it is stopped in order, and the supervisor starts it anew.
package rights

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"qmail/internal/system/env"
	"qmail/internal/system/wall"
)

// Variable is the variable in the environment of qmail start that says how forbidden system calls end (wall.Mode).
const Variable = "QMAILWALLS"

// Enter builds the walls around a role: program is its name, args are its arguments. Others than those of the table
// are left alone. It changes e: the role is done with its beginning when it calls Ready, and an order to reload becomes
// one to stop if the new settings need wider walls.
func Enter(program string, args []string, e *env.Env) error {
	role := strings.TrimPrefix(program, "qmail-")
	if !walled(role, args, e) {
		return nil
	}
	i := slices.IndexFunc(table, func(r row) bool { return r.role == role })
	if i < 0 {
		return fmt.Errorf("the table of rights has no %s", program)
	}
	have, err := table[i].rights(e, args)
	if err != nil {
		return err
	}
	mode := wall.Mode(e.Get(Variable))
	lacks, err := wall.Enter(have.Rights, mode)
	if err != nil {
		return err
	}
	if i == 0 && len(lacks) > 0 { // the others lack the same
		e.Log(program).Warn("the walls around the roles are without " + strings.Join(lacks, ", "))
	}
	if e.Orders == nil {
		return nil
	}
	ready := e.Ready
	e.Ready = func() error {
		if err := wall.Narrow(have.Rights, mode); err != nil {
			return err
		}
		return ready()
	}
	e.Orders = outgrow(e.Orders, func() bool {
		now, err := table[i].rights(e, args)
		return err == nil && !now.within(have)
	}, func() { e.Log(program).Info("starting anew, since the settings ask for other rights") })
	return nil
}

// walled reports whether a process is one of those that the table is for: started by the supervisor, or a
// qmail-local at work for qmail-send.
func walled(role string, args []string, e *env.Env) bool {
	return e.Orders != nil || role == "local" && len(args) > 0 && args[0] == "--serve"
}

// outgrow passes orders on, but for a reload that finds the walls too narrow: that is an order to stop.
func outgrow(orders <-chan env.Order, tooNarrow func() bool, say func()) <-chan env.Order {
	passed := make(chan env.Order)
	go func() {
		defer close(passed)
		for o := range orders {
			if o.Kind == env.Reload && tooNarrow() {
				say()
				o.Kind = env.Stop
			}
			passed <- o
		}
	}()
	return passed
}

// identity is which file a path led to.
type identity struct{ dev, ino uint64 }

// extent is the rights of a role as the control files make them.
type extent struct {
	wall.Rights
	files map[string]identity // of Read: a new one in the place of an old is another
}

// within reports whether x has no right that y lacks.
func (x extent) within(y extent) bool {
	for path, id := range x.files {
		if y.files[path] != id {
			return false
		}
	}
	for _, path := range x.Knock {
		if !slices.Contains(y.Knock, path) {
			return false
		}
	}
	for _, port := range x.Connect {
		if !slices.Contains(y.Connect, port) {
			return false
		}
	}
	return x.Programs == y.Programs
}

// rights makes a row's rights, for this home, its control files, and a process with these arguments.
func (r row) rights(e *env.Env, args []string) (extent, error) {
	x := extent{files: map[string]identity{}, Rights: wall.Rights{
		Calls: r.calls, Start: r.start, Memory: r.memory, Keep: r.caps, Connect: slices.Clone(r.ports),
	}}
	for _, path := range r.writes {
		x.Write = append(x.Write, inHome(e, path))
	}
	for _, path := range r.reads {
		if err := x.read(inHome(e, path)); err != nil {
			return extent{}, err
		}
	}
	for _, path := range r.portsIn {
		if err := x.addPorts(inHome(e, path)); err != nil {
			return extent{}, err
		}
	}
	for _, name := range r.knocks {
		if path := firstLine(inHome(e, name)); path != "" {
			x.Knock = append(x.Knock, path)
		}
	}
	for _, name := range r.program {
		x.Programs = x.Programs || r.runs(e, name)
	}
	if x.Programs && len(r.except) > 0 && !around(e, args) {
		x.Except, x.ReadOnly = ownedOf(e, r.except), ownedOf(e, settings)
	}
	return x, nil
}

func inHome(e *env.Env, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(e.Home, path)
}

// read adds a path to read. What a symbolic link in a directory leads to is added too: control files may be links.
func (x *extent) read(path string) error {
	x.Read = append(x.Read, path)
	info, err := os.Stat(path)
	if err != nil {
		return ignore(err)
	}
	x.note(path, info)
	if !info.IsDir() {
		return nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return ignore(err)
	}
	for _, entry := range entries {
		if entry.Type()&fs.ModeSymlink == 0 {
			continue
		}
		link := filepath.Join(path, entry.Name())
		if info, err := os.Stat(link); err == nil && info.Mode().IsRegular() {
			x.Read = append(x.Read, link)
			x.note(link, info)
		}
	}
	return nil
}

// ignore is for what the role itself will find missing, or not its to read, and name.
func ignore(err error) error {
	if os.IsNotExist(err) || os.IsPermission(err) {
		return nil
	}
	return err
}

func (x *extent) note(path string, info fs.FileInfo) {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		x.files[path] = identity{uint64(st.Dev), st.Ino}
	}
}

// maxRoutes bounds what is read to find ports, in bytes.
const maxRoutes = 64 << 20

// addPorts adds every number behind a colon, or a bracket and a colon, of a file: more than those that are meant perhaps,
// never fewer.
func (x *extent) addPorts(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return ignore(err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRoutes))
	if err != nil {
		return err
	}
	for line := range bytes.Lines(b) {
		for part := range bytes.SplitSeq(bytes.TrimSpace(line), []byte(":")) {
			if port, err := strconv.ParseUint(string(part), 10, 16); err == nil && port > 0 && !slices.Contains(x.Connect, uint16(port)) {
				x.Connect = append(x.Connect, uint16(port))
			}
		}
	}
	return nil
}

// runs reports whether name, a variable or a control file, names a program.
func (r row) runs(e *env.Env, name string) bool {
	if name == "*" {
		return true
	}
	if !strings.Contains(name, "/") {
		return e.Get(name) != ""
	}
	return firstLine(inHome(e, name)) != ""
}

// firstLine is the first line of a control file, empty if there is none that can be read.
func firstLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	return string(bytes.TrimSpace(line))
}

// around reports whether our home lies in that of the user whose qmail-local this is. Then he has to be let into all of
// it: files are made at the top of a home, and Landlock cannot allow that there and not below.
func around(e *env.Env, args []string) bool {
	return len(args) > 2 && strings.HasPrefix(e.Home+"/", strings.TrimSuffix(filepath.Clean(args[2]), "/")+"/")
}

// settings are what nobody changes but the administrator.
var settings = []string{"control", "users"}

// ownedOf are those of some paths that our user may do with what it likes.
func ownedOf(e *env.Env, paths []string) (list []string) {
	for _, path := range paths {
		if path = inHome(e, path); owns(path) {
			list = append(list, path)
		}
	}
	return list
}

// owns reports whether our user may do with a file what it likes.
func owns(path string) bool {
	info, err := os.Stat(path)
	if err != nil {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid() && st.Uid != 0
}
