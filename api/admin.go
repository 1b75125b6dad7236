package api

import (
	"encoding/json"

	"berth/internal/compute"
)

// NewLimit is a limit in a request: not there, null, or a number.
type NewLimit struct{ *compute.NewLimit }

// UnmarshalJSON is not called for what is not there.
func (l *NewLimit) UnmarshalJSON(text []byte) error {
	l.NewLimit = new(compute.NewLimit)
	return json.Unmarshal(text, &l.Most)
}

// NewUser returns an account of the domain as administrators are shown it.
func NewUser(u compute.LimitedUser) User {
	return User{
		ID: u.ID, Username: u.Username, Role: u.Role, Disabled: u.Disabled, CreatedAt: Time(u.CreatedAt),
		Limits: UserLimits{Containers: u.Limits.Containers, Keys: u.Limits.Keys},
	}
}

// NewOwnedContainer returns a container of the domain as administrators are shown it, at hostname.
func NewOwnedContainer(c compute.OwnedContainer, hostname string) OwnedContainer {
	return OwnedContainer{
		ID: c.ID, User: c.Owner, Username: c.Username, Name: c.Name, Status: c.Status, StatusMessage: c.StatusMessage,
		Hostname: hostname, MemoryMB: c.MemoryMB, StorageGB: c.StorageGB, InstanceType: c.InstanceType,
		CreatedAt: Time(c.CreatedAt), SSHEnabled: c.SSHEnabled, HTTPSEnabled: c.HTTPSEnabled,
	}
}

// NewStorage returns what an engine holds, as administrators are shown it.
func NewStorage(v compute.Stored) Storage {
	shown := Storage{
		Ref: v.String(), Container: v.ID, User: v.Owner, SizeGB: roundGB(float64(v.Bytes) / (1 << 30)),
		Running: v.Running, Foreign: v.Foreign,
	}
	if !v.WrittenAt.IsZero() {
		shown.WrittenAt = Time(v.WrittenAt)
	}
	return shown
}
