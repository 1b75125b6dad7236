package compute

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
)

// ContainerChange is what an owner wants otherwise of a container that exists. Nil fields stay as they are.
type ContainerChange struct {
	Name      *string
	MemoryMB  *int
	StorageGB *int    // never less than it is: what was written must still fit
	SSHKeyIDs []int64 // all that open it from then on
}

// Apply returns c as it is to be. The error is CodeInvalid and names the field. A value that stands already is never
// refused, also where the limits have changed since.
func (r ContainerChange) Apply(c Container, l Limits) (Container, error) {
	if r.Name != nil {
		name, err := ValidateName(*r.Name, l.MaxNameRunes)
		if err != nil {
			return c, err
		}
		c.Name = name
	}
	if r.MemoryMB != nil && *r.MemoryMB != c.MemoryMB {
		if err := l.checkMemory(*r.MemoryMB); err != nil {
			return c, err
		}
		c.MemoryMB = *r.MemoryMB
	}
	if r.StorageGB != nil && *r.StorageGB != c.StorageGB {
		if *r.StorageGB < c.StorageGB {
			return c, Invalid("storage_gb", "Storage only grows, and this container has %d GB.", c.StorageGB)
		}
		if err := l.checkStorage(*r.StorageGB); err != nil {
			return c, err
		}
		c.StorageGB = *r.StorageGB
	}
	if r.SSHKeyIDs != nil {
		keys, err := l.checkKeyIDs(r.SSHKeyIDs)
		if err != nil {
			return c, err
		}
		c.SSHKeyIDs = keys
	}
	return c, nil
}

func (l Limits) checkMemory(mb int) error {
	if mb < l.MinMemoryMB || mb > l.MaxMemoryMB {
		return Invalid("memory_mb", "Memory is from %d to %d MB.", l.MinMemoryMB, l.MaxMemoryMB)
	}
	return nil
}

func (l Limits) checkStorage(gb int) error {
	if gb < l.MinStorageGB || gb > l.MaxStorageGB {
		return Invalid("storage_gb", "Storage is from %d to %d GB.", l.MinStorageGB, l.MaxStorageGB)
	}
	return nil
}

// checkKeyIDs returns the ids in order, each once.
func (l Limits) checkKeyIDs(ids []int64) ([]int64, error) {
	if len(ids) == 0 {
		return nil, Invalid("ssh_key_ids", "Name at least one of your SSH keys; add one with POST /compute/ssh-keys.")
	}
	ids = slices.Clone(ids)
	slices.Sort(ids)
	ids = slices.Compact(ids)
	if len(ids) > l.MaxKeysOfContainer {
		return nil, Invalid("ssh_key_ids", "A container takes at most %d SSH keys.", l.MaxKeysOfContainer)
	}
	return ids, nil
}

// Version names what an owner has asked of the container, all of it: two containers have one exactly when that is the same.
// What is merely observed (status, usage) is not in it.
func (c Container) Version() string {
	b, err := json.Marshal([]any{
		c.ID, c.Name, c.InstanceType, c.MemoryMB, c.StorageGB, c.SSHEnabled, c.HTTPSEnabled, c.SSHKeyIDs, c.MountPaths, c.Desired,
	})
	if err != nil {
		panic(err) // none of these fails
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:12])
}

// Match is the condition under which a container is to be changed: that its Version is one of these. Nil is no condition.
type Match []string

// Check returns CodePrecondition unless c is as the condition says.
func (m Match) Check(c Container) error {
	if m == nil || slices.Contains(m, c.Version()) {
		return nil
	}
	return Errorf(CodePrecondition, "The container has changed since you read it; read it again and decide anew.")
}
