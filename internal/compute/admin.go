package compute

import "strconv"

// MostOfLimit is the highest limit that an account may be given.
const MostOfLimit = 1000

// UserLimits are the limits that an account has of its own; nil is the installation's default.
type UserLimits struct {
	Containers *int
	Keys       *int
}

// LimitedUser is an account with the limits of its own, as administrators see it.
type LimitedUser struct {
	User
	Limits UserLimits
}

// NewLimit is what a limit is to be: nil is the installation's default.
type NewLimit struct{ Most *int }

// UserChange is what is to change of an account. What is nil stays as it is.
type UserChange struct {
	Role       *Role
	Disabled   *bool
	Containers *NewLimit
	Keys       *NewLimit
}

// Target says in an audit record which account, by its name or number, is changed to what.
func (c UserChange) Target(account string) string {
	t := "user:" + account
	if c.Disabled != nil {
		t += " disabled:" + strconv.FormatBool(*c.Disabled)
	}
	if c.Role != nil {
		t += " role:" + string(*c.Role)
	}
	if c.Containers != nil || c.Keys != nil {
		t += " limits"
	}
	return t
}

// Validate refuses what no account may have.
func (c UserChange) Validate() error {
	if c.Role != nil {
		if err := ValidateRole(*c.Role); err != nil {
			return err
		}
	}
	for field, l := range map[string]*NewLimit{"limits.containers": c.Containers, "limits.keys": c.Keys} {
		if l != nil && l.Most != nil && (*l.Most < 0 || *l.Most > MostOfLimit) {
			return Invalid(field, "A limit is from 0 to %d, or null for the installation's default.", MostOfLimit)
		}
	}
	return nil
}

// ValidateRole accepts the roles that there are.
func ValidateRole(r Role) error {
	if r != RoleUser && r != RoleAdmin {
		return Invalid("role", "A role is user or admin.")
	}
	return nil
}

// ContainerFilter is which containers of all accounts are asked for; what is zero asks for any.
type ContainerFilter struct {
	Owner  UserID
	Status Status
}

// OwnedContainer is a container with its owner's name, as administrators see it.
type OwnedContainer struct {
	Container
	Number   int64 // its place among all containers, the oldest first; never used again
	Username string
}
