package env

import (
	"context"
	"io"
	"log/slog"
	"sync"
)

// maxLine bounds a log line, in bytes.
const maxLine = 2000

// handler writes one line per record in a single write: "program: text key=value\n". Bytes that could
// forge or break a line become '?', so that peers can be quoted.
type handler struct {
	mu     *sync.Mutex
	w      io.Writer
	prefix string
	attrs  string
}

func newHandler(program string, w io.Writer) *handler {
	return &handler{mu: &sync.Mutex{}, w: w, prefix: program + ": "}
}

func (h *handler) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }

func (h *handler) Handle(_ context.Context, r slog.Record) error {
	line := append(make([]byte, 0, 256), h.prefix...)
	switch {
	case r.Level >= slog.LevelError:
		line = append(line, "alert: "...)
	case r.Level >= slog.LevelWarn:
		line = append(line, "warning: "...)
	}
	line = clean(line, r.Message)
	line = append(line, h.attrs...)
	r.Attrs(func(a slog.Attr) bool {
		line = attr(line, a)
		return true
	})
	if len(line) > maxLine {
		line = append(line[:maxLine], "..."...)
	}
	line = append(line, '\n')
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := h.w.Write(line)
	return err
}

func attr(line []byte, a slog.Attr) []byte {
	line = append(line, ' ')
	line = clean(line, a.Key)
	line = append(line, '=')
	return clean(line, a.Value.Resolve().String())
}

// clean appends s with every control byte and every byte above 126 as '?'.
func clean(dst []byte, s string) []byte {
	for i := 0; i < len(s) && len(dst) < maxLine+1; i++ {
		if c := s[i]; c < 32 || c > 126 {
			dst = append(dst, '?')
		} else {
			dst = append(dst, c)
		}
	}
	return dst
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	h2 := *h
	for _, a := range attrs {
		h2.attrs = string(attr([]byte(h2.attrs), a))
	}
	return &h2
}

// WithGroup is not used by our logs; names stay flat.
func (h *handler) WithGroup(string) slog.Handler { return h }
