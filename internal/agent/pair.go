package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"berth/internal/agentproto"
	"berth/internal/pinned"
	"berth/internal/version"
)

// callPair is a gateway's key, which may connect to the container's address from then on; the answer is the agent's key for
// that address. Both are made for this container alone, and live in memory.
const callPair = "pair"

// Bounds on what the container's address offers to anybody.
const (
	maxPaired   = 64 // gateways' keys; the one that was heard of first makes room for another
	maxGreeting = 16 // connections that have not proven themselves
	greetLimit  = 5 * time.Second
)

// paired is what is known of gateways that come by the container's address. There is no listener before the first one asked
// for it by the socket.
type paired struct {
	mu       sync.Mutex       // guards what follows, but that the listener's goroutine reads what was there before it
	identity *pinned.Identity // nil before there is a listener
	greeting chan struct{}    // of capacity maxGreeting
	known    []pinned.Key     // the latest last
}

func (p *paired) knows(k pinned.Key) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Contains(p.known, k)
}

// pair takes a gateway's key.
func (s *Server) pair(key pinned.Key) (pinned.Key, error) {
	p := &s.paired
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.identity == nil {
		if err := s.listenForPaired(); err != nil {
			return pinned.Key{}, err
		}
	}
	p.known = append(slices.DeleteFunc(p.known, func(k pinned.Key) bool { return k == key }), key)
	p.known = p.known[max(0, len(p.known)-maxPaired):]
	return p.identity.Public(), nil
}

// listenForPaired opens the container's address. s.paired.mu is held.
func (s *Server) listenForPaired() error {
	identity, err := pinned.NewIdentity()
	if err != nil {
		return err
	}
	l, err := s.listen()
	if err != nil {
		return fmt.Errorf("listen for gateways: %w", err)
	}
	s.paired.identity, s.paired.greeting = identity, make(chan struct{}, maxGreeting)
	if !s.goDo(&s.wg, func() {
		if err := s.accept(l, s.greet); err != nil {
			s.log.Warn("gateways do not reach the container's address any more", "err", err)
		}
	}) {
		return errors.Join(errClosing, l.Close())
	}
	return nil
}

func listenForPods() (net.Listener, error) {
	return net.Listen("tcp", ":"+strconv.Itoa(pinned.Port))
}

// greet serves nc once its peer has proven itself, unless too many are about to.
func (s *Server) greet(nc net.Conn) error {
	p := &s.paired
	select {
	case p.greeting <- struct{}{}:
	default:
		return fmt.Errorf("%d connections have not proven themselves yet", maxGreeting)
	}
	if !s.goDo(&s.wg, func() {
		ctx, cancel := context.WithTimeout(s.ctx, greetLimit)
		defer cancel()
		gateway, err := p.identity.Accept(ctx, nc, p.knows)
		<-p.greeting
		if err == nil {
			err = s.take(gateway)
			if err != nil {
				_ = gateway.Close()
			}
		}
		if err != nil {
			s.log.Debug("refused a connection", "from", nc.RemoteAddr(), "err", err)
		}
	}) {
		<-p.greeting
		return errClosing
	}
	return nil
}

// Pair tells the agent at a socket of a gateway's key, and prints the agent's own.
func Pair(socket, key string, out io.Writer) error {
	theirs, err := pinned.ParseKey(key)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), helloTimeout)
	defer cancel()
	nc, err := net.Dial("unix", socket)
	if err != nil {
		return fmt.Errorf("reach the agent: %w", err)
	}
	conn, err := agentproto.Dial(ctx, nc, agentproto.Config{Hello: agentproto.Hello{Software: "berth-agent " + version.String()}})
	if err != nil {
		return err
	}
	defer conn.Close()
	answer, err := conn.Call(ctx, callPair, theirs[:])
	if err != nil {
		return err
	}
	if len(answer) != len(pinned.Key{}) {
		return errors.New("the agent has no key")
	}
	_, err = fmt.Fprintln(out, pinned.Key(answer))
	return err
}
