package sasl

import (
	"bytes"
	"slices"
	"strings"

	"github.com/xdg-go/scram"
)

// Verifier is what a server keeps for SCRAM in the place of a password (RFC 5802 3).
type Verifier struct {
	Salt                 []byte
	Iterations           int
	StoredKey, ServerKey []byte
}

// Users says who is who. An answer must take as long for those who are not there as for others.
type Users interface {
	// Password returns nil if the password is right, ErrRefused if it is not, and any other error if that cannot be
	// said now.
	Password(login, password string) error
	// Verifier returns what belongs to a name. For one that is not there it makes up something that no password fits,
	// and always the same. mechanism is without -PLUS.
	Verifier(mechanism, login string) (Verifier, error)
}

// Server is the server's side of one exchange.
type Server struct {
	// Login is who it is, once Next has said done without an error.
	Login string

	mechanism string
	users     Users
	bindings  []Binding
	step      int
	name      string // of LOGIN, until the password comes
	scram     *scram.ServerConversation
	finished  bool
}

// Supported are the mechanisms of this side. Those with -PLUS need a binding.
func Supported(mechanism string, bound bool) bool {
	if _, ok := hashOf(mechanism); ok {
		return bound || !plus(mechanism)
	}
	return mechanism == Plain || mechanism == Login
}

// NewServer begins an exchange. bindings are those of the connection; none for one without TLS.
func NewServer(mechanism string, bindings []Binding, users Users) (*Server, error) {
	if !Supported(mechanism, len(bindings) > 0) {
		return nil, ErrMechanism
	}
	return &Server{mechanism: mechanism, users: users, bindings: bindings}, nil
}

// Next takes a response and returns the next challenge, or done with or without an error: ErrMalformed, ErrRefused or
// one of Users. The first response is the initial one, nil if the client sent none.
func (s *Server) Next(response []byte) (challenge []byte, done bool, err error) {
	if s.finished || len(response) > MaxMessage {
		s.finished, s.Login = true, ""
		return nil, true, ErrMalformed
	}
	if response == nil && s.step == 0 && s.mechanism != Login {
		return []byte{}, false, nil // the client speaks first, and does so now
	}
	s.step++
	switch s.mechanism {
	case Plain:
		err = s.plain(response)
		done = true
	case Login:
		challenge, done, err = s.login(response)
	default:
		challenge, done, err = s.scramNext(response)
	}
	s.finished = done
	if done && err != nil {
		s.Login = ""
	}
	return challenge, done, err
}

// plain is "authorize-id NUL authenticate-id NUL password". Nobody acts for others here: the first is empty or equal
// to the second.
func (s *Server) plain(response []byte) error {
	parts := bytes.SplitN(response, []byte{0}, 4)
	if len(parts) != 3 {
		return ErrMalformed
	}
	actor, login, password := string(parts[0]), string(parts[1]), string(parts[2])
	return s.check(login, password, actor == "" || actor == login)
}

// check asks for the password even of those who are refused in any case, so that they learn nothing from the time.
func (s *Server) check(login, password string, may bool) error {
	if password == "" || len(password) > MaxPassword || !GoodLogin(login) || strings.IndexByte(password, 0) >= 0 {
		login, password, may = "?", "?", false
	}
	err := s.users.Password(login, password)
	if err == nil && !may {
		err = ErrRefused
	}
	if err == nil {
		s.Login = login
	}
	return err
}

// login is the mechanism of that name: two questions, or one where the name came with the command.
func (s *Server) login(response []byte) (challenge []byte, done bool, err error) {
	if s.step == 1 {
		if response == nil {
			return []byte("Username:"), false, nil
		}
		s.step++
	}
	if s.step == 2 {
		s.name = string(response)
		return []byte("Password:"), false, nil
	}
	return nil, true, s.check(s.name, string(response), true)
}

// scramNext is three steps: both first messages, both final ones, and a last response that says nothing.
func (s *Server) scramNext(response []byte) (challenge []byte, done bool, err error) {
	switch s.step {
	case 1:
		if err := s.begin(response); err != nil {
			return nil, true, err
		}
		return s.scramStep(response)
	case 2:
		challenge, done, err := s.scramStep(response)
		if err == nil && !s.scram.Valid() {
			return nil, true, ErrRefused
		}
		return challenge, done, err
	}
	if len(response) > 0 || !s.scram.Valid() {
		return nil, true, ErrMalformed
	}
	s.Login = s.scram.Username()
	if actor := s.scram.AuthzID(); actor != "" && actor != s.Login || !GoodLogin(s.Login) {
		return nil, true, ErrRefused
	}
	return nil, true, nil
}

func (s *Server) scramStep(response []byte) ([]byte, bool, error) {
	out, err := s.scram.Step(string(response))
	switch {
	case err == nil:
		return []byte(out), false, nil
	case out == scram.ErrInvalidProof || out == scram.ErrChannelBindingsDontMatch:
		return nil, true, ErrRefused
	case out == scram.ErrUnknownUser: // what Users said, since it knows no unknown ones
		return nil, true, err
	}
	return nil, true, ErrMalformed
}

// begin makes the conversation that the client's first message asks for. Its flag has to fit the mechanism's name (RFC
// 5802 6): p with -PLUS alone; and y, which means that we offered nothing with -PLUS, only where that is so.
func (s *Server) begin(response []byte) error {
	flag, rest, _ := bytes.Cut(response, []byte{','})
	kind, binds := strings.CutPrefix(string(flag), "p=")
	if binds != plus(s.mechanism) || bytes.IndexByte(rest, 0) >= 0 {
		return ErrMalformed
	}
	base := strings.TrimSuffix(s.mechanism, "-PLUS")
	hash, _ := hashOf(base)
	server, err := hash.NewServer(func(name string) (scram.StoredCredentials, error) {
		if !GoodLogin(name) {
			name = "?"
		}
		v, err := s.users.Verifier(base, name)
		return scram.StoredCredentials{
			KeyFactors: scram.KeyFactors{Salt: string(v.Salt), Iters: v.Iterations},
			StoredKey:  v.StoredKey, ServerKey: v.ServerKey,
		}, err
	})
	if err != nil {
		return err
	}
	switch {
	case binds:
		i := slices.IndexFunc(s.bindings, func(b Binding) bool { return b.Type == kind })
		if i < 0 {
			return ErrMalformed
		}
		s.scram = server.NewConversationWithChannelBindingRequired(s.bindings[i].scram())
	case len(s.bindings) > 0:
		s.scram = server.NewConversationWithChannelBinding(s.bindings[0].scram())
	default:
		s.scram = server.NewConversation()
	}
	return nil
}

// NewVerifier makes what a server keeps of a password.
func NewVerifier(mechanism, password string, salt []byte, iterations int) (Verifier, error) {
	hash, ok := hashOf(mechanism)
	if !ok {
		return Verifier{}, ErrMechanism
	}
	client, err := hash.NewClientUnprepped("", Prepare(password), "")
	if err != nil {
		return Verifier{}, err
	}
	c, err := client.GetStoredCredentialsWithError(scram.KeyFactors{Salt: string(salt), Iters: iterations})
	return Verifier{Salt: salt, Iterations: iterations, StoredKey: c.StoredKey, ServerKey: c.ServerKey}, err
}
