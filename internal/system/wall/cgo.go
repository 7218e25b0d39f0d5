//go:build cgo

package wall

// withC says that threads may exist that the Go runtime does not know, as in a build for the race detector. No such
// build is one to run.
const withC = true
