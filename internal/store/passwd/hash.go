package passwd

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/go-crypt/crypt/algorithm/md5crypt"
	"github.com/go-crypt/crypt/algorithm/shacrypt"
	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
)

// What a new hash costs: 19 MiB and some 25 ms, the second choice of OWASP's list and RFC 9106's kind.
const (
	argonMemory = 19 << 10 // KiB
	argonTime   = 2
	argonLanes  = 1
	argonSalt   = 16
	argonKey    = 32
)

// What a hash from elsewhere may cost at most.
const (
	maxArgonMemory = 256 << 10
	maxArgonTime   = 16
	maxArgonLanes  = 8
	maxRounds      = 1_000_000
	maxBcryptCost  = 15
)

var errHash = errors.New("a hash of no kind that is known here (argon2id, bcrypt, $1$, $5$, $6$), or one that would cost too much")

// Hash makes the hash of a password.
func Hash(password string) string {
	salt := make([]byte, argonSalt)
	rand.Read(salt)
	return hash(password, salt)
}

func hash(password string, salt []byte) string {
	key := argon2.IDKey([]byte(password), salt, argonTime, argonMemory, argonLanes, argonKey)
	encode := base64.RawStdEncoding.EncodeToString
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, argonMemory, argonTime, argonLanes, encode(salt), encode(key))
}

// argon is a hash of that kind in parts.
type argon struct {
	memory, time uint32
	lanes        uint8
	salt, key    []byte
}

func parseArgon(hash string) (argon, bool) {
	parts := strings.Split(hash, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != "v=19" {
		return argon{}, false
	}
	var a argon
	var err1, err2 error
	for i, field := range strings.Split(parts[3], ",") {
		limits := [...]struct {
			name string
			most uint64
		}{{"m=", maxArgonMemory}, {"t=", maxArgonTime}, {"p=", maxArgonLanes}}
		if i >= len(limits) {
			return argon{}, false
		}
		digits, ok := strings.CutPrefix(field, limits[i].name)
		n, err := strconv.ParseUint(digits, 10, 32)
		if !ok || err != nil || n == 0 || n > limits[i].most {
			return argon{}, false
		}
		switch i {
		case 0:
			a.memory = uint32(n)
		case 1:
			a.time = uint32(n)
		case 2:
			a.lanes = uint8(n)
		}
	}
	a.salt, err1 = base64.RawStdEncoding.DecodeString(parts[4])
	a.key, err2 = base64.RawStdEncoding.DecodeString(parts[5])
	good := err1 == nil && err2 == nil && a.lanes > 0 && len(a.salt) >= 8 && len(a.salt) <= maxSalt && len(a.key) >= 16 && len(a.key) <= 64
	return a, good
}

// CheckHash reports why a hash cannot be used.
func CheckHash(hash string) error {
	_, err := verifier(hash)
	return err
}

// verifier finds out how to compare a password with a hash.
func verifier(hash string) (func(password string) bool, error) {
	for i := 0; i < len(hash); i++ {
		if hash[i] <= ' ' || hash[i] > '~' || hash[i] == ':' {
			return nil, errHash
		}
	}
	switch {
	case strings.HasPrefix(hash, "$argon2id$"):
		if a, ok := parseArgon(hash); ok {
			return func(password string) bool {
				got := argon2.IDKey([]byte(password), a.salt, a.time, a.memory, a.lanes, uint32(len(a.key)))
				return subtle.ConstantTimeCompare(got, a.key) == 1
			}, nil
		}
	case strings.HasPrefix(hash, "$2a$") || strings.HasPrefix(hash, "$2b$") || strings.HasPrefix(hash, "$2y$"):
		// The three differ in mistakes of other programs only.
		if cost, err := bcrypt.Cost([]byte(hash)); err == nil && cost <= maxBcryptCost && len(hash) == 60 {
			return func(password string) bool {
				return bcrypt.CompareHashAndPassword([]byte(hash), []byte(password)) == nil
			}, nil
		}
	case strings.HasPrefix(hash, "$5$") || strings.HasPrefix(hash, "$6$"):
		if d, err := shacrypt.Decode(hash); err == nil && fewRounds(hash) {
			return d.Match, nil
		}
	case strings.HasPrefix(hash, "$1$"):
		if d, err := md5crypt.DecodeVariant(md5crypt.VariantStandard)(hash); err == nil {
			return d.Match, nil
		}
	}
	return nil, errHash
}

// fewRounds reads "$5$rounds=N$..."; fewer than 1000 are not what crypt would have written.
func fewRounds(hash string) bool {
	digits, ok := strings.CutPrefix(hash[len("$5$"):], "rounds=")
	if !ok {
		return true
	}
	digits, _, _ = strings.Cut(digits, "$")
	n, err := strconv.Atoi(digits)
	return err == nil && n >= 1000 && n <= maxRounds
}

// Match compares a password with a hash. It takes as long as the hash costs, and as much memory.
func Match(hash, password string) bool {
	match, err := verifier(hash)
	return err == nil && match(password)
}

// Kind names the kind of a hash, for people.
func Kind(hash string) string {
	parts := strings.SplitN(hash, "$", 3)
	if len(parts) < 3 {
		return "none"
	}
	switch parts[1] {
	case "1":
		return "md5crypt"
	case "5":
		return "sha256crypt"
	case "6":
		return "sha512crypt"
	case "2a", "2b", "2y":
		return "bcrypt"
	}
	return parts[1]
}
