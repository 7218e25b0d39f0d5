package send

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"qmail/internal/format/reply"
	"qmail/internal/proto/admin"
	"qmail/internal/proto/jobs"
	"qmail/internal/proto/lookup"
	"qmail/internal/store/control"
	"qmail/internal/store/users"
	"qmail/internal/system/env"
	"qmail/internal/system/ipc"
)

// answering replaces the house's neighbours by some that answer questions so.
func (h *house) answering(answer func(q *jobs.Question) []byte) {
	ctx, cancel := context.WithCancel(context.Background())
	h.t.Cleanup(cancel)
	answerer := func(_ context.Context, q *jobs.Question) []byte { return answer(q) }
	h.link("rspawn", func(c *ipc.Conn) { jobs.ServeAsked(ctx, c, h.worker("remote"), answerer) })
	h.link("lspawn", func(c *ipc.Conn) {
		lookup.ServeWhy(ctx, c, func(_ context.Context, local string, pipe bool) (users.Account, *os.File, error) {
			account := users.Account{User: "alice", UID: 1001, GID: 1001, Home: "/home/alice", Dash: "-", Ext: "x"}
			a, b, err := ipc.Pair()
			if err != nil || !pipe {
				return account, nil, err
			}
			conn, err := ipc.FromFile(b)
			if err == nil {
				go jobs.ServeAsked(ctx, conn, h.worker("local"), answerer)
			}
			return account, a, err
		}, func(_ context.Context, local string) (users.Account, users.Source, error) {
			return users.Account{User: "alice", UID: 1001, GID: 1001, Home: "/home/alice", Dash: "-", Ext: "x"}, users.Source{File: "users/assign", Line: 3, Text: "+alice-"}, nil
		})
	})
	h.orders <- env.Order{} // once this is taken, those before it are carried out
}

// told is an explanation in one line.
func told(t *testing.T, c *admin.Client, address string) string {
	t.Helper()
	steps, err := c.Explain(address)
	if err != nil {
		t.Fatal(err)
	}
	var parts []string
	for _, s := range steps {
		part := s.Topic + "=" + s.Value
		if s.Line > 0 {
			part += fmt.Sprintf("[%s:%d]", filepath.Base(s.File), s.Line)
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, " ")
}

func TestAnExplanationIsOfThoseWhoWouldDoIt(t *testing.T) {
	h := newHouse(t, map[string]string{"rcpthosts": "# x\ntest.example\n.virt.example\n", "percenthack": "test.example\n"})
	h.start()
	c := h.openDesk()
	answer := []admin.Step{{Topic: "maildir", Value: "./M/", File: "f", Line: 2}, admin.Verdict("K\n")}
	h.answering(func(q *jobs.Question) []byte { return admin.AppendSteps(nil, answer) })
	tests := []struct{ address, want string }{
		{"alice-x@test.example", "rcpthosts=accepted[rcpthosts:2] locals=alice-x@test.example[locals:1] channel=local recipient=alice-x@test.example account=alice[assign:3] uid=1001 home=/home/alice extension=-x maildir=./M/[f:2] verdict=K"},
		{"a@virt.example", "rcpthosts=refused virtualdomains=alice-virt-a@virt.example[virtualdomains:1] channel=local recipient=alice-virt-a@virt.example account=alice[assign:3] uid=1001 home=/home/alice extension=-x maildir=./M/[f:2] verdict=K"},
		{"a%far.example@test.example", "rcpthosts=refused percenthack=a@far.example[percenthack:1] channel=remote recipient=a@far.example maildir=./M/[f:2] verdict=K"},
		{"alice", "rcpthosts=refused envnoathost=alice@mx.test.example[me:1] channel=remote recipient=alice@mx.test.example maildir=./M/[f:2] verdict=K"},
		{"not an address\x01@test.example", "rcpthosts=refused locals=not an address\x01@test.example[locals:1] channel=local recipient=not an address\x01@test.example account=alice[assign:3] uid=1001 home=/home/alice extension=-x maildir=./M/[f:2] verdict=K"},
	}
	for _, tt := range tests {
		if got := told(t, c, tt.address); got != tt.want {
			t.Errorf("%q:\ngot  %s\nwant %s", tt.address, got, tt.want)
		}
	}
	user, other := h.as(1001), h.as(1002)
	if got := told(t, user, "alice-x@test.example"); !strings.Contains(got, "maildir=./M/") {
		t.Errorf("alice may not see her own: %s", got)
	}
	if got := told(t, other, "alice-x@test.example"); strings.Contains(got, "maildir") || !strings.HasSuffix(got, "verdict=K") {
		t.Errorf("others see: %s", got)
	}
	// A control file that changed since it was read is not named as the reason.
	if err := os.WriteFile(control.Open(h.home).Path("locals"), []byte("other.example\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := told(t, c, "alice-x@test.example"); !strings.Contains(got, "locals=alice-x@test.example channel=local") {
		t.Errorf("before the reload: %s", got)
	}
	if n := len(h.got()); n != 0 {
		t.Errorf("%d deliveries", n)
	}
	h.end()
}

// TestALyingWorkerExplainsNothingElse: a user's qmail-local speaks of that user's files alone, and nonsense is no answer.
func TestALyingWorkerExplainsNothingElse(t *testing.T) {
	h := newHouse(t, nil)
	h.start()
	c := h.openDesk()
	for _, tt := range []struct {
		name   string
		answer []byte
		want   string
	}{
		{"of other things", admin.AppendSteps(nil, []admin.Step{{Topic: "account", Value: "root"}, {Topic: "locals", Value: "x"}, admin.Verdict("D\n")}), " extension=-x verdict=D"},
		{"without a verdict", admin.AppendSteps(nil, []admin.Step{{Topic: "maildir", Value: "x"}}), " extension=-x verdict=Z"},
		{"nonsense", []byte("nonsense"), " extension=-x verdict=Z"},
		{"nothing", nil, " extension=-x verdict=Z"},
	} {
		h.answering(func(*jobs.Question) []byte { return tt.answer })
		h.server.core.post(func() { // the qmail-local of before would answer
			for key, w := range h.server.core.locals {
				delete(h.server.core.locals, key)
				w.close()
			}
		})
		if got := told(t, c, "alice-x@test.example"); !strings.HasSuffix(got, tt.want) || strings.Contains(got, "root") {
			t.Errorf("%s: %s", tt.name, got)
		}
	}
	h.orders <- env.Order{Kind: env.Link, Name: "lspawn", Link: func() *ipc.Conn { a, b := h.pair(); b.Close(); return a }()}
	h.orders <- env.Order{Kind: env.Link, Name: "rspawn", Link: func() *ipc.Conn { a, b := h.pair(); b.Close(); return a }()}
	h.orders <- env.Order{}
	for _, address := range []string{"alice-x@test.example", "a@far.example"} {
		if got := told(t, c, address); !strings.HasSuffix(got, "verdict=Z") {
			t.Errorf("with nobody there: %s", got)
		}
	}
	if _, err := c.Slow(false); reply.Letter(err) != 'Z' {
		t.Errorf("with nobody there: %v", err)
	}
	h.end()
}

func TestSlowAddresses(t *testing.T) {
	h := newHouse(t, nil)
	h.start()
	c := h.openDesk()
	asked := make(chan string, 10)
	list := []admin.Slow{{Addr: netip.MustParseAddr("192.0.2.1"), Count: 3, Last: time.Unix(1_800_000_000, 0), Skipped: true}}
	h.answering(func(q *jobs.Question) []byte {
		asked <- fmt.Sprint(q.Slow, q.Forget)
		if q.Forget {
			return []byte{0}
		}
		return admin.AppendSlow([]byte{0}, list)
	})
	if got, err := c.Slow(false); err != nil || len(got) != 1 || got[0].Addr != list[0].Addr || got[0].Count != 3 || !got[0].Skipped {
		t.Errorf("%+v %v", got, err)
	}
	if got, err := c.Slow(true); err != nil || len(got) != 0 {
		t.Errorf("%+v %v", got, err)
	}
	if first, second := <-asked, <-asked; first != "true false" || second != "false true" {
		t.Errorf("asked %q, %q", first, second)
	}
	h.log.await(t, fmt.Sprintf("addresses that timed out forgotten by uid %d", os.Getuid()), 1)
	h.end()
}

func TestMessageID(t *testing.T) {
	for text, want := range map[string]string{
		"Message-ID: <a@b>\n\nx":                        "<a@b>",
		"Subject: x\nMESSAGE-id :\n  <a@b> \nTo: y\n\n": "<a@b>",
		"Subject: x\n y\n\nMessage-ID: <a@b>\n":         "",
		"":                                              "",
		"no header at all":                              "",
		"Message-ID: <a@b>\r\n\r\n":                     "<a@b>",
		"X: y\nMessage-ID: <1@b>\nMessage-ID: <2@b>\n\nbody": "<1@b>",
	} {
		if got := messageID([]byte(text)); got != want {
			t.Errorf("%q: %q", text, got)
		}
	}
}
