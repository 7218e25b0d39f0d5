// Package passwd is users/passwd: who may log in, and what is kept in the place of each password.
//
// A line is a login, a colon, and fields with colons between them, in any order:
//
//	alice@test.example:$argon2id$v=19$m=19456,t=2,p=1$SALT$HASH:{SCRAM-SHA-256}16384,SALT,STOREDKEY,SERVERKEY
//
// The line "#secret BASE64" is from where the salts of those come who are not there; Change makes one.
//
// One field is a hash: argon2id as New makes it, or one that came from elsewhere (bcrypt, and crypt's $1$, $5$ and $6$).
// The others are verifiers for SCRAM (RFC 5802), base64 with its padding. Logins fold to lower case (ASCII only). Empty
// lines, and those that begin with #, say nothing. A line that means something else is an error that names it.
//
// The file belongs to whom qmail-authd runs as, and nobody else may read it. It is replaced whole (Change).
package passwd

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"qmail/internal/format/address"
)

// maxLogin bounds a name, in bytes.
const maxLogin = 255

// Bounds of a verifier.
const (
	maxSalt       = 64
	maxIterations = 2_000_000
)

// Verifier is what SCRAM needs in the place of a password.
type Verifier struct {
	Mechanism            string // such as SCRAM-SHA-256
	Salt                 []byte
	Iterations           int
	StoredKey, ServerKey []byte
}

// User is a line.
type User struct {
	Login     string
	Hash      string // empty if there are only verifiers
	Verifiers []Verifier
}

// Verifier returns the one for a mechanism.
func (u *User) Verifier(mechanism string) (Verifier, bool) {
	for _, v := range u.Verifiers {
		if v.Mechanism == mechanism {
			return v, true
		}
	}
	return Verifier{}, false
}

var errLine = errors.New("not a line of users/passwd")

// ParseLine reads a line without its end.
func ParseLine(line string) (User, error) {
	login, rest, _ := strings.Cut(line, ":")
	u := User{Login: address.Lower(login)}
	if !GoodLogin(login) {
		return User{}, errLine
	}
	for field := range strings.SplitSeq(rest, ":") {
		if strings.HasPrefix(field, "{") {
			v, ok := parseVerifier(field)
			if _, twice := u.Verifier(v.Mechanism); !ok || twice {
				return User{}, errLine
			}
			u.Verifiers = append(u.Verifiers, v)
			continue
		}
		if u.Hash != "" {
			return User{}, errLine
		}
		if err := CheckHash(field); err != nil {
			return User{}, err
		}
		u.Hash = field
	}
	return u, nil
}

// GoodLogin reports whether a name can stand in the file.
func GoodLogin(login string) bool {
	for i := 0; i < len(login); i++ {
		if c := login[i]; c <= ' ' || c == 0x7f || c == ':' {
			return false
		}
	}
	return login != "" && len(login) <= maxLogin && login[0] != '#'
}

func keySize(mechanism string) int {
	switch mechanism {
	case "SCRAM-SHA-1":
		return 20
	case "SCRAM-SHA-256":
		return 32
	}
	return 0
}

// parseVerifier reads "{MECHANISM}iterations,salt,stored key,server key".
func parseVerifier(field string) (Verifier, bool) {
	mechanism, rest, ok := strings.Cut(field[1:], "}")
	parts := strings.Split(rest, ",")
	if !ok || len(parts) != 4 || keySize(mechanism) == 0 {
		return Verifier{}, false
	}
	v := Verifier{Mechanism: mechanism}
	var err [4]error
	v.Iterations, err[0] = strconv.Atoi(parts[0])
	v.Salt, err[1] = base64.StdEncoding.DecodeString(parts[1])
	v.StoredKey, err[2] = base64.StdEncoding.DecodeString(parts[2])
	v.ServerKey, err[3] = base64.StdEncoding.DecodeString(parts[3])
	good := errors.Join(err[:]...) == nil && v.Iterations > 0 && v.Iterations <= maxIterations && len(v.Salt) > 0 && len(v.Salt) <= maxSalt &&
		len(v.StoredKey) == keySize(mechanism) && len(v.ServerKey) == keySize(mechanism)
	return v, good
}

// Append writes the line and its end.
func (u *User) Append(dst []byte) []byte {
	dst = append(append(dst, address.Lower(u.Login)...), ':')
	if u.Hash != "" {
		dst = append(dst, u.Hash...)
	}
	for i, v := range u.Verifiers {
		if i > 0 || u.Hash != "" {
			dst = append(dst, ':')
		}
		encode := base64.StdEncoding.EncodeToString
		dst = fmt.Appendf(dst, "{%s}%d,%s,%s,%s", v.Mechanism, v.Iterations, encode(v.Salt), encode(v.StoredKey), encode(v.ServerKey))
	}
	return append(dst, '\n')
}

// secretMark is before the secret.
const secretMark = "#secret "

// Book is the file as read. It is not changed by lookups, which may come from many goroutines.
type Book struct {
	Secret []byte // nil if the file has none

	lines map[string]string // by login; kept as text, which takes least memory
	order []string
	with  map[string]int // verifiers by mechanism
}

// Parse reads a file; an error names the line.
func Parse(b []byte) (*Book, error) {
	book := &Book{lines: map[string]string{}, with: map[string]int{}}
	for number := 1; len(b) > 0; number++ {
		var line []byte
		line, b, _ = bytes.Cut(b, []byte("\n"))
		text := strings.TrimRight(string(line), " \t\r")
		if encoded, ok := strings.CutPrefix(text, secretMark); ok && book.Secret == nil {
			book.Secret, _ = base64.StdEncoding.DecodeString(encoded) // one that is none is a comment
		}
		if text == "" || text[0] == '#' {
			continue
		}
		u, err := ParseLine(text)
		if err == nil && book.lines[u.Login] != "" {
			err = errors.New("the same login twice")
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err) // and not its text, which is secret
		}
		book.Put(u)
	}
	return book, nil
}

// Len is how many users there are.
func (b *Book) Len() int { return len(b.lines) }

// Find looks a login up.
func (b *Book) Find(login string) (User, bool) {
	line, ok := b.lines[address.Lower(login)]
	if !ok {
		return User{}, false
	}
	u, err := ParseLine(strings.TrimSuffix(line, "\n"))
	return u, err == nil
}

// All reports whether every user, and there is one, has a verifier for the mechanism. A client that is offered a
// mechanism takes it, and does not fall back to another when its user has nothing for it.
func (b *Book) All(mechanism string) bool {
	return len(b.lines) > 0 && b.with[mechanism] == len(b.lines)
}

// Sample returns the verifier of one of the users, who are taken in turn by n; the zero value if nobody has one.
func (b *Book) Sample(mechanism string, n uint64) Verifier {
	for i := range uint64(min(len(b.order), 16)) { // enough to find one where nearly all have it
		u, _ := b.Find(b.order[(n+i)%uint64(len(b.order))])
		if v, ok := u.Verifier(mechanism); ok {
			return v
		}
	}
	return Verifier{}
}

// Put adds a user, or replaces the one of that login.
func (b *Book) Put(u User) {
	login := address.Lower(u.Login)
	if _, known := b.lines[login]; known {
		b.count(login, -1)
	} else {
		b.order = append(b.order, login)
	}
	b.lines[login] = string(u.Append(nil))
	b.count(login, +1)
}

// Delete removes a user.
func (b *Book) Delete(login string) bool {
	login = address.Lower(login)
	if _, known := b.lines[login]; !known {
		return false
	}
	b.count(login, -1)
	delete(b.lines, login)
	b.order = slices.DeleteFunc(b.order, func(other string) bool { return other == login })
	return true
}

func (b *Book) count(login string, by int) {
	u, _ := b.Find(login)
	for _, v := range u.Verifiers {
		b.with[v.Mechanism] += by
	}
}

// Logins are those of the file, in its order.
func (b *Book) Logins() []string { return slices.Clone(b.order) }

// Append writes the file.
func (b *Book) Append(dst []byte) []byte {
	if len(b.Secret) > 0 {
		dst = append(append(append(dst, secretMark...), base64.StdEncoding.EncodeToString(b.Secret)...), '\n')
	}
	for _, login := range b.order {
		dst = append(dst, b.lines[login]...)
	}
	return dst
}
