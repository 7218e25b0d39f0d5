package control

import (
	"fmt"

	"qmail/internal/format/header"
)

// Completion is how addresses without a full host are completed: defaulthost, defaultdomain and plusdomain, each
// of which me stands in for.
func (d Dir) Completion() (*header.Completion, error) {
	c := &header.Completion{}
	for _, s := range []struct {
		name   string
		tokens *[]header.Token
	}{{"defaulthost", &c.Host}, {"defaultdomain", &c.Domain}, {"plusdomain", &c.Plus}} {
		value, err := d.LineOrMe(s.name, s.name)
		if err != nil {
			return nil, err
		}
		tokens, ok := header.Tokenize(value)
		if !ok {
			return nil, fmt.Errorf("%s: not a host name", d.Path(s.name))
		}
		*s.tokens = tokens
	}
	return c, nil
}
