package limit

import (
	"context"
	"os"
	"strings"
	"testing"
)

func TestFilesAreAllThere(t *testing.T) {
	dir := t.TempDir()
	rate, err := Files(t.Context(), dir, 4, 30, 1000)
	if err != nil && strings.Contains(err.Error(), "unnamed") {
		t.Skip("the file system has no unnamed files:", err)
	}
	if err != nil || rate <= 0 {
		t.Fatal(rate, err)
	}
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 30 {
		t.Fatalf("%d files, %v", len(names), err)
	}
	for _, n := range names {
		if info, err := n.Info(); err != nil || info.Size() != 1000 {
			t.Errorf("%v, %v", info, err)
		}
	}
}

func TestCopyWritesEverything(t *testing.T) {
	dir := t.TempDir()
	rate, err := Copy(t.Context(), dir, 4, 30, 100<<10)
	if err != nil || rate <= 0 {
		t.Fatal(rate, err)
	}
	info, err := os.Stat(dir + "/journal")
	if err != nil || info.Size() != 30*100<<10 {
		t.Errorf("%v, %v", info, err)
	}
}

func TestAnEndedContextEndsTheWork(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Files(ctx, t.TempDir(), 2, 1<<30, 10); err == nil {
		t.Error("it worked on")
	}
}

func TestNoDirectoryIsTold(t *testing.T) {
	dir := t.TempDir()
	if _, err := Copy(t.Context(), dir+"/absent", 1, 1, 1); err == nil {
		t.Error("a journal in no directory")
	}
}
