package httpapi

import (
	"context"
	"net/http"
	"strconv"

	"github.com/gofiber/fiber/v2"

	openapi "berth/api"
	"berth/internal/auth"
	"berth/internal/compute"
)

// Administration is what administrators do for all accounts.
type Administration interface {
	ListUsers(ctx context.Context, p compute.Principal, after compute.UserID, limit int) (
		list []compute.LimitedUser, more bool, err error)
	GetUser(ctx context.Context, p compute.Principal, id compute.UserID) (compute.LimitedUser, error)
	AddUser(
		ctx context.Context, p compute.Principal, username string, role compute.Role, keys []string,
	) (compute.LimitedUser, error)
	ChangeUser(
		ctx context.Context, p compute.Principal, id compute.UserID, change compute.UserChange,
	) (compute.LimitedUser, error)
	ListAllContainers(ctx context.Context, p compute.Principal, f compute.ContainerFilter, after int64, limit int) (
		list []compute.OwnedContainer, more bool, err error)
	StopAnyContainer(ctx context.Context, p compute.Principal, id compute.ContainerID) (compute.OwnedContainer, error)
	Quarantined(ctx context.Context, p compute.Principal) ([]compute.Stored, error)
	DiscardStorage(ctx context.Context, p compute.Principal, r compute.Ref) error
}

// adminRoutes lists what there is for administrators alone.
func (s *Server) adminRoutes() {
	s.handle(fiber.MethodGet, "/compute/admin/users", auth.ScopeAdmin, s.listUsers)
	s.handle(fiber.MethodPost, "/compute/admin/users", auth.ScopeAdmin, s.once(s.addUser))
	s.handle(fiber.MethodGet, "/compute/admin/users/:id", auth.ScopeAdmin, s.getUser)
	s.handle(fiber.MethodPatch, "/compute/admin/users/:id", auth.ScopeAdmin, s.changeUser)
	s.handle(fiber.MethodGet, "/compute/admin/containers", auth.ScopeAdmin, s.listAllContainers)
	s.handle(fiber.MethodPost, "/compute/admin/containers/:id/stop", auth.ScopeAdmin, s.stopAnyContainer)
	s.handle(fiber.MethodGet, "/compute/admin/storage", auth.ScopeAdmin, s.listQuarantined)
	s.handle(fiber.MethodDelete, "/compute/admin/storage/:ref", auth.ScopeAdmin, s.discardStorage)
}

// admitAdmin returns the administrator who acts. Everybody else is told what is said where nothing is.
func (s *Server) admitAdmin(ctx context.Context, c *fiber.Ctx) (credential, error) {
	cred, err := s.admit(ctx, c, anyScope, headerOrCookie)
	if err == nil && (cred.Role != compute.RoleAdmin || !cred.Allows(auth.ScopeAdmin)) {
		err = errNoPath
	}
	return cred, err
}

// The names of the lists in cursors.
const (
	usersList         = "users"
	allContainersList = "containers"
)

func (s *Server) listUsers(ctx context.Context, c *fiber.Ctx, p compute.Principal) (answer, error) {
	limit, after, err := pageOf(c, usersList)
	if err != nil {
		return answer{}, err
	}
	list, more, err := s.service.ListUsers(ctx, p, compute.UserID(after), limit)
	if err != nil {
		return answer{}, err
	}
	out := openapi.UserList{Users: make([]openapi.User, len(list))}
	for i, u := range list {
		out.Users[i] = openapi.NewUser(u)
	}
	if more {
		out.Next = newCursor(usersList, int64(list[len(list)-1].ID))
	}
	return answer{http.StatusOK, out}, nil
}

func (s *Server) addUser(ctx context.Context, c *fiber.Ctx, p compute.Principal) (answer, error) {
	r, err := body[openapi.UserRequest](c)
	if err != nil {
		return answer{}, err
	}
	role := compute.RoleUser
	if r.Role != nil {
		role = *r.Role
	}
	u, err := s.service.AddUser(ctx, p, r.Username, role, r.PublicKeys)
	if err != nil {
		return answer{}, err
	}
	c.Set(fiber.HeaderLocation, "/compute/admin/users/"+strconv.FormatInt(int64(u.ID), 10))
	return answer{http.StatusCreated, openapi.NewUser(u)}, nil
}

// userID reads the path's id. One that cannot exist is answered as one that does not.
func userID(c *fiber.Ctx) (compute.UserID, error) {
	text := c.Params("id")
	id, err := strconv.ParseInt(text, 10, 64)
	if err != nil || id <= 0 || strconv.FormatInt(id, 10) != text {
		return 0, compute.NotFound("user")
	}
	return compute.UserID(id), nil
}

func (s *Server) getUser(ctx context.Context, c *fiber.Ctx, p compute.Principal) (answer, error) {
	id, err := userID(c)
	if err != nil {
		return answer{}, err
	}
	u, err := s.service.GetUser(ctx, p, id)
	if err != nil {
		return answer{}, err
	}
	return answer{http.StatusOK, openapi.NewUser(u)}, nil
}

func (s *Server) changeUser(ctx context.Context, c *fiber.Ctx, p compute.Principal) (answer, error) {
	id, err := userID(c)
	if err != nil {
		return answer{}, err
	}
	r, err := body[openapi.UserChange](c)
	if err != nil {
		return answer{}, err
	}
	change := compute.UserChange{Role: r.Role, Disabled: r.Disabled}
	actsOn(ctx, change.Target(c.Params("id")))
	if l := r.Limits; l != nil {
		change.Containers, change.Keys = l.Containers.NewLimit, l.Keys.NewLimit
	}
	u, err := s.service.ChangeUser(ctx, p, id, change)
	if err != nil {
		return answer{}, err
	}
	if u.Disabled {
		s.revoked(ctx, c)
	}
	return answer{http.StatusOK, openapi.NewUser(u)}, nil
}

func (s *Server) ownedContainer(v compute.OwnedContainer) openapi.OwnedContainer {
	return openapi.NewOwnedContainer(v, string(v.ID)+"."+s.zone)
}

func (s *Server) listAllContainers(ctx context.Context, c *fiber.Ctx, p compute.Principal) (answer, error) {
	limit, after, err := pageOf(c, allContainersList)
	if err != nil {
		return answer{}, err
	}
	f := compute.ContainerFilter{Status: compute.Status(c.Query("status"))}
	if c.Context().QueryArgs().Has("user") {
		if f.Owner, err = s.userOf(ctx, c.Query("user")); err != nil {
			return answer{}, err
		}
	}
	list, more, err := s.service.ListAllContainers(ctx, p, f, after, limit)
	if err != nil {
		return answer{}, err
	}
	out := openapi.OwnedContainerList{Containers: make([]openapi.OwnedContainer, len(list))}
	for i, v := range list {
		out.Containers[i] = s.ownedContainer(v)
	}
	if more {
		out.Next = newCursor(allContainersList, list[len(list)-1].Number)
	}
	return answer{http.StatusOK, out}, nil
}

func (s *Server) stopAnyContainer(ctx context.Context, c *fiber.Ctx, p compute.Principal) (answer, error) {
	id, err := containerID(c)
	if err != nil {
		return answer{}, err
	}
	v, err := s.service.StopAnyContainer(ctx, p, id)
	if err != nil {
		return answer{}, err
	}
	s.revoked(ctx, c)
	return answer{http.StatusOK, s.ownedContainer(v)}, nil
}

func (s *Server) listQuarantined(ctx context.Context, _ *fiber.Ctx, p compute.Principal) (answer, error) {
	list, err := s.service.Quarantined(ctx, p)
	if err != nil {
		return answer{}, err
	}
	out := openapi.StorageList{Storage: make([]openapi.Storage, len(list))}
	for i, v := range list {
		out.Storage[i] = openapi.NewStorage(v)
	}
	return answer{http.StatusOK, out}, nil
}

func (s *Server) discardStorage(ctx context.Context, c *fiber.Ctx, p compute.Principal) (answer, error) {
	r, err := compute.ParseRef(c.Params("ref"))
	if err != nil {
		return answer{}, compute.NotFound("storage") // what cannot be is answered as what is not
	}
	if err := s.service.DiscardStorage(ctx, p, r); err != nil {
		return answer{}, err
	}
	return deleted(), nil
}
