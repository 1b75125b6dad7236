package app

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"berth/internal/auth"
	"berth/internal/compute"
	"berth/internal/control"
	"berth/internal/store"
)

// User is an account as the operator's commands print it.
type User struct {
	ID        compute.UserID `json:"id"`
	Username  string         `json:"username"`
	Role      compute.Role   `json:"role"`
	Disabled  bool           `json:"disabled"`
	CreatedAt time.Time      `json:"created_at"`

	// Unacknowledged names, where the account was disabled just now, the gateways that may not know it yet.
	Unacknowledged []string `json:"unacknowledged,omitempty"`
}

func toUser(u compute.User) User {
	return User{ID: u.ID, Username: u.Username, Role: u.Role, Disabled: u.Disabled, CreatedAt: u.CreatedAt.UTC()}
}

// Operator is what the commands of an operator may do to an installation, running or not.
type Operator interface {
	AddUser(ctx context.Context, username string, admin bool, keys []string) (User, error)
	Users(ctx context.Context) ([]User, error)
	SetUserDisabled(ctx context.Context, username string, disabled bool) (User, error)
	// Token issues a token.
	Token(ctx context.Context, r TokenRequest) (string, error)
	// Tokens lists the live tokens of the account, or of all where username is empty.
	Tokens(ctx context.Context, username string) ([]Token, error)
	// RevokeToken ends a token, whosever it is.
	RevokeToken(ctx context.Context, id string) error
	// AddGateway makes a credential, and returns the file that the gateway takes.
	AddGateway(ctx context.Context, name string) (string, error)
	Gateways(ctx context.Context) ([]GatewayInfo, error)
	RevokeGateway(ctx context.Context, name string) (GatewayInfo, error)
	Close() error
}

// local is the Operator of the process that has the database open.
type local struct {
	users    control.Users
	store    *store.Store
	tokens   *auth.Authority
	gateways gateways
	close    func() error
}

func (o local) Close() error { return o.close() }

func (o local) AddUser(ctx context.Context, username string, admin bool, keys []string) (User, error) {
	role := compute.RoleUser
	if admin {
		role = compute.RoleAdmin
	}
	u, err := o.users.Add(ctx, username, role, keys)
	return toUser(u), err
}

func (o local) Users(ctx context.Context) ([]User, error) {
	list, err := o.users.List(ctx)
	out := make([]User, len(list))
	for i, u := range list {
		out[i] = toUser(u)
	}
	return out, err
}

func (o local) SetUserDisabled(ctx context.Context, username string, disabled bool) (User, error) {
	u, err := o.users.SetDisabled(ctx, username, disabled)
	out := toUser(u)
	if err == nil && disabled {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		out.Unacknowledged = o.gateways.Unacknowledged(ctx)
	}
	return out, err
}

// The operator's socket: HTTP on a root-only unix socket in the data directory, since the database has one writer.
type operatorCall struct {
	Username string   `json:"username,omitempty"`
	Admin    bool     `json:"admin,omitempty"`
	Disabled bool     `json:"disabled,omitempty"`
	Keys     []string `json:"keys,omitempty"`
	TTL      string   `json:"ttl,omitempty"`
	Name     string   `json:"name,omitempty"`
	Scopes   []string `json:"scopes,omitempty"`
	ID       string   `json:"id,omitempty"`
	Invoker  string   `json:"invoker,omitempty"` // the login name of who calls
}

type operatorError struct {
	Code    compute.Code `json:"code"`
	Message string       `json:"message"`
}

const (
	operatorSocket  = "operator.sock"
	maxOperatorBody = 1 << 20
)

// operatorHandler serves o to remote.
func operatorHandler(o Operator, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	handle := func(name string, f func(context.Context, operatorCall) (any, error)) {
		mux.HandleFunc("POST /"+name, func(w http.ResponseWriter, r *http.Request) {
			var call operatorCall
			err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxOperatorBody)).Decode(&call)
			var answer any
			if err != nil {
				err = compute.Errorf(compute.CodeInvalid, "That is not a request of berth's operator commands.")
			} else {
				answer, err = f(withInvoker(r.Context(), call.Invoker), call)
			}
			w.Header().Set("Content-Type", "application/json")
			if err != nil {
				log.Warn("operator's request", "call", name, "err", err)
				w.WriteHeader(http.StatusBadRequest)
				answer = operatorError{Code: compute.CodeOf(err), Message: compute.UserMessage(err)}
			}
			_ = json.NewEncoder(w).Encode(answer) // a client that is gone needs no answer
		})
	}
	handle("user-add", func(ctx context.Context, c operatorCall) (any, error) {
		return o.AddUser(ctx, c.Username, c.Admin, c.Keys)
	})
	handle("user-ls", func(ctx context.Context, _ operatorCall) (any, error) { return o.Users(ctx) })
	handle("user-disable", func(ctx context.Context, c operatorCall) (any, error) {
		return o.SetUserDisabled(ctx, c.Username, c.Disabled)
	})
	handleTokens(o, handle)
	handleGateways(o, handle)
	return mux
}

// remote is the Operator of a process beside the one that has the database open.
type remote struct {
	client  *http.Client
	invoker string
}

func dialOperator(dir string) (Operator, error) {
	in, err := findInvoker()
	if err != nil {
		return nil, err
	}
	return remote{invoker: in.name, client: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialSocket(ctx, dir, operatorSocket)
		},
	}}}, nil
}

func (r remote) Close() error {
	r.client.CloseIdleConnections()
	return nil
}

func (r remote) call(ctx context.Context, name string, c operatorCall, answer any) error {
	c.Invoker = r.invoker
	body, err := json.Marshal(c)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://berth/"+name, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return fmt.Errorf("reach the running berth: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("reach the running berth: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		var e operatorError
		if err := json.Unmarshal(text, &e); err != nil {
			return fmt.Errorf("the running berth answered %s", resp.Status)
		}
		return &compute.Error{Code: e.Code, Message: e.Message}
	}
	return json.Unmarshal(text, answer)
}

func (r remote) AddUser(ctx context.Context, username string, admin bool, keys []string) (u User, err error) {
	err = r.call(ctx, "user-add", operatorCall{Username: username, Admin: admin, Keys: keys}, &u)
	return u, err
}

func (r remote) Users(ctx context.Context) (list []User, err error) {
	err = r.call(ctx, "user-ls", operatorCall{}, &list)
	return list, err
}

func (r remote) SetUserDisabled(ctx context.Context, username string, disabled bool) (u User, err error) {
	err = r.call(ctx, "user-disable", operatorCall{Username: username, Disabled: disabled}, &u)
	return u, err
}
