package server

import "time"

// tarpit lets a client that is refused again and again wait for the answer: who guesses addresses or commands gets less
// far in an hour, and who made a mistake does not notice. A session that waits holds no more than an idle one, unless its
// client has sent more commands already than that has room for.
func (c *conversation) tarpit() {
	config := c.session.config
	if config.Tarpit <= 0 || c.session.counted.errors <= config.TarpitAfter {
		return
	}
	c.shrink()
	timer := time.NewTimer(config.Tarpit)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.ctx.Done():
	}
}

// shrink goes back to the small buffer if what was read and not used yet fits.
func (c *conversation) shrink() {
	if c.block == nil || c.w-c.r > smallInput {
		return
	}
	n := copy(c.smallIn[:], c.in[c.r:c.w])
	c.release()
	c.w = n
}
