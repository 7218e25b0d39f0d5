package vectors

import (
	"bytes"
	"regexp"
)

// tokens are the places in recorded values where any text of a kind will do.
func tokens() map[string]*regexp.Regexp {
	const month = "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
	const day = "(?:Sun|Mon|Tue|Wed|Thu|Fri|Sat)"
	list := map[string]*regexp.Regexp{}
	for name, pattern := range map[string]string{
		"DATE":  `\d{1,2} ` + month + ` \d{4} \d\d:\d\d:\d\d [-+]\d{4}`,
		"DT":    `\d{1,2} ` + month + ` \d{4} \d\d:\d\d:\d\d`,
		"CTIME": day + " " + month + ` [ \d]\d \d\d:\d\d:\d\d \d{4}`,
		"STAMP": `\d{14}`,
		"TIME":  `\d{10,19}`,
		"PID":   `\d+`,
		"LEN":   `\d+`,
		"QP":    `[0-9A-Za-z._-]+`,
		"MSGID": `[^<>@\s]+`,
	} {
		list[name] = regexp.MustCompile("^(?:" + pattern + ")")
	}
	return list
}

// cutToken takes the first {{TOKEN}} out of template.
func cutToken(template []byte) (before []byte, token *regexp.Regexp, after []byte) {
	all := tokens()
	for from := 0; ; {
		i := bytes.Index(template[from:], []byte("{{"))
		if i < 0 {
			return template, nil, nil
		}
		i += from
		end := bytes.Index(template[i:], []byte("}}"))
		if end < 0 {
			return template, nil, nil
		}
		if re := all[string(template[i+2:i+end])]; re != nil {
			return template[:i], re, template[i+end+2:]
		}
		from = i + 2
	}
}

// match reports whether got is what the template says: its text is equal, and at each token stands the longest
// text that the token allows.
func match(template, got []byte) bool {
	for {
		before, token, after := cutToken(template)
		if !bytes.HasPrefix(got, before) {
			return false
		}
		got = got[len(before):]
		if token == nil {
			return len(got) == 0
		}
		token.Longest()
		found := token.FindIndex(got)
		if found == nil {
			return false
		}
		got, template = got[found[1]:], after
	}
}
