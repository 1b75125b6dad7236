package agent

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	gliderssh "github.com/gliderlabs/ssh"
	gossh "golang.org/x/crypto/ssh"
)

// BreakGlass serves one SSH connection on standard input and output, for an operator who can run this program as root
// in the container and has no gateway: `ssh -o ProxyCommand="kubectl exec -i … -- /.berth/agent ssh" alice@box`. Being
// able to run it is the proof of identity, so nothing more is asked for. The host key is read from keyFile, or made for
// this connection alone when keyFile is empty.
func BreakGlass(o Options, keyFile string) error {
	key, err := breakGlassKey(keyFile)
	if err != nil {
		return err
	}
	s := NewServer(o)
	defer settle()() // who runs this may have it ignore hang-ups, which the commands would inherit
	srv := &gliderssh.Server{
		HostSigners: []gliderssh.Signer{key},
		Version:     "Berth-agent",
		// Neither a password nor a key is asked for: see above.
		ServerConfigCallback: func(gliderssh.Context) *gossh.ServerConfig {
			return &gossh.ServerConfig{NoClientAuth: true}
		},
		ChannelHandlers: map[string]gliderssh.ChannelHandler{"session": s.breakGlassSession},
		RequestHandlers: map[string]gliderssh.RequestHandler{},
	}
	srv.HandleConn(&stdioConn{in: os.Stdin, out: os.Stdout})
	ctx, cancel := context.WithTimeout(context.Background(), lastWords)
	defer cancel()
	return s.Close(ctx) // the connection is over: sessions hang up
}

func breakGlassKey(file string) (gossh.Signer, error) {
	if file != "" {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read the host key: %w", err)
		}
		return gossh.ParsePrivateKey(text)
	}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a host key: %w", err)
	}
	return gossh.NewSignerFromKey(private)
}

func (s *Server) breakGlassSession(
	_ *gliderssh.Server, conn *gossh.ServerConn, n gossh.NewChannel, _ gliderssh.Context,
) {
	user, err := findAccount(s.passwd, s.group, conn.User())
	if err != nil {
		_ = n.Reject(gossh.Prohibited, fmt.Sprintf("there is no user %.64q in the container", conn.User()))
		return
	}
	over := make(chan struct{})
	if !s.goDo(&s.sessions, func() {
		defer close(over)
		ch, requests, err := n.Accept()
		if err != nil {
			return
		}
		newSession(s, sshChannel{ch, requests}, client{account: user}).serve()
	}) {
		_ = n.Reject(gossh.ResourceShortage, errClosing.Error())
		return
	}
	<-over
}

// sshChannel is a channel of x/crypto.
type sshChannel struct {
	gossh.Channel
	requests <-chan *gossh.Request
}

func (c sshChannel) WriteStderr(p []byte) (int, error) { return c.Stderr().Write(p) }

func (c sshChannel) Request(_ context.Context, name string, wantReply bool, payload []byte) (bool, error) {
	return c.SendRequest(name, wantReply, payload)
}

func (c sshChannel) next() (request, bool) {
	r, ok := <-c.requests
	if !ok {
		return request{}, false
	}
	return request{name: r.Type, payload: r.Payload, reply: func(ok bool) error {
		if !r.WantReply {
			return nil
		}
		return r.Reply(ok, nil)
	}}, true
}

// stdioConn is standard input and output as a connection. It has no deadlines: whoever runs the program ends it.
type stdioConn struct {
	in  io.ReadCloser
	out io.WriteCloser
}

func (c *stdioConn) Read(p []byte) (int, error)  { return c.in.Read(p) }
func (c *stdioConn) Write(p []byte) (int, error) { return c.out.Write(p) }
func (c *stdioConn) Close() error                { return errors.Join(c.in.Close(), c.out.Close()) }

func (c *stdioConn) LocalAddr() net.Addr { return &net.UnixAddr{Name: "stdio", Net: "unix"} }

func (c *stdioConn) RemoteAddr() net.Addr             { return &net.UnixAddr{Name: "stdio", Net: "unix"} }
func (c *stdioConn) SetDeadline(time.Time) error      { return nil }
func (c *stdioConn) SetReadDeadline(time.Time) error  { return nil }
func (c *stdioConn) SetWriteDeadline(time.Time) error { return nil }
