package wall

// Calls is a group of system calls.
type Calls string

const (
	// Runtime is what the Go runtime needs to live: memory that is never executable, threads but no processes, timers,
	// and signals to itself.
	Runtime Calls = "runtime"
	// Talk is reading and writing what is open, and conversations over sockets that others made.
	Talk Calls = "talk"
	// ReadFiles is opening files to read them, and looking at directories.
	ReadFiles Calls = "read files"
	// ChangeFiles is making, changing and removing files.
	ChangeFiles Calls = "change files"
	// Spill is files without a name, in memory.
	Spill Calls = "spill"
	// Pairs is making pairs of connected sockets, to give one end away.
	Pairs Calls = "pairs"
	// TCP is sockets of one's own, to connect with; no listening. With Landlock they reach the ports of Rights.Connect.
	TCP Calls = "tcp"
	// Knock is sockets of one's own to connect to others of this machine with, by their path.
	Knock Calls = "knock"
	// Interfaces is asking the kernel for the addresses of this machine.
	Interfaces Calls = "interfaces"
	// UDP is datagram sockets of one's own.
	UDP Calls = "udp"
)
