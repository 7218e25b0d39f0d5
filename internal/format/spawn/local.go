package spawn

import "bytes"

const (
	// MaxLocal is how much of what a local delivery prints is reported.
	MaxLocal = 3000
	cutLocal = 2997 // what is left of more, with the line that says so
	cutLine  = "\nError report too long, sorry.\n"
)

// LocalCrashed and LocalUnable are the reports about a qmail-local that a signal ended, and about one that could not be
// run. It may be on its way to be replaced: mail waits. (The original bounced all of it.)
const (
	LocalCrashed = "Zqmail-local crashed.\n"
	LocalUnable  = "ZUnable to run qmail-local.\n"
)

// saying is the report of an exit code that says enough by itself; "" if it does not.
func saying(code int) string {
	return map[int]string{
		112: "ZInternal qmail-lspawn bug.\n",
		113: "ZNot allowed to perform deliveries as root.\n",
		115: "ZNFS failure in qmail-local.\n",
		116: "ZUnable to find alias user!\n",
		117: "ZTrouble reading users/cdb in qmail-lspawn.\n",
		118: "ZTemporary failure in qmail-lspawn.\n",
		119: "ZOut of memory in qmail-lspawn.\n",
		120: "ZUnable to run qmail-local.\n",
		121: "ZUnable to run qmail-getpw.\n",
		126: "DUnable to run qmail-local.\n",
	}[code]
}

// LocalReport is what qmail-lspawn makes of a qmail-local's exit code and of what it printed, of which it needs the first
// MaxLocal+1 bytes.
func LocalReport(code int, out []byte) string {
	if text := saying(code); text != "" {
		return text
	}
	letter := "D"
	switch code {
	case 0:
		letter = "K"
	case 111, 71, 74, 75:
		letter = "Z"
	}
	return letter + LocalText(out)
}

// LocalText is what is reported of the output of a local delivery.
func LocalText(out []byte) string {
	if len(out) > MaxLocal {
		out = append(out[:cutLocal-len(cutLine):cutLocal-len(cutLine)], cutLine...)
	}
	out, _, _ = bytes.Cut(out, []byte{0})
	return string(out)
}
