package errstr

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"
)

func TestText(t *testing.T) {
	_, missing := os.Open("/nonexistent/file")
	tests := []struct {
		name string
		err  error
		want string
	}{
		{"an error of package os", missing, "file does not exist"},
		{"a wrapped one", fmt.Errorf("x: %w", syscall.EDQUOT), "disk quota exceeded"},
		{"a deadline", os.ErrDeadlineExceeded, "timed out"},
		{"one without a name", syscall.EXFULL, "unknown error"},
		{"none of the system's", errors.New("x"), "unknown error"},
	}
	for _, tt := range tests {
		if got := Text(tt.err); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestAbsent(t *testing.T) {
	_, missing := os.Open("/nonexistent/file")
	for err, want := range map[error]bool{
		missing: true, syscall.ENOTDIR: true, syscall.ENAMETOOLONG: true, syscall.EACCES: false,
		syscall.EPERM: false, syscall.EIO: false, syscall.EMFILE: false, errors.New("x"): false,
	} {
		if Absent(err) != want {
			t.Errorf("Absent(%v) = %v", err, !want)
		}
	}
}
