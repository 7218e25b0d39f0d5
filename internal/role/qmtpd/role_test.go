package qmtpd

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"qmail/internal/format/netstring"
	"qmail/internal/system/env"
)

func TestItRefusesToStart(t *testing.T) {
	tests := []struct {
		name, file, text string
		args             []string
		code             int
		want             string
	}{
		{"with arguments", "", "", []string{"x"}, 100, "usage"},
		{"with a malformed list", "relayclients", "10.0.0.0/8\nlocalhost\n", nil, 111, "control/relayclients:2:"},
		{"with a damaged table", "morercpthosts.cdb", "x", nil, 111, "control/morercpthosts.cdb"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			files := map[string]string{"me": "mx.test.example\n", "rcpthosts": "test.example\n"}
			if tt.file != "" {
				files[tt.file] = tt.text
			}
			var log bytes.Buffer
			e := &env.Env{Home: makeHome(t, files), Stderr: &log, Now: time.Now, Orders: make(chan env.Order), Ready: func() error { return nil }}
			if code := Main(t.Context(), e, tt.args); code != tt.code || !strings.HasPrefix(log.String(), "qmail-qmtpd: ") || !strings.Contains(log.String(), tt.want) {
				t.Errorf("exit %d: %q", code, &log)
			}
		})
	}
	for _, name := range []string{"me", "databytes", "maxrecipients", "concurrencyincoming", "maxperclient", "maxpernetwork", "maxmemory", "envnoathost"} {
		home := makeHome(t, map[string]string{"rcpthosts": "test.example\n"})
		if err := os.Mkdir(filepath.Join(home, "control", name), 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadConfig(&env.Env{Home: home}); err == nil || !strings.Contains(err.Error(), "control/"+name) {
			t.Errorf("%s is a directory: %v", name, err)
		}
	}
}

func TestConfigFromTheEnvironment(t *testing.T) {
	home := makeHome(t, map[string]string{"me": "mx.test.example\n", "databytes": "200\n", "maxrecipients": "0\n"})
	for _, tt := range []struct {
		vars []string
		want int64
	}{{nil, 200}, {[]string{"DATABYTES=500"}, 500}, {[]string{"DATABYTES="}, 0}, {[]string{"DATABYTES=x"}, 0}} {
		c, err := ReadConfig(&env.Env{Home: home, Vars: tt.vars})
		if err != nil || c.Session.Databytes != tt.want || c.Session.MaxRecipients != 1 {
			t.Errorf("%q: %+v, %v", tt.vars, c, err)
		}
	}
}

// TestIdleSessionsAreSmall holds sessions that have sent a message each, and looks at what they cost.
func TestIdleSessionsAreSmall(t *testing.T) {
	home := makeHome(t, map[string]string{"me": "mx.test.example\n", "rcpthosts": "test.example\n"})
	e := &env.Env{Home: home, Stderr: io.Discard, Now: time.Now}
	config, err := ReadConfig(e)
	if err != nil {
		t.Fatal(err)
	}
	r := newRole(e, config)
	q := &fakeQueue{}
	r.server.Open, r.server.Verify = newServer(q, nil, e, r.Refusals).Open, q.Verify
	message := netstring.Append(netstring.Append(netstring.Append(nil, "\nSubject: x\n\nhello\n"), "s@a"), netstring.Append(nil, "alice@test.example"))
	const n = 1000
	before := inUse()
	for range n {
		client, conn := net.Pipe()
		done := make(chan struct{})
		go func() { defer close(done); defer conn.Close(); r.session(t.Context(), "qmtp", conn, netip.Addr{}) }()
		t.Cleanup(func() { client.Close(); <-done })
		if _, err := client.Write(message); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 100)
		if k, err := client.Read(b); err != nil || b[k-1] != ',' {
			t.Fatalf("%q, %v", b[:k], err)
		}
	}
	each := (inUse() - before) / n
	t.Logf("%d bytes for each session, its client included", each)
	if each > 24<<10 {
		t.Errorf("%d bytes for each session", each)
	}
}

func inUse() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}
