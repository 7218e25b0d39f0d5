package wall

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What Landlock has learned, and since which version of its interface.
const (
	abiRefer    = 2 // links and renames between directories; without it there are none
	abiTruncate = 3
	abiTCP      = 4
	abiIoctl    = 5
	abiScopes   = 6
	abiKnock    = 9 // connecting to sockets in the file system
)

const (
	readFile = unix.LANDLOCK_ACCESS_FS_READ_FILE
	readDir  = unix.LANDLOCK_ACCESS_FS_READ_DIR
	// change is what Write allows besides.
	change = unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE | unix.LANDLOCK_ACCESS_FS_MAKE_REG |
		unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE | unix.LANDLOCK_ACCESS_FS_REMOVE_DIR |
		unix.LANDLOCK_ACCESS_FS_REFER
	// ofFiles are the rights that a rule for a file, and not a directory, may name.
	ofFiles = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | readFile |
		unix.LANDLOCK_ACCESS_FS_TRUNCATE | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV | unix.LANDLOCK_ACCESS_FS_RESOLVE_UNIX

	// rulePort is LANDLOCK_RULE_NET_PORT.
	rulePort = 2
	// threadsFixed is the erratum without which threads of one process cannot signal each other across domains, which
	// the Go runtime wants to.
	threadsFixed = 1 << (2 - 1)
)

// handled are the rights to files that a version knows.
func handled(abi int) uint64 {
	switch {
	case abi >= abiKnock:
		return unix.LANDLOCK_ACCESS_FS_RESOLVE_UNIX<<1 - 1
	case abi >= abiIoctl:
		return unix.LANDLOCK_ACCESS_FS_IOCTL_DEV<<1 - 1
	case abi >= abiTruncate:
		return unix.LANDLOCK_ACCESS_FS_TRUNCATE<<1 - 1
	case abi >= abiRefer:
		return unix.LANDLOCK_ACCESS_FS_REFER<<1 - 1
	}
	return unix.LANDLOCK_ACCESS_FS_MAKE_SYM<<1 - 1
}

// landlock builds the part of the walls that knows paths and ports.
func (r Rights) landlock() (lacks []string, err error) {
	version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return []string{"Landlock (" + errno.Error() + ")"}, nil
	}
	abi := int(version)
	attr, size, lacks := attributes(abi)
	if r.Programs { // programs may talk to whom they like
		attr.Handled_access_net, attr.Scoped = 0, attr.Scoped&unix.LANDLOCK_SCOPE_SIGNAL
	}
	rules, err := r.rules()
	if err != nil { // the rest of it is worth having
		attr.Handled_access_fs &= unix.LANDLOCK_ACCESS_FS_REFER // which is denied to all for whom no rule allows it
		rules = []rule{{"/", unix.LANDLOCK_ACCESS_FS_REFER}}
		lacks = append(lacks, "Landlock for files ("+err.Error()+")")
	}
	set, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), size, 0)
	if errno != 0 {
		return nil, fmt.Errorf("landlock: ruleset: %w", errno)
	}
	defer unix.Close(int(set))
	for _, x := range rules {
		if err := allowPath(int(set), x.path, x.access&attr.Handled_access_fs); err != nil {
			return nil, fmt.Errorf("landlock: %s: %w", x.path, err)
		}
	}
	if attr.Handled_access_net != 0 {
		if err := r.allowPorts(int(set)); err != nil {
			return nil, err
		}
	}
	if err := everywhere(unix.SYS_LANDLOCK_RESTRICT_SELF, set, 0, 0); err != nil {
		return nil, fmt.Errorf("landlock: %w", err)
	}
	return lacks, nil
}

// attributes say what is to be denied, as far as a version can, and what it cannot.
func attributes(abi int) (attr unix.LandlockRulesetAttr, size uintptr, lacks []string) {
	attr.Handled_access_fs = handled(abi)
	size = unsafe.Sizeof(attr.Handled_access_fs)
	if abi < abiTruncate {
		lacks = append(lacks, "Landlock for truncating files")
	}
	if abi < abiTCP {
		return attr, size, append(lacks, "Landlock for TCP ports", "Landlock for signals and abstract sockets")
	}
	attr.Handled_access_net = unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
	size += unsafe.Sizeof(attr.Handled_access_net)
	if abi < abiScopes {
		return attr, size, append(lacks, "Landlock for signals and abstract sockets")
	}
	attr.Scoped = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET
	size += unsafe.Sizeof(attr.Scoped)
	errata, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_ERRATA)
	if errno != 0 || errata&threadsFixed == 0 {
		return attr, size, append(lacks, "Landlock for signals, without its erratum 2")
	}
	attr.Scoped |= unix.LANDLOCK_SCOPE_SIGNAL
	return attr, size, lacks
}

// rule is what may be done at a path and below.
type rule struct {
	path   string
	access uint64
}

func (r Rights) rules() ([]rule, error) {
	if r.Programs {
		return around(r.Except, r.ReadOnly)
	}
	var list []rule
	for _, path := range r.Read {
		list = append(list, rule{path, readFile | readDir})
	}
	for _, path := range r.Write {
		list = append(list, rule{path, readFile | readDir | change})
	}
	for _, path := range r.Knock {
		list = append(list, rule{path, unix.LANDLOCK_ACCESS_FS_RESOLVE_UNIX})
	}
	return list, nil
}

// allowPath adds a rule. What is not there, or not to be reached by this user, gives no right.
func allowPath(set int, path string, access uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		access &= ofFiles
	}
	attr := unix.LandlockPathBeneathAttr{Allowed_access: access, Parent_fd: int32(fd)}
	if access == 0 {
		return nil
	}
	_, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(set), unix.LANDLOCK_RULE_PATH_BENEATH,
		uintptr(unsafe.Pointer(&attr)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// portRule is struct landlock_net_port_attr.
type portRule struct{ access, port uint64 }

// allowPorts allows to connect to some ports, and to bind to none but what the kernel picks: the other end of one's
// own connections. Without the call listen that is no server.
func (r Rights) allowPorts(set int) error {
	var list []portRule
	for _, port := range r.Connect {
		list = append(list, portRule{unix.LANDLOCK_ACCESS_NET_CONNECT_TCP, uint64(port)})
	}
	if len(list) > 0 {
		list = append(list, portRule{unix.LANDLOCK_ACCESS_NET_BIND_TCP, 0})
	}
	for _, p := range list {
		_, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(set), rulePort, uintptr(unsafe.Pointer(&p)), 0, 0, 0)
		if errno != 0 {
			return fmt.Errorf("landlock: port %d: %w", p.port, errno)
		}
	}
	return nil
}

// maxAround bounds the rules that it takes to leave something out.
const maxAround = 4096

// looking is what may be done with what can only be read.
const looking = readFile | readDir | unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_RESOLVE_UNIX

// around returns rules for everything but what is excepted. Landlock has no rule that takes away, so each neighbour of
// that gets one, and each neighbour of the directories that it is in. Of those directories themselves nothing can be
// listed, and nothing new made in them.
func around(except, readOnly []string) ([]rule, error) {
	var hidden, kept []string
	for i, path := range append(except[:len(except):len(except)], readOnly...) {
		real, err := filepath.EvalSymlinks(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, err
		case i < len(except):
			hidden = append(hidden, real)
		default:
			kept = append(kept, real)
		}
	}
	var list []rule
	err := walkAround("/", ^uint64(0), hidden, kept, &list)
	return list, err
}

// walkAround adds rules for what is in a directory that itself can have none. access is what they allow.
func walkAround(dir string, access uint64, hidden, kept []string, list *[]rule) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path, allow := filepath.Join(dir, e.Name()), access
		if slices.Contains(kept, path) {
			allow = looking
		}
		below := func(x string) bool { return strings.HasPrefix(x, path+"/") }
		switch {
		case slices.Contains(hidden, path) || e.Type()&fs.ModeSymlink != 0: // what a link leads to has a rule of its own
		case slices.ContainsFunc(hidden, below) || slices.ContainsFunc(kept, below):
			if err := walkAround(path, allow, hidden, kept, list); err != nil {
				return err
			}
		case len(*list) >= maxAround:
			return errors.New("there are too many files around what is to be left out")
		default:
			*list = append(*list, rule{path, allow})
		}
	}
	return nil
}
