package meter

import (
	"bufio"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	const rest = " S 7 1 1 0 -1 4194560 100 200 0 0 11 12 13 14 20 0 1 0 100 1000 100 18446744073709551615"
	tests := []struct {
		name, line string
		want       process
		ok         bool
	}{
		{"a plain name", "42 (smtpd)" + rest, process{42, 7, 270 * time.Millisecond}, true},
		{"a name that looks like fields", "42 (a) R 1 (b)" + rest, process{42, 7, 270 * time.Millisecond}, true},
		{"too short", "42 (smtpd) S 7", process{}, false},
		{"no name", "42 S 7", process{}, false},
		{"not a number", "42 (smtpd)" + strings.Replace(rest, "13", "x", 1), process{}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := parseStat([]byte(tt.line))
			if ok != tt.ok || ok && got != tt.want {
				t.Errorf("parseStat = %+v, %v", got, ok)
			}
		})
	}
}

// A child burns half of its time itself and lets a grandchild burn the rest and end; another grandchild stays.
func TestTreeCountsTheLivingAndTheDead(t *testing.T) {
	const burn = `i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done`
	us := Tree(os.Getpid())
	before, err := us.CPU() // of this process, and of children that other tests had
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", burn+`; sh -c '`+burn+`'; cat <&3 & echo ready; wait`)
	in, out := pipe(t)
	cmd.ExtraFiles = []*os.File{in}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatal(line, err)
	}
	cpu, err := us.CPU()
	if err != nil {
		t.Fatal(err)
	}
	mem, err := us.Memory()
	if err != nil {
		t.Fatal(err)
	}
	if mem.Processes != 2 || mem.PSS <= 0 || mem.RSS < mem.PSS {
		t.Errorf("the child and its own, holding something: %+v", mem)
	}
	below, err := Tree(cmd.Process.Pid).Pids()
	if err != nil || len(below) != 1 {
		t.Errorf("below the child there is one: %v, %v", below, err)
	}
	out.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	real := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	if cpu -= before; cpu > real+tick || cpu < real-3*tick {
		t.Errorf("the tree has used %v when the kernel says %v", cpu, real)
	}
	after, err := us.CPU()
	if err != nil || after-before < real-3*tick {
		t.Errorf("with all ended it is %v, %v", after-before, err)
	}
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

func TestKilobytes(t *testing.T) {
	text := []byte("Rss:   4 kB\nPss:   3 kB\nPss_Dirty:  2 kB\nbroken: x kB\n")
	for name, want := range map[string]int64{"Rss:": 4096, "Pss:": 3072, "Swap:": 0, "broken:": 0} {
		if got := kilobytes(text, name); got != want {
			t.Errorf("%s is %d, want %d", name, got, want)
		}
	}
}

func TestBusy(t *testing.T) {
	got, err := busy([]byte("cpu  1 2 4 1000 1000 8 16 1000 0 0\ncpu0 9 9\n"))
	if err != nil || got != 31*tick {
		t.Errorf("busy = %v, %v", got, err)
	}
	for _, bad := range []string{"", "cpu 1 2", "cpu  1 2 x 4 5 6 7 8", "gpu  1 2 3 4 5 6 7 8"} {
		if got, err := busy([]byte(bad)); err == nil {
			t.Errorf("busy(%q) = %v", bad, got)
		}
	}
	if _, err := Machine(); err != nil {
		t.Error(err)
	}
}
