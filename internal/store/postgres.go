package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"berth/internal/compute"
)

const (
	oldestPostgres = 15
	connectTimeout = 10 * time.Second
	// postgresReaders is how many connections of a process read at once.
	postgresReaders = 8
	// postgresMark is the comment on the table installation: as applicationID in a file.
	postgresMark = "Berth"
	// migrationLock is the advisory lock of whoever looks at the schema, and brings it up to date.
	migrationLock = applicationID
)

// postgresSettings are of every session, unless the URL says otherwise. Writers wait for each other: one that is stopped, or
// whose machine is gone, in the middle of its transaction must not hold up the others for long.
var postgresSettings = map[string]string{
	"application_name":                    "berth",
	"idle_in_transaction_session_timeout": "5s",
	"lock_timeout":                        "15s",
	"timezone":                            "UTC",
}

// IsURL says whether a source is the URL of a PostgreSQL database and not the path of a file.
func IsURL(source string) bool {
	return strings.HasPrefix(source, "postgres://") || strings.HasPrefix(source, "postgresql://")
}

// connect opens the PostgreSQL database at url. It looks at it before it writes to it.
func (s *Store) connect(ctx context.Context, url string) error {
	config, err := parseURL(url)
	if err != nil {
		return err
	}
	place := placeOf(config)
	if err := s.prepare(ctx, config, place); err != nil {
		return err
	}
	s.writer = openPool(config, 1)
	s.Reader = &Reader{db: openPool(readOnly(config), postgresReaders)}
	s.leases = openPool(config, 1)
	s.lockWriters, s.notify = lockCounter, notifyOthers
	s.listener = listen(config, s.opt, func() {
		drop(s.writer, 1)
		drop(s.db, postgresReaders)
		drop(s.leases, 1)
	})
	return nil
}

// drop closes a pool's connections that nobody uses: where one has ended they mostly all have, and the next query on each
// would fail for that.
func drop(db *sql.DB, size int) {
	db.SetMaxIdleConns(0)
	db.SetMaxIdleConns(size)
}

func parseURL(url string) (*pgx.ConnConfig, error) {
	config, err := pgx.ParseConfig(url)
	if err != nil { // it says what is wrong, and leaves the password out
		return nil, &compute.Error{
			Code: compute.CodeInvalid, Cause: err,
			Message: fmt.Sprintf("The database's address cannot be used: %v.", err),
		}
	}
	for name, value := range postgresSettings {
		if _, given := config.RuntimeParams[name]; !given {
			config.RuntimeParams[name] = value
		}
	}
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = connectTimeout
	}
	return config, nil
}

func readOnly(config *pgx.ConnConfig) *pgx.ConnConfig {
	c := config.Copy()
	c.RuntimeParams = maps.Clone(c.RuntimeParams)
	c.RuntimeParams["default_transaction_read_only"] = "on"
	return c
}

// placeOf names a database for messages: nothing in it is secret.
func placeOf(c *pgx.ConnConfig) string {
	return fmt.Sprintf("the database %q at %s", c.Database, c.Host)
}

func openPool(config *pgx.ConnConfig, size int) *sql.DB {
	db := sql.OpenDB(dialer{stdlib.GetConnector(*config)})
	db.SetMaxOpenConns(size)
	db.SetMaxIdleConns(size)
	return db
}

// prepare refuses a database that is not for us, and brings the schema of one that is up to date. Another process that does
// the same waits.
func (s *Store) prepare(ctx context.Context, config *pgx.ConnConfig, place string) (err error) {
	patient := config.Copy()
	patient.RuntimeParams = maps.Clone(patient.RuntimeParams)
	patient.RuntimeParams["lock_timeout"] = "0"
	db := stdlib.OpenDB(*patient)
	defer func() { err = errors.Join(err, db.Close()) }()
	held, err := db.Conn(ctx)
	if err != nil {
		return cannotConnect(ctx, place, err)
	}
	defer held.Close() // and with its session the lock is gone
	if err := checkServer(ctx, held, place); err != nil {
		return err
	}
	if _, err := held.ExecContext(ctx, `SELECT pg_advisory_lock($1)`, migrationLock); err != nil {
		return cannotConnect(ctx, place, err)
	}
	if err := checkOurs(ctx, held, place); err != nil {
		return err
	}
	if err := s.checkInstallation(ctx, held, place); err != nil {
		return err
	}
	return s.migrate(ctx, db, place, func(err error) error { return cannotConnect(ctx, place, err) })
}

// Check looks whether the PostgreSQL database at url is one that Berth can have, and changes nothing in it.
func Check(ctx context.Context, url string) (err error) {
	config, err := parseURL(url)
	if err != nil {
		return err
	}
	place := placeOf(config)
	db := stdlib.OpenDB(*readOnly(config))
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := checkServer(ctx, db, place); err != nil {
		return err
	}
	return checkOurs(ctx, db, place)
}

// checkServer refuses a server that cannot hold our state.
func checkServer(ctx context.Context, q querier, place string) error {
	var version int
	var encoding string
	var standby bool
	err := q.QueryRowContext(ctx, `SELECT current_setting('server_version_num')::int, current_setting('server_encoding'),
		pg_is_in_recovery()`).Scan(&version, &encoding, &standby)
	switch {
	case err != nil:
		return cannotConnect(ctx, place, err)
	case version/10_000 < oldestPostgres:
		return compute.Errorf(compute.CodeConflict, "%s is in PostgreSQL %d; Berth needs %d or newer.", upperFirst(place),
			version/10_000, oldestPostgres)
	case encoding != "UTF8":
		return compute.Errorf(compute.CodeConflict, "%s is encoded in %s; make one with ENCODING 'UTF8' TEMPLATE template0.",
			upperFirst(place), encoding)
	case standby:
		return compute.Errorf(compute.CodeConflict, "%s is a standby, which cannot be written; give the primary's address, "+
			"or several with target_session_attrs=read-write.", upperFirst(place))
	}
	return nil
}

// checkOurs refuses a database in which another program has tables. An empty one passes.
func checkOurs(ctx context.Context, q querier, place string) error {
	var mark sql.NullString
	var tables int
	err := q.QueryRowContext(ctx, `SELECT obj_description(to_regclass('installation'), 'pg_class'), (SELECT count(*)
		FROM pg_class WHERE relnamespace = to_regnamespace(current_schema()) AND relkind IN ('r', 'p', 'v', 'm', 'f'))`).
		Scan(&mark, &tables)
	if err != nil {
		return cannotConnect(ctx, place, err)
	}
	if tables > 0 && mark.String != postgresMark {
		return compute.Errorf(compute.CodeConflict, "In %s another program has tables; make a database for Berth alone.", place)
	}
	return nil
}

// checkInstallation refuses a database that is not of the installation that the options name, before anything changes in it.
func (s *Store) checkInstallation(ctx context.Context, q querier, place string) error {
	if s.opt.Installation == "" {
		return nil
	}
	var id string
	err := q.QueryRowContext(ctx, `SELECT id FROM installation`).Scan(&id)
	if err != nil && postgresCode(err) != "42P01" { // there is no such table
		return cannotConnect(ctx, place, err)
	}
	if id != s.opt.Installation {
		return compute.Errorf(compute.CodeConflict, "%s is not that of this data directory, but another installation's, or empty; "+
			"give the address of the one that was used with it, or another data directory.", upperFirst(place))
	}
	return nil
}

// cannotConnect explains to an operator why a database did not open.
func cannotConnect(ctx context.Context, place string, err error) error {
	if compute.AsError(err) != nil {
		return err
	}
	if ctx.Err() != nil {
		return mapError(ctx, "open the database", err)
	}
	fail := func(format string, args ...any) error { // it has the cause in its words
		return compute.Errorf(compute.CodeUnavailable, "%s", upperFirst(fmt.Sprintf(format, args...)))
	}
	switch postgresCode(err) {
	case "28000", "28P01":
		return fail("%s refuses this user or password: %s. Make the user with CREATE ROLE … LOGIN; a password comes from PGPASSFILE or "+
			"passfile=.", place, rootOf(err))
	case "3D000":
		return fail("%s does not exist; make it with CREATE DATABASE.", place)
	case "42501":
		return fail("in %s this user may not make tables: %s. Make the user its owner.", place, rootOf(err))
	}
	return fail("%s cannot be opened: %s. Look whether PostgreSQL runs there, and whether --database has its address.", place, rootOf(err))
}

// rootOf is the last word of an error, without the addresses and users that the driver puts before it. Of an address that was
// tried in several ways it is the first.
func rootOf(err error) string {
	for {
		under := errors.Unwrap(err)
		if under == nil {
			word, _, _ := strings.Cut(err.Error(), "\n")
			return word
		}
		err = under
	}
}

func upperFirst(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// lockCounter has transactions that write wait for each other, from before their first read until their commit: what one has
// read still holds when it writes, and the numbers that it takes are in commit order.
const lockCounter = `SELECT seq FROM event_counter FOR UPDATE`

// dialer makes connections that understand SQLite's parameters and take its values.
type dialer struct{ driver.Connector }

func (d dialer) Connect(ctx context.Context) (driver.Conn, error) {
	c, err := d.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return session{c.(*stdlib.Conn)}, nil
}

// session is a connection of pgx.
type session struct{ *stdlib.Conn }

func (s session) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	return s.Conn.QueryContext(ctx, numbered(query), args)
}

func (s session) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	return s.Conn.ExecContext(ctx, numbered(query), args)
}

// CheckNamedValue makes of a value what SQLite's driver makes of it: booleans are numbers, no bytes are none and not null,
// and what no PostgreSQL text can hold becomes the replacement character.
func (s session) CheckNamedValue(v *driver.NamedValue) error {
	value, err := driver.DefaultParameterConverter.ConvertValue(v.Value)
	if err != nil {
		return err
	}
	switch x := value.(type) {
	case bool:
		value = int64(0)
		if x {
			value = int64(1)
		}
	case string:
		value = storable(x)
	case []byte:
		if x == nil {
			value = []byte{}
		}
	}
	v.Value = value
	return nil
}

// storable is the text with the replacement character in the place of what no PostgreSQL text can hold.
func storable(text string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(text, "\uFFFD"), "\x00", "\uFFFD")
}

// numbered spells the parameters of a query as PostgreSQL does: ? and ?1 are both $1. No text in our SQL has a question mark.
func numbered(query string) string {
	if !strings.Contains(query, "?") {
		return query
	}
	var b strings.Builder
	b.Grow(len(query) + 16)
	next := 1
	for i := range len(query) {
		if query[i] != '?' {
			b.WriteByte(query[i])
			continue
		}
		b.WriteByte('$')
		if i+1 == len(query) || query[i+1] < '0' || query[i+1] > '9' {
			b.WriteString(strconv.Itoa(next))
			next++
		}
	}
	return b.String()
}

// notifyOthers wakes the listeners of all processes when the transaction is committed. It is a hint alone: what there is to
// know stands in the tables, in order.
const (
	channel      = "berth"
	notifyOthers = `NOTIFY ` + channel
)

// A listener that lost its connection makes another after firstRetry, then after twice as long each time up to longestRetry.
// One that hears nothing for quiet asks whether the connection still lives.
const (
	firstRetry   = 100 * time.Millisecond
	longestRetry = 10 * time.Second
	quiet        = 15 * time.Second
)

// listener hears of what other processes commit.
type listener struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// listen begins to give the hints that o asks for, whenever somebody has committed, and whenever some may have been missed. It
// calls lost when the server has gone away.
func listen(config *pgx.ConnConfig, o Options, lost func()) *listener {
	ctx, cancel := context.WithCancel(context.Background())
	l := &listener{cancel: cancel, done: make(chan struct{})}
	hint := func() {
		o.OnCommit()
		o.OnAudit()
	}
	go func() {
		defer close(l.done)
		retry := firstRetry
		for {
			err := hear(ctx, config, func() {
				retry = firstRetry
				hint()
			})
			if ctx.Err() != nil {
				return
			}
			lost()
			o.Log.Warn("cannot listen to the database; trying again", "retry_in", retry, "err", err)
			t := time.NewTimer(retry)
			select {
			case <-ctx.Done():
			case <-t.C:
			}
			t.Stop()
			retry = min(2*retry, longestRetry)
		}
	}()
	return l
}

func (l *listener) close() {
	l.cancel()
	<-l.done
}

// hear calls heard once it listens, for what was committed before, and then at every notification, until the connection ends.
func hear(ctx context.Context, config *pgx.ConnConfig, heard func()) error {
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(ctx) // it is over either way
	}()
	if _, err := conn.Exec(ctx, `LISTEN `+channel); err != nil {
		return err
	}
	for {
		heard()
		wait, cancel := context.WithTimeout(ctx, quiet)
		_, err := conn.WaitForNotification(wait)
		silent := wait.Err() != nil
		cancel()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
		case silent && !conn.IsClosed():
			ping, cancel := context.WithTimeout(ctx, connectTimeout)
			err := conn.Ping(ping)
			cancel()
			if err != nil {
				return err
			}
		default:
			return err
		}
	}
}
