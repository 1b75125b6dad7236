package httpapi

import (
	"context"
	"net/http"
	"strconv"
	"strings"

	"github.com/gofiber/fiber/v2"

	"berth/internal/compute"
)

// sshKey is an SSH key in the contract's JSON.
type sshKey struct {
	ID        int64  `json:"id"`
	Name      string `json:"name"`
	PublicKey string `json:"public_key"`
	CreatedAt string `json:"created_at"`
}

func toSSHKey(k compute.SSHKey) sshKey {
	return sshKey{ID: k.ID, Name: k.Name, PublicKey: k.PublicKey, CreatedAt: timestamp(k.CreatedAt)}
}

func (s *Server) listKeys(ctx context.Context, _ *fiber.Ctx, p compute.Principal) (answer, error) {
	list, err := s.service.ListKeys(ctx, p)
	if err != nil {
		return answer{}, err
	}
	out := make([]sshKey, len(list))
	for i, k := range list {
		out[i] = toSSHKey(k)
	}
	return answer{http.StatusOK, map[string]any{"ssh_keys": out}}, nil
}

func (s *Server) addKey(ctx context.Context, c *fiber.Ctx, p compute.Principal) (answer, error) {
	o, err := body(c)
	if err != nil {
		return answer{}, err
	}
	name, publicKey, err := o.keyRequest()
	if err != nil {
		return answer{}, err
	}
	k, err := s.service.AddKey(ctx, p, name, publicKey)
	if err != nil {
		return answer{}, err
	}
	return answer{http.StatusCreated, toSSHKey(k)}, nil
}

// keyRequest reads a key to add. A name that is left out is the key's comment; one that is given and empty is a
// mistake.
func (o *object) keyRequest() (name, publicKey string, err error) {
	name, given := o.text("name")
	publicKey, _ = o.text("public_key")
	if err := o.done(); err != nil {
		return "", "", err
	}
	if given && strings.TrimSpace(name) == "" {
		return "", "", compute.Invalid("name", "Give the key a name, or leave the field out to use the key's comment.")
	}
	return name, publicKey, nil
}

func (s *Server) deleteKey(ctx context.Context, c *fiber.Ctx, p compute.Principal) (answer, error) {
	text := c.Params("id")
	id, err := strconv.ParseInt(text, 10, 64)
	if err != nil || id <= 0 || strconv.FormatInt(id, 10) != text {
		return answer{}, compute.NotFound("SSH key") // one that cannot exist is answered as one that does not
	}
	if err := s.service.DeleteKey(ctx, p, id); err != nil {
		return answer{}, err
	}
	return deleted(), nil
}
