package inlet

import (
	"errors"
	"time"

	"qmail/internal/store/control"
	"qmail/internal/system/secure"
)

const (
	handshakeTime = 20 * time.Second // timeouttls
	maxHalfOpen   = 500
)

// LoadTLS reads timeouttls. An error names the file.
func LoadTLS(dir control.Dir) (secure.Settings, error) {
	seconds, err1 := Number(dir, "timeouttls", int64(handshakeTime/time.Second), 1, int64(time.Hour/time.Second))
	_, asked, err2 := dir.Read("tlsclients")
	return secure.Settings{Time: time.Duration(seconds) * time.Second, Clients: asked, HalfOpen: maxHalfOpen}, errors.Join(err1, err2)
}
