package authd

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"time"

	"qmail/internal/format/address"
	"qmail/internal/proto/checker"
	"qmail/internal/proto/dovecot"
	"qmail/internal/proto/sasl"
	"qmail/internal/store/passwd"
)

// nobody is what the password of somebody unknown is compared with: a hash that costs what those of New cost.
const nobody = "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5IGlzIGhlcmU$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

// dovecotTime is how long Dovecot may take, which makes failures wait, too.
const dovecotTime = 20 * time.Second

// Password is sasl.Users.
func (x *exchange) Password(login, password string) error {
	if err := x.guess(login); err != nil {
		return err
	}
	if right, err := x.role.match(x.ctx, login, sasl.Prepare(password)); err != nil || right {
		return err
	}
	refused := sasl.ErrRefused
	for _, ask := range []func(login, password string) error{x.askProgram, x.askDovecot} {
		switch err := ask(login, password); {
		case err == nil:
			return nil
		case !errors.Is(err, sasl.ErrRefused):
			refused = err // somebody else may know better
		}
	}
	return refused
}

// match looks the login up in users/passwd. Whether he is there or not, a hash is computed.
func (r *role) match(ctx context.Context, login, password string) (bool, error) {
	u, known := r.book.Load().Find(login)
	if err := r.begin(ctx); err != nil {
		return false, err
	}
	defer r.done()
	switch {
	case known && u.Hash != "":
		return passwd.Match(u.Hash, password), nil
	case known && len(u.Verifiers) > 0:
		v := u.Verifiers[0]
		got, err := sasl.NewVerifier(v.Mechanism, password, v.Salt, v.Iterations)
		return err == nil && subtle.ConstantTimeCompare(got.StoredKey, v.StoredKey) == 1, nil
	}
	passwd.Match(nobody, password)
	return false, nil
}

// askProgram asks the program of control/checkpassword.
func (x *exchange) askProgram(login, password string) error {
	if !x.role.program.Load() {
		return sasl.ErrRefused
	}
	switch answer := x.role.helper.Check(x.ctx, x.who, login, password); answer.Verdict {
	case checker.Yes:
		return nil
	case checker.No:
		return sasl.ErrRefused
	default:
		return errors.New("qmail-checkpw: " + string(answer.Verdict) + " " + answer.Text)
	}
}

// askDovecot asks the Dovecot of control/dovecotauth.
func (x *exchange) askDovecot(login, password string) error {
	socket := *x.role.dovecot.Load()
	if socket == "" {
		return sasl.ErrRefused
	}
	ctx, cancel := context.WithTimeout(x.ctx, dovecotTime)
	defer cancel()
	service := "smtp"
	if x.who.Service == "pop3" || x.who.Service == "pop3s" {
		service = "pop3"
	}
	_, err := dovecot.Check(ctx, socket, dovecot.Question{Login: login, Password: password, Service: service, IP: x.who.IP, Secure: x.who.Secure})
	if errors.Is(err, dovecot.ErrRefused) {
		return sasl.ErrRefused
	}
	return err
}

// Verifier is sasl.Users.
func (x *exchange) Verifier(mechanism, login string) (sasl.Verifier, error) {
	if err := x.guess(login); err != nil {
		return sasl.Verifier{}, err
	}
	book := x.role.book.Load()
	if u, known := book.Find(login); known {
		if v, ok := u.Verifier(mechanism); ok {
			return sasl.Verifier{Salt: v.Salt, Iterations: v.Iterations, StoredKey: v.StoredKey, ServerKey: v.ServerKey}, nil
		}
	}
	return x.role.madeUp(book, mechanism, address.Lower(login)), nil
}

// madeUp is the verifier of somebody who is not there: like one of somebody who is, and always the same for a name, so
// that asking twice tells nothing.
func (r *role) madeUp(book *passwd.Book, mechanism, login string) sasl.Verifier {
	secret := book.Secret
	if len(secret) == 0 {
		secret = r.secret
	}
	derive := func(what string) []byte {
		h := hmac.New(sha256.New, secret)
		h.Write([]byte(what + "\x00" + mechanism + "\x00" + login))
		return h.Sum(nil)
	}
	like := book.Sample(mechanism, binary.BigEndian.Uint64(derive("like")))
	size := max(len(like.StoredKey), 20)
	return sasl.Verifier{
		Salt: derive("salt")[:min(max(len(like.Salt), 1), 32)], Iterations: max(like.Iterations, 4096),
		StoredKey: derive("stored")[:size], ServerKey: derive("server")[:size],
	}
}
