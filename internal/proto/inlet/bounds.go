package inlet

import (
	"errors"

	"qmail/internal/store/control"
	"qmail/internal/system/serve"
)

// Bounds are what all sessions of a server may take together.
type Bounds struct {
	Limits serve.Limits
	Memory int64 // bytes that messages and lists of recipients may hold
}

// What holds where no file says otherwise.
const (
	totalSessions  = 2000      // concurrencyincoming
	clientSessions = 50        // maxperclient
	netSessions    = 200       // maxpernetwork
	clientLines    = 60        // maxlogperclient
	memory         = 256 << 20 // maxmemory
	minMemory      = 1 << 20
)

// LoadBounds reads concurrencyincoming, maxperclient, maxpernetwork, maxlogperclient and maxmemory. An error names the file.
func LoadBounds(dir control.Dir) (Bounds, error) {
	total, err1 := Number(dir, "concurrencyincoming", totalSessions, 0, 1<<20)
	each, err2 := Number(dir, "maxperclient", clientSessions, 1, 1<<20)
	network, err4 := Number(dir, "maxpernetwork", netSessions, 1, 1<<20)
	lines, err5 := Number(dir, "maxlogperclient", clientLines, 1, 1<<20)
	bytes, err3 := Number(dir, "maxmemory", memory, minMemory, 1<<62)
	return Bounds{serve.Limits{Total: int(total), PerClient: int(each), PerNetwork: int(network), Lines: int(lines)}, bytes}, errors.Join(err1, err2, err3, err4, err5)
}

// Number reads a number, which counts as no less than least and no more than most.
func Number(dir control.Dir, name string, otherwise, least, most int64) (int64, error) {
	n, err := dir.Int(name, otherwise)
	return min(max(n, least), most), err
}
