package meter

import (
	"os"
	"os/exec"
	"testing"
	"time"
)

func TestForksAreCounted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the kernel tells only root of processes")
	}
	if err := exec.Command("true").Run(); err != nil { // the first time Go tries out what the kernel can
		t.Fatal(err)
	}
	f, err := Tree(os.Getpid()).Watch()
	if err != nil {
		t.Skip("the kernel does not tell: ", err)
	}
	defer f.Close()
	elsewhere := exec.Command("sh", "-c", "true & wait")
	if err := elsewhere.Run(); err != nil { // sh, and true
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		n, ok := f.Count()
		if !ok {
			t.Skip("too much happens on this machine")
		}
		if n == 2 {
			return
		}
		if n > 2 || time.Now().After(end) {
			t.Fatalf("%d processes were started, and 2 should have been", n)
		}
	}
}
