package control

import (
	"context"

	"berth/internal/compute"
)

// Users is the operator's use cases: accounts and their first keys.
type Users struct {
	Store  Store
	Limits compute.Limits
}

// Add makes an account with the given public keys, authorized_keys lines. All of it is stored, or none.
func (u Users) Add(ctx context.Context, username string, role compute.Role, keys []string) (compute.User, error) {
	if err := compute.ValidateUsername(username); err != nil {
		return compute.User{}, err
	}
	parsed, err := u.parse(keys)
	if err != nil {
		return compute.User{}, err
	}
	return u.Store.CreateUser(ctx, username, role, parsed...)
}

// parse reads distinct keys, each named by its comment.
func (u Users) parse(lines []string) ([]compute.SSHKey, error) {
	var keys []compute.SSHKey
	seen := make(map[string]bool)
	for _, line := range lines {
		canonical, fingerprint, comment, err := compute.ParsePublicKey(line, u.Limits)
		if err != nil {
			return nil, err
		}
		if seen[fingerprint] {
			continue
		}
		seen[fingerprint] = true
		name, err := compute.ValidateName(comment, u.Limits.MaxNameRunes)
		if err != nil {
			name = fingerprint[:16]
		}
		keys = append(keys, compute.SSHKey{Name: name, PublicKey: canonical, Fingerprint: fingerprint})
	}
	if len(keys) > u.Limits.KeysPerUser {
		return nil, compute.Errorf(compute.CodeLimit, "A user has at most %d SSH keys.", u.Limits.KeysPerUser)
	}
	return keys, nil
}

// List returns every account, oldest first.
func (u Users) List(ctx context.Context) ([]compute.User, error) { return u.Store.Users(ctx) }

// SetDisabled bars an account from everything, or lets it in again; its containers go on. The last administrator who is
// enabled is not barred: for whoever must be, root of this machine makes another one first.
func (u Users) SetDisabled(ctx context.Context, username string, disabled bool) (compute.User, error) {
	user, err := u.Store.UserByName(ctx, username)
	if err != nil {
		return compute.User{}, err
	}
	changed, err := u.Store.SetUserDisabled(ctx, user.ID, disabled)
	if compute.CodeOf(err) == compute.CodeConflict {
		return compute.User{}, &compute.Error{
			Code: compute.CodeConflict, Cause: err,
			Message: username + " is the only administrator who is enabled; add another first, with `berth user add NAME --admin`.",
		}
	}
	return changed, err
}
