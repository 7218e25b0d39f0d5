package super

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"qmail/internal/system/env"
)

// TestUsersThatAreMissing looks up users as root: one younger than qmail has a stand-in or may be spared, others not.
func TestUsersThatAreMissing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root runs roles as others")
	}
	const nobody = "no-such-user-of-qmail"
	tests := []struct {
		name    string
		process process
		runs    bool
		want    string // on the log, or in the error
	}{
		{"a user", process{name: "x", user: "root"}, true, ""},
		{"nobody, with a stand-in", process{name: "x", user: nobody, instead: "root", group: "root"}, false, "another name of root"},
		{"nobody, with a stand-in who is nobody, too", process{name: "x", user: nobody, instead: nobody}, false, "has to run as " + nobody},
		{"nobody, with a stand-in who is somebody", process{name: "x", user: nobody, instead: "nobody"}, true, "qmail-x runs as nobody: there is no user " + nobody},
		{"nobody, who can be spared", process{name: "x", user: nobody, spare: true}, false, ""},
		{"nobody", process{name: "x", user: nobody}, false, "has to run as " + nobody},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var log bytes.Buffer
			e := &env.Env{Stderr: &log}
			ids, err := identities([]process{tt.process}, e.Log("qmail-start"))
			if err != nil {
				log.WriteString(err.Error())
			}
			if _, runs := ids["x"]; runs != tt.runs || !strings.Contains(log.String(), tt.want) {
				t.Errorf("runs: %v; %s", runs, &log)
			}
		})
	}
}
