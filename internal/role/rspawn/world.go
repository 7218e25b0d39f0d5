package rspawn

import (
	"context"
	"log/slog"

	"qmail/internal/proto/sender"
	"qmail/internal/store/control"
	"qmail/internal/system/ipc"
)

// Serve carries out the jobs of one link in a world of the caller's making, as Main does in the machine's, until the
// link or ctx ends: so a whole server can run inside one process. Of the control files in home, those that name
// resolvers and programs in the place of qmail-remote do not count.
func Serve(ctx context.Context, link *ipc.Conn, home string, world sender.World, log *slog.Logger) error {
	dir := control.Open(home)
	config, err := sender.Load(dir, sender.Strict)
	if err != nil {
		link.Close()
		return err
	}
	s := &spawner{sender: sender.New(world), dir: dir, log: log, home: home}
	s.program.Store(new(string))
	s.sender.Configure(config)
	defer s.sender.Close()
	s.serve(ctx, link)
	return nil
}
