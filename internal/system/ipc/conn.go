// Package ipc carries frames, and now and then a descriptor, between two of our processes.
//
// A frame is a header of ten bytes and a payload:
//
//	length of the payload, 4 bytes, most significant first
//	kind, 1 byte: what it means is up to the protocol
//	flags, 1 byte: 1 if a descriptor comes with it (SCM_RIGHTS), else 0
//	stream, 4 bytes: which of many conversations on this connection it belongs to
//
// The peer is not trusted: a payload over the maximum, an unknown flag, a descriptor that no frame announced
// or an announced one that did not come ends the connection. Nothing is allocated for a length before it
// has been checked, and no descriptor is kept that was not asked for.
package ipc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"time"
)

const (
	headerSize = 10
	flagFile   = 1

	// MaxPayload is the largest payload of any frame, in bytes.
	MaxPayload = 256 << 10

	// maxPending bounds what Send keeps for a peer that is slow to read, in bytes; beyond, Send waits.
	maxPending = 4 << 20
	// writeTimeout ends a connection whose peer has stopped reading.
	writeTimeout = time.Minute
)

var (
	// ErrClosed is the error of a connection closed by our side.
	ErrClosed = errors.New("ipc: connection closed")
	// ErrFrame is a frame that breaks the rules of this package.
	ErrFrame = errors.New("ipc: malformed frame")
	errSlow  = errors.New("ipc: the peer does not read")
)

// Stream is what frames travel over: a Unix stream socket, or its stand-in in one process.
type Stream interface {
	// Read reads into p. Files that came with the bytes belong to the caller.
	Read(p []byte) (n int, files []*os.File, err error)
	// Write writes all of p; f, if not nil, travels with its first byte and stays the caller's.
	Write(p []byte, f *os.File) error
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
	Close() error
}

// Frame is one frame as read. Payload is valid until the next Read; File, if any, belongs to the reader.
type Frame struct {
	Kind    byte
	Stream  uint32
	Payload []byte
	File    *os.File
}

// Conn reads and writes frames. Reading is for one goroutine, writing for any number: whoever finds the
// connection idle writes for all who come while it does, so that a busy connection has few system calls.
type Conn struct {
	stream Stream

	// reading
	buf   []byte
	r, w  int
	files []*os.File

	// writing
	mu      sync.Mutex
	room    sync.Cond
	pending []byte
	spare   []byte
	writing bool
	soon    bool // a goroutine is about to flush
	err     error
}

// New makes a connection; it owns the stream from now on.
func New(s Stream) *Conn {
	c := &Conn{stream: s}
	c.room.L = &c.mu
	return c
}

// Send writes one frame whose payload is the parts joined. It returns once the frame is written or safely
// behind another goroutine's write; a later failure shows in the next call and ends the reading side.
func (c *Conn) Send(kind byte, stream uint32, parts ...[]byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.waitRoom(); err != nil {
		return err
	}
	if err := c.append(kind, stream, 0, parts); err != nil {
		return err
	}
	return c.flush()
}

// SendSoon is Send that leaves the write to a goroutine, so that callers that come together, and the frames of
// one caller, share it. A failure shows in a later call and ends the reading side.
func (c *Conn) SendSoon(kind byte, stream uint32, parts ...[]byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.waitRoom(); err != nil {
		return err
	}
	if err := c.append(kind, stream, 0, parts); err != nil {
		return err
	}
	c.flushSoon()
	return nil
}

// Message is a frame to be sent in a row with others.
type Message struct {
	Kind  byte
	Parts [][]byte
}

// SendAll is SendSoon for several frames of one stream, with no other frame between them.
func (c *Conn) SendAll(stream uint32, messages ...Message) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.waitRoom(); err != nil {
		return err
	}
	for _, m := range messages {
		if err := c.append(m.Kind, stream, 0, m.Parts); err != nil {
			return err
		}
	}
	c.flushSoon()
	return nil
}

// SendFile writes one frame and a descriptor with it. f stays the caller's.
func (c *Conn) SendFile(kind byte, stream uint32, f *os.File, parts ...[]byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.err == nil && (c.writing || len(c.pending) > 0) { // a descriptor must travel with its own frame's first byte
		if c.writing {
			c.room.Wait()
		} else {
			c.flush()
		}
	}
	if c.err != nil {
		return c.err
	}
	if err := c.append(kind, stream, flagFile, parts); err != nil {
		return err
	}
	c.writing = true
	frame := c.pending
	c.pending, c.spare = c.spare[:0], nil
	c.mu.Unlock()
	err := c.write(frame, f)
	c.mu.Lock()
	c.writing = false
	c.spare = frame[:0]
	if err != nil {
		c.fail(err)
		return err
	}
	c.room.Broadcast()
	return c.flush()
}

// Post is Send for callers that must not wait: the frame is written by a goroutine of its own, together with
// what else has come by then. A peer that lets too much pile up loses the connection.
func (c *Conn) Post(kind byte, stream uint32, parts ...[]byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.err == nil && c.soon && len(c.pending) > maxPending { // the peer was not given any of it yet
		c.mu.Unlock()
		runtime.Gosched()
		c.mu.Lock()
	}
	if c.err == nil && len(c.pending) > maxPending {
		c.fail(errSlow)
	}
	if c.err != nil {
		return c.err
	}
	if err := c.append(kind, stream, 0, parts); err != nil {
		return err
	}
	c.flushSoon()
	return nil
}

// flushSoon lets a goroutine write what is pending by the time it runs. The lock is held.
func (c *Conn) flushSoon() {
	if c.writing || c.soon {
		return
	}
	c.soon = true
	go func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.soon = false
		c.flush()
	}()
}

// waitRoom waits until the peer has read enough of what is pending.
func (c *Conn) waitRoom() error {
	for c.err == nil && len(c.pending) > maxPending {
		c.room.Wait()
	}
	return c.err
}

func (c *Conn) append(kind byte, stream uint32, flags byte, parts [][]byte) error {
	size := 0
	for _, p := range parts {
		size += len(p)
	}
	if size > MaxPayload {
		return fmt.Errorf("ipc: payload of %d bytes", size)
	}
	b := binary.BigEndian.AppendUint32(c.pending, uint32(size))
	b = append(b, kind, flags)
	b = binary.BigEndian.AppendUint32(b, stream)
	for _, p := range parts {
		b = append(b, p...)
	}
	c.pending = b
	return nil
}

// flush writes what is pending unless somebody is at it. The lock is held on entry and exit.
func (c *Conn) flush() error {
	if c.writing {
		return nil
	}
	c.writing = true
	for c.err == nil && len(c.pending) > 0 {
		out := c.pending
		c.pending, c.spare = c.spare[:0], nil
		c.mu.Unlock()
		err := c.write(out, nil)
		c.mu.Lock()
		c.spare = out[:0]
		if cap(out) > maxPending {
			c.spare = nil
		}
		if err != nil {
			c.fail(err)
		}
		c.room.Broadcast()
	}
	c.writing = false
	c.room.Broadcast()
	return c.err
}

func (c *Conn) write(p []byte, f *os.File) error {
	if err := c.stream.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	return c.stream.Write(p, f)
}

// fail ends the connection: writers get err, and the reader wakes up. The lock is held.
func (c *Conn) fail(err error) {
	if c.err == nil {
		c.err = err
		c.pending = nil
		c.stream.Close()
	}
	c.room.Broadcast()
}

// Close ends the connection in both directions.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail(ErrClosed)
	return nil
}

// SetReadDeadline bounds the next reads.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.stream.SetReadDeadline(t) }

// Buffered reports whether a whole frame can be read without waiting for the peer.
func (c *Conn) Buffered() bool {
	return c.w-c.r >= headerSize && c.w-c.r-headerSize >= int(binary.BigEndian.Uint32(c.buf[c.r:]))
}

// Read returns the next frame. After an error the connection is of no further use; io.EOF means that the
// peer closed it between two frames.
func (c *Conn) Read() (Frame, error) {
	f, err := c.read()
	if err != nil {
		for _, file := range c.files {
			file.Close()
		}
		c.files = nil
		c.mu.Lock()
		if c.err != nil && !errors.Is(err, ErrFrame) {
			err = c.err // our own close, or a failed write, is the cause
		}
		c.fail(err)
		c.mu.Unlock()
	}
	return f, err
}

func (c *Conn) read() (Frame, error) {
	if err := c.need(headerSize); err != nil {
		return Frame{}, err
	}
	h := c.buf[c.r:]
	size := binary.BigEndian.Uint32(h)
	f := Frame{Kind: h[4], Stream: binary.BigEndian.Uint32(h[6:])}
	flags := h[5]
	if size > MaxPayload || flags&^flagFile != 0 {
		return Frame{}, ErrFrame
	}
	if err := c.need(headerSize + int(size)); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return Frame{}, err
	}
	f.Payload = c.buf[c.r+headerSize : c.r+headerSize+int(size) : c.r+headerSize+int(size)]
	c.r += headerSize + int(size)
	if flags&flagFile != 0 {
		if len(c.files) == 0 {
			return Frame{}, ErrFrame
		}
		f.File = c.files[0]
		c.files = c.files[1:]
	}
	if len(c.files) > 0 && c.r == c.w { // all bytes are used up, so nothing can still announce them
		if f.File != nil {
			f.File.Close()
		}
		return Frame{}, ErrFrame
	}
	return f, nil
}

// need makes sure that n bytes stand at c.r.
func (c *Conn) need(n int) error {
	if c.w-c.r >= n {
		return nil
	}
	if c.r == c.w {
		c.r, c.w = 0, 0
	}
	if c.r+n > len(c.buf) {
		c.makeRoom(n)
	}
	for c.w-c.r < n {
		k, files, err := c.stream.Read(c.buf[c.w:])
		c.w += k
		c.files = append(c.files, files...)
		if len(c.files) > 1 {
			return ErrFrame
		}
		if err != nil {
			if err == io.EOF && c.w > c.r {
				return io.ErrUnexpectedEOF
			}
			return err
		}
		if k == 0 {
			return io.ErrUnexpectedEOF
		}
	}
	return nil
}

// makeRoom moves what is buffered to the front of a buffer that holds n bytes.
func (c *Conn) makeRoom(n int) {
	size := 4 << 10
	if len(c.buf) > 0 {
		size = 64 << 10 // a second buffer means traffic
	}
	if size < len(c.buf) {
		size = len(c.buf)
	}
	for size < n {
		size *= 2
	}
	if size > len(c.buf) {
		b := make([]byte, size)
		c.w = copy(b, c.buf[c.r:c.w])
		c.buf, c.r = b, 0
		return
	}
	c.w = copy(c.buf, c.buf[c.r:c.w])
	c.r = 0
}
