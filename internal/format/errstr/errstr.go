// Package errstr names the system's errors in qmail's words (error_str.c). Programs print these texts, so they
// must not change with the libc.
package errstr

import (
	"errors"
	"os"
	"syscall"
)

var texts = map[syscall.Errno]string{
	syscall.ENOENT: "file does not exist", syscall.EPERM: "permission denied", syscall.EACCES: "access denied",
	syscall.EEXIST: "file already exists", syscall.ENOSPC: "out of disk space", syscall.EDQUOT: "disk quota exceeded",
	syscall.EIO: "input/output error", syscall.ENOMEM: "out of memory", syscall.ETIMEDOUT: "timed out",
	syscall.ECONNREFUSED: "connection refused", syscall.EPIPE: "broken pipe", syscall.ENOTDIR: "not a directory",
	syscall.EISDIR: "is a directory", syscall.EROFS: "read-only file system", syscall.EMFILE: "process cannot open more files",
	syscall.ENFILE: "system cannot open more files", syscall.ELOOP: "symbolic link loop", syscall.ENAMETOOLONG: "file name too long",
	syscall.EXDEV: "cross-device link", syscall.EFBIG: "file too big", syscall.EINVAL: "invalid argument",
	syscall.EBUSY: "device busy", syscall.ETXTBSY: "text busy", syscall.ESPIPE: "unseekable descriptor",
	syscall.ESTALE: "stale NFS file handle", syscall.ENOLCK: "no locks available",
}

// Text is the error's name.
func Text(err error) string {
	if n, ok := errors.AsType[syscall.Errno](err); ok {
		if text, ok := texts[n]; ok {
			return text
		}
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return texts[syscall.ETIMEDOUT]
	}
	return "unknown error"
}

// Absent reports whether err says for certain that a name leads nowhere. Everything else about a file that
// cannot be opened, a missing permission included, may be different later.
func Absent(err error) bool {
	n, ok := errors.AsType[syscall.Errno](err)
	return ok && (n == syscall.ENOENT || n == syscall.ENOTDIR || n == syscall.ENAMETOOLONG || n == syscall.ELOOP ||
		n == syscall.EISDIR || n == syscall.ENXIO || n == syscall.ENODEV)
}
