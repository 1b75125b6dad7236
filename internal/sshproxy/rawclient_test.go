package sshproxy

import (
	"bufio"
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"
)

// rawClient speaks SSH packet by packet, to do what no client library does: change the user name between attempts,
// offer one key and sign with another, or read nothing. It knows one algorithm of each kind.
type rawClient struct {
	t         *testing.T
	nc        net.Conn
	r         *bufio.Reader
	sessionID []byte
	in, out   *gcmState
	methods   []string       // of the last SSH_MSG_USERAUTH_FAILURE
	observe   func(p []byte) // sees what exec reads, if set
}

type gcmState struct {
	aead cipher.AEAD
	iv   []byte
}

func (g *gcmState) next() {
	n := binary.BigEndian.Uint64(g.iv[4:])
	binary.BigEndian.PutUint64(g.iv[4:], n+1)
}

// dialRaw runs the handshake up to the authentication.
func dialRaw(t *testing.T, addr string) *rawClient {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
	c := &rawClient{t: t, nc: nc, r: bufio.NewReader(nc)}
	if err := c.handshake(); err != nil {
		t.Fatalf("handshake: %v", err)
	}
	return c
}

func (c *rawClient) handshake() error {
	const ours = "SSH-2.0-raw"
	if _, err := io.WriteString(c.nc, ours+"\r\n"); err != nil {
		return err
	}
	theirs, err := c.r.ReadString('\n')
	if err != nil {
		return err
	}
	init := append([]byte{20}, make([]byte, 16)...)
	for _, list := range []string{
		"curve25519-sha256", "ssh-ed25519", "aes128-gcm@openssh.com", "aes128-gcm@openssh.com",
		"hmac-sha2-256", "hmac-sha2-256", "none", "none", "", "",
	} {
		init = appendString(init, []byte(list))
	}
	init = append(init, 0, 0, 0, 0, 0)
	if err := c.write(init); err != nil {
		return err
	}
	serverInit, err := c.read()
	if err != nil {
		return err
	}
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	if err := c.write(appendString([]byte{30}, key.PublicKey().Bytes())); err != nil {
		return err
	}
	reply, err := c.read()
	if err != nil {
		return err
	}
	var kex struct {
		HostKey, Public, Signature []byte
	}
	if err := gossh.Unmarshal(reply[1:], &kex); err != nil || reply[0] != 31 {
		return fmt.Errorf("reply to ECDH: %v", err)
	}
	public, err := ecdh.X25519().NewPublicKey(kex.Public)
	if err != nil {
		return err
	}
	secret, err := key.ECDH(public)
	if err != nil {
		return err
	}
	k := gossh.Marshal(struct{ K *big.Int }{new(big.Int).SetBytes(secret)})
	h := sha256.New()
	for _, part := range [][]byte{
		[]byte(ours), []byte(strings.TrimRight(theirs, "\r\n")), init, serverInit, kex.HostKey, key.PublicKey().Bytes(), kex.Public,
	} {
		h.Write(appendString(nil, part))
	}
	h.Write(k)
	c.sessionID = h.Sum(nil)
	if err := c.write([]byte{21}); err != nil {
		return err
	}
	if p, err := c.read(); err != nil || p[0] != 21 {
		return fmt.Errorf("NEWKEYS: %v %v", p, err)
	}
	derive := func(tag byte) []byte {
		h := sha256.New()
		h.Write(k)
		h.Write(c.sessionID)
		h.Write([]byte{tag})
		h.Write(c.sessionID)
		return h.Sum(nil)
	}
	state := func(iv, key byte) *gcmState {
		block, err := aes.NewCipher(derive(key)[:16])
		if err != nil {
			panic(err)
		}
		aead, err := cipher.NewGCM(block)
		if err != nil {
			panic(err)
		}
		return &gcmState{aead: aead, iv: derive(iv)[:12]}
	}
	c.out, c.in = state('A', 'C'), state('B', 'D')
	if err := c.write(appendString([]byte{5}, []byte("ssh-userauth"))); err != nil {
		return err
	}
	if p, err := c.read(); err != nil || p[0] != 6 {
		return fmt.Errorf("service request: %v %v", p, err)
	}
	return nil
}

func appendString(b, s []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

// write sends one packet (RFC 4253, section 6; RFC 5647 once there are keys).
func (c *rawClient) write(payload []byte) error {
	block, head := 8, 5
	if c.out != nil {
		block, head = 16, 1
	}
	padding := block - (head+len(payload))%block
	if padding < 4 {
		padding += block
	}
	body := append([]byte{byte(padding)}, payload...)
	body = append(body, make([]byte, padding)...)
	packet := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	if c.out == nil {
		packet = append(packet, body...)
	} else {
		packet = c.out.aead.Seal(packet, c.out.iv, body, packet[:4])
		c.out.next()
	}
	_, err := c.nc.Write(packet)
	return err
}

func (c *rawClient) read() ([]byte, error) {
	var length [4]byte
	if _, err := io.ReadFull(c.r, length[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint32(length[:]))
	if n > 1<<20 {
		return nil, errors.New("packet too large")
	}
	if c.in != nil {
		n += 16
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(c.r, body); err != nil {
		return nil, err
	}
	if c.in != nil {
		var err error
		if body, err = c.in.aead.Open(body[:0], c.in.iv, body, length[:]); err != nil {
			return nil, err
		}
		c.in.next()
	}
	payload := bytes.Clone(body[1 : len(body)-int(body[0])])
	if len(payload) > 0 && payload[0] == 1 {
		var d struct {
			Reason   uint32
			Message  string
			Language string
		}
		_ = gossh.Unmarshal(payload[1:], &d)
		return nil, fmt.Errorf("disconnected: %s", d.Message)
	}
	return payload, nil
}

// answer is how an authentication attempt ended.
type authAnswer string

const (
	authSuccess authAnswer = "success"
	authFailure authAnswer = "failure"
	authKeyOK   authAnswer = "key accepted"
)

// auth sends an SSH_MSG_USERAUTH_REQUEST and returns the answer to it.
func (c *rawClient) auth(request []byte) (authAnswer, error) {
	if err := c.write(request); err != nil {
		return "", err
	}
	for {
		p, err := c.read()
		if err != nil {
			return "", err
		}
		switch p[0] {
		case 51:
			var failure struct {
				Methods []string
				Partial bool
			}
			if err := gossh.Unmarshal(p[1:], &failure); err != nil {
				return "", err
			}
			c.methods = failure.Methods
			return authFailure, nil
		case 52:
			return authSuccess, nil
		case 53: // a banner
		case 60:
			return authKeyOK, nil
		default:
			return "", fmt.Errorf("unexpected message %d", p[0])
		}
	}
}

func authRequest(user, method string) []byte {
	b := appendString([]byte{50}, []byte(user))
	b = appendString(b, []byte("ssh-connection"))
	return appendString(b, []byte(method))
}

// offer asks whether a key would do.
func (c *rawClient) offer(user string, key gossh.PublicKey) (authAnswer, error) {
	b := append(authRequest(user, "publickey"), 0)
	b = appendString(b, []byte(key.Type()))
	return c.auth(appendString(b, key.Marshal()))
}

// sign logs in with a key; claimed is the key that the request names, which an honest client signs with.
func (c *rawClient) sign(user string, claimed gossh.PublicKey, signer gossh.Signer) (authAnswer, error) {
	b := append(authRequest(user, "publickey"), 1)
	b = appendString(b, []byte(claimed.Type()))
	b = appendString(b, claimed.Marshal())
	sig, err := signer.Sign(rand.Reader, append(appendString(nil, c.sessionID), b...))
	if err != nil {
		return "", err
	}
	return c.auth(appendString(b, gossh.Marshal(sig)))
}

// exec runs a command on a fresh session and returns what it wrote to both outputs.
func (c *rawClient) exec(command string) (string, error) {
	open := appendString([]byte{90}, []byte("session"))
	open = binary.BigEndian.AppendUint32(open, 0)
	open = binary.BigEndian.AppendUint32(open, 1<<20)
	open = binary.BigEndian.AppendUint32(open, 1<<15)
	if err := c.write(open); err != nil {
		return "", err
	}
	p, err := c.read()
	if err != nil {
		return "", err
	}
	if p[0] != 91 {
		return "", fmt.Errorf("channel refused: message %d", p[0])
	}
	remote := p[5:9]
	request := append([]byte{98}, remote...)
	request = append(appendString(request, []byte("exec")), 1)
	if err := c.write(appendString(request, []byte(command))); err != nil {
		return "", err
	}
	var out []byte
	for {
		p, err := c.read()
		if err != nil {
			return string(out), err
		}
		if c.observe != nil {
			c.observe(p)
		}
		switch p[0] {
		case 94:
			out = append(out, p[9:]...)
		case 95:
			out = append(out, p[13:]...)
		case 97:
			return string(out), nil
		}
	}
}
