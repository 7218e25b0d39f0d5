package client

import (
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"time"

	"qmail/internal/format/dsn"
)

// Message is what one transaction sends.
type Message struct {
	Sender     string
	Recipients []string
	EightBit   bool // BODY=8BITMIME was announced to us
	UTF8       bool // SMTPUTF8 was announced to us
	Body       Body
	// What the sender wants to hear of. It is passed on to a server that offers DSN, and to no other.
	Wishes          dsn.Message
	RecipientWishes map[int]dsn.Recipient // by index into Recipients
}

// transaction is a Message under way.
type transaction struct {
	*Conn
	m        *Message
	result   Result
	params   []byte // of MAIL
	global   bool   // one of them is SMTPUTF8
	todo     []int  // recipients to be sent, by index
	accepted int
	until    time.Time
}

// transact sends one message in one transaction.
func (c *Conn) transact(m *Message) Result {
	t := &transaction{Conn: c, m: m, until: time.Now().Add(waitSession)}
	t.result.Recipients = make([]Report, len(m.Recipients))
	t.result.Reports = c.dsn
	t.result.gaveUp = "Giving up on " + c.addr + ".\n"
	if !t.prepare() {
		t.result.Answered = true
		return t.result
	}
	if c.reset && !t.rset() {
		return t.result
	}
	if t.envelope() {
		t.body()
	}
	return t.result
}

// end sets the verdict on the message and is false, for callers that stop there.
func (t *transaction) end(letter byte, text string) bool {
	t.result.Message = Report{letter, text}
	return false
}

func (t *transaction) diedHere(note string) bool {
	t.result.Message = t.died(note)
	return false
}

// prepare looks at addresses and at what the server can take, before anything is sent.
func (t *transaction) prepare() bool {
	if !carriable(t.m.Sender) {
		return t.end('D', "Sorry, the sender address has bytes that SMTP cannot carry. (#5.1.7)\n")
	}
	utf8 := !ascii(t.m.Sender) || t.m.UTF8 && hasHighByte(headerOf(t.m.Body.Head))
	if utf8 && !t.utf8 {
		return t.end('D', t.addr+" does not take internationalized mail. (#5.6.7)\n")
	}
	for i, r := range t.m.Recipients {
		switch {
		case !carriable(r):
			t.result.Recipients[i] = Report{'h', "Sorry, that recipient address has bytes that SMTP cannot carry. (#5.1.3)\n"}
		case !ascii(r) && !t.utf8:
			t.result.Recipients[i] = Report{'h', t.addr + " does not take internationalized addresses. (#5.6.7)\n"}
		default:
			utf8 = utf8 || !ascii(r)
			t.todo = append(t.todo, i)
		}
	}
	if len(t.todo) == 0 {
		return t.end('D', t.result.gaveUp)
	}
	size := t.m.Body.wireSize()
	if t.limit > 0 && size > t.limit {
		return t.end('D', t.addr+" does not take messages of more than "+strconv.FormatInt(t.limit, 10)+" bytes. (#5.3.4)\n")
	}
	if t.size {
		t.params = strconv.AppendInt(append(t.params, " SIZE="...), size, 10)
	}
	if t.eightBit && (t.m.EightBit || t.m.Body.Rest != nil || hasHighByte(t.m.Body.Head)) {
		t.params = append(t.params, " BODY=8BITMIME"...)
	}
	if t.global = utf8; utf8 {
		t.params = append(t.params, " SMTPUTF8"...)
	}
	if t.dsn {
		t.params = appendMessageWishes(t.params, &t.m.Wishes)
	}
	return true
}

func (t *transaction) rset() bool {
	code, err := t.command("RSET", nil)
	if err != nil || code != 250 {
		return t.diedHere("")
	}
	t.reset = false
	return true
}

// envelope sends MAIL, RCPT and DATA. It is true if the server now wants the body.
func (t *transaction) envelope() bool {
	t.reset = true // until the message is accepted
	t.sent++
	t.out = append(t.out[:0], "MAIL FROM:"...)
	t.out = appendPath(t.out, t.m.Sender)
	t.out = append(append(t.out, t.params...), '\r', '\n')
	if t.pipelining {
		return t.together()
	}
	return t.lockstep()
}

// lockstep waits for each reply.
func (t *transaction) lockstep() bool {
	if !t.send() || !t.mailReply() {
		return false
	}
	for _, i := range t.todo {
		t.rcpt(i)
		if !t.send() || !t.rcptReply(i) {
			return false
		}
	}
	if t.accepted == 0 {
		return t.end('D', t.result.gaveUp)
	}
	t.out = append(t.out[:0], "DATA\r\n"...)
	return t.send() && t.dataReply()
}

// together sends commands in groups; DATA ends the last one (RFC 2920 3.1).
func (t *transaction) together() bool {
	mail, first := true, 0
	for n, i := range t.todo {
		t.rcpt(i)
		last := n == len(t.todo)-1
		if last {
			t.out = append(t.out, "DATA\r\n"...)
		}
		if !last && len(t.out) < groupSize {
			continue
		}
		if !t.send() {
			return false
		}
		if mail {
			mail = false
			if !t.mailReply() {
				return t.discard(n-first+1, last)
			}
		}
		for ; first <= n; first++ {
			if !t.rcptReply(t.todo[first]) {
				return false
			}
		}
	}
	if t.accepted > 0 {
		return t.dataReply()
	}
	t.end('D', t.result.gaveUp)
	return t.discard(0, true)
}

// discard reads the replies to commands that were sent behind one that failed. A server that takes DATA all
// the same gets an empty message for nobody. Should the connection end here, the verdict stands.
func (t *transaction) discard(replies int, data bool) bool {
	if t.dead {
		return false
	}
	for range replies {
		if _, err := t.readUntil(waitCommand); err != nil {
			return false
		}
	}
	if !data {
		return false
	}
	code, err := t.readUntil(waitData)
	if err == nil && 300 <= code && code <= 399 {
		if t.write([]byte(".\r\n"), waitBlock) == nil {
			t.readUntil(waitFinal)
		}
	}
	return false
}

func (t *transaction) rcpt(i int) {
	t.out = append(t.out, "RCPT TO:"...)
	t.out = appendPath(t.out, t.m.Recipients[i])
	if wishes, ok := t.m.RecipientWishes[i]; ok && t.dsn {
		t.out = appendWishes(t.out, wishes, t.global)
	}
	t.out = append(t.out, '\r', '\n')
}

// send writes the commands that wait in out.
func (t *transaction) send() bool {
	err := t.write(t.out, waitCommand)
	t.out = t.out[:0]
	if err != nil {
		return t.diedHere("")
	}
	return true
}

// readUntil is read within the time of the transaction, too.
func (t *transaction) readUntil(d time.Duration) (int, error) {
	return t.read(min(d, max(time.Until(t.until), 0)), nil)
}

func (t *transaction) mailReply() bool {
	code, err := t.readUntil(waitCommand)
	if err != nil {
		return t.diedHere("")
	}
	t.result.Answered = code != 421 // it shuts down: that is nothing against the message
	if letter := class(code); letter != 'K' {
		t.tired = letter == 'Z'
		return t.end(letter, "Connected to "+t.addr+" but sender was rejected.\n"+t.remoteSaid())
	}
	return true
}

func (t *transaction) rcptReply(i int) bool {
	code, err := t.readUntil(waitCommand)
	if err != nil {
		return t.diedHere("")
	}
	switch class(code) {
	case 'K':
		t.accepted++
		t.result.Recipients[i] = Report{Letter: 'r'}
	case 'D':
		t.result.Recipients[i] = Report{'h', t.addr + " does not like recipient.\n" + t.remoteSaid()}
	default:
		t.result.Recipients[i] = Report{'s', t.addr + " does not like recipient.\n" + t.remoteSaid()}
	}
	return true
}

func (t *transaction) dataReply() bool {
	code, err := t.readUntil(waitData)
	if err != nil {
		return t.diedHere("")
	}
	if 300 <= code && code <= 399 {
		return true
	}
	letter := class(code)
	if letter == 'K' { // it may think that all is done, or that the body comes: we cannot know
		t.dead, letter = true, 'Z'
	}
	return t.end(letter, t.addr+" failed on DATA command.\n"+t.remoteSaid())
}

// body sends the message and waits for the verdict.
func (t *transaction) body() {
	if err := t.sendBody(); err != nil {
		t.bodyFailed(err)
		return
	}
	if t.options.LMTP {
		t.verdicts()
		return
	}
	code, err := t.read(waitFinal, nil)
	if err != nil {
		t.diedHere("Possible duplicate! ")
		return
	}
	letter := class(code)
	if letter != 'K' {
		t.end(letter, t.addr+" failed after I sent the message.\n"+t.remoteSaid())
		return
	}
	t.reset = false
	t.end('K', t.addr+" accepted message.\n"+t.remoteSaid())
}

// verdicts reads those of LMTP, one for each recipient that was taken (RFC 2033 4.2). The message is accepted if one of
// them is.
func (t *transaction) verdicts() {
	t.reset = false
	t.end('Z', t.result.gaveUp)
	for _, i := range t.todo {
		one := &t.result.Recipients[i]
		if one.Letter != 'r' {
			continue
		}
		if t.dead {
			*one = Report{'s', "Connected to " + t.addr + " but connection died. Possible duplicate! (#4.4.2)\n"}
			continue
		}
		code, err := t.read(waitFinal, nil)
		switch letter := class(code); {
		case err != nil:
			*one = Report{'s', t.died("Possible duplicate! ").Text}
		case letter == 'K':
			t.end('K', t.addr+" accepted message.\n"+t.remoteSaid())
		case letter == 'D':
			*one = Report{'h', t.addr + " failed after I sent the message.\n" + t.remoteSaid()}
		default:
			*one = Report{'s', t.addr + " failed after I sent the message.\n" + t.remoteSaid()}
		}
	}
	if t.result.Message.Letter == 'Z' && t.refused() {
		t.end('D', t.result.gaveUp)
	}
}

// refused reports whether all recipients are, for good.
func (t *transaction) refused() bool {
	for _, one := range t.result.Recipients {
		if one.Letter != 'h' {
			return false
		}
	}
	return true
}

// errBody is a message that we could not read to its end.
var errBody = errors.New("smtp: the message cannot be read")

func (t *transaction) sendBody() error {
	p := t.options.Buffers.get()
	defer t.options.Buffers.put(p)
	var e encoder
	for head := t.m.Body.Head; ; {
		block := head[:min(len(head), blockSize)]
		head = head[len(block):]
		out := e.append((*p)[:0], block)
		last := len(head) == 0 && t.m.Body.Rest == nil
		if last {
			out = e.finish(out)
		}
		if err := t.sendBlock(out); err != nil || last {
			return err
		}
		if len(head) == 0 {
			break
		}
	}
	return t.sendRest(&e, *p)
}

// sendRest sends what does not stand in memory.
func (t *transaction) sendRest(e *encoder, out []byte) error {
	p := t.options.Buffers.get()
	defer t.options.Buffers.put(p)
	in := (*p)[:blockSize]
	for {
		n, err := io.ReadFull(t.m.Body.Rest, in)
		out = e.append(out[:0], in[:n])
		last := err == io.EOF || err == io.ErrUnexpectedEOF
		if err != nil && !last {
			return errBody
		}
		if last {
			out = e.finish(out)
		}
		if err := t.sendBlock(out); err != nil || last {
			return err
		}
	}
}

func (t *transaction) sendBlock(out []byte) error {
	if len(out) == 0 {
		return nil
	}
	return t.write(out, waitBlock)
}

// bodyFailed ends a transaction whose body did not go out whole, so that it cannot count as sent.
func (t *transaction) bodyFailed(err error) {
	t.dead, t.gone = true, true // a QUIT would stand inside the data
	var netErr net.Error
	switch {
	case errors.Is(err, errBody):
		t.end('Z', "Unable to read message. (#4.3.0)\n")
		return
	case !errors.Is(err, errTurn) && (errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &netErr) && netErr.Timeout()):
		t.diedHere("")
		return
	}
	// The server closed early, or spoke: perhaps it said why.
	code, rerr := t.in.reply(time.Now().Add(t.within(time.Second)), nil)
	if rerr == nil && class(code) != 'K' {
		t.end(class(code), t.addr+" failed after I sent the message.\n"+t.remoteSaid())
		return
	}
	t.diedHere("")
}
