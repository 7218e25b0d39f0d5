// Package keyd is the conversation between qmail-keyd, which holds private keys, and those who want something
// signed. What leaves qmail-keyd is public: certificates, and signatures. A key never does.
//
// As soon as there is a link qmail-keyd sends the certificates that its peer may use, and again whenever they
// change: a frame of kind 'C' for each, then one of kind 'E'. Together they replace the list from before.
//
//	'C'  id, 32 bytes: SHA-256 of the SubjectPublicKeyInfo; use, 1 byte; preference, 1 byte, 1 for the one that
//	     counts where no name fits; then the chain, each certificate with its length in 4 bytes in front
//	'E'  empty
//
// Its peer sends requests, as many at a time as it likes; the answer has the stream number of the request.
//
//	'S'  id, 32 bytes; scheme, 1 byte: p for PKCS #1 v1.5, s for PSS, e for ECDSA, d for Ed25519; hash, 1 byte, as
//	     crypto.Hash counts them; then the digest, or for Ed25519 the message
//	'K'  the signature
//	'Z'  or 'D', the text of a refusal
//
// A request that breaks these rules, or asks for more than its peer's rights, is refused, and the conversation goes on.
// What is signed for whom is up to Rights: a role that has been taken over can have signatures for the uses that it
// had anyway, at a bounded rate, and for as long as it lives.
package keyd

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	_ "crypto/sha512" // the hashes of schemes
	"crypto/x509"
	"encoding/binary"
	"errors"
	"time"
)

// Role is how the supervisor names links to qmail-keyd.
const Role = "keyd"

// The kinds of frames.
const (
	kindCertificate = 'C'
	kindEnd         = 'E'
	kindSign        = 'S'
	kindDone        = 'K'
	kindLater       = 'Z'
	kindNever       = 'D'
)

const (
	// MaxChain bounds a chain, in bytes, MaxCertificates all that a list may hold.
	MaxChain        = 64 << 10
	MaxCertificates = 1000
	// maxInput bounds what is to be signed. Digests have 64 bytes at most; what TLS signs by Ed25519 stays below 300.
	maxInput = 1 << 10
	// maxSignature bounds a signature: that of an RSA key of 16384 bits.
	maxSignature = 2 << 10
	// signTime is how long a signature may take, a restart of qmail-keyd included.
	signTime = 5 * time.Second
)

// ID names a key: the hash of its public half.
type ID [sha256.Size]byte

// IDOf is the ID of a key.
func IDOf(public crypto.PublicKey) (ID, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	return sha256.Sum256(der), err
}

// Use is what a key is for. A key has one use.
type Use byte

const (
	TLS    Use = 't' // to show who we are to clients
	Client Use = 'c' // to show who we are to servers
	DKIM   Use = 'd' // to sign mail, and what others have said of it (ARC)
	SRS    Use = 's' // to sign addresses
)

// scheme is a way of signing.
type scheme byte

const (
	pkcs1 scheme = 'p'
	pss   scheme = 's'
	ec    scheme = 'e'
	ed    scheme = 'd'
)

var (
	errGarbled = errors.New("keyd: garbled")
	errScheme  = errors.New("keyd: no such way of signing with that key")
)

// schemeOf says how a crypto.Signer of such a key is asked to sign.
func schemeOf(public crypto.PublicKey, opts crypto.SignerOpts) (scheme, error) {
	switch public.(type) {
	case *rsa.PublicKey:
		if o, ok := opts.(*rsa.PSSOptions); ok {
			if o.SaltLength != rsa.PSSSaltLengthEqualsHash && o.SaltLength != o.Hash.Size() {
				return 0, errScheme
			}
			return pss, nil
		}
		return pkcs1, nil
	case *ecdsa.PublicKey:
		return ec, nil
	case ed25519.PublicKey:
		if o, ok := opts.(*ed25519.Options); ok && o.Context != "" {
			return 0, errScheme
		}
		return ed, nil
	}
	return 0, errScheme
}

// request is what is asked for.
type request struct {
	id     ID
	scheme scheme
	hash   crypto.Hash
	input  []byte // shares the memory of its frame
}

func appendRequest(dst []byte, r request) []byte {
	dst = append(dst, r.id[:]...)
	dst = append(dst, byte(r.scheme), byte(r.hash))
	return append(dst, r.input...)
}

// parseRequest takes a request in which scheme, hash and input fit together.
func parseRequest(b []byte) (r request, err error) {
	const head = len(r.id) + 2
	if len(b) < head || len(b) > head+maxInput {
		return r, errGarbled
	}
	copy(r.id[:], b)
	r.scheme, r.hash, r.input = scheme(b[head-2]), crypto.Hash(b[head-1]), b[head:]
	switch r.scheme {
	case ed:
		if r.hash != 0 {
			return r, errGarbled
		}
	case pkcs1, pss, ec:
		if r.hash != crypto.SHA256 && r.hash != crypto.SHA384 && r.hash != crypto.SHA512 || len(r.input) != r.hash.Size() {
			return r, errGarbled
		}
	default:
		return r, errGarbled
	}
	return r, nil
}

// options are what a crypto.Signer wants to hear of a request for a key of its kind.
func (r *request) options(public crypto.PublicKey) (crypto.SignerOpts, error) {
	fits := false
	switch public.(type) {
	case *rsa.PublicKey:
		fits = r.scheme == pkcs1 || r.scheme == pss
	case *ecdsa.PublicKey:
		fits = r.scheme == ec
	case ed25519.PublicKey:
		fits = r.scheme == ed
	}
	switch {
	case !fits:
		return nil, errScheme
	case r.scheme == pss:
		return &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: r.hash}, nil
	}
	return r.hash, nil
}

// public is the public half of a key, as it travels.
type public struct {
	id     ID
	use    Use
	prefer bool
	chain  [][]byte
}

func appendPublic(dst []byte, p public) []byte {
	dst = append(dst, p.id[:]...)
	prefer := byte(0)
	if p.prefer {
		prefer = 1
	}
	dst = append(dst, byte(p.use), prefer)
	for _, der := range p.chain {
		dst = binary.BigEndian.AppendUint32(dst, uint32(len(der)))
		dst = append(dst, der...)
	}
	return dst
}

// parsePublic copies what it keeps.
func parsePublic(b []byte) (p public, err error) {
	const head = len(p.id) + 2
	if len(b) < head || len(b) > head+MaxChain || b[head-1] > 1 {
		return p, errGarbled
	}
	copy(p.id[:], b)
	p.use, p.prefer = Use(b[head-2]), b[head-1] == 1
	for b = b[head:]; len(b) > 0; {
		if len(b) < 4 || binary.BigEndian.Uint32(b) > uint32(len(b)-4) {
			return p, errGarbled
		}
		end := 4 + binary.BigEndian.Uint32(b)
		p.chain = append(p.chain, append([]byte(nil), b[4:end]...))
		b = b[end:]
	}
	if len(p.chain) == 0 {
		return p, errGarbled
	}
	return p, nil
}
