package app

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"berth/internal/auth"
	"berth/internal/compute"
)

// Token is a recorded token as the operator's commands print it.
type Token struct {
	ID         string              `json:"id"`
	Username   string              `json:"username"`
	Name       string              `json:"name"`
	Scopes     []string            `json:"scopes"`
	IssuedBy   compute.TokenIssuer `json:"issued_by"`
	CreatedAt  time.Time           `json:"created_at"`
	ExpiresAt  time.Time           `json:"expires_at"`
	LastUsedAt time.Time           `json:"last_used_at,omitzero"`
}

// TokenRequest is what a token of the operator's is to be.
type TokenRequest struct {
	Username string // whose; the first admin's where it is empty
	Name     string
	Scopes   []string // empty: all
	TTL      time.Duration
}

func (o local) Token(ctx context.Context, r TokenRequest) (string, error) {
	if len(r.Scopes) == 0 {
		r.Scopes = []string{string(auth.ScopeAll)}
	}
	scopes, err := auth.ParseScopes(r.Scopes)
	if err != nil {
		return "", err
	}
	list, err := o.users.List(ctx)
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(list, func(u compute.User) bool {
		return u.Username == r.Username || r.Username == "" && u.Role == compute.RoleAdmin && !u.Disabled
	})
	if i < 0 {
		return "", errNoUser
	}
	u := list[i]
	if u.Disabled {
		return "", compute.Errorf(compute.CodeForbidden,
			"User %[1]s is disabled; `berth user enable %[1]s` lets them in again.", u.Username)
	}
	if slices.Contains(scopes, auth.ScopeAdmin) && u.Role != compute.RoleAdmin {
		return "", compute.Invalid("scopes",
			"User %s is no administrator, so the scope admin would permit nothing.", u.Username)
	}
	request := auth.Request{Name: r.Name, Scopes: scopes, TTL: r.TTL}
	token, _, err := o.tokens.Issue(ctx, u.ID, compute.IssuedByOperator, request)
	return token, err
}

var errNoUser = compute.Errorf(compute.CodeNotFound, "There is no such user; `berth user ls` lists them.")

func (o local) Tokens(ctx context.Context, username string) ([]Token, error) {
	users, err := o.users.List(ctx)
	if err != nil {
		return nil, err
	}
	names := make(map[compute.UserID]string, len(users))
	for _, u := range users {
		if username == "" || u.Username == username {
			names[u.ID] = u.Username
		}
	}
	if username != "" && len(names) == 0 {
		return nil, errNoUser
	}
	list, err := o.store.AllTokens(ctx, time.Now())
	if err != nil {
		return nil, err
	}
	out := []Token{}
	for _, t := range list {
		if name, ok := names[t.Owner]; ok {
			out = append(out, Token{
				ID: t.ID, Username: name, Name: t.Name, Scopes: t.Scopes, IssuedBy: t.IssuedBy,
				CreatedAt: t.CreatedAt, ExpiresAt: t.ExpiresAt, LastUsedAt: t.LastUsedAt,
			})
		}
	}
	return out, nil
}

func (o local) RevokeToken(ctx context.Context, id string) error {
	t, _, err := o.store.Token(ctx, id)
	if err == nil {
		err = o.tokens.Revoke(ctx, t.Owner, id)
	}
	if compute.CodeOf(err) == compute.CodeNotFound && err != nil {
		return compute.Errorf(compute.CodeNotFound, "There is no such token, or it has ended; `berth token ls` lists them.")
	}
	return err
}

// handleTokens serves what the operator does with tokens.
func handleTokens(o Operator, handle func(name string, f func(context.Context, operatorCall) (any, error))) {
	handle("token", func(ctx context.Context, c operatorCall) (any, error) {
		ttl, err := time.ParseDuration(c.TTL)
		if err != nil {
			return nil, compute.Invalid("ttl", "A lifetime looks like 24h.")
		}
		return o.Token(ctx, TokenRequest{Username: c.Username, Name: c.Name, Scopes: c.Scopes, TTL: ttl})
	})
	handle("token-ls", func(ctx context.Context, c operatorCall) (any, error) { return o.Tokens(ctx, c.Username) })
	handle("token-revoke", func(ctx context.Context, c operatorCall) (any, error) { return c.ID, o.RevokeToken(ctx, c.ID) })
}

func (r remote) Token(ctx context.Context, t TokenRequest) (token string, err error) {
	c := operatorCall{Username: t.Username, Name: t.Name, Scopes: t.Scopes, TTL: t.TTL.String()}
	err = r.call(ctx, "token", c, &token)
	return token, err
}

func (r remote) Tokens(ctx context.Context, username string) (list []Token, err error) {
	err = r.call(ctx, "token-ls", operatorCall{Username: username}, &list)
	return list, err
}

func (r remote) RevokeToken(ctx context.Context, id string) error {
	return r.call(ctx, "token-revoke", operatorCall{ID: id}, new(string))
}

// writeToken sees to it that the token file holds a token of the first admin's that is good for more than half of
// token-ttl. One that is there is kept while it is: a berth that restarts often would have the account full of live
// tokens.
func (b *berth) writeToken(ctx context.Context, first compute.UserID) error {
	if b.tokenIsFresh(ctx, first) {
		return nil
	}
	token, err := b.operator.Token(ctx, TokenRequest{Name: "token file", TTL: b.cfg.TokenTTL})
	if err == nil {
		err = b.files.writeToken(token)
	}
	if err != nil {
		return fmt.Errorf("write the token file: %w", err)
	}
	return nil
}

// tokenIsFresh says whether the token file's token will do until it is looked at again.
func (b *berth) tokenIsFresh(ctx context.Context, first compute.UserID) bool {
	text, err := os.ReadFile(b.files.path("token"))
	if err != nil {
		return false
	}
	g, err := b.authority.Verify(ctx, strings.TrimSpace(string(text)))
	if err != nil || g.User != first || !g.Allows(auth.ScopeAll) {
		return false
	}
	left := time.Until(g.Expires)
	return left > b.cfg.TokenTTL*3/4 && left <= b.cfg.TokenTTL
}

// renewToken looks at the token file again long before its token expires.
func (b *berth) renewToken(first compute.UserID) func(context.Context) error {
	return func(ctx context.Context) error {
		t := time.NewTicker(b.cfg.TokenTTL / 2)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-t.C:
			}
			if err := b.writeToken(ctx, first); err != nil && ctx.Err() == nil {
				b.log.Error("the token file is not renewed", "err", err)
			}
		}
	}
}
