package rights

import (
	"slices"

	"golang.org/x/sys/unix"

	"qmail/internal/system/wall"
)

// row is what one role may do behind its walls. Paths are below the home unless they begin with a slash.
type row struct {
	role string
	// reads and writes are files and directories, with what is below them.
	reads, writes []string
	// calls are the groups of system calls besides "runtime" and "talk"; start are those until it is ready.
	calls, start []wall.Calls
	// ports are those that it connects to, besides those that the files in portsIn name.
	ports   []uint16
	portsIn []string
	// memory bounds what it has in use, in bytes; 0 is no bound.
	memory int64
	// knocks are control files, each with the path of a socket that it connects to.
	knocks []string
	// program is a control file, or a variable of the environment, that names a program which the role runs in the place of
	// what it does itself. "*" says that it always runs programs, the user's own among them. Where there are programs, there
	// are neither filter nor no_new_privs, and its user is its wall.
	program []string
	// caps are the capabilities that it keeps, if it is root.
	caps []uint
	// except are what it is kept from if its user could open it: when all roles have one user. Then it cannot change what
	// is in control and users either.
	except []string
}

const (
	megabyte = 1 << 20
	gigabyte = 1 << 30
)

// dnsFile names the resolvers.
const dnsFile = "/etc/resolv.conf"

// authorities are where systems keep whom to believe about other machines' keys.
var authorities = []string{"/etc/ssl", "/etc/pki", "/etc/ca-certificates", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates"}

var (
	always = []string{"*"}
	// ours is what nobody else has to do with.
	ours = []string{"queue/journal", "queue/start.lock", "keys", "users/passwd"}

	inControl = []string{"control"}
	// serving is what a server for clients from the network needs: its settings. Its sockets are given to it.
	serving = []wall.Calls{wall.ReadFiles}
	// looking is asking for our own addresses, once.
	looking = []wall.Calls{wall.Interfaces}
)

// table is the rights of the roles of the process table, and of qmail-local, which qmail-lspawn starts.
var table = []row{
	{role: "send", reads: []string{"control", "/etc/passwd", "/etc/group"}, writes: []string{"queue/journal", "queue/drop"},
		calls: []wall.Calls{wall.ReadFiles, wall.ChangeFiles, wall.Interfaces}},
	{role: "lspawn", program: always, caps: []uint{unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_KILL}},
	{role: "resolve", reads: []string{"control", dnsFile}, calls: []wall.Calls{wall.ReadFiles, wall.TCP, wall.UDP},
		ports: []uint16{53}, portsIn: []string{"control/resolvers"}, memory: gigabyte},
	{role: "rspawn", reads: slices.Concat(inControl, authorities), calls: []wall.Calls{wall.ReadFiles, wall.Interfaces, wall.TCP},
		ports: []uint16{25, 465, 587, 209}, portsIn: []string{"control/smtproutes", "control/qmtproutes"},
		program: []string{"control/qmailremote", "QMAILREMOTE"}, except: ours, memory: 2 * gigabyte},
	{role: "keyd", reads: []string{"control", "keys"}, calls: []wall.Calls{wall.ReadFiles}, memory: gigabyte},
	{role: "authd", reads: []string{"control", "users"}, calls: []wall.Calls{wall.ReadFiles, wall.Knock}, knocks: []string{"control/dovecotauth"}, memory: gigabyte},
	{role: "checkpw", program: always, caps: []uint{unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_KILL}, except: ours},
	{role: "smtpd", reads: inControl, calls: serving, start: looking, memory: 2 * gigabyte},
	{role: "qmtpd", reads: inControl, calls: serving, start: looking, memory: 2 * gigabyte},
	{role: "qmqpd", reads: inControl, calls: serving, start: looking, memory: 2 * gigabyte},
	{role: "popup", program: always, except: ours},
	{role: "local", program: always, except: ours},
}
