package dns

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
)

// maxConf bounds the resolver configuration, in bytes.
const maxConf = 64 << 10

// ReadConf reads a file in the form of resolv.conf(5). A file that is missing or names no server means the
// server on this machine, as it does to the C library.
func ReadConf(path string) (Config, error) {
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Config{}, err
	}
	if len(b) > maxConf {
		return Config{}, fmt.Errorf("%s: larger than %d bytes", path, maxConf)
	}
	return ParseConf(b), nil
}

// ParseConf takes the lines nameserver and options (timeout, attempts, trust-ad); all others, and what is
// malformed, mean nothing, as to the C library.
func ParseConf(b []byte) Config {
	var c Config
	for len(b) > 0 {
		var line []byte
		line, b, _ = bytes.Cut(b, []byte("\n"))
		f := strings.Fields(string(line))
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			if server, err := ParseServer(f[1]); err == nil && len(c.Servers) < 3 {
				c.Servers = append(c.Servers, server)
			}
		case "options":
			for _, o := range f[1:] {
				c.option(o)
			}
		}
	}
	if len(c.Servers) == 0 {
		c.Servers = []string{"127.0.0.1:53"}
	}
	return c
}

func (c *Config) option(o string) {
	name, value, _ := strings.Cut(o, ":")
	n, err := strconv.Atoi(value)
	switch {
	case name == "trust-ad":
		c.TrustAD = true
	case err != nil || n <= 0:
	case name == "timeout":
		c.Timeout = time.Duration(min(n, 30)) * time.Second
	case name == "attempts":
		c.Attempts = min(n, 5)
	}
}

// ParseServer reads "ip", "ip:port", "[ip]:port" or "[ip]"; without a port it is 53.
func ParseServer(s string) (string, error) {
	if a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")); err == nil {
		return netip.AddrPortFrom(a, 53).String(), nil
	}
	a, err := netip.ParseAddrPort(s)
	if err != nil || a.Port() == 0 {
		return "", fmt.Errorf("%q is not an address of a resolver", s)
	}
	return a.String(), nil
}
