package qq

import (
	"bytes"
	"errors"
	"io/fs"
	"strings"

	"qmail/internal/format/reply"
)

// Exit codes of qmail-queue that programs of ours raise.
const (
	CodeTooLong   = 11 // an address
	CodeNever     = 31 // the queue refuses for good
	CodeTimeout   = 52
	CodeWrite     = 53
	CodeRead      = 54
	CodeConfig    = 55
	CodeNetwork   = 56
	CodeHome      = 61
	CodeQueueDir  = 62
	CodeFiles     = 63
	CodeLater     = 71 // the queue refuses for now
	CodeTimedOut  = 72
	CodeRefused   = 73
	CodeTalk      = 74
	CodeBug       = 91
	codeCustom    = 82 // the words are on descriptor 6
	codeCustom2   = 88 // the same, as other forks have it
	codeExec      = 120
	codeTooLong2  = 115
	codeMemory    = 51
	codeCrash     = 81
	firstNever    = 11
	lastNever     = 40
	maxWords      = 255 // of the words on descriptor 6, in bytes
	customMinimum = 3   // a letter, and two bytes to say something with
)

// Outcome is what an exit code of qmail-queue means; nil for 0.
func Outcome(code int) *reply.Error {
	later, never := "4.3.0", "5.3.0"
	switch code {
	case 0:
		return nil
	case CodeTooLong, codeTooLong2:
		return reply.Permanent("5.1.3", "envelope address too long for qq", nil)
	case CodeNever:
		return reply.Permanent(never, "mail server permanently rejected message", nil)
	case codeMemory:
		return reply.Temporary(later, "qq out of memory", nil)
	case CodeTimeout:
		return reply.Temporary(later, "qq timeout", nil)
	case CodeWrite:
		return reply.Temporary(later, "qq write error or disk full", nil)
	case CodeRead:
		return reply.Temporary(later, "qq read error", nil)
	case CodeConfig:
		return reply.Temporary(later, "qq unable to read configuration", nil)
	case CodeNetwork:
		return reply.Temporary(later, "qq trouble making network connection", nil)
	case CodeHome:
		return reply.Temporary(later, "qq trouble in home directory", nil)
	case CodeQueueDir, CodeFiles, 64, 65, 66:
		return reply.Temporary(later, "qq trouble creating files in queue", nil)
	case CodeLater:
		return reply.Temporary(later, "mail server temporarily rejected message", nil)
	case CodeTimedOut:
		return reply.Temporary("4.4.1", "connection to mail server timed out", nil)
	case CodeRefused:
		return reply.Temporary("4.4.1", "connection to mail server rejected", nil)
	case CodeTalk:
		return reply.Temporary("4.4.2", "communication with mail server failed", nil)
	case codeCrash, CodeBug:
		return reply.Temporary(later, "qq internal bug", nil)
	case codeExec:
		return reply.Temporary(later, "unable to exec qq", nil)
	}
	if firstNever <= code && code <= lastNever {
		return reply.Permanent(never, "qq permanent problem", nil)
	}
	return reply.Temporary(later, "qq temporary problem", nil)
}

// because is the outcome of a code, with the reason for our log.
func because(code int, err error) error {
	o := Outcome(code)
	o.Err = err
	return o
}

// Code is the exit code with which qmail-queue says what err says, or the nearest there is.
func Code(err error) int {
	e := reply.Of(err)
	if e == nil {
		return 0
	}
	if errors.Is(err, fs.ErrNotExist) {
		return CodeQueueDir
	}
	for code := CodeTooLong; code <= codeExec; code++ {
		if o := Outcome(code); o.Text == e.Text && o.Status == e.Status && code != codeCustom && code != CodeQueueDir {
			return code
		}
	}
	if e.Letter() == 'D' {
		return CodeNever
	}
	return CodeLater
}

// custom reads the words of a program that exits 82 or 88: the letter D or Z and one line. Bytes that could
// end or disguise a line become '?'. A status of the other class than the letter's is dropped.
func custom(words []byte) *reply.Error {
	if len(words) < customMinimum {
		return Outcome(codeCustom)
	}
	letter, words := words[0], words[1:]
	if line, _, more := bytes.Cut(words, []byte("\n")); more {
		words = line
	}
	words = bytes.Clone(bytes.TrimRight(words, "\r \t"))
	for i, c := range words {
		if c < 32 || c > 126 {
			words[i] = '?'
		}
	}
	if len(words) == 0 {
		return Outcome(codeCustom)
	}
	class := "Z"
	if letter == 'D' {
		class = "D"
	}
	e := reply.Of(reply.Parse(class + string(words)))
	if e.Status == "" || e.Status[0] != byte('0'+e.Code/100) || strings.Count(e.Status, ".") != 2 {
		e.Status = string(byte('0'+e.Code/100)) + ".0.0"
	}
	return e
}
