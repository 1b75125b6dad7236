package app

import (
	"context"
	"errors"
	"os"
	"time"

	"berth/internal/audit"
	"berth/internal/compute"
	"berth/internal/link"
	"berth/internal/store"
)

// The file of JSON lines, of the process with the database, and what a gateway saw and has not brought there yet. Before the
// link carried records, gateways wrote lines by themselves.
const (
	auditFile           = "audit.jsonl"
	spoolFile           = "link_audit"
	oldGatewayAuditFile = "gateway-audit.jsonl"
)

// auditing is how this process records what happens.
type auditing struct {
	queue   *audit.Queue
	hint    audit.Hint // given by the store when it has new records
	gateway string     // the name of this process in records
}

func newAuditing() auditing {
	name, err := os.Hostname()
	if err != nil {
		name = "unknown"
	}
	return auditing{hint: audit.NewHint(), gateway: name}
}

// openAudit begins to store records, to copy them to the file, and to remove old ones.
func (b *berth) openAudit() error {
	log := b.log.With("part", "audit")
	f, err := audit.OpenFile(b.files.path(auditFile))
	if err != nil {
		return err
	}
	b.onClose(f.Close)
	b.audit.queue = audit.NewQueue(b.store, b.audit.gateway, log)
	b.watchAudit(b.audit.queue)
	keep := compute.AuditRetention{
		Age: time.Duration(b.cfg.AuditDays) * 24 * time.Hour, PerClass: int64(b.cfg.AuditRecords) / 3,
	}
	b.inner = append(b.inner, func(ctx context.Context) error {
		copying, stop := context.WithCancel(context.WithoutCancel(ctx)) // until the last records are in the database
		done := make(chan error, 1)
		go func() { done <- audit.Follow(copying, b.store, f, b.audit.hint, log) }()
		err := b.audit.queue.Run(ctx)
		stop()
		return errors.Join(err, <-done)
	}, func(ctx context.Context) error { return audit.Prune(ctx, b.store, keep, log) })
	return nil
}

// lastWords is how long a gateway that ends stays for its last records to be taken; others wait on its disk for the next start.
const lastWords = time.Second

// openGatewayLink begins to follow the control plane, and to bring it what this gateway sees. The link ends after what is
// recorded.
func (b *berth) openGatewayLink(replica *link.Replica) error {
	log := b.log.With("part", "link")
	spool, err := link.OpenSpool(b.files.path(spoolFile), link.SpoolOptions{Log: log})
	if err != nil {
		return err
	}
	b.onClose(spool.Close)
	b.watchSpool(spool)
	client := link.NewClient(link.ClientOptions{
		Replica: replica, Spool: spool, Credential: b.readCredential, Dial: b.dialLink, Log: log,
	})
	b.audit.queue = audit.NewQueue(spool, b.audit.gateway, b.log.With("part", "audit"))
	b.watchAudit(b.audit.queue)
	b.inner = append(b.inner, func(ctx context.Context) error {
		linked, stop := context.WithCancel(context.WithoutCancel(ctx))
		done := make(chan error, 1)
		go func() { done <- client.Run(linked) }()
		err := b.audit.queue.Run(ctx)
		last, cancel := context.WithTimeout(linked, lastWords)
		spool.Delivered(last)
		cancel()
		stop()
		return errors.Join(err, <-done)
	})
	return nil
}

// audited records what an operator changes. Whoever may give these commands may change the records, too: they are for those
// who want to know what they did.
type audited struct {
	Operator
	store   *store.Store
	gateway string
	invoker string // the login name of who calls, here; a berth that runs is told it with each call
}

// invokerKey is under which a context holds the login name of who called another process for it.
type invokerKey struct{}

func withInvoker(ctx context.Context, name string) context.Context {
	return context.WithValue(ctx, invokerKey{}, name)
}

// record does f, and records it as action.
func (a audited) record(ctx context.Context, action, target string, f func(context.Context) error) error {
	invoker, ok := ctx.Value(invokerKey{}).(string)
	if !ok {
		invoker = a.invoker
	}
	act := &compute.Act{Record: compute.AuditRecord{Action: action, Via: compute.ViaOperator, Gateway: a.gateway, Target: target}}
	act.By(compute.Principal{}, "operator", invoker)
	err := f(compute.WithAct(ctx, act))
	r, still := act.Ended(err)
	if !still {
		return err
	}
	return errors.Join(err, a.store.AppendAudit(context.WithoutCancel(ctx), []compute.AuditRecord{r}))
}

func (a audited) AddUser(ctx context.Context, username string, admin bool, keys []string) (u User, err error) {
	err = a.record(ctx, compute.ActionAddUser, "user:"+username, func(ctx context.Context) error {
		u, err = a.Operator.AddUser(ctx, username, admin, keys)
		return err
	})
	return u, err
}

func (a audited) SetUserDisabled(ctx context.Context, username string, disabled bool) (u User, err error) {
	change := compute.UserChange{Disabled: &disabled}
	err = a.record(ctx, compute.ActionChangeUser, change.Target(username), func(ctx context.Context) error {
		u, err = a.Operator.SetUserDisabled(ctx, username, disabled)
		return err
	})
	return u, err
}

func (a audited) Token(ctx context.Context, r TokenRequest) (token string, err error) {
	err = a.record(ctx, compute.ActionAddToken, "user:"+r.Username, func(ctx context.Context) error {
		token, err = a.Operator.Token(ctx, r)
		return err
	})
	return token, err
}

func (a audited) RevokeToken(ctx context.Context, id string) error {
	return a.record(ctx, compute.ActionRevokeToken, "token:"+id, func(ctx context.Context) error {
		return a.Operator.RevokeToken(ctx, id)
	})
}
