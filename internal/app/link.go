package app

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"

	"berth/internal/compute"
	"berth/internal/link"
)

// What the link has in the data directory: the control plane's authority over credentials, where gateways of this machine
// find it, and the credential that one on this directory takes.
const (
	linkAuthority   = "link_ca.pem"
	linkSocket      = "link.sock"
	localCredential = "link_gateway.pem"
	localGateway    = "local"
)

// openLink makes the control plane's side of the link. A gateway of this data directory needs no settings if local is true;
// others come to the address that is set. Without either there is no link.
func (b *berth) openLink(ctx context.Context, local bool) error {
	if !local && b.cfg.LinkAddress == "" {
		return nil
	}
	authority, err := link.OpenAuthority(b.files.path(linkAuthority))
	if err != nil {
		return err
	}
	server, err := link.NewServer(link.ServerOptions{
		Source: b.store, Trail: b.store, Authority: authority, MaxStale: b.cfg.MaxStale, Log: b.log.With("part", "link"),
	})
	if err != nil {
		return err
	}
	if b.cfg.GatewaySecret != "" {
		if err := b.keepGatewaySecret(ctx, authority); err != nil {
			return fmt.Errorf("keep the gateways' secret: %w", err)
		}
	}
	var listeners []net.Listener
	if local {
		if err := b.keepLocalCredential(ctx, authority); err != nil {
			return err
		}
		l, err := listenSocket(b.cfg.DataDir, linkSocket)
		if err != nil {
			return err
		}
		b.onClose(func() error { return errors.Join(closed(l.Close()), removeQuietly(b.files.path(linkSocket))) })
		listeners = append(listeners, l)
	}
	if b.cfg.LinkAddress != "" {
		l, err := b.listenTCP("link-address", b.cfg.LinkAddress)
		if err != nil {
			return err
		}
		b.linkAddr = l.Addr().String()
		b.log.Info("gateways may come", "link_address", b.linkAddr)
		listeners = append(listeners, l)
	}
	b.link.Store(server)
	b.watchLink(server, b.store)
	for _, l := range listeners {
		b.links = append(b.links, edge{func() error { return server.Serve(l) }, server.Shutdown})
	}
	return nil
}

// localGateway names the gateway of this data directory: control planes that share a database have one each.
func (b *berth) localGateway() (string, error) {
	if b.cfg.Database == "" {
		return localGateway, nil
	}
	host, err := os.Hostname()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(host + "\x00" + b.cfg.DataDir))
	return localGateway + "-" + hex.EncodeToString(sum[:4]), nil
}

// keepLocalCredential sees to it that the file of the local gateway's credential is one that was stored.
func (b *berth) keepLocalCredential(ctx context.Context, authority *link.Authority) error {
	path := b.files.path(localCredential)
	name, err := b.localGateway()
	if err != nil {
		return err
	}
	there, err := link.ReadCredential(path)
	keep, err := b.mayKeep(ctx, authority, there, err, path)
	if keep || err != nil {
		return err
	}
	text, fingerprint, err := authority.Issue(name)
	if err != nil {
		return err
	}
	// The file first: one that is not stored is replaced at the next start.
	if err := (invoker{}).writeFile(path, string(text), 0o600); err != nil {
		return fmt.Errorf("write the local gateway's credential: %w", err)
	}
	return b.store.ReplaceGateway(ctx, name, fingerprint)
}

// mayKeep says whether the credential that was read from a place, or err, stays there. One that was revoked is not replaced:
// that would undo what an operator did.
func (b *berth) mayKeep(ctx context.Context, authority *link.Authority, c link.Credential, err error, place string) (bool, error) {
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		b.log.Warn("a gateway's credential is replaced", "place", place, "err", err)
		return false, nil
	}
	g, err := b.store.Gateway(ctx, c.Fingerprint)
	switch {
	case compute.CodeOf(err) == compute.CodeNotFound:
		return false, nil
	case err != nil:
		return false, err
	case g.Revoked():
		b.log.Warn("a gateway's credential was revoked; remove it to have another", "gateway", g.Name, "place", place)
	case !authority.Issued(c):
		b.log.Warn("a gateway's credential is replaced: the authority is another", "gateway", g.Name, "place", place)
		return false, nil
	}
	return true, nil
}
