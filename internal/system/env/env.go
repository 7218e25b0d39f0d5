// Package env is a role's world: where the home is, what stands in for stdin, stdout and stderr, the
// environment, the clock, and the orders of the supervisor.
//
// A role gets all of it as one argument, so that a test can run a role, or all of them, in one process.
package env

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"qmail/internal/system/ipc"
)

// DefaultHome is where qmail lives unless QMAILHOME says otherwise.
const DefaultHome = "/var/qmail"

// ControlFD is the descriptor on which a role that the supervisor started finds its orders. The variable
// QMAILCONTROL, set to this number, says that it is there.
const ControlFD = 3

// Env is what a role may use. Files other than the three standard ones come by way of Orders.
type Env struct {
	Home   string // absolute
	Stdin  *os.File
	Stdout io.Writer
	Stderr io.Writer
	Vars   []string         // NAME=value; the first of equal names counts
	Now    func() time.Time // the wall clock
	Orders <-chan Order     // from the supervisor; nil for a program started by hand
	Ready  func() error     // tells the supervisor that the role serves; does nothing by hand
}

// Kind says what the supervisor wants.
type Kind byte

const (
	// Link brings a connection to the role that Name says; it replaces an earlier one of that name.
	Link Kind = 'L'
	// Listen brings a listening socket; Name is the service, such as "smtp".
	Listen Kind = 'A'
	// Reload asks to read the control files again.
	Reload Kind = 'H'
	// Stop asks to end in an orderly way. It is also what a lost supervisor means.
	Stop Kind = 'T'
)

// Order is one order of the supervisor.
type Order struct {
	Kind     Kind
	Name     string
	Link     *ipc.Conn
	Listener net.Listener
}

// Lookup returns the value of a variable. Set but empty differs from not set.
func (e *Env) Lookup(name string) (value string, set bool) {
	for _, v := range e.Vars {
		if rest, ok := strings.CutPrefix(v, name); ok && strings.HasPrefix(rest, "=") {
			return rest[1:], true
		}
	}
	return "", false
}

// Get returns the value of a variable, or "".
func (e *Env) Get(name string) string {
	value, _ := e.Lookup(name)
	return value
}

// Log makes a logger that writes lines of the form "qmail-smtpd: text key=value" to Stderr.
func (e *Env) Log(program string) *slog.Logger {
	return slog.New(newHandler(program, e.Stderr))
}

// Process makes the Env of this process. Orders runs if the supervisor started it.
func Process() (*Env, error) {
	e := &Env{
		Home: DefaultHome, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Vars: os.Environ(), Now: time.Now, Ready: func() error { return nil },
	}
	if home, ok := e.Lookup("QMAILHOME"); ok && home != "" {
		e.Home = home
	}
	if !strings.HasPrefix(e.Home, "/") {
		return nil, fmt.Errorf("QMAILHOME must be an absolute path: %q", e.Home)
	}
	if e.Get("QMAILCONTROL") != fmt.Sprint(ControlFD) {
		return e, nil
	}
	conn, err := ipc.FromFile(os.NewFile(ControlFD, "control"))
	if err != nil {
		return nil, fmt.Errorf("orders of the supervisor: %w", err)
	}
	Settle(1)
	e.Orders = Receive(conn)
	e.Ready = func() error { return conn.Send('R', 0) }
	return e, nil
}

// Settle makes a process one of many that work together for long.
//
// It takes half of the processors, but at least so many, since the others have the same work to do: on two, a role
// then never wakes a second thread only to find nothing left, which cost a tenth of all time. One that mostly waits
// for the disk wants two, as a thread in a system call keeps its processor for a while.
//
// It asks the kernel for SCHED_BATCH: to be woken without interrupting who is at work, so that more has come together
// by its turn. That spares a fifth of all processor time under load, and costs nothing when there is none.
//
// And it takes its own name, where the system shows that of the file. What the kernel denies, a process does without.
func Settle(least int) {
	runtime.GOMAXPROCS(max(least, runtime.GOMAXPROCS(0)/2))
	batch()
	_ = os.WriteFile("/proc/self/comm", []byte(filepath.Base(os.Args[0])), 0)
}

// batch sets the scheduling policy of all threads there are; those to come inherit it.
func batch() {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	for _, task := range tasks {
		if tid, err := strconv.Atoi(task.Name()); err == nil {
			_ = unix.SchedSetAttr(tid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_BATCH}, 0)
		}
	}
}

// Receive turns the frames of a control connection into orders. The last order is always a Stop, sent when
// the supervisor says so or is gone; then the channel is closed.
func Receive(conn *ipc.Conn) <-chan Order {
	orders := make(chan Order)
	go func() {
		defer close(orders)
		for {
			f, err := conn.Read()
			if err != nil {
				orders <- Order{Kind: Stop}
				return
			}
			order, err := decode(f)
			if err != nil {
				continue // an order we do not understand; the supervisor sees that nothing comes of it
			}
			orders <- order
			if order.Kind == Stop {
				return
			}
		}
	}()
	return orders
}

func decode(f ipc.Frame) (Order, error) {
	o := Order{Kind: Kind(f.Kind), Name: string(f.Payload)}
	var err error
	switch {
	case o.Kind == Link && f.File != nil:
		o.Link, err = ipc.FromFile(f.File)
	case o.Kind == Listen && f.File != nil:
		defer f.File.Close()
		o.Listener, err = net.FileListener(f.File)
	case (o.Kind == Reload || o.Kind == Stop) && f.File == nil:
	default:
		if f.File != nil {
			f.File.Close()
		}
		return Order{}, fmt.Errorf("unknown order %q", f.Kind)
	}
	return o, err
}
