package inject

import (
	"bytes"
	"context"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"qmail/internal/system/env"
)

func TestOptions(t *testing.T) {
	tests := []struct {
		name, args string
		to         string
		header     bool
		sender     string
		has, print bool
	}{
		{"neither: the header", "", "", true, "", false, false},
		{"arguments alone", "a b", "a b", false, "", false, false},
		{"-a: arguments, though there are none", "-a", "", false, "", false, false},
		{"-h: the header, whatever there is", "-h a", "", true, "", false, false},
		{"-H: both", "-H a", "a", true, "", false, false},
		{"the last strategy counts", "-h -A a", "a", false, "", false, false},
		{"the last of -n and -N", "-nN", "", true, "", false, false},
		{"print", "-Nn", "", true, "", false, true},
		{"a sender", "-fx a", "a", false, "x", true, false},
		{"the null sender, as callers write it", "-f <> a", "a", false, "", true, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o, err := options(strings.Fields(tt.args))
			if err != nil || !slices.Equal(o.Recipients, strings.Fields(tt.to)) && len(o.Recipients)+len(tt.to) > 0 || o.FromHeader != tt.header ||
				o.Sender != tt.sender || o.HasSender != tt.has || o.Print != tt.print {
				t.Errorf("%+v %v", o, err)
			}
		})
	}
}

func TestMain(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	var out, trouble bytes.Buffer
	e := &env.Env{Home: t.TempDir(), Stdin: null, Stdout: &out, Stderr: &trouble, Now: time.Now}
	if code := Main(context.Background(), e, []string{"-n"}); code != 0 || trouble.Len() > 0 || !strings.HasPrefix(out.String(), "Return-Path: <anonymous@defaulthost.defaultdomain>\nDate: ") {
		t.Errorf("%d %q %q", code, out.String(), trouble.String())
	}
	for args, want := range map[string]string{"-Z": "qmail-inject: illegal option -- Z\n", "a@(": "qmail-inject: fatal: unable to parse address: a@(\n"} {
		trouble.Reset()
		if code := Main(context.Background(), e, []string{args}); code != 100 || trouble.String() != want {
			t.Errorf("%s: %d %q", args, code, trouble.String())
		}
	}
}
