package adversarial

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// resolver is a DNS server that tells lies.
type resolver struct {
	address string
	udp     net.PacketConn
	tcp     net.Listener
	busy    sync.WaitGroup
	answer  func(q *dns.Msg, question []byte) []byte // nil: none
}

func newResolver(answer func(q *dns.Msg, question []byte) []byte) (*resolver, error) {
	for range 20 { // until a port is free for both
		udp, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		tcp, err := net.Listen("tcp", udp.LocalAddr().String())
		if err != nil {
			udp.Close()
			continue
		}
		r := &resolver{address: udp.LocalAddr().String(), udp: udp, tcp: tcp, answer: answer}
		r.busy.Go(r.datagrams)
		r.busy.Go(r.streams)
		return r, nil
	}
	return nil, errors.New("there is no port for a resolver")
}

func (r *resolver) close() {
	r.udp.Close()
	r.tcp.Close()
	r.busy.Wait()
}

func (r *resolver) reply(question []byte) []byte {
	var q dns.Msg
	if q.Unpack(question) != nil || len(q.Question) != 1 {
		return nil
	}
	return r.answer(&q, question)
}

func (r *resolver) datagrams() {
	b := make([]byte, 64<<10)
	for {
		n, from, err := r.udp.ReadFrom(b)
		if err != nil {
			return
		}
		if out := r.reply(bytes.Clone(b[:n])); out != nil {
			_, _ = r.udp.WriteTo(out, from) // a lost answer is an answer that is lost
		}
	}
}

func (r *resolver) streams() {
	for {
		conn, err := r.tcp.Accept()
		if err != nil {
			return
		}
		r.busy.Go(func() {
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(patience))
			var size [2]byte
			for {
				if _, err := io.ReadFull(conn, size[:]); err != nil {
					return
				}
				question := make([]byte, binary.BigEndian.Uint16(size[:]))
				if _, err := io.ReadFull(conn, question); err != nil {
					return
				}
				out := r.reply(question)
				if out == nil || len(out) > 1<<16-1 {
					return
				}
				conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(out))), out...))
			}
		})
	}
}

// answering is a resolver that knows the lines of a zone, "NAME TYPE DATA", separated by semicolons or newlines, and
// a mail exchanger of remote.example.
func answering(text string) (*resolver, error) {
	var zone []dns.RR
	for line := range strings.FieldsFuncSeq(text+";remote.example MX 10 mx.remote.example.", func(r rune) bool { return r == ';' || r == '\n' }) {
		name, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		rr, err := dns.NewRR(dns.Fqdn(name) + " 60 IN " + rest)
		if err != nil || rr == nil {
			return nil, fmt.Errorf("%q is no record: %v", line, err)
		}
		zone = append(zone, rr)
	}
	return newResolver(func(q *dns.Msg, _ []byte) []byte {
		m := new(dns.Msg)
		m.SetReply(q)
		m.RecursionAvailable = true
		for _, rr := range zone {
			if h := rr.Header(); strings.EqualFold(h.Name, q.Question[0].Name) && h.Rrtype == q.Question[0].Qtype {
				m.Answer = append(m.Answer, rr)
			}
		}
		out, err := m.Pack()
		if err != nil {
			return nil
		}
		return out
	})
}

// dns plays an answer to the program that asks such a question.
func (r *Runner) dns(c *Case) error {
	kind, known := dns.StringToType[c.Setup.Qtype]
	if !known {
		return fmt.Errorf("there is no type %q", c.Setup.Qtype)
	}
	if kind == dns.TypePTR {
		return r.pointer(c)
	}
	in := c.input()
	host := c.Setup.Qname // for A and AAAA it is the name of a host, which a relay may be
	asked := 0
	lies, err := newResolver(func(q *dns.Msg, question []byte) []byte {
		if strings.EqualFold(q.Question[0].Name, dns.Fqdn(host)) && q.Question[0].Qtype == kind {
			asked++
			return c.lie(in, question)
		}
		m := new(dns.Msg)
		m.SetRcode(q, dns.RcodeNameError)
		out, _ := m.Pack()
		return out
	})
	if err != nil {
		return err
	}
	s, err := r.newSite()
	if err != nil {
		lies.close()
		return err
	}
	defer s.close()
	control := map[string]string{"resolvers": lies.address + "\n"}
	if kind == dns.TypeA || kind == dns.TypeAAAA {
		control["smtproutes"] = ":" + host + "\n"
	}
	if err := s.control(control); err != nil {
		lies.close()
		return err
	}
	cmd := r.command(s, "qmail-remote", "remote.example", "s@test.example", "box@remote.example")
	cmd.Stdin = strings.NewReader("Subject: s\n\nhello\n")
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &out, &log, time.Second
	memory, err := watched(cmd, 2*time.Minute)
	lies.close()
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != 0 {
		return fmt.Errorf("qmail-remote: %v: %.300q", err, log.Bytes())
	}
	return c.judgeName(out.String(), log.String(), asked, memory).err()
}

// lie is the recorded answer, to a question that was asked with another number.
func (c *Case) lie(in, question []byte) []byte {
	out := bytes.Clone(in)
	if len(out) >= 2 {
		id := binary.BigEndian.Uint16(question)
		binary.BigEndian.PutUint16(out, binary.BigEndian.Uint16(out)-c.Setup.ID+id)
	}
	return out
}

// judgeName goes by the report of qmail-remote. All these names lead nowhere, so it never can be a success; what is
// malformed is trouble that passes, and never the certainty that there is no such host.
func (c *Case) judgeName(report, log string, asked int, memory int64) (p problems) {
	if asked == 0 {
		p.add("nobody asked")
	}
	if trouble := brokeDown([]byte(log)); trouble != "" || log != "" {
		p.add("broke down: %s %.300q", trouble, log)
	}
	certain := strings.Contains(report, "D")
	classes := c.classes()
	if !slices.Contains(classes, "accept") && (report == "" || report[0] != 'Z') {
		p.add("a malformed answer is believed: %.300q", report)
	}
	switch value := string(c.Expect.Value); {
	case value == `"nxdomain"` || value == `"nullmx"`:
		if report == "" || report[0] != 'D' || !certain {
			p.add("want a refusal for good: %.300q", report)
		}
	case value == `"nodata"`, value == `"retry-tcp"`, value != "":
		if report == "" {
			p.add("no report")
		}
	}
	for _, word := range c.Expect.MustNot {
		name, arg, _ := strings.Cut(word, ":")
		switch {
		case name == "used" || name == "connect" && arg != "":
			if strings.Contains(report, arg) {
				p.add("%s: %.300q", word, report)
			}
		case name == "connect":
			if strings.Contains(report, "connection") && !certain {
				p.add("%s: %.300q", word, report)
			}
		case word == "rss>16MiB":
			if memory > emptyProgram+16<<20 {
				p.add("%s: %d MiB", word, memory>>20)
			}
		case word == "log_control_chars" || word == "header_injected" || word == "log_line_forged":
			if strings.ContainsAny(strings.TrimRight(report, "\n\x00"), "\r\x1b\x00") {
				p.add("%s: %.300q", word, report)
			}
		case word == "panic" || strings.HasPrefix(word, "time>") || word == "exec" || name == "file" || name == "relay":
			// A panic is looked for above. The time is of reading one answer, which a program that waits for answers
			// does not show. Nothing is run, no file is named by a host, and a client is not at stake.
		default:
			p.add("it must not %q, whatever that is", word)
		}
	}
	return p
}

// emptyProgram is about what our binary takes that does nothing.
const emptyProgram = 16 << 20

// pointer plays an answer about the name of an address to tcp-env, whose environment a server takes it from.
func (r *Runner) pointer(c *Case) error {
	in := c.input()
	asked := 0
	lies, err := newResolver(func(q *dns.Msg, question []byte) []byte {
		if q.Question[0].Qtype != dns.TypePTR {
			m := new(dns.Msg)
			m.SetRcode(q, dns.RcodeNameError)
			out, _ := m.Pack()
			return out
		}
		asked++
		// The question was recorded for another address: what comes after it stays, as pointers lead to it.
		return c.lie(in, question)
	})
	if err != nil {
		return err
	}
	defer lies.close()
	return fmt.Errorf("the recorded question is about another address than a client's: %w", ErrSkip)
}
