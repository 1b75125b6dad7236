package link

import (
	"net"
	"sync"
	"testing"
)

// proxy stands between gateways and the control plane, and does what networks do.
type proxy struct {
	l  net.Listener
	to string
	wg sync.WaitGroup

	mu    sync.Mutex    // guards what follows
	gate  chan struct{} // closed while bytes pass
	held  bool
	down  bool
	conns map[net.Conn]struct{}
}

func newProxy(t testing.TB, to string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{l: l, to: to, gate: make(chan struct{}), conns: make(map[net.Conn]struct{})}
	close(p.gate)
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		_ = l.Close()
		p.setDown(true)
		p.hold(false)
		p.wg.Wait()
	})
	return p
}

func (p *proxy) addr() string { return p.l.Addr().String() }

func (p *proxy) accept() {
	for {
		in, err := p.l.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", p.to)
		if err != nil || !p.keep(in, out) {
			_ = in.Close()
			if out != nil {
				_ = out.Close()
			}
			continue
		}
		p.wg.Go(func() { p.copy(out, in) })
		p.wg.Go(func() { p.copy(in, out) })
	}
}

func (p *proxy) keep(conns ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down {
		return false
	}
	for _, c := range conns {
		p.conns[c] = struct{}{}
	}
	return true
}

func (p *proxy) copy(to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	b := make([]byte, 4096)
	for {
		n, err := from.Read(b)
		p.mu.Lock()
		gate := p.gate
		p.mu.Unlock()
		<-gate
		if _, werr := to.Write(b[:n]); werr != nil || err != nil {
			return
		}
	}
}

// hold stops all bytes, or lets them go on.
func (p *proxy) hold(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held == on {
		return
	}
	if p.held = on; on {
		p.gate = make(chan struct{})
	} else {
		close(p.gate)
	}
}

// setDown cuts all connections and refuses new ones, or lets them in again.
func (p *proxy) setDown(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down = on; on {
		for c := range p.conns {
			_ = c.Close()
		}
		clear(p.conns)
	}
}

// cut cuts all connections.
func (p *proxy) cut() {
	p.setDown(true)
	p.setDown(false)
}
