package client

// Report is one verdict as qmail-remote prints it, but for the NUL: r, h or s of a recipient, K, Z or D of a
// message. Letter 0 is no verdict. Text is empty or ends in LF.
type Report struct {
	Letter byte
	Text   string
}

// Result is what came of one transaction.
type Result struct {
	Recipients []Report // in the order asked; without a verdict where the end came before
	Message    Report
	// Answered is false if the connection ended before the server had said anything to this message: it
	// may be sent elsewhere, or once more, at once.
	Answered bool
	// Reports says that the server offers DSN: what the sender wants to hear of is its affair from now on.
	Reports bool

	gaveUp string // what qmail-remote would have said, had it only a recipient that the server refused
}

// Failure is the result of a message that met r before its transaction began.
func Failure(r Report, recipients int) Result {
	return Result{Recipients: make([]Report, recipients), Message: r}
}

// Classic appends the records of qmail-remote: the recipients', then the message's, each with its NUL.
func (r *Result) Classic(dst []byte) []byte {
	for _, one := range r.Recipients {
		if one.Letter != 0 {
			dst = append(append(append(dst, one.Letter), one.Text...), 0)
		}
	}
	return append(append(append(dst, r.Message.Letter), r.Message.Text...), 0)
}

// Of is the report on recipient i alone, K, Z or D first: what qmail-rspawn makes of qmail-remote's output for a
// message that has only this recipient. A recipient that the server refused has its words, and then
// that we gave up.
func (r *Result) Of(i int) string {
	switch one := r.Recipients[i]; one.Letter {
	case 'h':
		return "D" + one.Text + r.gaveUp
	case 's':
		return "Z" + one.Text + r.gaveUp
	}
	return string(r.Message.Letter) + r.Message.Text
}

// died is the report of a connection that ended before it should; its place in the dialogue is in note.
func (c *Conn) died(note string) Report {
	c.dead, c.gone = true, true
	return Report{'Z', "Connected to " + c.addr + " but connection died. " + note + "(#4.4.2)\n"}
}

// remoteSaid is what the server said last, for reports.
func (c *Conn) remoteSaid() string { return "Remote host said: " + lineEnd(c.in.text) }

func lineEnd(text []byte) string {
	if len(text) == 0 || text[len(text)-1] != '\n' {
		return string(text) + "\n"
	}
	return string(text)
}

// class sorts a reply's code: K, Z or D. What RFC 5321 4.2.1 does not know means later.
func class(code int) byte {
	switch {
	case 200 <= code && code <= 299:
		return 'K'
	case 500 <= code && code <= 599:
		return 'D'
	}
	return 'Z'
}
