package httpapi

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"

	openapi "berth/api"
	"berth/internal/auth"
	"berth/internal/compute"
)

// Audit shows who did what.
type Audit interface {
	// Audit returns records that q selects, and the number from which to go on; 0 when there are no more.
	Audit(ctx context.Context, q compute.AuditQuery) (list []compute.AuditRecord, next int64, err error)
	// UserByName returns an account; CodeNotFound when there is none.
	UserByName(ctx context.Context, username string) (compute.User, error)
}

// Pages of records.
const (
	defaultAuditPage = 100
	maxAuditPage     = 1000
)

// audited has the store record what f changes with the change itself, and sees to it that what it did not record is recorded
// too: what changed nothing, and what was refused.
func (s *Server) audited(
	o operation, f func(context.Context, *fiber.Ctx) (answer, error),
) func(context.Context, *fiber.Ctx) (answer, error) {
	return func(ctx context.Context, c *fiber.Ctx) (answer, error) {
		r := requestOf(c.Context())
		act := &compute.Act{Record: compute.AuditRecord{
			Action: o.id, Source: c.Context().RemoteAddr().String(), Via: compute.ViaREST, Gateway: s.gateway, Request: r.id,
			Container: pathContainer(c), Target: pathTarget(c),
		}}
		a, err := f(compute.WithAct(ctx, act), c)
		if r.user == 0 { // nobody is known, and a token that was refused is recorded by recordStranger
			return a, err
		}
		var why error
		if err != nil {
			why = domainError(err)
		}
		if record, still := act.Ended(why); still && worthRecording(o, c.Method(), why) {
			s.record(record)
		}
		return a, err
	}
}

// worthRecording says whether something that changed nothing is to be recorded. Who looks is not, unless they may not.
func worthRecording(o operation, method string, why error) bool {
	if safe(method) || o.id == "issueTicket" { // a ticket permits what its token does, for 30 seconds
		return why != nil && compute.CodeOf(why) == compute.CodeForbidden
	}
	return true
}

// recordStranger records that a token was refused, or the page that sends a session's cookie, wherever that went to. What a
// refused token says of itself, nobody believes.
func (s *Server) recordStranger(fctx *fasthttp.RequestCtx, r *request) {
	if !r.badToken && !r.badOrigin || r.err == nil {
		return
	}
	why := domainError(r.err)
	s.record(compute.AuditRecord{
		Action: compute.ActionAuthenticate, Outcome: compute.OutcomeOf(why), Code: why.Code, Credential: string(auth.KindToken),
		Source: fctx.RemoteAddr().String(), Via: compute.ViaREST, Gateway: s.gateway, Request: r.id,
	})
}

// recordBefore records that what was asked for is allowed, for what takes long: a record at its end might never come.
func (s *Server) recordBefore(ctx context.Context) {
	act := compute.ActOf(ctx)
	record, _ := act.Ended(nil)
	s.record(record)
	act.Committed()
}

// actsBy tells the request's act who it is that acts.
func actsBy(ctx context.Context, g auth.Grant) {
	act := compute.ActOf(ctx)
	if act == nil {
		return // a WebSocket: it only looks
	}
	id := g.TokenID
	if id == "" && g.KeyID != 0 {
		id = "ssh_key:" + strconv.FormatInt(g.KeyID, 10)
	}
	act.By(g.Principal, string(g.Kind), id)
}

// actsOn tells the request's act what it is done to, where neither the path nor the store knows.
func actsOn(ctx context.Context, target string) {
	if act := compute.ActOf(ctx); act != nil {
		act.Record.Target = target
	}
}

// pathContainer is the container that the path is about, whether or not there is one.
func pathContainer(c *fiber.Ctx) compute.ContainerID {
	if !strings.HasPrefix(c.Route().Path, "/compute/containers/:id") {
		return ""
	}
	id, err := compute.ParseContainerID(c.Params("id"))
	if err != nil {
		return "" // it cannot be one, and may be anything
	}
	return id
}

// pathTarget is what else the path is about, as far as it can be one.
func pathTarget(c *fiber.Ctx) string {
	path := c.Route().Path
	for suffix, kind := range map[string]string{"/ssh-keys/:id": "ssh_key:", "/ingress/:port": "ingress_rule:"} {
		if strings.HasSuffix(path, suffix) {
			text := c.Params(path[strings.LastIndexByte(path, ':')+1:])
			if n, err := strconv.ParseInt(text, 10, 64); err == nil && strconv.FormatInt(n, 10) == text {
				return kind + text
			}
		}
	}
	if strings.HasSuffix(path, "/tokens/:id") && tokenID.MatchString(c.Params("id")) {
		return "token:" + c.Params("id")
	}
	return ""
}

// listAuditRecords answers with records of the principal's own account, or of all where they are an administrator.
func (s *Server) listAuditRecords(ctx context.Context, c *fiber.Ctx, p compute.Principal) (answer, error) {
	q, err := s.auditQuery(ctx, c, p)
	if err != nil {
		return answer{}, err
	}
	list, next, err := s.audit.Audit(ctx, q)
	if err != nil {
		return answer{}, err
	}
	out := openapi.AuditRecordList{Records: make([]openapi.AuditRecord, len(list)), Next: next}
	for i, r := range list {
		out.Records[i] = openapi.NewAuditRecord(r)
	}
	return answer{http.StatusOK, out}, nil
}

func (s *Server) auditQuery(ctx context.Context, c *fiber.Ctx, p compute.Principal) (q compute.AuditQuery, err error) {
	value := func(name string) string { return string(c.Context().QueryArgs().Peek(name)) }
	has := func(name string) bool { return c.Context().QueryArgs().Has(name) }
	q = compute.AuditQuery{
		Container: compute.ContainerID(value("container")), Action: value("action"), Outcome: compute.Outcome(value("outcome")),
		Limit: defaultAuditPage, OldestFirst: has("after"),
	}
	if q.Owner, err = s.auditOwner(ctx, value("user"), has("user"), p); err != nil {
		return q, err
	}
	for name, to := range map[string]*time.Time{"since": &q.Since, "until": &q.Until} {
		if !has(name) {
			continue
		}
		if *to, err = time.Parse(time.RFC3339, value(name)); err != nil || to.Year() < 1970 || to.Year() > 9999 {
			return q, compute.Invalid(name, "%s is a time such as 2026-01-15T10:30:00Z.", name)
		}
	}
	for name, to := range map[string]*int64{"after": &q.After, "before": &q.Before} {
		if !has(name) {
			continue
		}
		if *to, err = strconv.ParseInt(value(name), 10, 64); err != nil || *to < 0 {
			return q, compute.Invalid(name, "%s is the seq of a record.", name)
		}
	}
	if has("before") && q.Before == 0 {
		q.Before = 1 // nothing is older than the first
	}
	if has("limit") {
		if q.Limit, err = strconv.Atoi(value("limit")); err != nil || q.Limit < 1 || q.Limit > maxAuditPage {
			return q, wrongLimit(maxAuditPage)
		}
	}
	for _, name := range []string{"container", "action", "outcome"} {
		if has(name) && value(name) == "" {
			return q, compute.Invalid(name, "%s is empty; leave it out.", name)
		}
	}
	return q, checkAction(q.Action)
}

// checkAction refuses a word that no record has: who misspells one would read that nothing has happened.
func checkAction(action string) error {
	d, err := readDocument()
	if err != nil {
		return compute.Internal("read the document", err)
	}
	others := compute.OtherActions()
	if action == "" || slices.Contains(others, action) || d.hasOperation(action) {
		return nil
	}
	return compute.Invalid("action", "There is no such action; it is an operation as /docs names it, such as createContainer, or one of %s.",
		strings.Join(others, ", "))
}

// auditOwner returns whose records p asks for; 0 for everybody's.
func (s *Server) auditOwner(ctx context.Context, name string, given bool, p compute.Principal) (compute.UserID, error) {
	admin := p.Role == compute.RoleAdmin
	switch {
	case !given && admin:
		return 0, nil
	case !given, name == p.Username, name == strconv.FormatInt(int64(p.User), 10):
		return p.User, nil
	case !admin: // in the same words whether or not there is such an account
		return 0, compute.Errorf(compute.CodeForbidden, "Only an administrator reads what concerns other accounts.")
	}
	return s.userOf(ctx, name)
}

// userOf returns the account that a filter is about: one is said by its id, or by its name. Digits are an id: else somebody
// could take the number of another account for a name.
func (s *Server) userOf(ctx context.Context, text string) (compute.UserID, error) {
	if id, err := strconv.ParseInt(text, 10, 64); err == nil && id > 0 && strconv.FormatInt(id, 10) == text {
		return compute.UserID(id), nil
	}
	u, err := s.audit.UserByName(ctx, text)
	if err != nil && compute.CodeOf(err) == compute.CodeNotFound {
		return 0, compute.Invalid("user", "There is no such user; send the username, or the id as a number.")
	}
	return u.ID, err
}
