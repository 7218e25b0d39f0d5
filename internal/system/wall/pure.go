//go:build !cgo

package wall

const withC = false
