package httpapi

import (
	"bufio"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
)

// inUse is what this process holds in memory for what lives in it.
func inUse() uint64 {
	for range 4 { // pools and stacks give up what they do not need step by step
		runtime.GC()
	}
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// An idle client costs the server little, whatever it sent to get in. The clients are in the same process and measured too;
// they are no more than sockets.
func TestFeedIsSmall(t *testing.T) {
	const clients = 150
	most := uint64(50 << 10)
	if raced {
		most += 16 << 10 // the race detector's own, on each stack
	}
	for name, junk := range map[string]string{"plain": "", "large headers": "X-Junk: " + strings.Repeat("x", 12<<10) + "\r\n"} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, func(c *Config) { c.MaxFeedsPerUser = clients })
			c := a.create(a.adaToken, "box", a.addKey(a.adaToken, "laptop"))
			a.await(a.adaToken, c.ID, "running")
			text := strings.TrimSuffix(a.handshakeOf(nil), "\r\n") + junk + "\r\n"
			before := inUse()
			for range clients {
				conn := a.dial()
				if _, err := io.WriteString(conn, text); err != nil {
					t.Fatal(err)
				}
				b := bufio.NewReader(conn)
				if resp, err := http.ReadResponse(b, nil); err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
					t.Fatalf("%+v, %v", resp, err)
				}
				if _, err := b.Peek(100); err != nil { // the list
					t.Fatal(err)
				}
			}
			if n := a.server.Feeds().Clients; n != clients {
				t.Fatalf("%d clients", n)
			}
			each := (inUse() - before) / clients
			if each > most {
				t.Errorf("%d bytes for a client, want at most %d", each, most)
			}
			t.Logf("%d bytes for a client", each)
		})
	}
}
