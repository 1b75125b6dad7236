package httpapi

import (
	"context"
	"net/http"
	"strconv"
	"strings"

	"github.com/gofiber/fiber/v2"

	openapi "berth/api"
	"berth/internal/compute"
)

func (s *Server) listKeys(ctx context.Context, _ *fiber.Ctx, p compute.Principal) (answer, error) {
	list, err := s.service.ListKeys(ctx, p)
	if err != nil {
		return answer{}, err
	}
	out := openapi.SSHKeyList{SSHKeys: make([]openapi.SSHKey, len(list))}
	for i, k := range list {
		out.SSHKeys[i] = openapi.NewSSHKey(k)
	}
	return answer{http.StatusOK, out}, nil
}

// addKey adds a key. A name that is left out is the key's comment; one that is given and empty is a mistake.
func (s *Server) addKey(ctx context.Context, c *fiber.Ctx, p compute.Principal) (answer, error) {
	r, err := body[openapi.SSHKeyRequest](c)
	if err != nil {
		return answer{}, err
	}
	name := given(r.Name)
	if r.Name != nil && strings.TrimSpace(name) == "" {
		return answer{}, compute.Invalid("name", "Give the key a name, or leave the field out to use the key's comment.")
	}
	k, err := s.service.AddKey(ctx, p, name, r.PublicKey)
	if err != nil {
		return answer{}, err
	}
	return answer{http.StatusCreated, openapi.NewSSHKey(k)}, nil
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
	s.revoked(ctx, c)
	return deleted(), nil
}
