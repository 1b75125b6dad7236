package app

import (
	"context"
	"errors"
	"os"
	"slices"

	"berth/internal/compute"
)

// admin is the account that the files in the data directory are for.
type admin struct {
	user       compute.User // zero where there is none
	keys       []compute.SSHKey
	identities []identity // those of the invoker's that open it
}

// accounts is where accounts are looked up: the database, or a gateway's copy.
type accounts interface {
	Users(ctx context.Context) ([]compute.User, error)
	Keys(ctx context.Context, owner compute.UserID) ([]compute.SSHKey, error)
}

// findAdmin returns the oldest admin that is enabled.
func (b *berth) findAdmin(ctx context.Context, r accounts) (a admin, err error) {
	users, err := r.Users(ctx)
	if err != nil {
		return a, err
	}
	i := slices.IndexFunc(users, func(u compute.User) bool { return u.Role == compute.RoleAdmin && !u.Disabled })
	if i < 0 {
		return a, nil
	}
	a.user = users[i]
	if a.keys, err = r.Keys(ctx, a.user.ID); err != nil {
		return a, err
	}
	mine := b.in.identities(b.cfg.Limits())
	demo, err := b.files.readDemoKey()
	if err == nil {
		mine = append(mine, demo)
	} else if !errors.Is(err, os.ErrNotExist) {
		return a, err
	}
	for _, id := range mine {
		_, fingerprint, _, err := compute.ParsePublicKey(id.line, b.cfg.Limits())
		if err == nil && slices.ContainsFunc(a.keys, func(k compute.SSHKey) bool { return k.Fingerprint == fingerprint }) {
			a.identities = append(a.identities, id)
		}
	}
	return a, nil
}

// firstAdmin returns the oldest admin that is enabled, made from the invoker's keys, or from a demo key, where there are no
// accounts yet. There is none where an operator disabled them all.
func (b *berth) firstAdmin(ctx context.Context) (admin, error) {
	a, err := b.findAdmin(ctx, b.store.Reader)
	if err != nil || a.user.ID != 0 {
		return a, err
	}
	users, err := b.store.Users(ctx)
	if err != nil {
		return a, err
	}
	if len(users) > 0 {
		b.log.Warn("no administrator is enabled: token and ssh_config are not written; `berth user enable` lets one in again")
		return a, removeQuietly(b.files.path("token"))
	}
	mine := b.in.identities(b.cfg.Limits())
	if len(mine) == 0 {
		demo, err := b.files.demoKey()
		if err != nil {
			return a, err
		}
		mine = []identity{demo}
	}
	var lines []string
	for _, id := range mine {
		lines = append(lines, id.line)
	}
	made, err := b.operator.AddUser(ctx, b.in.username(), true, lines)
	if err != nil {
		return a, err
	}
	b.log.Info("made the first admin", "user", made.Username, "keys", len(lines))
	return b.findAdmin(ctx, b.store.Reader)
}
