package adversarial

import (
	"errors"
	"fmt"
	"os"
	"sync"
)

// Runner plays cases. Several may be played at once; each client has an address of its own, by which what it sent is
// found again.
type Runner struct {
	// Bin is the directory of the programs.
	Bin string

	scratch string
	mu      sync.Mutex
	clients int
	sites   map[string]*shared
}

// shared is a site that many cases use.
type shared struct {
	once sync.Once
	site *site
	err  error
}

// New makes a Runner for the programs of a directory. Close it.
func New(bin string) (*Runner, error) {
	scratch, err := os.MkdirTemp("", "adversarial-")
	if err != nil {
		return nil, err
	}
	return &Runner{Bin: bin, scratch: scratch, sites: map[string]*shared{}}, os.Chmod(scratch, 0o755)
}

// Close stops what runs, and says what broke down that no case can be blamed for.
func (r *Runner) Close() error {
	var all error
	for name, s := range r.sites {
		if s.site == nil {
			continue
		}
		if trouble := s.site.trouble(); trouble != "" {
			all = errors.Join(all, fmt.Errorf("in the %s site: %s", name, trouble))
		}
		s.site.close()
	}
	return errors.Join(all, os.RemoveAll(r.scratch))
}

// shared returns the site of that name, which make makes when it is first wanted.
func (r *Runner) shared(name string, make func() (*site, error)) (*site, error) {
	r.mu.Lock()
	s := r.sites[name]
	if s == nil {
		s = &shared{}
		r.sites[name] = s
	}
	r.mu.Unlock()
	s.once.Do(func() { s.site, s.err = make() })
	return s.site, s.err
}

// client is an address that no other case has. QMQP is for those of 127.64.0.0/10.
func (r *Runner) client(trusted bool) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clients++
	second := 1
	if trusted {
		second = 65
	}
	return fmt.Sprintf("127.%d.%d.%d", second, r.clients/250, 1+r.clients%250)
}

// Run plays a case. The error is nil, or ErrSkip with the reason, or what is wrong.
func (r *Runner) Run(c *Case) error {
	for _, what := range [][2]string{{"protocol", c.Protocol}, {"case", c.Name}} {
		if reason := leftOut(what[0], what[1]); reason != "" {
			return fmt.Errorf("%s: %w", reason, ErrSkip)
		}
	}
	if c.bad != nil {
		return c.bad
	}
	if c.Side == "client" {
		return r.remote(c)
	}
	switch c.Protocol {
	case "smtp", "qmtp", "qmqp":
		return r.server(c)
	case "pop3":
		return r.pop3(c)
	case "header":
		return r.header(c)
	case "address":
		return r.address(c)
	case "dotqmail":
		return r.dotqmail(c)
	case "cdb":
		return r.cdb(c)
	case "dns":
		return r.dns(c)
	}
	return fmt.Errorf("there is no way to play %q", c.Protocol)
}

// problems is what is wrong with an outcome.
type problems []error

func (p *problems) add(format string, args ...any) { *p = append(*p, fmt.Errorf(format, args...)) }

func (p problems) err() error { return errors.Join(p...) }
