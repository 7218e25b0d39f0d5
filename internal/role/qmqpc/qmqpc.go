// Package qmqpc is qmail-qmqpc(8): it takes the place of qmail-queue on a machine without a queue, and gives
// messages to one of the servers in control/qmqpservers by QMQP. It adds no Received field.
package qmqpc

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"qmail/internal/format/netstring"
	"qmail/internal/proto/qq"
	"qmail/internal/store/control"
	"qmail/internal/system/env"
)

const (
	port           = 628
	connectTimeout = 10 * time.Second
	ioTimeout      = 60 * time.Second
	// maxEnvelope bounds sender and recipients, in bytes.
	maxEnvelope = 64 << 20
	// maxAnswer is how much of an answer is looked through for its letter.
	maxAnswer = 1000
)

// Main runs the role and returns its exit code: one of qmail-queue's.
func Main(ctx context.Context, e *env.Env, _ []string) int {
	ctx, cancel := context.WithTimeout(ctx, qq.Lifetime)
	defer cancel()
	records, ok := e.Stdout.(io.Reader) // descriptor 1, opened for reading
	if !ok {
		return qq.CodeRead
	}
	code := make(chan int, 1)
	go func() { code <- run(ctx, e, records) }() // reading cannot be interrupted; the process ends it
	select {
	case c := <-code:
		return c
	case <-ctx.Done():
		return qq.CodeTimeout
	}
}

func run(ctx context.Context, e *env.Env, records io.Reader) int {
	if info, err := os.Stat(e.Home); err != nil || !info.IsDir() {
		return qq.CodeHome
	}
	servers, _, err := control.Open(e.Home).List("qmqpservers")
	if err != nil {
		return qq.CodeConfig
	}
	p := &pack{message: qq.NewHold(e.Home)}
	defer p.message.Close()
	if _, err := io.Copy(p.message, e.Stdin); err != nil {
		if code := qq.Code(err); code == qq.CodeWrite || code == qq.CodeFiles {
			return code
		}
		return qq.CodeRead
	}
	if code := p.readEnvelope(bufio.NewReader(records)); code != 0 {
		return code
	}
	code := qq.CodeConfig // no usable server
	for _, line := range servers {
		ip, ok := server(line)
		if !ok {
			continue
		}
		var next bool
		if code, next = p.send(ctx, netip.AddrPortFrom(ip, port)); !next {
			return code
		}
	}
	return code
}

// server reads the address at the start of a line; what follows it does not count.
func server(line string) (netip.Addr, bool) {
	n := strings.IndexFunc(line, func(r rune) bool { return (r < '0' || '9' < r) && r != '.' })
	if n < 0 {
		n = len(line)
	}
	ip, err := netip.ParseAddr(line[:n])
	return ip, err == nil && ip.Is4()
}

// pack is a QMQP package in the making.
type pack struct {
	message  *qq.Hold
	envelope []byte // sender and recipients as netstrings
}

// readEnvelope reads descriptor 1; unlike qmail-queue's, an envelope cut short is a malformed one.
func (p *pack) readEnvelope(r *bufio.Reader) int {
	for first := true; ; first = false {
		letter, err := r.ReadByte()
		switch {
		case err != nil || first != (letter == 'F'):
			return qq.CodeBug
		case letter == 0:
			return 0
		case letter != 'F' && letter != 'T':
			return qq.CodeBug
		}
		var text []byte
		for {
			part, err := r.ReadSlice(0)
			text = append(text, part...)
			if len(p.envelope)+len(text) > maxEnvelope {
				return qq.CodeNever
			}
			if err == nil {
				break
			}
			if !errors.Is(err, bufio.ErrBufferFull) {
				return qq.CodeBug
			}
		}
		p.envelope = netstring.Append(p.envelope, text[:len(text)-1])
	}
}

// send gives the package to one server. Another may be tried as long as this one cannot have all of it.
func (p *pack) send(ctx context.Context, to netip.AddrPort) (code int, next bool) {
	dialer := net.Dialer{Timeout: connectTimeout}
	conn, err := dialer.DialContext(ctx, "tcp", to.String())
	if err != nil {
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			return qq.CodeTimedOut, true
		}
		return qq.CodeRefused, true
	}
	defer conn.Close()
	w := bufio.NewWriterSize(deadlined{conn}, 64<<10)
	body, err := p.message.Reader()
	if err != nil {
		return qq.CodeRead, false
	}
	size := p.message.Size()
	w.Write(netstring.AppendLength(nil, netstring.Size(size)+int64(len(p.envelope))))
	w.Write(netstring.AppendLength(nil, size))
	if _, err := io.Copy(w, body); err != nil && w.Flush() == nil {
		return qq.CodeRead, false
	}
	w.WriteByte(',')
	w.Write(p.envelope)
	w.WriteByte(',') // not in a write of its own: there are servers (qmqp-sink) that it would be too much for
	if w.Flush() != nil {
		return qq.CodeTalk, true // a write that fails has not sent its last byte
	}
	return answer(conn), false
}

// answer looks for the letter of the answer.
func answer(conn net.Conn) int {
	r := bufio.NewReader(io.LimitReader(deadlined{conn}, maxAnswer))
	for {
		c, err := r.ReadByte()
		if err != nil {
			return qq.CodeTalk
		}
		switch c {
		case 'K':
			return 0
		case 'Z':
			return qq.CodeLater
		case 'D':
			return qq.CodeNever
		}
	}
}

// deadlined gives each read and write its time.
type deadlined struct{ net.Conn }

func (d deadlined) Read(p []byte) (int, error) {
	d.SetReadDeadline(time.Now().Add(ioTimeout))
	return d.Conn.Read(p)
}

func (d deadlined) Write(p []byte) (int, error) {
	d.SetWriteDeadline(time.Now().Add(ioTimeout))
	return d.Conn.Write(p)
}
