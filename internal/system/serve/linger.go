package serve

import (
	"io"
	"time"
)

const (
	maxLinger  = 64 << 10 // of input after our last word
	lingerTime = time.Second
)

// Linger ends our side of a connection whose client may have more to say, and hears it for a moment: closing at
// once would reset the connection, and our last word with it.
func Linger(stream interface {
	io.Reader
	SetReadDeadline(t time.Time) error
}) {
	half, ok := stream.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil || stream.SetReadDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	var b [512]byte
	for total := 0; total < maxLinger; {
		n, err := stream.Read(b[:])
		if err != nil {
			return
		}
		total += n
	}
}
