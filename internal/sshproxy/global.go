package sshproxy

import (
	"strings"
	"unicode"

	"github.com/charmbracelet/ssh"
	gossh "golang.org/x/crypto/ssh"
)

// globalRequest answers the requests that concern a whole connection (RFC 4254, section 4). None of them goes to a
// container: what is not known is refused, which is also what clients that probe for life expect.
func (g *Gateway) globalRequest(ctx ssh.Context, _ *ssh.Server, req *gossh.Request) (bool, []byte) {
	c := connOf(ctx)
	if c == nil {
		return false, nil
	}
	c.backlog.gone(len(req.Payload) + packetCost)
	switch req.Type {
	case "keepalive@openssh.com", "keepalive@golang.org":
		return true, nil
	case "no-more-sessions@openssh.com":
		// A client's precaution against itself. It cannot be held to it: x/crypto hands out requests and channels apart, so
		// that the session which the client opened just before may be seen after.
		return true, nil
	case "tcpip-forward", "streamlocal-forward@openssh.com":
		c.note("remote forwarding (-R) is not offered yet")
	default:
		// hostkeys-prove-00@openssh.com ends up here too: no host keys were announced.
		c.g.log.Debug("global request refused", "kind", printable(req.Type))
	}
	return false, nil
}

// note tells the client something that the protocol has no message for, once, on a session's stderr: on an open one, or
// on the next.
func (c *conn) note(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.notes[text] || c.closed {
		return
	}
	c.notes[text] = true
	for s := range c.live {
		c.wg.Go(func() { s.say(text) })
		return
	}
	c.pending = append(c.pending, text)
}

// tell shows a line on this session, once on its connection, before the client's next request is looked at: a short command
// would be over before it otherwise.
func (s *sessionChannel) tell(text string) {
	s.c.mu.Lock()
	told := s.c.notes[text] || s.c.closed
	s.c.notes[text] = true
	s.c.mu.Unlock()
	if !told {
		s.say(text)
	}
}

// printable keeps what a stranger sent from acting on a terminal, and short.
func printable(s string) string {
	const most = 512
	cut := ""
	if len(s) > most {
		s, cut = s[:most], "…"
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s) + cut
}
