package keyd

import (
	"context"
	"crypto"
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"qmail/internal/proto/keyd"
	"qmail/internal/store/keys"
	"qmail/internal/system/env"
	"qmail/internal/system/ipc"
	"qmail/internal/system/secure"
)

// TestMain is also a qmail-keyd in a process of its own.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) != "qmail-keyd" {
		os.Exit(m.Run())
	}
	e, err := env.Process()
	if err != nil {
		panic(err)
	}
	os.Exit(Main(context.Background(), e, nil))
}

// separate starts a qmail-keyd as the supervisor does, and returns what it shows to qmail-smtpd.
func separate(t testing.TB, home string) []secure.Certificate {
	t.Helper()
	control, theirs, err := ipc.Pair()
	if err != nil {
		t.Fatal(err)
	}
	p, err := os.StartProcess("/proc/self/exe", []string{"qmail-keyd"}, &os.ProcAttr{
		Env: []string{"QMAILHOME=" + home, "QMAILCONTROL=3"}, Files: []*os.File{nil, os.Stderr, os.Stderr, theirs},
	})
	theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	orders, err := ipc.FromFile(control)
	if err != nil {
		t.Fatal(err)
	}
	near, end, err := ipc.Pair()
	if err != nil {
		t.Fatal(err)
	}
	ours, err := ipc.FromFile(near)
	if err != nil {
		t.Fatal(err)
	}
	if err := orders.SendFile(byte(env.Link), 0, end, []byte("smtpd")); err != nil {
		t.Fatal(err)
	}
	end.Close()
	lists := make(chan []keyd.Certificate, 1)
	agent := &keyd.Agent{Changed: func(list []keyd.Certificate) { lists <- list }}
	agent.Connect(ours)
	t.Cleanup(func() { agent.Connect(nil); orders.Close(); p.Wait() })
	select {
	case list := <-lists:
		return keyd.Served(list)
	case <-time.After(20 * time.Second):
		t.Fatal("no certificates come")
		return nil
	}
}

// BenchmarkHandshakes is full handshakes per second, client and server in one process over TCP, with the key in that
// process and in a qmail-keyd of its own.
func BenchmarkHandshakes(b *testing.B) {
	home := b.TempDir()
	text, err := keys.SelfSigned("a.example", time.Now(), 100*24*time.Hour)
	if err != nil {
		b.Fatal(err)
	}
	if err := os.Mkdir(keys.Dir(home), 0o700); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(keys.Dir(home), "a.pem"), text, 0o600); err != nil {
		b.Fatal(err)
	}
	pairs, _, err := keys.Load(home)
	if err != nil {
		b.Fatal(err)
	}
	ways := map[string][]secure.Certificate{
		"here": {{Chain: pairs[0].Chain, Leaf: pairs[0].Leaf, Signer: pairs[0].Key}},
		"keyd": separate(b, home),
	}
	for _, where := range []string{"here", "keyd"} {
		b.Run(where, func(b *testing.B) {
			v := &secure.Server{Settings: func() secure.Settings { return secure.Settings{Time: time.Minute} }}
			v.Use(ways[where])
			address := listen(b, v)
			b.SetParallelism(16)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
					if err != nil {
						b.Error(err)
						return
					}
					conn.Close()
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "handshakes/s")
		})
	}
}

func listen(b *testing.B, v *secure.Server) (address string) {
	b.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				v.Handshake(b.Context(), conn, false) // the client says if it failed
			}()
		}
	}()
	return ln.Addr().String()
}

func TestAsAProcessOfItsOwn(t *testing.T) {
	home := t.TempDir()
	put(t, home, "a.example", long)
	list := separate(t, home)
	if len(list) != 1 || list[0].Leaf.DNSNames[0] != "a.example" {
		t.Fatalf("%+v", list)
	}
	if _, err := list[0].Signer.Sign(nil, make([]byte, 32), crypto.SHA256); err != nil {
		t.Error(err)
	}
}
