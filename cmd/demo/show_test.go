package main

import (
	"strings"
	"testing"
)

func TestFollow(t *testing.T) {
	const log = `status: local 0/10 remote 0/20
new msg 3
info msg 3: bytes 273 from <friend@far.example> qp 3 uid 65534
starting delivery 3: msg 3 to local alice-team@demo.example
new msg 4
info msg 4: bytes 383 from <friend@far.example> qp 8420 uid 65534
starting delivery 4: msg 4 to local bob@demo.example
delivery 3: success: did_0+1+0/qp_8420/
end msg 3
delivery 4: success: did_1+0+0/
end msg 4
new msg 30
starting delivery 5: msg 30 to remote nobody@far.example
delivery 5: failure: no_such_person/
bounce msg 30 qp 31
end msg 30
new msg 31
info msg 31: bytes 9 from <> qp 31 uid 65534
end msg 31
`
	tests := []struct {
		name, number string
		lines        int // of the log, from the top
		want         string
		ended        bool
	}{
		{"a forward is followed", "3", 100, "new 3,info 3,starting 3,new 4,info 4,starting 4,delivery 3,end 3,delivery 4,end 4", true},
		{"a forward that is under way is not the end", "3", 9, "new 3,info 3,starting 3,new 4,info 4,starting 4,delivery 3,end 3", false},
		{"a message has none of its neighbour's lines", "4", 100, "new 4,info 4,starting 4,delivery 4,end 4", true},
		{"a bounce is followed", "30", 100, "new 30,starting 5,delivery 5,bounce 30,end 30,new 31,info 31,end 31", true},
		{"what is not there has no end", "7", 100, "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			lines := strings.Split(log, "\n")
			story, ended := follow(strings.Join(lines[:min(tt.lines, len(lines))], "\n"), tt.number)
			var got []string
			for _, line := range story {
				words := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == ':' })
				for i, w := range words {
					if w[0] >= '0' && w[0] <= '9' {
						got = append(got, words[0]+" "+words[i])
						break
					}
				}
			}
			if strings.Join(got, ",") != tt.want || ended != tt.ended {
				t.Errorf("%s, ended %v", strings.Join(got, ","), ended)
			}
		})
	}
}
