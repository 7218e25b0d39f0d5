package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	wire "github.com/miekg/dns"
)

// TestGuessesAreNotListenedToForLong floods a question with answers that have other ids: the true one comes by TCP.
func TestGuessesAreNotListenedToForLong(t *testing.T) {
	udp, tcp := listen(t)
	defer udp.Close()
	s := &wire.Server{Listener: tcp, Handler: wire.HandlerFunc(zone(t, "x.example. 60 IN A 127.0.0.1"))}
	ready := make(chan struct{})
	s.NotifyStartedFunc = func() { close(ready) }
	done := make(chan error, 1)
	go func() { done <- s.ActivateAndServe() }()
	<-ready
	defer func() { s.Shutdown(); <-done }()
	go func() {
		b := make([]byte, 4<<10)
		n, from, err := udp.ReadFrom(b)
		if err != nil {
			return
		}
		var m wire.Msg
		if m.Unpack(b[:n]) != nil {
			return
		}
		forged := new(wire.Msg).SetReply(&m)
		rr, _ := wire.NewRR("x.example. 60 IN A 192.0.2.66")
		forged.Answer = append(forged.Answer, rr)
		out, _ := forged.Pack()
		for i := range uint16(2 * maxForeign) {
			binary.BigEndian.PutUint16(out, m.Id+1+i)
			udp.WriteTo(out, from)
		}
	}()
	r := resolver(t, Config{Servers: []string{tcp.Addr().String()}, Timeout: 20 * time.Second, Attempts: 1})
	a, err := r.Lookup(t.Context(), "x.example", TypeA)
	if err != nil || len(a.Addrs) != 1 || a.Addrs[0] != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("%+v %v", a, err)
	}
}

// source is somebody else who asks.
type source func(ctx context.Context, name string, kind Type) (Answer, error)

func (s source) Ask(ctx context.Context, name string, kind Type) (Answer, error) {
	return s(ctx, name, kind)
}

func TestOverSomebodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		trouble := errors.New("no luck")
		r := Over(source(func(ctx context.Context, name string, kind Type) (Answer, error) {
			asked.Add(1)
			switch name {
			case "bad.example":
				return Answer{}, trouble
			case "slow.example":
				<-ctx.Done()
				return Answer{}, ctx.Err()
			}
			return Answer{Status: Found, Secure: true, Texts: []string{name}, Expires: time.Now().Add(time.Hour)}, nil
		}), time.Now)
		defer r.Close()
		r.Configure(Config{}) // means nothing here
		for _, wait := range []time.Duration{0, overTTL - time.Second, 2 * time.Second} {
			time.Sleep(wait)
			a, err := r.Lookup(t.Context(), "X.example.", TypeTXT)
			if err != nil || !a.Secure || a.Texts[0] != "x.example" {
				t.Errorf("%+v %v", a, err)
			}
		}
		if n := asked.Load(); n != 2 {
			t.Errorf("asked %d times: an answer of an hour is to be remembered for %v", n, overTTL)
		}
		if _, err := r.Lookup(t.Context(), "bad.example", TypeTXT); !errors.Is(err, trouble) {
			t.Error(err)
		}
		began := time.Now()
		if _, err := r.Lookup(t.Context(), "slow.example", TypeTXT); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != AskTime {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

func TestAQuestionEndsWhateverTheServersDo(t *testing.T) {
	udp, err := net.ListenPacket("udp", "127.0.0.1:0") // says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	n := newNetwork(nil)
	n.configure(Config{Servers: []string{udp.LocalAddr().String()}, Timeout: time.Hour})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := n.Ask(ctx, "x.example", TypeA); err == nil {
		t.Error("an answer out of nothing")
	}
}
