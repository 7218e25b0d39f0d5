package serial

import (
	"fmt"
	"net"
	"strings"
	"time"

	"qmail/internal/format/getopt"
	"qmail/internal/system/env"
)

const (
	// ExitLater is the exit code of a client that could not do its work.
	ExitLater = 111
	exitUsage = 100
	// Timeout is how long a server may take to answer.
	Timeout = 1200 * time.Second
)

// Open reads the arguments of a client, which takes -c and so many operands, and opens its connection. conn is nil after an
// error, which has been told; then code is what to exit with.
func Open(e *env.Env, program string, args []string, operands ...string) (conn net.Conn, given []string, code int) {
	options, given, err := getopt.Parse(args, "c:")
	if err != nil || len(given) != len(operands) {
		fmt.Fprintf(e.Stderr, "%s: usage: %s [ -c host:port ] %s\n", program, program, strings.Join(operands, " "))
		return nil, nil, exitUsage
	}
	address := ""
	for _, o := range options {
		address = o.Arg
	}
	conn, err = Connect(address)
	if err != nil {
		return nil, nil, Fatal(e, program, "unable to connect: "+err.Error())
	}
	return conn, given, 0
}

// Run serves standard input and output, as Serve does, and returns what to exit with.
func Run(e *env.Env, program, prefix string, deliver func(m *Message) (report string)) int {
	if err := Serve(e.Stdin, e.Stdout, prefix, deliver); err != nil {
		return Fatal(e, program, err.Error())
	}
	return 0
}

// Fatal says why a client gives up, and returns what to exit with.
func Fatal(e *env.Env, program, why string) int {
	fmt.Fprintf(e.Stderr, "%s: fatal: %s\n", program, why)
	return ExitLater
}
