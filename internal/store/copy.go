package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"strings"

	"github.com/jackc/pgx/v5"

	"berth/internal/compute"
)

// Copied is a table that was copied to another database, and found there equal.
type Copied struct {
	Table  string `json:"table"`
	Rows   int64  `json:"rows"`
	SHA256 string `json:"sha256"` // of all its values in the order of its key
}

// copiedTables are all but those of one row, each after those that it refers to, with the columns of its key.
var copiedTables = []struct{ name, key string }{
	{"users", "id"},
	{"identities", "issuer, subject"},
	{"tokens", "id"},
	{"gateways", "fingerprint"},
	{"idempotency_keys", "owner, key"},
	{"ssh_keys", "id"},
	{"container_ids", "id"},
	{"containers", "number"},
	{"slot_releases", "owner, slot"},
	{"container_keys", "container, key"},
	{"ingress_rules", "id"},
	{"events", "seq"},
	{"audit", "seq"},
}

// CopyToPostgres copies all that the SQLite file at path holds into the PostgreSQL database at url, which must be empty: in one
// transaction, which is committed once all was read back and found equal. The copy is the same installation, and begins an
// epoch that is at least least. Nobody may write to the file meanwhile. Progress is told to say, which may be nil.
func CopyToPostgres(
	ctx context.Context, path, url string, least int64, say func(Copied),
) (id Identity, copied []Copied, err error) {
	from, err := OpenReadOnly(ctx, path)
	if err != nil {
		return id, nil, err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	to, err := Open(ctx, url, Options{})
	if err != nil {
		return id, nil, err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	err = from.read(ctx, "read the file", func(q querier) error {
		c := copying{q: q, say: say}
		if err := c.into(ctx, url, least); err != nil {
			return err
		}
		copied = c.done
		return nil
	})
	if err != nil {
		return Identity{}, nil, err
	}
	id, err = to.Identity(ctx)
	return id, copied, err
}

// copying is a copy under way.
type copying struct {
	q    querier // the file, as it is all the time
	tx   pgx.Tx
	say  func(Copied)
	done []Copied
}

func (c *copying) into(ctx context.Context, url string, least int64) error {
	config, err := parseURL(url)
	if err != nil {
		return err
	}
	config.RuntimeParams["idle_in_transaction_session_timeout"] = "0" // the file may be slower
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return cannotConnect(ctx, placeOf(config), err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if c.tx, err = conn.Begin(ctx); err != nil {
		return err
	}
	defer c.tx.Rollback(context.WithoutCancel(ctx)) // nothing, once it is committed
	if _, err := c.tx.Exec(ctx, lockCounter); err != nil {
		return err
	}
	if err := c.refuseUsed(ctx, placeOf(config)); err != nil {
		return err
	}
	for _, table := range copiedTables {
		if err := c.table(ctx, table.name, table.key); err != nil {
			return fmt.Errorf("copy the table %s: %w", table.name, err)
		}
	}
	if err := c.numbers(ctx, least); err != nil {
		return fmt.Errorf("copy the counters: %w", err)
	}
	return c.tx.Commit(ctx)
}

// refuseUsed refuses a database that has anything in it already.
func (c *copying) refuseUsed(ctx context.Context, place string) error {
	var there, ours string
	var used bool
	err := c.tx.QueryRow(ctx, `SELECT id, (SELECT seq > 0 FROM event_counter) OR (SELECT seq > 0 FROM audit_counter)
		OR EXISTS (SELECT 1 FROM users) OR EXISTS (SELECT 1 FROM gateways) FROM installation`).Scan(&there, &used)
	if err != nil || !used {
		return err
	}
	if err := c.q.QueryRowContext(ctx, `SELECT id FROM installation`).Scan(&ours); err != nil {
		return err
	}
	if there == ours {
		return compute.Errorf(compute.CodeConflict,
			"In %s this installation is already: it was copied before. Start Berth with that database, or make an empty one.", place)
	}
	return compute.Errorf(compute.CodeConflict, "In %s is another installation; make an empty database.", place)
}

// table copies one table, and reads it back.
func (c *copying) table(ctx context.Context, name, key string) error {
	columns, err := c.columns(ctx, name)
	if err != nil {
		return err
	}
	quoted := make([]string, len(columns))
	for i, column := range columns {
		quoted[i] = pgx.Identifier{column}.Sanitize()
	}
	query := fmt.Sprintf("SELECT %s FROM %s ORDER BY %s", strings.Join(quoted, ", "), name, key)
	rows, err := c.q.QueryContext(ctx, query)
	if err != nil {
		return err
	}
	defer rows.Close()
	source := &fileRows{rows: rows, width: len(columns), sum: newSum()}
	if _, err := c.tx.CopyFrom(ctx, pgx.Identifier{name}, columns, source); err != nil {
		return err
	}
	back, err := c.tx.Query(ctx, query)
	if err != nil {
		return err
	}
	defer back.Close()
	sum := newSum()
	for back.Next() {
		values, err := back.Values()
		if err != nil {
			return err
		}
		if err := sum.add(values); err != nil {
			return err
		}
	}
	if err := back.Err(); err != nil {
		return err
	}
	read, found := source.sum.of(name), sum.of(name)
	if read != found {
		return fmt.Errorf("%d rows were read (%s), and then %d were there (%s)", read.Rows, read.SHA256, found.Rows, found.SHA256)
	}
	c.done = append(c.done, found)
	if c.say != nil {
		c.say(found)
	}
	return nil
}

func (c *copying) columns(ctx context.Context, table string) ([]string, error) {
	rows, err := c.tx.Query(ctx, `SELECT column_name::text FROM information_schema.columns
		WHERE table_schema = current_schema() AND table_name = $1 ORDER BY ordinal_position`, table)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// numbers has everything that counts go on from where the file stands: what was ever given is not given again.
func (c *copying) numbers(ctx context.Context, least int64) error {
	var installation string
	var epoch, events, audit int64
	err := c.q.QueryRowContext(ctx, `SELECT i.id, i.epoch, e.seq, a.seq FROM installation i, event_counter e, audit_counter a`).
		Scan(&installation, &epoch, &events, &audit)
	if err != nil {
		return err
	}
	for _, set := range []struct {
		query string
		args  []any
	}{
		{`UPDATE installation SET id = $1, epoch = $2`, []any{installation, max(epoch+1, least)}},
		{`UPDATE event_counter SET seq = $1`, []any{events}},
		{`UPDATE audit_counter SET seq = $1`, []any{audit}},
	} {
		tag, err := c.tx.Exec(ctx, set.query, set.args...)
		if err == nil && tag.RowsAffected() != 1 {
			err = fmt.Errorf("%d rows changed instead of 1 by %q", tag.RowsAffected(), set.query)
		}
		if err != nil {
			return err
		}
	}
	for table, column := range map[string]string{"users": "id", "ssh_keys": "id", "containers": "number", "ingress_rules": "id"} {
		var last int64
		err := c.q.QueryRowContext(ctx, `SELECT seq FROM sqlite_sequence WHERE name = ?`, table).Scan(&last)
		switch {
		case errors.Is(err, sql.ErrNoRows): // none was ever given
			continue
		case err != nil:
			return err
		}
		var set int64
		err = c.tx.QueryRow(ctx, `SELECT setval(pg_get_serial_sequence($1, $2), $3)`, table, column, last).Scan(&set)
		if err == nil && set != last {
			err = fmt.Errorf("%d is the last number of %s instead of %d", set, table, last)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// fileRows are rows of the file on their way into PostgreSQL. It implements pgx.CopyFromSource.
type fileRows struct {
	rows   *sql.Rows
	width  int
	sum    *sum
	values []any
	err    error
}

func (f *fileRows) Next() bool {
	if f.err != nil || !f.rows.Next() {
		return false
	}
	f.values = make([]any, f.width)
	dest := make([]any, f.width)
	for i := range dest {
		dest[i] = &f.values[i]
	}
	if f.err = f.rows.Scan(dest...); f.err != nil {
		return false
	}
	for i, v := range f.values {
		if text, ok := v.(string); ok {
			f.values[i] = storable(text)
		}
	}
	f.err = f.sum.add(f.values)
	return f.err == nil
}

func (f *fileRows) Values() ([]any, error) { return f.values, nil }

func (f *fileRows) Err() error { return errors.Join(f.err, f.rows.Err()) }

// sum is a checksum over rows, whichever database they come from.
type sum struct {
	hash hash.Hash
	rows int64
}

func newSum() *sum { return &sum{hash: sha256.New()} }

// add takes a row: each value by its kind and, where that has one, its length.
func (s *sum) add(values []any) error {
	s.rows++
	for _, v := range values {
		var b []byte
		switch x := v.(type) {
		case nil:
			b = []byte{'n'}
		case int64:
			b = binary.BigEndian.AppendUint64([]byte{'i'}, uint64(x))
		case string:
			b = append(binary.BigEndian.AppendUint64([]byte{'s'}, uint64(len(x))), x...)
		case []byte:
			b = append(binary.BigEndian.AppendUint64([]byte{'b'}, uint64(len(x))), x...)
		default:
			return fmt.Errorf("a value is of the type %T", v)
		}
		s.hash.Write(b)
	}
	return nil
}

func (s *sum) of(table string) Copied {
	return Copied{Table: table, Rows: s.rows, SHA256: hex.EncodeToString(s.hash.Sum(nil))}
}
