package sim

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"
)

// client sends messages to the machine, one after the other.
type client struct {
	sim  *sim
	n    int
	dice *rand.Rand
	addr netip.Addr
}

func (c *client) run(messages int, spread time.Duration) {
	for i := range messages {
		time.Sleep(time.Duration(c.dice.ExpFloat64() * float64(spread) / float64(messages)))
		c.deliver(c.sim.account.write(c.dice, fmt.Sprintf("%d.%d", c.n, i)))
	}
}

// patience is how long a client waits for a reply (RFC 5321 4.5.3.2.6 asks for ten minutes).
const patience = 10 * time.Minute

// deliver makes one try, and notes what is known of it.
func (c *client) deliver(m *mail) {
	c.addr = c.addr.Next()
	conn, err := c.sim.net.call(c.addr)
	if err != nil {
		m.set(refused)
		return
	}
	defer conn.Close()
	t := &talk{client: c, end: conn, in: bufio.NewReader(conn)}
	if code, err := t.reply(); err != nil || code/100 != 2 {
		m.set(refused)
		return
	}
	commands := []string{"EHLO client.example", "MAIL FROM:<" + m.sender + ">"}
	for _, r := range m.rcpts {
		commands = append(commands, "RCPT TO:<"+r.addr+">")
	}
	taken := 0
	for i, line := range commands {
		if chance(c.dice, c.sim.plan.slowClient) {
			time.Sleep(between(c.dice, 0, 3*time.Minute))
		}
		code, err := t.ask(line)
		if err != nil {
			m.set(refused)
			return
		}
		if i > 1 {
			if code == 250 {
				m.rcpts[i-2].taken = true
				taken++
			}
			continue
		}
		if code/100 != 2 {
			m.set(refused)
			return
		}
	}
	if taken == 0 {
		m.set(refused)
		t.ask("QUIT")
		return
	}
	code, err := t.ask("DATA")
	if err != nil || code != 354 {
		m.set(refused)
		return
	}
	t.data(m)
}

// data sends the message and hears what became of it.
func (t *talk) data(m *mail) {
	text := strings.ReplaceAll(m.text(), "\n", "\r\n")
	for piece := 16 << 10; len(text) > 0; {
		n := min(piece, len(text))
		if chance(t.client.dice, t.client.sim.plan.slowClient/4) {
			time.Sleep(between(t.client.dice, 0, time.Minute))
		}
		if chance(t.client.dice, 0.002) {
			m.set(refused) // we go away in the middle
			return
		}
		if _, err := t.end.Write([]byte(text[:n])); err != nil {
			m.set(refused)
			return
		}
		text = text[n:]
	}
	m.set(unknown)
	if _, err := t.end.Write([]byte(".\r\n")); err != nil {
		return
	}
	if chance(t.client.dice, t.client.sim.plan.impatient) {
		return // without waiting
	}
	code, err := t.reply()
	switch {
	case err != nil:
	case code/100 == 2:
		m.set(accepted)
	default:
		m.set(refused)
	}
	if chance(t.client.dice, 0.5) {
		t.ask("QUIT")
	}
}

// talk is a conversation.
type talk struct {
	client *client
	end    *end
	in     *bufio.Reader
}

func (t *talk) ask(line string) (int, error) {
	if _, err := t.end.Write([]byte(line + "\r\n")); err != nil {
		return 0, err
	}
	return t.reply()
}

func (t *talk) reply() (code int, err error) {
	t.end.SetReadDeadline(time.Now().Add(patience))
	for {
		line, err := t.in.ReadString('\n')
		if err != nil {
			return 0, err
		}
		if len(line) < 5 {
			return 0, fmt.Errorf("reply %q", line)
		}
		if line[3] != '-' {
			_, err := fmt.Sscanf(line, "%d", &code)
			return code, err
		}
	}
}
