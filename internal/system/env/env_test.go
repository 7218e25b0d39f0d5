package env

import (
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"qmail/internal/system/ipc"
)

func TestLookup(t *testing.T) {
	e := &Env{Vars: []string{"A=1", "A=2", "EMPTY=", "AB=3"}}
	if v, ok := e.Lookup("A"); v != "1" || !ok {
		t.Errorf("the first of equal names counts: %q %v", v, ok)
	}
	if v, ok := e.Lookup("EMPTY"); v != "" || !ok {
		t.Error("set but empty is set")
	}
	if _, ok := e.Lookup("B"); ok {
		t.Error("found what is not set")
	}
}

func TestOrders(t *testing.T) {
	super, role, err := ipc.LocalPair()
	if err != nil {
		t.Fatal(err)
	}
	orders := Receive(role)
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	lf, err := ln.File()
	if err != nil {
		t.Fatal(err)
	}
	a, b, err := ipc.Pair()
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		super.SendFile('A', 0, lf, []byte("smtp")),
		super.SendFile('L', 0, a, []byte("send")),
		super.Send('?', 0),
		super.Send('L', 0, []byte("nothing attached")),
		super.Send('H', 0),
		super.Send('T', 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	a.Close()
	o := <-orders
	if o.Kind != Listen || o.Name != "smtp" || o.Listener.Addr().String() != ln.Addr().String() {
		t.Errorf("%+v", o)
	}
	o = <-orders
	if o.Kind != Link || o.Name != "send" {
		t.Errorf("%+v", o)
	}
	peer, err := ipc.FromFile(b)
	if err != nil {
		t.Fatal(err)
	}
	go peer.Send('x', 7)
	o.Link.SetReadDeadline(time.Now().Add(5 * time.Second))
	if f, err := o.Link.Read(); err != nil || f.Stream != 7 {
		t.Errorf("%+v %v", f, err)
	}
	for _, want := range []Kind{Reload, Stop} {
		if o = <-orders; o.Kind != want {
			t.Errorf("%c, want %c", o.Kind, want)
		}
	}
	if _, open := <-orders; open {
		t.Error("an order after Stop")
	}
}

func TestALostSupervisorMeansStop(t *testing.T) {
	super, role, err := ipc.LocalPair()
	if err != nil {
		t.Fatal(err)
	}
	super.Close()
	if o := <-Receive(role); o.Kind != Stop {
		t.Errorf("%+v", o)
	}
}

func TestLogLinesCannotBeForged(t *testing.T) {
	var b strings.Builder
	e := &Env{Stderr: &b}
	e.Log("qmail-smtpd").With("pid", 7).Warn("bad\nqmail-smtpd: fine", "from", "a\x00\xe9\r\n", "err", errors.New(strings.Repeat("x", 5000)))
	got := b.String()
	if !strings.HasPrefix(got, "qmail-smtpd: warning: bad?qmail-smtpd: fine pid=7 from=a???? err=xxx") || strings.Count(got, "\n") != 1 || len(got) > maxLine+10 {
		t.Errorf("%.200q (%d bytes)", got, len(got))
	}
}
