package child

import (
	"context"
	"io"
	"os"
)

// Shell runs a command line of a user's, with the message, from its start, as its input: after head, or by itself
// if that is empty, so that the command may seek in it.
func Shell(ctx context.Context, command string, vars []string, head string, message *os.File) (code int, err error) {
	if _, err := message.Seek(0, io.SeekStart); err != nil {
		return 0, err
	}
	argv := []string{"/bin/sh", "-c", command}
	if head != "" {
		return RunFed(ctx, argv, vars, head, message, os.Stdout, os.Stderr)
	}
	return Run(ctx, argv, vars, message, os.Stdout, os.Stderr)
}
