// Package queue is qmail-queue(8): it reads a message from descriptor 0 and its envelope from descriptor 1 and
// puts it into the queue. It prints nothing; its exit code says what became of the message.
//
// It is not setuid. Who injects is told by the kernel: the peer of the socket, or the owner of the drop file.
package queue

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"syscall"

	"qmail/internal/format/envelope"
	"qmail/internal/proto/enqueue"
	"qmail/internal/proto/qq"
	"qmail/internal/system/env"
)

// Main runs the role and returns its exit code.
func Main(ctx context.Context, e *env.Env, _ []string) int {
	signal.Ignore(syscall.SIGPIPE, syscall.SIGVTALRM, syscall.SIGPROF, syscall.SIGQUIT, syscall.SIGINT, syscall.SIGHUP,
		syscall.SIGXCPU, syscall.SIGXFSZ)
	ctx, cancel := context.WithTimeout(ctx, qq.Lifetime)
	defer cancel()
	records, ok := e.Stdout.(io.Reader) // descriptor 1, opened for reading
	if !ok {
		return qq.CodeRead
	}
	code := make(chan int, 1)
	go func() { code <- run(ctx, e, records) }() // reading cannot be interrupted; the process ends it
	select {
	case c := <-code:
		return c
	case <-ctx.Done():
		return qq.CodeTimeout
	}
}

func run(ctx context.Context, e *env.Env, records io.Reader) int {
	if info, err := os.Stat(e.Home); err != nil || !info.IsDir() {
		return qq.CodeHome
	}
	// Never another program: this is the one at the end of the chain.
	m, err := (&qq.Queue{Home: e.Home, Now: e.Now}).Open(ctx, nil)
	if err != nil {
		return qq.Code(err)
	}
	defer m.Abort()
	source := &tracked{r: e.Stdin}
	_, writeErr := io.CopyBuffer(struct{ io.Writer }{m}, source, make([]byte, 64<<10))
	if source.err != nil {
		return qq.CodeRead
	}
	env, code := readEnvelope(bufio.NewReader(records))
	switch {
	case writeErr != nil: // Commit knows why
		env = &envelope.Envelope{}
	case code != 0:
		return code
	}
	_, err = m.Commit(env)
	return qq.Code(err)
}

// tracked tells a failed read from a failed write.
type tracked struct {
	r   io.Reader
	err error
}

func (t *tracked) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	if err != nil && err != io.EOF {
		t.err = err
	}
	return n, err
}

// readEnvelope reads up to the empty record; what follows it is not looked at.
func readEnvelope(r *bufio.Reader) (*envelope.Envelope, int) {
	letter, sender, code := record(r)
	if code != 0 {
		return nil, code
	}
	if letter != 'F' {
		return nil, qq.CodeBug
	}
	e := &envelope.Envelope{Sender: sender}
	for total := len(sender); ; {
		letter, recipient, code := record(r)
		switch {
		case code != 0:
			return nil, code
		case letter == 0:
			return e, 0
		case letter != 'T':
			return nil, qq.CodeBug
		}
		if total += len(recipient) + 2; total > enqueue.MaxEnvelope {
			return nil, qq.CodeNever
		}
		e.Recipients = append(e.Recipients, recipient)
	}
}

// record reads a letter and a value up to its NUL; the letter is 0 for the empty record.
func record(r *bufio.Reader) (letter byte, value string, code int) {
	letter, err := r.ReadByte()
	if err != nil {
		return 0, "", qq.CodeRead
	}
	if letter != 'F' && letter != 'T' {
		return letter, "", 0
	}
	text, err := r.ReadSlice(0)
	switch {
	case len(text) > envelope.MaxAddress+1 || errors.Is(err, bufio.ErrBufferFull):
		return 0, "", qq.CodeTooLong
	case err != nil:
		if len(text) > envelope.MaxAddress {
			return 0, "", qq.CodeTooLong
		}
		return 0, "", qq.CodeRead
	}
	return letter, string(text[:len(text)-1]), 0
}
