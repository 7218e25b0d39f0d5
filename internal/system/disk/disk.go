// Package disk is the file operations that durable storage needs, and nothing else, in two forms: Dir, the
// real ones below one directory, and Memory, a disk of which a test can cut the power.
//
// Both promise only what POSIX and Linux do. Bytes written to a file are durable after its Sync, or a SyncAll. A new,
// renamed or removed name is durable after SyncDir of its directory. Until then a power cut may leave any
// part of them, in any order. A file whose Sync or Write failed is dead: what was written since the last good
// Sync may be lost although a second Sync says otherwise, so there must not be a second.
//
// Names are relative, with slashes, below the root; "." is the root. Errors wrap those of io/fs and syscall.
package disk

import (
	"io"
	"io/fs"
	"os"
)

// FS is a directory and what is below it.
type FS interface {
	// Open opens an existing file for reading.
	Open(name string) (File, error)
	// OpenWrite opens an existing file for reading and writing.
	OpenWrite(name string) (File, error)
	// Create makes a new file, for reading and writing; a file of that name is an error.
	Create(name string, perm fs.FileMode) (File, error)
	// Temp makes a file without a name that lives, and will be linked, in directory dir; where
	// the file system has no such files, one with a name that begins with TempPrefix. Closed
	// without a Link, it is gone.
	Temp(dir string, perm fs.FileMode) (File, error)
	// Link gives a name to a file made by Temp; a file of that name is an error.
	Link(f File, name string) error
	// Rename replaces what has the new name.
	Rename(old, new string) error
	Remove(name string) error
	Mkdir(name string, perm fs.FileMode) error
	// ReadDir returns the names in a directory, sorted.
	ReadDir(name string) ([]string, error)
	Stat(name string) (Info, error)
	// SyncDir makes the changes of names in a directory durable.
	SyncDir(name string) error
	// SyncAll is Sync for all files of the file system at once, those of strangers included: for many small
	// ones it costs half. Where it cannot be relied on it does nothing and says errors.ErrUnsupported.
	SyncAll() error
}

// Info is what Stat tells.
type Info struct {
	Size int64
	Mode fs.FileMode
	UID  int
}

// TempPrefix begins the names of files that Temp had to name.
const TempPrefix = ".tmp."

// File is an open file. Reads and writes name their offset; nothing is appended by itself.
type File interface {
	io.ReaderAt
	io.WriterAt
	// WriteVec writes pieces one after another from offset off, as few calls as the system allows. It
	// may clear pieces while it works.
	WriteVec(pieces [][]byte, off int64) (int64, error)
	// Sync makes the bytes durable, and the size needed to read them (fdatasync).
	Sync() error
	// Allocate reserves room for the first size bytes, growing the file to at least that.
	Allocate(size int64) error
	Truncate(size int64) error
	Size() (int64, error)
	// Lock takes the file for this process until Close; syscall.EWOULDBLOCK if another has it.
	Lock() error
	Close() error
	// OS is the open file itself, nil on a disk in memory.
	OS() *os.File
}
