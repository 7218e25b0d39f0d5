package showctl

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"

	"qmail/internal/system/env"
)

// Control is qmail control: a line for each file, in columns that a tab parts: its name, its state (set, default,
// unset, unknown, wrong, unreadable), its value, its default, its meaning. With names as arguments, it prints
// what counts of these files and nothing else.
func Control(_ context.Context, e *env.Env, args []string) int {
	if slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "-") }) {
		fmt.Fprintln(e.Stderr, "qmail-control: usage: qmail control [name ...]")
		return usage
	}
	all, err := look(e.Home)
	if err != nil {
		fmt.Fprintf(e.Stderr, "qmail-control: fatal: unable to read control: %v\n", err)
		return unreadable
	}
	if len(args) > 0 {
		return values(e, all, args)
	}
	var b bytes.Buffer
	for _, s := range all {
		fmt.Fprintf(&b, "%s\t%s\t%s\t%s\t%s\n", s.Name, s.word(), clean(strings.Join(s.value, " ")), s.otherwise(), s.Meaning)
		for _, t := range s.troubles {
			fmt.Fprintf(e.Stderr, "qmail-control: warning: control/%s: %s\n", clean(s.Name), clean(t))
		}
	}
	e.Stdout.Write(b.Bytes())
	return verdict(all)
}

// values prints what counts of some files.
func values(e *env.Env, all []state, names []string) int {
	code := well
	var b bytes.Buffer
	for _, name := range names {
		i := slices.IndexFunc(all, func(s state) bool { return s.Name == name })
		if i < 0 || !all[i].known {
			fmt.Fprintf(e.Stderr, "qmail-control: fatal: there is no setting %q\n", name)
			return usage
		}
		for _, v := range all[i].value {
			b.WriteString(v + "\n")
		}
		for _, t := range all[i].troubles {
			fmt.Fprintf(e.Stderr, "qmail-control: warning: control/%s: %s\n", name, clean(t))
		}
		code = max(code, verdict(all[i:i+1]))
	}
	e.Stdout.Write(b.Bytes())
	return code
}

func (s *state) word() string {
	switch {
	case !s.known:
		return "unknown"
	case s.err != nil:
		return "unreadable"
	case len(s.troubles) > 0:
		return "wrong"
	case s.present:
		return "set"
	case len(s.value) > 0:
		return "default"
	}
	return "unset"
}

func (s *state) otherwise() string {
	if s.Me && s.Default != "" {
		return "me, else " + s.Default
	}
	if s.Me {
		return "me"
	}
	return s.Default
}
