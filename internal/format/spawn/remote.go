package spawn

import "bytes"

// Reports of qmail-rspawn about a qmail-remote.
const (
	RemoteCrashed = "Zqmail-remote crashed.\n"
	RemoteUnable  = "ZUnable to run qmail-remote.\n"
	remoteFailed  = "DUnable to run qmail-remote.\n"
	remoteSilent  = "Zqmail-remote produced no output.\n"
)

// RemoteReport is what qmail-rspawn makes of a qmail-remote's exit code and output. A record that lacks its NUL ends where
// the output does.
func RemoteReport(code int, out []byte) string {
	switch {
	case code == 111:
		return RemoteUnable
	case code != 0:
		return remoteFailed
	case len(out) == 0:
		return remoteSilent
	}
	records := bytes.Split(bytes.TrimSuffix(out, []byte{0}), []byte{0})
	const never, later, done = -1, 0, 1
	rank := map[byte]int{'K': done, 'Z': later, 'D': never}
	result := never
	for _, r := range records {
		if len(r) > 0 {
			if n, ok := rank[r[0]]; ok {
				result = n
				break
			}
		}
	}
	final := result
	switch out[0] {
	case 's':
		final = later
	case 'h':
		final = never
	}
	text := []byte{"DZK"[final+1]}
	if len(records[0]) > 0 {
		text = append(text, records[0][1:]...)
	}
	if result <= final && len(records) > 1 && len(records[1]) > 0 {
		if _, ok := rank[records[1][0]]; ok {
			text = append(text, records[1][1:]...)
		}
	}
	return string(text)
}
