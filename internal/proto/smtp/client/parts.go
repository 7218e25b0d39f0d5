package client

import (
	"strconv"

	"qmail/internal/format/dsn"
)

// Deliver sends one message, in several transactions where the server takes no more recipients in one (RCPTMAX, RFC
// 9422). The connection may be used again if it is then Usable.
func (c *Conn) Deliver(m *Message) Result {
	most := len(m.Recipients)
	if c.recipients > 0 && c.recipients < int64(most) {
		most = int(c.recipients)
	}
	result := c.transact(m.part(0, most))
	if most == len(m.Recipients) {
		return result
	}
	whole := Result{
		Recipients: make([]Report, len(m.Recipients)), Message: result.Message,
		Answered: result.Answered, Reports: result.Reports, gaveUp: result.gaveUp,
	}
	for from := 0; ; result = c.transact(m.part(from, min(from+most, len(m.Recipients)))) {
		from += copy(whole.Recipients[from:], result.settled())
		if result.Message.Letter == 'K' {
			whole.Message = result.Message
		}
		if from == len(m.Recipients) {
			return whole
		}
		if m.Body.Rest != nil || !c.Usable() { // what is not in memory has been read
			text := c.addr + " takes only " + strconv.Itoa(most) + " recipients at a time. (#4.5.3)\n"
			for ; from < len(m.Recipients); from++ {
				whole.Recipients[from] = Report{'s', text}
			}
			return whole
		}
	}
}

// part is m for some of its recipients.
func (m *Message) part(from, to int) *Message {
	if from == 0 && to == len(m.Recipients) {
		return m
	}
	part := *m
	part.Recipients = m.Recipients[from:to]
	part.RecipientWishes = nil
	for i, w := range m.RecipientWishes {
		if from <= i && i < to {
			if part.RecipientWishes == nil {
				part.RecipientWishes = map[int]dsn.Recipient{}
			}
			part.RecipientWishes[i-from] = w
		}
	}
	return &part
}

// settled are verdicts on the recipients that hold without that on the message.
func (r *Result) settled() []Report {
	list := make([]Report, len(r.Recipients))
	for i, one := range r.Recipients {
		if one.Letter != 'h' && one.Letter != 's' && r.Message.Letter != 'K' {
			one = Report{'s', r.Message.Text}
			if r.Message.Letter == 'D' {
				one.Letter = 'h'
			}
		}
		list[i] = one
	}
	return list
}
