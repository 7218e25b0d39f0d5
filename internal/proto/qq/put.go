package qq

import (
	"context"
	"io"

	"qmail/internal/format/envelope"
	"qmail/internal/format/reply"
)

// Put puts a whole message into the queue. The error is a *reply.Error.
func (q *Queue) Put(ctx context.Context, e *envelope.Envelope, message ...io.Reader) (Accepted, error) {
	ctx, cancel := context.WithTimeout(ctx, Lifetime)
	defer cancel()
	m, err := q.Open(ctx, e)
	if err != nil {
		return Accepted{}, err
	}
	defer m.Abort()
	source := &tracked{r: io.MultiReader(message...)}
	_, _ = io.CopyBuffer(struct{ io.Writer }{m}, source, make([]byte, 64<<10)) // Commit knows why a Write failed
	if source.err != nil {
		return Accepted{}, because(CodeRead, source.err)
	}
	return m.Commit(e)
}

// Explain is what a program that delivers (qmail-command(8)) says of an error of this package, and its exit code.
func Explain(err error) (text string, code int) {
	e := reply.Of(err)
	if e.Letter() == 'D' {
		return e.Report()[1:], 100
	}
	return e.Report()[1:], 111
}
