// Package keys reads private keys and their certificates from a home: keys/NAME.pem with both, or the pair keys/NAME.key and
// keys/NAME.crt, and control/servercert.pem, where the TLS patches of qmail have both.
//
// A certificate goes with the names that stand in it; what its file is called is for people. A file that
// everybody can read holds no secret: it is refused, as is a key that does not fit its certificate, or one that is
// too short. What is wrong with one pair does not touch the others.
package keys

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	maxFile  = 256 << 10 // of a PEM file
	maxChain = 60 << 10  // of its certificates, as they are sent to clients
	maxPairs = 500       // files that are looked at
	maxTotal = 3 << 20   // of all chains: every server gets them, and they travel at once
	leastRSA = 2048      // bits
	mostRSA  = 8192
)

// Pair is a certificate with its private key.
type Pair struct {
	Name  string   // of its file, without the ending: "mail.example.org", or "servercert"
	Path  string   // of its certificate, relative to the home
	Chain [][]byte // its own certificate first
	Leaf  *x509.Certificate
	Key   crypto.Signer
	// Prefer says that it counts where no name fits.
	Prefer bool
}

// Trouble is a pair that cannot be used, and why.
type Trouble struct {
	Name string
	Err  error
}

// Dir is where the pairs of a home are, Classic the file of the TLS patches.
func Dir(home string) string     { return filepath.Join(home, "keys") }
func Classic(home string) string { return filepath.Join(home, "control", classicName+".pem") }

const classicName = "servercert"

// Load reads all pairs of a home, in the order of their names. An error is one of the directory; a home without one
// has no keys.
func Load(home string) (pairs []Pair, troubles []Trouble, err error) {
	names, err := list(Dir(home))
	if err != nil {
		return nil, nil, err
	}
	total := 0
	for _, name := range names {
		p, err := read(home, name)
		if err == nil {
			for _, der := range p.Chain {
				total += len(der)
			}
			if total > maxTotal {
				err = errTotal
			}
		}
		if err != nil {
			troubles = append(troubles, Trouble{name, err})
			continue
		}
		pairs = append(pairs, *p)
	}
	p, err := readClassic(home)
	switch {
	case err != nil:
		troubles = append(troubles, Trouble{classicName, err})
	case p != nil:
		pairs = append(pairs, *p)
	}
	return pairs, troubles, nil
}

var errTotal = fmt.Errorf("the certificates before it have %d bytes already, which is all that there may be", maxTotal)

// list returns the names for which there is a key.
func list(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		name, pemmed := strings.CutSuffix(e.Name(), ".pem")
		if !pemmed {
			var keyed bool
			if name, keyed = strings.CutSuffix(e.Name(), ".key"); !keyed {
				continue
			}
		}
		if name != "" && name[0] != '.' && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) > maxPairs {
		return nil, fmt.Errorf("%s: more than %d keys", dir, maxPairs)
	}
	return names, nil
}

// read reads keys/NAME.pem, or if there is none the two files.
func read(home, name string) (*Pair, error) {
	path := filepath.Join("keys", name)
	both, err := readFile(filepath.Join(home, path+".pem"), true)
	if err == nil {
		return parse(name, path+".pem", both, both)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	key, err := readFile(filepath.Join(home, path+".key"), true)
	if err != nil {
		return nil, err
	}
	chain, err := readFile(filepath.Join(home, path+".crt"), false)
	if err != nil {
		return nil, err
	}
	return parse(name, path+".crt", chain, key)
}

// readClassic reads control/servercert.pem, if there is one.
func readClassic(home string) (*Pair, error) {
	both, err := readFile(Classic(home), true)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	p, err := parse(classicName, filepath.Join("control", classicName+".pem"), both, both)
	if err == nil {
		p.Prefer = true
	}
	return p, err
}

// readFile reads a small regular file. One with a key must be out of everybody's reach; its group may read it, as the
// TLS patches have theirs.
func readFile(path string, secret bool) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s: not a regular file", path)
	case info.Size() > maxFile:
		return nil, fmt.Errorf("%s: larger than %d bytes", path, maxFile)
	case secret && info.Mode().Perm()&0o027 != 0:
		return nil, fmt.Errorf("%s: everybody can read the key in it, or others change it (mode %04o); chmod 600 it", path, info.Mode().Perm())
	}
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// parse takes a pair out of the text of its files.
func parse(name, path string, chain, key []byte) (*Pair, error) {
	p := &Pair{Name: name, Path: path}
	var err error
	if p.Chain, p.Leaf, err = parseChain(chain); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if p.Key, err = parseKey(key); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if !p.Key.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(p.Leaf.PublicKey) {
		return nil, fmt.Errorf("%s: the key is not that of the first certificate", path)
	}
	return p, nil
}

func parseChain(text []byte) (chain [][]byte, leaf *x509.Certificate, err error) {
	size := 0
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, nil, fmt.Errorf("certificate %d: %w", len(chain)+1, err)
		}
		if leaf == nil {
			leaf = c
		}
		if size += len(block.Bytes) + 4; size > maxChain {
			return nil, nil, errors.New("too many certificates")
		}
		chain = append(chain, block.Bytes)
	}
	if leaf == nil {
		return nil, nil, errors.New("no certificate in it")
	}
	return chain, leaf, nil
}

var errEncrypted = errors.New("the key is encrypted, and nobody is there to be asked for its password")

// parseKey takes the first private key out of PEM text, and only one that is good enough.
func parseKey(text []byte) (crypto.Signer, error) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED") {
			return nil, errEncrypted
		}
		var key any
		var err error
		switch block.Type {
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "ENCRYPTED PRIVATE KEY":
			err = errEncrypted
		default:
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("private key: %w", err)
		}
		return check(key)
	}
	return nil, errors.New("no private key in it")
}

// check lets through keys that clients accept.
func check(key any) (crypto.Signer, error) {
	switch k := key.(type) {
	case *rsa.PrivateKey:
		if n := k.N.BitLen(); n < leastRSA || n > mostRSA {
			return nil, fmt.Errorf("an RSA key of %d bits; it must have %d to %d", n, leastRSA, mostRSA)
		}
		return k, nil
	case *ecdsa.PrivateKey:
		if n := k.Curve.Params().BitSize; n < 256 {
			return nil, fmt.Errorf("an ECDSA key of %d bits; it must have 256 or more", n)
		}
		return k, nil
	case ed25519.PrivateKey:
		return k, nil
	}
	return nil, errors.New("a private key of an unknown kind")
}
