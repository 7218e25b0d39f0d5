// Package remote is the program qmail-remote: one message from standard input to one host, results on
// standard output. It always exits 0; what became of the message stands in the results alone.
//
// Each result is a letter, a text and a NUL: r, h or s for each recipient, then K, Z or D for the message.
// Standard error stays empty, since callers read it as part of the results.
// The daemon qmail-rspawn sends by the same package, proto/sender; this program is for scripts and for
// operators who want to see.
//
// Control files: helohost, lmtproutes, me, qmtproutes, resolvers, smtplogins, smtproutes, timeoutconnect, timeoutremote, tlspolicy.
package remote

import (
	"context"
	"io"
	"log/slog"
	"os"

	"qmail/internal/proto/resolve"
	"qmail/internal/proto/sender"
	"qmail/internal/proto/smtp/client"
	"qmail/internal/store/control"
	"qmail/internal/system/dns"
	"qmail/internal/system/env"
)

// Main runs qmail-remote host sender recipient...
func Main(ctx context.Context, e *env.Env, args []string) int {
	result := run(ctx, e, args)
	e.Stdout.Write(result.Classic(nil)) // whoever does not read it learns nothing, as ever
	return 0
}

// sorry is a result that no server has a part in.
func sorry(report string) client.Result {
	return client.Failure(client.Report{Letter: report[0], Text: report[1:]}, 0)
}

func run(ctx context.Context, e *env.Env, args []string) client.Result {
	if len(args) < 3 {
		return sorry("DI (qmail-remote) was invoked improperly. (#5.3.5)\n")
	}
	if info, err := os.Stat(e.Home); err != nil || !info.IsDir() {
		return sorry("ZUnable to switch to home directory. (#4.3.0)\n")
	}
	dir := control.Open(e.Home)
	config, err := sender.Load(dir, sender.Classic)
	if err != nil {
		return sorry("Z" + sender.NoControls)
	}
	servers, err := resolve.Servers(dir)
	if err != nil {
		return sorry("Z" + sender.NoControls)
	}
	body, err := read(e.Stdin)
	if err != nil {
		return sorry("ZUnable to read message. (#4.3.0)\n")
	}
	resolver := dns.New(servers) // nobody has linked us to qmail-resolve
	defer resolver.Close()
	s := sender.New(sender.Here(resolver, e.Now, slog.New(slog.DiscardHandler)))
	defer s.Close()
	defer context.AfterFunc(ctx, s.Close)()
	s.Configure(config)
	return s.Send(ctx, args[0], &client.Message{Sender: args[1], Recipients: args[2:], Body: body})
}

// headSize is how much of the message is read before it is sent.
const headSize = 256 << 10

// read takes the beginning of the message, which is mostly all of it.
func read(f *os.File) (client.Body, error) {
	head := make([]byte, headSize)
	n, err := io.ReadFull(f, head)
	switch err {
	case io.EOF, io.ErrUnexpectedEOF:
		return client.Memory(head[:n]), nil
	case nil:
		return client.Body{Head: head, Rest: f, Size: size(f, n)}, nil
	}
	return client.Body{}, err
}

// size is the length of the message, or of what is known of it.
func size(f *os.File, read int) int64 {
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return int64(read)
	}
	at, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return int64(read)
	}
	return int64(read) + max(info.Size()-at, 0)
}
