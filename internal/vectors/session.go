package vectors

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"
)

// patience is how long an answer may take, if the Runner does not say.
const patience = 10 * time.Second

func (r *Runner) patience() time.Duration { return cmp.Or(r.Patience, patience) }

// session plays a dialogue over a stream socket that is the program's descriptors 0 and 1.
func (x *run) session() (result, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*timeout)
	defer cancel()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return result{}, err
	}
	theirs, mine := os.NewFile(uintptr(fds[0]), "program"), os.NewFile(uintptr(fds[1]), "peer")
	conn, err := net.FileConn(mine)
	mine.Close()
	if err != nil {
		theirs.Close()
		return result{}, err
	}
	defer conn.Close()
	cmd := x.command(ctx)
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, &stderr
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return result{}, err
	}
	got := x.talk(conn.(*net.UnixConn))
	err = cmd.Wait()
	if ctx.Err() != nil {
		return result{}, errors.New("did not exit")
	}
	if cmd.ProcessState == nil {
		return result{}, err
	}
	got.exit, got.stderr = exitCode(cmd.ProcessState), stderr.Bytes()
	return got, nil
}

func (x *run) talk(conn *net.UnixConn) (got result) {
	if len(x.c.Expect.Recv) != len(x.c.Steps)+1 {
		got.bad = "a recording with the wrong number of answers"
		return got
	}
	got.recv = append(got.recv, x.listen(conn, x.c.Expect.Recv[0]))
	for i, step := range x.c.Steps {
		data := x.expand(step.Send)
		size := len(data)
		if step.Pieces > 0 {
			size = step.Pieces
		}
		conn.SetWriteDeadline(time.Now().Add(x.patience()))
		for len(data) > 0 {
			n := min(size, len(data))
			if _, err := conn.Write(data[:n]); err != nil {
				break // what it said before it went away is compared
			}
			data = data[n:]
		}
		want := x.c.Expect.Recv[i+1]
		if step.Wait > 0 { // nothing must come in that time; and if something should, it is waited for
			conn.SetReadDeadline(time.Now().Add(time.Duration(step.Wait * float64(time.Second))))
			early, _ := readAll(conn)
			got.recv = append(got.recv, append(early, x.rest(conn, want, early)...))
		} else {
			got.recv = append(got.recv, x.listen(conn, want))
		}
		if diff := dialogue(x.c.Proto, x.expand(want), got.recv[i+1]); diff != "" && len(want) > 0 {
			got.bad = fmt.Sprintf("step %d: %s", i+1, diff)
			break
		}
	}
	conn.CloseWrite()
	conn.SetReadDeadline(time.Now().Add(x.patience()))
	got.tail, _ = readAll(conn)
	return got
}

// listen reads until the answer is as wanted, or the time is up.
func (x *run) listen(conn net.Conn, want Value) []byte { return x.rest(conn, want, nil) }

func (x *run) rest(conn net.Conn, want Value, got []byte) []byte {
	if len(want) == 0 {
		return nil
	}
	begin := len(got)
	wanted := x.expand(want)
	conn.SetReadDeadline(time.Now().Add(x.patience()))
	buf := make([]byte, 64<<10)
	for dialogue(x.c.Proto, wanted, got) != "" && !complete(x.c.Proto, wanted, got) {
		n, err := conn.Read(buf)
		got = append(got, buf[:n]...)
		if err != nil {
			break
		}
	}
	return got[begin:]
}

// complete reports whether there are as many answers as were wanted, whatever they are.
func complete(proto string, want, got []byte) bool {
	switch proto {
	case "smtp":
		w, _ := smtpReplies(want)
		g, whole := smtpReplies(got)
		return whole && len(g) >= len(w)
	case "qmtp", "qmqp":
		w, _ := netstrings(want)
		g, whole := netstrings(got)
		return whole && len(g) >= len(w) && len(w) > 0
	}
	return false
}

func readAll(conn net.Conn) (all []byte, err error) {
	buf := make([]byte, 64<<10)
	for {
		n, err := conn.Read(buf)
		all = append(all, buf[:n]...)
		if err != nil {
			return all, err
		}
	}
}
