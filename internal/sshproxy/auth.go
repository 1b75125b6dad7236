package sshproxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"

	"github.com/charmbracelet/ssh"
	gossh "golang.org/x/crypto/ssh"

	"berth/internal/compute"
	"berth/internal/route"
)

// What an accepted key leaves in the Permissions of its attempt. x/crypto hands on those of the attempt whose signature
// verified, and of no other: they are the only word on who logged in (CVE-2024-45337).
const (
	extensionUser  = "berth-user"
	extensionKey   = "berth-key"
	extensionOwner = "berth-owner"
)

// serverConfig makes a fresh configuration for every handshake: charmbracelet/ssh writes into it.
func (g *Gateway) serverConfig(ctx ssh.Context) *gossh.ServerConfig {
	supported := gossh.SupportedAlgorithms()
	config := &gossh.ServerConfig{
		MaxAuthTries: g.o.Limits.LoginAttempts,
		// The types of key that accounts may have.
		PublicKeyAuthAlgorithms: []string{
			gossh.KeyAlgoED25519, gossh.KeyAlgoECDSA256, gossh.KeyAlgoECDSA384, gossh.KeyAlgoECDSA521,
			gossh.KeyAlgoRSASHA256, gossh.KeyAlgoRSASHA512,
		},
	}
	config.KeyExchanges = supported.KeyExchanges
	config.Ciphers = supported.Ciphers
	config.MACs = slices.DeleteFunc(supported.MACs, func(m string) bool { return m == gossh.HMACSHA1 })
	c := connOf(ctx)
	if c == nil {
		return config // and publicKey refuses everybody
	}
	if g.offerGCMAlone(c) {
		config.Ciphers = gcm()
	}
	config.PreAuthConnCallback = func(pre gossh.ServerPreAuthConn) {
		c.pre = pre
		c.timer.Reset(g.o.Limits.LoginTimeout)
	}
	config.VerifiedPublicKeyCallback = func(
		meta gossh.ConnMetadata, key gossh.PublicKey, perms *gossh.Permissions, _ string,
	) (*gossh.Permissions, error) {
		if a, ok := meta.(gossh.AlgorithmsConnMetadata); ok {
			c.wire.joinWrites(a.Algorithms().Write.Cipher)
		}
		return perms, c.setVerified(meta.User(), key, perms)
	}
	return config
}

// offerGCMAlone says whether to leave the client no choice of cipher: a client takes the first of its own list that the
// server offers, which is seldom the fastest here. Only a client that is known to have AES-GCM may be offered nothing
// else.
func (g *Gateway) offerGCMAlone(c *conn) bool {
	if c.wire.offers.known {
		return c.wire.offers.gcm
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	_, refused := g.picky[sourceOf(c.nc.RemoteAddr())]
	return knowsGCM(c.wire.ident) && !refused
}

// maxPicky bounds the memory of sources whose clients were told to use other ciphers.
const maxPicky = 4096

// handshakeFailed hears of handshakes that came to nothing.
func (g *Gateway) handshakeFailed(nc net.Conn, err error) {
	var none *gossh.AlgorithmNegotiationError
	if errors.As(err, &none) && slices.Equal(none.SupportedAlgorithms, gcm()) {
		// A client that was configured without AES-GCM, far enough away that its choice was not seen in time.
		g.mu.Lock()
		if len(g.picky) >= maxPicky {
			clear(g.picky)
		}
		g.picky[sourceOf(nc.RemoteAddr())] = struct{}{}
		g.mu.Unlock()
	}
	g.log.Debug("handshake", "remote", nc.RemoteAddr(), "err", err)
}

// publicKey says whether a key may log in under the name that is tried now. That the client has the key is not known
// yet.
func (g *Gateway) publicKey(ctx ssh.Context, key ssh.PublicKey) bool {
	c := connOf(ctx)
	if c == nil || c.pre == nil {
		return false
	}
	// Never ctx.User(): it stays at the first name that was tried.
	id := identity{user: c.pre.User(), key: gossh.FingerprintSHA256(key)}
	var err error
	if id.owner, err = g.admit(c, id); err != nil {
		c.refused = id
		switch compute.CodeOf(err) {
		case compute.CodeNotFound:
		case compute.CodeUnavailable, compute.CodeForbidden:
			c.apologize(err)
		default:
			g.log.Error("look up a login", "remote", c.nc.RemoteAddr(), "err", err)
		}
		return false
	}
	ctx.Permissions().Extensions = map[string]string{
		extensionUser: id.user, extensionKey: id.key, extensionOwner: strconv.FormatInt(int64(id.owner), 10),
	}
	return true
}

// apologize tells a client once that it is not its key that is wrong (RFC 4252, section 5.4).
func (c *conn) apologize(err error) {
	if !c.apologized {
		c.apologized = true
		c.g.log.Warn("nobody can log in", "remote", c.nc.RemoteAddr(), "err", err)
		_ = c.pre.SendAuthBanner(compute.UserMessage(err) + "\r\n") // a client that is gone needs no word
	}
}

// admit decides at authentication. CodeNotFound is the one refusal: a container that is not there, one that the key
// does not open, a user name that cannot exist and a key that nobody has look alike. It returns whose the key is, as far as
// that is clear.
func (g *Gateway) admit(c *conn, id identity) (compute.UserID, error) {
	login, err := c.login(id)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(c.ctx, g.o.Limits.OpenTimeout)
	defer cancel()
	if !login.Lobby() {
		t, err := g.target(ctx, login.Container, id.key)
		return ownerOf(t.Keys, id.key), err
	}
	accounts, err := g.o.Directory.Accounts(ctx, id.key)
	if err != nil {
		return 0, err
	}
	if len(accounts) == 0 {
		return 0, compute.NotFound("user")
	}
	return accountOf(accounts, login).ID, nil
}

// target returns the container if that key opens it, and CodeNotFound if not, whatever the reason.
func (g *Gateway) target(ctx context.Context, id compute.ContainerID, key string) (compute.Target, error) {
	t, err := g.o.Directory.Target(ctx, id)
	if err != nil {
		return compute.Target{}, err
	}
	if !slices.ContainsFunc(t.Keys, func(k compute.SSHKey) bool { return k.Fingerprint == key }) {
		return compute.Target{}, compute.NotFound("container")
	}
	return t, nil
}

// setVerified is called once the client has proven to have the key. The handshake is over when it has been told so.
func (c *conn) setVerified(user string, key gossh.PublicKey, perms *gossh.Permissions) error {
	id, err := provenIdentity(user, perms)
	if err != nil {
		return err
	}
	if id.key != gossh.FingerprintSHA256(key) {
		return errInconsistent
	}
	c.mu.Lock()
	c.verified = id
	c.mu.Unlock()
	if login, err := c.login(id); err == nil && !login.Lobby() {
		c.warm(login.Container, id.key)
	}
	told := c.setLoggedIn
	c.wire.onWrite.Store(&told)
	return nil
}

// setLoggedIn takes the connection out of those that must hurry.
func (c *conn) setLoggedIn() {
	c.timer.Stop()
	c.release()
	c.mu.Lock()
	c.loggedIn = true
	id := c.verified
	c.mu.Unlock()
	c.g.log.Info("login", "remote", c.nc.RemoteAddr(), "user", id.user, "key", id.key, "jump", c.jump,
		"client", c.wire.ident)
	c.recordLogin(id)
}

// provenIdentity reads the identity out of the Permissions of a signature that verified. The name must be the one that
// the signature covered.
func provenIdentity(user string, perms *gossh.Permissions) (identity, error) {
	if perms == nil {
		return identity{}, errInconsistent
	}
	id := identity{user: perms.Extensions[extensionUser], key: perms.Extensions[extensionKey]}
	owner, err := strconv.ParseInt(perms.Extensions[extensionOwner], 10, 64)
	if err != nil || id.key == "" || id.user != user {
		return identity{}, errInconsistent
	}
	id.owner = compute.UserID(owner)
	return id, nil
}

// authorize decides whether a key may open a session in a container now. The error is for the client to read.
func (g *Gateway) authorize(ctx context.Context, id compute.ContainerID, key string) (compute.Target, error) {
	t, err := g.target(ctx, id, key)
	switch {
	case compute.CodeOf(err) == compute.CodeNotFound && err != nil:
		return t, errRevoked
	case err != nil:
		g.log.Error("authorize", "container", id, "err", err)
		return t, err
	}
	return t, t.Container.Entry()
}

// principal returns the account that a lobby login acts for. The error is for the client to read.
func (g *Gateway) principal(ctx context.Context, login route.Login, key string) (compute.Principal, error) {
	accounts, err := g.o.Directory.Accounts(ctx, key)
	if err != nil {
		g.log.Error("look up accounts", "err", err)
		return compute.Principal{}, err
	}
	if u := accountOf(accounts, login); u.ID != 0 {
		return compute.Principal{User: u.ID, Username: u.Username, Role: u.Role}, nil
	}
	if len(accounts) == 0 {
		return compute.Principal{}, compute.Errorf(compute.CodeForbidden, "This key belongs to no account any more.")
	}
	return compute.Principal{}, compute.Errorf(compute.CodeForbidden,
		"This key stands under several accounts; say which one with ssh <account>@%s.", g.o.Zone)
}

// accountOf returns the account that a lobby login means: the only one with the key, or the one that it names; zero when there
// are several and it names none of them.
func accountOf(accounts []compute.User, login route.Login) compute.User {
	if len(accounts) == 1 {
		return accounts[0]
	}
	for _, u := range accounts {
		if u.Username == login.User {
			return u
		}
	}
	return compute.User{}
}

// reason returns what a client may read of err.
func reason(err error) string {
	if compute.AsError(err) != nil {
		return compute.UserMessage(err)
	}
	for _, known := range []error{errShutdown, errRevoked, errStranger} {
		if errors.Is(err, known) {
			return "Closed: " + known.Error() + "."
		}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "The container did not answer in time; try again."
	}
	return compute.UserMessage(fmt.Errorf("%w", err))
}
