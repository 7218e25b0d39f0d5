package send

import (
	"context"

	"qmail/internal/format/reply"
	"qmail/internal/proto/admin"
)

// Explain is admin.Backend.
func (d *desk) Explain(context.Context, admin.Peer, string) ([]admin.Step, error) {
	return nil, reply.Temporary("4.3.0", "not yet", nil)
}

// Slow is admin.Backend.
func (d *desk) Slow(_ context.Context, peer admin.Peer, _ bool) ([]admin.Slow, error) {
	if !peer.Owner {
		return nil, errOwners
	}
	return nil, reply.Temporary("4.3.0", "not yet", nil)
}
