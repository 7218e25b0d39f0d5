package main

import (
	"bytes"
	"context"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestShort is a little of it.
func TestShort(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	program := filepath.Join(t.TempDir(), "qmail")
	if out, err := exec.Command("go", "build", "-o", program, "qmail/cmd/qmail").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var out bytes.Buffer
	err := torture(context.Background(), plan{program: program, time: 10 * time.Second, every: 700 * time.Millisecond, seed: 1, senders: 2, out: &out})
	t.Log(out.String())
	if err != nil {
		t.Error(err)
	}
}
