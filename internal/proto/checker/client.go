package checker

import (
	"context"
	"slices"
	"strings"
	"sync"

	"qmail/internal/system/ipc"
)

// Agent is the side that asks. It outlives its links to qmail-authd; an exchange does not. Any number of goroutines may
// use it, and the zero value is ready.
type Agent struct {
	mu         sync.Mutex
	conn       *ipc.Conn
	mechanisms []string
	last       uint32
	waiting    map[uint32]chan Answer // room for one answer each
}

// Connect takes over a link; nil leaves none. Exchanges over an earlier one are answered with Later.
func (a *Agent) Connect(conn *ipc.Conn) {
	a.mu.Lock()
	old := a.conn
	a.drop()
	a.conn = conn
	a.mu.Unlock()
	if old != nil {
		old.Close()
	}
	if conn != nil {
		go a.read(conn)
	}
}

// drop ends all exchanges. The lock is held.
func (a *Agent) drop() {
	for _, ch := range a.waiting {
		close(ch)
	}
	a.waiting, a.mechanisms, a.conn = nil, nil, nil
}

// read takes answers until the link ends or breaks the rules.
func (a *Agent) read(conn *ipc.Conn) {
	for {
		f, err := conn.Read()
		if err == nil && f.File != nil {
			f.File.Close()
		}
		a.mu.Lock()
		if a.conn != conn {
			a.mu.Unlock()
			return
		}
		if err == nil {
			err = a.take(f)
		}
		if err != nil {
			a.drop()
			a.mu.Unlock()
			conn.Close()
			return
		}
		a.mu.Unlock()
	}
}

// take takes one frame. The lock is held.
func (a *Agent) take(f ipc.Frame) error {
	if f.Kind == kindMechanisms {
		list, err := parseMechanisms(f.Payload)
		if err == nil {
			a.mechanisms = list
		}
		return err
	}
	answer, err := parseAnswer(f.Kind, f.Payload)
	if err != nil {
		return err
	}
	if ch, ok := a.waiting[f.Stream]; ok {
		delete(a.waiting, f.Stream)
		ch <- answer
	} // else the one who asked has given up
	return nil
}

// Mechanisms are those that can be used now. Those with -PLUS count if the connection is bound.
func (a *Agent) Mechanisms(bound bool) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if bound {
		return a.mechanisms // replaced whole, never changed
	}
	return slices.DeleteFunc(slices.Clone(a.mechanisms), func(m string) bool { return strings.HasSuffix(m, "-PLUS") })
}

// Exchange is one exchange after its first answer was More.
type Exchange struct {
	agent  *Agent
	conn   *ipc.Conn
	stream uint32
}

// Begin starts an exchange. initial is the initial response, nil if there was none. The Exchange is nil unless the
// answer is More.
func (a *Agent) Begin(ctx context.Context, who Who, mechanism string, initial []byte) (*Exchange, Answer) {
	if len(initial) > maxMessage || len(mechanism) > maxWord {
		return nil, Answer{Verdict: Malformed}
	}
	b := begin{who: who, mechanism: mechanism, initial: initial, hasInitial: initial != nil}
	a.mu.Lock()
	conn := a.conn
	if conn == nil {
		a.mu.Unlock()
		return nil, unreachable
	}
	for a.last++; a.last == 0 || a.waiting[a.last] != nil; a.last++ {
	}
	x := &Exchange{agent: a, conn: conn, stream: a.last}
	ch := a.expect(x.stream)
	a.mu.Unlock()
	answer := x.ask(ctx, ch, kindBegin, b.append(nil))
	if answer.Verdict != More {
		return nil, answer
	}
	return x, answer
}

// expect makes room for an answer. The lock is held.
func (a *Agent) expect(stream uint32) chan Answer {
	if a.waiting == nil {
		a.waiting = map[uint32]chan Answer{}
	}
	ch := make(chan Answer, 1)
	a.waiting[stream] = ch
	return ch
}

// Next sends a response. After any answer but More the exchange is over.
func (x *Exchange) Next(ctx context.Context, response []byte) Answer {
	if len(response) > maxMessage {
		x.Abort()
		return Answer{Verdict: Malformed}
	}
	a := x.agent
	a.mu.Lock()
	if a.conn != x.conn {
		a.mu.Unlock()
		return unreachable
	}
	ch := a.expect(x.stream)
	a.mu.Unlock()
	return x.ask(ctx, ch, kindResponse, response)
}

func (x *Exchange) ask(ctx context.Context, ch chan Answer, kind byte, payload []byte) Answer {
	if err := x.conn.Send(kind, x.stream, payload); err != nil {
		x.forget()
		return unreachable
	}
	select {
	case answer, ok := <-ch:
		if !ok {
			return unreachable
		}
		return answer
	case <-ctx.Done():
		x.forget()
		x.Abort()
		return unreachable
	}
}

func (x *Exchange) forget() {
	x.agent.mu.Lock()
	defer x.agent.mu.Unlock()
	if x.agent.conn == x.conn {
		delete(x.agent.waiting, x.stream)
	}
}

// Abort gives up. It is called for an exchange whose last answer was More, and does no harm to others.
func (x *Exchange) Abort() {
	_ = x.conn.Send(kindAbort, x.stream) // if this fails the link is gone, and the exchange with it
}

// Check asks about a name and a password in one go.
func (a *Agent) Check(ctx context.Context, who Who, login, password string) Answer {
	if strings.IndexByte(login, 0) >= 0 || strings.IndexByte(password, 0) >= 0 {
		return Answer{Verdict: No}
	}
	x, answer := a.Begin(ctx, who, "PLAIN", []byte("\x00"+login+"\x00"+password))
	if x != nil {
		x.Abort()
		return Answer{Verdict: Malformed}
	}
	return answer
}
