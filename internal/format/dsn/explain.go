package dsn

import (
	"net/netip"
	"strings"
)

// Action is what became of a recipient (RFC 3464 2.3.3).
type Action string

// The actions.
const (
	Failed    Action = "failed"
	Delayed   Action = "delayed"
	Delivered Action = "delivered"
	Relayed   Action = "relayed" // to a host that will not report
	Expanded  Action = "expanded"
)

// explanation is what the words of a delivery mean to a program.
type explanation struct {
	status     string // RFC 3463
	remote     string // address of the server that had the last word, if one had
	diagnostic string // with its type
}

// remoteSaid introduces a server's own words in a report; the lines of ends are ours again.
const remoteSaid = "Remote host said: "

var ends = [...]string{"Giving up on ", "I'm not going to try again;"}

// maxDiagnostic bounds one Diagnostic-Code, in bytes: a line of a header must not be longer than 998.
const maxDiagnostic = 800

// explain reads a report as qmail's programs write them: free text with codes like (#5.1.1), or the reply of a
// server.
func explain(action Action, report string) explanation {
	e := explanation{status: lastCode(report)}
	words, reply, said := strings.Cut(report, remoteSaid)
	if first, _, _ := strings.Cut(report, "\n"); said || strings.HasPrefix(first, "Connected to ") {
		e.remote = addressIn(words)
	}
	if said {
		reply = untilOurs(reply)
		e.diagnostic = "smtp; " + reply
		if s := replyStatus(reply); s != "" {
			e.status = s
		}
	} else if report != "" && (action == Failed || action == Delayed) { // what else was said is the recipient's own affair
		e.diagnostic = "x-qmail; " + report
	}
	e.status = fitting(action, e.status)
	return e
}

// fitting is status if it is of a class that the action may have, and else the class alone.
func fitting(action Action, status string) string {
	class := byte(0)
	if status != "" {
		class = status[0]
	}
	switch action {
	case Failed:
		if class != '5' && class != '4' {
			return "5.0.0"
		}
	case Delayed:
		if class != '4' {
			return "4.0.0"
		}
	case Relayed:
		return "2.1.9" // RFC 3886: relayed to a mailer that does not tell
	default:
		if class != '2' {
			return "2.0.0"
		}
	}
	return status
}

// lastCode is the last (#x.y.z) in a report.
func lastCode(report string) string {
	for {
		i := strings.LastIndex(report, "(#")
		if i < 0 {
			return ""
		}
		code, _, ok := strings.Cut(report[i+2:], ")")
		if ok && isStatus(code) {
			return code
		}
		report = report[:i]
	}
}

// isStatus accepts RFC 3463 2: class.subject.detail.
func isStatus(s string) bool {
	class, rest, _ := strings.Cut(s, ".")
	subject, detail, ok := strings.Cut(rest, ".")
	return ok && (class == "2" || class == "4" || class == "5") && shortNumber(subject) && shortNumber(detail)
}

func shortNumber(s string) bool {
	return s != "" && len(s) <= 3 && strings.Trim(s, "0123456789") == ""
}

// replyStatus is the enhanced status of an SMTP reply (RFC 2034), or what its code alone says.
func replyStatus(reply string) string {
	if len(reply) < 3 || !shortNumber(reply[:3]) {
		return ""
	}
	class := reply[:1]
	if len(reply) > 4 {
		status, _, _ := strings.Cut(reply[4:], " ")
		status, _, _ = strings.Cut(status, "\n")
		if isStatus(status) && status[:1] == class {
			return status
		}
	}
	if class == "4" || class == "5" {
		return class + ".0.0"
	}
	return ""
}

// untilOurs cuts what we have added to a server's words.
func untilOurs(reply string) string {
	n := 0
	for line := range strings.Lines(reply) {
		if n > 0 {
			for _, end := range ends {
				if strings.HasPrefix(line, end) {
					return reply[:n]
				}
			}
		}
		n += len(line)
	}
	return reply
}

// addressIn finds an IP address among the first words of a text.
func addressIn(text string) string {
	for i, word := range strings.Fields(text[:min(len(text), 200)]) {
		if ip, err := netip.ParseAddr(word); err == nil && ip.Zone() == "" {
			return ip.String()
		}
		if i == 3 {
			break
		}
	}
	return ""
}
