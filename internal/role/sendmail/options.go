package sendmail

import (
	"errors"
	"slices"
	"strings"

	"qmail/internal/format/address"
	"qmail/internal/format/getopt"
	"qmail/internal/system/env"
)

// options are what a command line says.
type options struct {
	mode       byte // of -b; q for a queue run
	fromHeader bool
	hasSender  bool
	sender     string
	null       bool // -f '<>', which names no user
	hasName    bool
	name       string
	recipients []string
	message    []string // ESMTP options
	recipient  []string
}

var errUsage = errors.New("sendmail: usage")

// letters are the options of sendmail that callers use. Those without an entry in parse mean nothing here.
const letters = "ivmtxGnUIQ" + "f:F:r:b:e:o:p:B:O:N:R:V:h:C:L:X:A:D:M:" + "E?J?d?q?"

func parse(args []string) (options, error) {
	o := options{mode: 'm'}
	parsed, rest, err := getopt.Parse(args, letters)
	for _, p := range parsed {
		switch p.Letter {
		case 't':
			o.fromHeader = true
		case 'f', 'r':
			o.setSender(p.Arg)
		case 'F':
			o.hasName, o.name = true, p.Arg
		case 'b':
			if p.Arg == "" || !strings.Contains("mspvi", p.Arg[:1]) {
				return o, errUsage
			}
			o.mode = p.Arg[0]
		case 'I':
			o.mode = 'i'
		case 'q':
			o.mode = 'q'
		case 'B':
			if body := strings.ToUpper(p.Arg); body == "7BIT" || body == "8BITMIME" {
				o.message = append(o.message, "BODY="+body)
			}
		default:
			o.delivery(p)
		}
		if o.mode == 's' || o.mode == 'p' { // at once: what follows is not looked at
			return o, nil
		}
	}
	o.recipients = rest
	if o.mode == 'q' && (len(rest) > 0 || o.fromHeader) {
		o.mode = 'm' // -q then says when to deliver, not what to do
	}
	return o, err
}

// setSender takes the argument of -f. Callers write <> for the null sender, and brackets around others; the
// classic program took them for a part of the name.
func (o *options) setSender(s string) {
	o.null = s == "<>"
	if len(s) >= 2 && s[0] == '<' && s[len(s)-1] == '>' {
		s = s[1 : len(s)-1]
	}
	o.hasSender, o.sender = true, s
}

// delivery takes the options of delivery status notifications (RFC 3461).
func (o *options) delivery(p getopt.Option) {
	arg := strings.ToUpper(p.Arg)
	switch p.Letter {
	case 'N':
		if arg == "NEVER" || arg != "" && !slices.ContainsFunc(strings.Split(arg, ","), func(s string) bool {
			return s != "SUCCESS" && s != "FAILURE" && s != "DELAY"
		}) {
			o.recipient = []string{"NOTIFY=" + arg}
		}
	case 'R':
		switch arg {
		case "FULL":
			o.message = append(o.message, "RET=FULL")
		case "HDRS":
			o.message = append(o.message, "RET=HDRS")
		}
	case 'V':
		if id := xtext(p.Arg); id != "" && len(id) <= 100 {
			o.message = append(o.message, "ENVID="+id)
		}
	}
}

// xtext is RFC 3461 4.
func xtext(s string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if c := s[i]; c <= 32 || c >= 127 || c == '+' || c == '=' {
			b.WriteByte('+')
			b.WriteByte(hex[c>>4])
			b.WriteByte(hex[c&15])
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// vars is the environment in which qmail-inject makes the From field: -f names its user, too, unless it is
// <>, and -F its personal name.
func (o *options) vars(e *env.Env) []string {
	vars := e.Vars
	if o.hasSender && !o.null {
		vars = drop(vars, "QMAILNAME", "MAILNAME", "NAME", "QMAILHOST", "MAILHOST")
		local, domain, ok := address.Split(o.sender)
		vars = append([]string{"QMAILUSER=" + local}, vars...)
		if ok {
			vars = append([]string{"QMAILHOST=" + domain}, vars...)
		}
	}
	if o.hasName {
		vars = append([]string{"MAILNAME=" + o.name}, vars...)
	}
	return vars
}

// drop leaves some variables out.
func drop(vars []string, names ...string) []string {
	var rest []string
	for _, v := range vars {
		if name, _, _ := strings.Cut(v, "="); !slices.Contains(names, name) {
			rest = append(rest, v)
		}
	}
	return rest
}

// without keeps the first of equal names.
func without(vars []string) []string {
	seen := map[string]bool{}
	var rest []string
	for _, v := range vars {
		name, _, _ := strings.Cut(v, "=")
		if !seen[name] {
			seen[name] = true
			rest = append(rest, v)
		}
	}
	return rest
}
