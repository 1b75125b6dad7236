package store

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"berth/internal/compute"
	"berth/internal/pgtest"
)

func mustParse(t *testing.T, url string) *pgx.ConnConfig {
	t.Helper()
	config, err := parseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	return config
}

func TestNumbered(t *testing.T) {
	for query, want := range map[string]string{
		``:                                    ``,
		`SELECT 1`:                            `SELECT 1`,
		`SELECT ?`:                            `SELECT $1`,
		`SELECT ?, ? WHERE a = ?`:             `SELECT $1, $2 WHERE a = $3`,
		`SELECT ?1, ?12 WHERE a = ?1 LIMIT ?`: `SELECT $1, $12 WHERE a = $1 LIMIT $1`,
	} {
		if got := numbered(query); got != want {
			t.Errorf("%s: %s", query, got)
		}
	}
}

// columnsOf lists the columns of all tables, with their types as SQLite has them.
func columnsOf(t *testing.T, db *sql.DB, query string) []string {
	t.Helper()
	list, err := collect(t.Context(), db, func(row scanner) (string, error) {
		var table, column, kind string
		var null bool
		err := row.Scan(&table, &column, &kind, &null)
		kind = strings.NewReplacer("bigint", "INTEGER", "text", "TEXT", "bytea", "BLOB").Replace(kind)
		return fmt.Sprint(table, ".", column, " ", kind, " null:", null), err
	}, query)
	if err != nil {
		t.Fatal(err)
	}
	list = slices.DeleteFunc(list, func(s string) bool {
		return strings.HasPrefix(s, versionTable+".") || strings.HasPrefix(s, "lease.") // of replicas, which SQLite has none of
	})
	slices.Sort(list)
	return list
}

// Both databases have the same tables, so that the same SQL reads them, and a schema's number says the same of both.
func TestSchemasAgree(t *testing.T) {
	files := openNew(t, Options{})
	server := openAt(t, pgtest.NewDatabase(t), Options{})
	a := columnsOf(t, files.db, `SELECT m.name, c.name, c.type, c."notnull" = 0 AND c.pk = 0 FROM sqlite_schema m, pragma_table_info(m.name) c
		WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%'`)
	b := columnsOf(t, server.db, `SELECT table_name, column_name, data_type, is_nullable = 'YES' FROM information_schema.columns
		WHERE table_schema = current_schema()`)
	for _, c := range a {
		if !slices.Contains(b, c) {
			t.Errorf("PostgreSQL lacks %s", c)
		}
	}
	for _, c := range b {
		if !slices.Contains(a, c) {
			t.Errorf("SQLite lacks %s", c)
		}
	}
	versions := make([]int64, 2)
	for i, s := range []*Store{files, server} {
		p, err := migrator(s.writer)
		if err != nil {
			t.Fatal(err)
		}
		if versions[i], err = p.GetDBVersion(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if versions[0] != versions[1] {
		t.Errorf("SQLite's schema is %d and PostgreSQL's is %d: a migration is missing", versions[0], versions[1])
	}
}

// What is no database for us is refused with a word on what to do, and stays as it is.
func TestPostgresRefused(t *testing.T) {
	ctx := t.Context()
	server := pgtest.Shared(t)
	server.SQL(t, "postgres", "CREATE ROLE guest LOGIN PASSWORD 'x'")
	t.Cleanup(func() { server.SQL(t, "postgres", "DROP ROLE guest") })
	create := func(name, options string) string {
		server.SQL(t, "postgres", "CREATE DATABASE "+name+" "+options)
		t.Cleanup(func() { server.SQL(t, "postgres", "DROP DATABASE "+name+" WITH (FORCE)") })
		return server.URL(name)
	}
	foreign := pgtest.NewDatabase(t)
	newer := pgtest.NewDatabase(t)
	s, err := Open(ctx, newer, Options{})
	if err != nil {
		t.Fatal(err)
	}
	raw := func(url, query string) {
		db := openPool(mustParse(t, url), 1)
		defer db.Close()
		if _, err := db.Exec(query); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	raw(newer, `INSERT INTO schema_migrations (version_id, is_applied) VALUES (9999, true)`)
	raw(foreign, `CREATE TABLE installation (id int)`)
	guest := create("locked", "")
	for _, c := range []struct {
		name, url, words string
		code             compute.Code
	}{
		{"another program's", foreign, "another program has tables", compute.CodeConflict},
		{"a newer schema", newer, "newer Berth", compute.CodeConflict},
		{"another encoding", create("latin", "ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"), "encoded in LATIN1", compute.CodeConflict},
		{"no such database", server.URL("nowhere"), "does not exist; make it", compute.CodeUnavailable},
		{"no right to make tables", strings.Replace(guest, "postgres@", "guest@", 1), "may not make tables", compute.CodeUnavailable},
		{"nobody there", "postgres://postgres@127.0.0.1:1/berth?connect_timeout=2", "cannot be opened", compute.CodeUnavailable},
		{"no URL", "postgres://host:port/", "cannot be used", compute.CodeInvalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Open(ctx, c.url, Options{})
			wantCode(t, err, c.code)
			if m := compute.UserMessage(err); !strings.Contains(m, c.words) {
				t.Errorf("it says %q", m)
			}
		})
	}
	empty := pgtest.NewDatabase(t) // a wrong address changes nothing there
	_, err = Open(ctx, empty, Options{Installation: "0123456789abcdef0123456789abcdef"})
	wantCode(t, err, compute.CodeConflict)
	raw(empty, `CREATE TABLE installation (id int)`)
	_, err = Open(ctx, "postgres://someone:hunter2@127.0.0.1:1/berth?connect_timeout=2", Options{})
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("the password is in %v", err)
	}
}

// Two processes hear of each other's commits, also across a crash of the server; what was committed before it is still there.
func TestCommitsElsewhere(t *testing.T) {
	ctx := t.Context()
	server, err := pgtest.Start()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	}()
	url := server.URL("postgres")
	heard := make(chan struct{}, 1)
	here, err := Open(ctx, url, Options{OnCommit: func() {
		select {
		case heard <- struct{}{}:
		default:
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	there, err := Open(ctx, url, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	follow := func(seq int64) {
		t.Helper()
		for {
			if last, err := here.LastEvent(ctx); err == nil && last >= seq {
				return
			}
			select {
			case <-heard:
			case <-time.After(30 * time.Second):
				t.Fatalf("nothing was heard of event %d", seq)
			}
		}
	}
	for i := range 3 {
		if _, err := there.CreateUser(ctx, fmt.Sprintf("user%d", i), compute.RoleUser); err != nil {
			t.Fatal(err)
		}
		follow(int64(i + 1))
	}
	if err := server.Stop(pgtest.Crash); err != nil {
		t.Fatal(err)
	}
	_, err = there.CreateUser(ctx, "nobody", compute.RoleUser)
	wantCode(t, err, compute.CodeUnavailable)
	_, err = there.Users(ctx)
	wantCode(t, err, compute.CodeUnavailable)
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := there.CreateUser(ctx, "user3", compute.RoleUser); err != nil {
		t.Fatal(err)
	}
	follow(4)
	if list, err := here.Users(ctx); err != nil || len(list) != 4 {
		t.Fatalf("%+v, %v", list, err)
	}
	checkInvariants(t, there)
}

// A process that is stopped in the middle of a transaction holds the others up for a while and not for ever, and finds that
// its own has ended without a trace.
func TestPausedWriter(t *testing.T) {
	ctx := t.Context()
	url := pgtest.NewDatabase(t)
	paused := openAt(t, url+"&idle_in_transaction_session_timeout=200", Options{})
	other := openAt(t, url, Options{})
	holds, goesOn := make(chan struct{}), make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		ended <- paused.write(ctx, "pause", func(tx *tx) error {
			if err := tx.event(compute.Event{Kind: compute.EventGatewayChanged}); err != nil {
				return err
			}
			close(holds)
			<-goesOn
			return tx.event(compute.Event{Kind: compute.EventGatewayChanged})
		})
	}()
	<-holds
	addUser(t, other, "alice") // it waits for its turn, which comes when the other one is cut off
	close(goesOn)
	wantCode(t, <-ended, compute.CodeUnavailable)
	if last, err := other.LastEvent(ctx); err != nil || last != 1 {
		t.Fatalf("the last event is %d; %v", last, err)
	}
	addUser(t, paused, "bob") // over a new connection
}

// Texts that PostgreSQL cannot hold, such as a stranger's idea of a user name, are stored as far as they can be.
func TestOddTexts(t *testing.T) {
	s := openAt(t, pgtest.NewDatabase(t), Options{})
	err := s.AppendAudit(t.Context(), []compute.AuditRecord{{
		Action: compute.ActionLogin, Outcome: compute.OutcomeDenied, Target: "a\x00b\xffc",
	}})
	if err != nil {
		t.Fatal(err)
	}
	list, _, err := s.Audit(context.Background(), compute.AuditQuery{Limit: 5})
	if err != nil || len(list) != 1 || list[0].Target != "a\uFFFDb\uFFFDc" {
		t.Fatalf("%+v, %v", list, err)
	}
}

// A server that crashes in the middle of writes loses nothing that it acknowledged. Who wrote goes on when it is there again.
func TestServerCrashesWhileWriting(t *testing.T) {
	ctx := t.Context()
	server, err := pgtest.Start()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	}()
	stores := make([]*Store, 2)
	for i := range stores {
		if stores[i], err = Open(ctx, server.URL("postgres"), Options{}); err != nil {
			t.Fatal(err)
		}
		defer stores[i].Close()
	}
	var mu sync.Mutex
	acked := make(map[string]string)
	for round := range 3 {
		enough := make(chan struct{}, 1000)
		var writers sync.WaitGroup
		for i := range 4 {
			writers.Go(func() {
				err := crashLife(stores[i%2], fmt.Sprintf("user%d-%d", round, i), func(what string, id compute.ContainerID) {
					mu.Lock()
					defer mu.Unlock()
					acked[string(id)] = what
					select {
					case enough <- struct{}{}:
					default:
					}
				})
				if compute.CodeOf(err) != compute.CodeUnavailable {
					t.Errorf("the server was away, and somebody heard %v", err)
				}
			})
		}
		for range 40 + 20*round {
			<-enough
		}
		if err := server.Stop(pgtest.Crash); err != nil {
			t.Fatal(err)
		}
		writers.Wait()
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
		for _, s := range stores {
			checkInvariants(t, s)
		}
		checkAcknowledged(t, stores[0], acked)
	}
}
