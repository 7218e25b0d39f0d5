package wall

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// TestMain is also the process that is locked in: it builds walls, does what its arguments say, and tells.
func TestMain(m *testing.M) {
	if os.Args[0] != "walled" {
		os.Exit(m.Run())
	}
	dir := os.Args[2]
	lacks, err := Enter(Rights{Read: []string{dir + "/read"}, Write: []string{dir + "/write"}, Calls: []Calls{ReadFiles, ChangeFiles}, Start: []Calls{Interfaces}}, Mode(os.Args[3]))
	if err != nil || len(lacks) > 0 {
		fmt.Println("walls:", lacks, err)
		os.Exit(3)
	}
	fmt.Println(errno(walled(os.Args[1], dir)))
}

func errno(err error) string {
	if e, ok := errors.AsType[syscall.Errno](err); ok {
		return unix.ErrnoName(e)
	}
	return fmt.Sprint(err)
}

func walled(act, dir string) error {
	switch act {
	case "work":
		done := make(chan error)
		for range 8 { // threads, timers, memory, a collection
			go func() { time.Sleep(time.Millisecond); runtime.GC(); done <- nil }()
		}
		for range 8 {
			<-done
		}
		return nil
	case "read":
		_, err := os.ReadFile(dir + "/read/a")
		return err
	case "write":
		return os.WriteFile(dir+"/write/b", []byte("x"), 0o600)
	case "move":
		return errors.Join(os.Mkdir(dir+"/write/d", 0o700), os.WriteFile(dir+"/write/b", nil, 0o600), os.Rename(dir+"/write/b", dir+"/write/d/b"))
	case "read elsewhere":
		_, err := os.ReadFile(dir + "/a")
		return err
	case "write what is to be read":
		return os.WriteFile(dir+"/read/a", nil, 0o600)
	case "addresses at the beginning":
		_, err := net.InterfaceAddrs()
		return err
	case "addresses later":
		if err := Narrow(Rights{Calls: []Calls{ReadFiles}, Start: []Calls{Interfaces}}, Kill); err != nil {
			return err
		}
		_, err := net.InterfaceAddrs()
		return err
	case "socket":
		_, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		return err
	case "panic":
		panic("told")
	}
	return errors.ErrUnsupported
}

func TestWalls(t *testing.T) {
	if withC {
		t.Skip("built with cgo: there are no walls")
	}
	abi, _, failed := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if failed != 0 || abi < abiScopes {
		t.Skipf("this kernel has Landlock %d (%v)", abi, failed)
	}
	tests := []struct {
		act, mode, says string
		signal          syscall.Signal
	}{
		{"work", "", "<nil>\n", 0},
		{"read", "", "<nil>\n", 0},
		{"write", "", "<nil>\n", 0},
		{"move", "", "<nil>\n", 0},
		{"read elsewhere", "", "EACCES\n", 0},
		{"write what is to be read", "", "EACCES\n", 0},
		{"addresses at the beginning", "", "<nil>\n", 0},
		{"addresses later", "", "", syscall.SIGSYS},
		{"socket", "", "", syscall.SIGSYS},
		{"socket", "refuse", "EPERM\n", 0},
		{"socket", "log", "<nil>\n", 0},
		{"socket", "trap", "SIGSYS: bad system call", 0},
		{"panic", "", "panic: told", 0},
		{"work", "no such mode", "walls: [] there is no mode of walls \"no such mode\"\n", 0},
	}
	for _, tt := range tests {
		t.Run(tt.act+" "+tt.mode, func(t *testing.T) {
			dir := t.TempDir()
			for _, err := range []error{
				os.Mkdir(dir+"/read", 0o755), os.Mkdir(dir+"/write", 0o755),
				os.WriteFile(dir+"/read/a", nil, 0o644), os.WriteFile(dir+"/a", nil, 0o644),
			} {
				if err != nil {
					t.Fatal(err)
				}
			}
			cmd := &exec.Cmd{Path: "/proc/self/exe", Args: []string{"walled", tt.act, dir, tt.mode}}
			out, _ := cmd.CombinedOutput()
			status := cmd.ProcessState.Sys().(syscall.WaitStatus)
			if !strings.HasPrefix(string(out), tt.says) || tt.signal != 0 && status.Signal() != tt.signal || tt.signal == 0 && status.Signaled() {
				t.Errorf("%v\n%.400s", cmd.ProcessState, out)
			}
		})
	}
}

// TestAround looks at the rules that leave something out.
func TestAround(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"queue/journal", "queue/drop", "users", "mail"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"users/passwd", "users/cdb"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	rules, err := around([]string{dir + "/queue/journal", dir + "/users/passwd", dir + "/nothing"}, []string{dir + "/users"})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]uint64{}
	for _, r := range rules {
		got[strings.TrimPrefix(r.path, dir+"/")] = r.access
	}
	for path, want := range map[string]uint64{
		"queue/drop": ^uint64(0), "mail": ^uint64(0), "users/cdb": looking,
		"queue": 0, "queue/journal": 0, "users": 0, "users/passwd": 0, dir: 0, "/": 0,
	} {
		if got[path] != want {
			t.Errorf("%s: %x, not %x", path, got[path], want)
		}
	}
}

// TestFilter runs the program for calls and arguments, as the kernel would, whose words here have the machine's order.
func TestFilter(t *testing.T) {
	calls := []call{
		{number: 1},
		{2, []when{{{arg: 0, mask: ^uint32(0), is: 7}}}},
		{3, []when{{{arg: 1, mask: 0xf0, is: 0x10}, {arg: 2, zero: true}}, {{arg: 1, mask: ^uint32(0), is: 5}}}},
	}
	program, err := assemble(9, calls, unix.SECCOMP_RET_KILL_PROCESS)
	if err != nil {
		t.Fatal(err)
	}
	raw := make([]bpf.RawInstruction, len(program))
	for i, x := range program {
		raw[i] = bpf.RawInstruction{Op: x.Code, Jt: x.Jt, Jf: x.Jf, K: x.K}
	}
	list, all := bpf.Disassemble(raw)
	if !all {
		t.Fatal("not a program")
	}
	vm, err := bpf.NewVM(list)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name         string
		arch, number uint32
		args         [3]uint64
		allowed      bool
	}{
		{"always", 9, 1, [3]uint64{}, true},
		{"another architecture's call of that number", 8, 1, [3]uint64{}, false},
		{"not in the list", 9, 4, [3]uint64{}, false},
		{"the same with the bit of another interface", 9, 1 | 1<<30, [3]uint64{}, false},
		{"with its argument", 9, 2, [3]uint64{7}, true},
		{"with another", 9, 2, [3]uint64{8}, false},
		{"the first case", 9, 3, [3]uint64{0, 0x1f, 0}, true},
		{"not quite the first case", 9, 3, [3]uint64{0, 0x2f, 0}, false},
		{"a pointer", 9, 3, [3]uint64{0, 0x1f, 1}, false},
		{"a pointer whose lower half is nothing", 9, 3, [3]uint64{0, 0x1f, 1 << 32}, false},
		{"the second case", 9, 3, [3]uint64{0, 5, 1}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			data := make([]byte, 64)
			put := func(at int, v uint32) {
				data[at], data[at+1], data[at+2], data[at+3] = byte(v>>24), byte(v>>16), byte(v>>8), byte(v)
			}
			put(dataNumber, tt.number)
			put(dataArch, tt.arch)
			for i, v := range tt.args {
				put(dataArgs+8*i, uint32(v))
				put(dataArgs+8*i+4, uint32(v>>32))
			}
			answer, err := vm.Run(data)
			if err != nil || (uint32(answer) == unix.SECCOMP_RET_ALLOW) != tt.allowed {
				t.Errorf("%x, %v", answer, err)
			}
		})
	}
}
