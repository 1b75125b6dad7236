package store

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"berth/internal/compute"
)

func TestContainer(t *testing.T) {
	ctx := t.Context()
	clk := newClock()
	s := openNew(t, Options{Now: clk.now})
	alice, bob := addUser(t, s, "alice"), addUser(t, s, "bob")
	k1, k2 := addKey(t, s, alice, "one"), addKey(t, s, alice, "two")
	bobs := addKey(t, s, bob, "bobs")

	c := addContainer(t, s, alice, k2, k1)
	want := boxOf(alice, k1, k2)
	want.ID, want.CreatedAt, want.Generation = c.ID, clk.now(), 1
	want.Desired, want.Status = compute.DesiredRunning, compute.StatusPending
	if !reflect.DeepEqual(c, want) {
		t.Fatalf("got  %+v\nwant %+v", c, want)
	}
	got, err := s.Container(ctx, alice, c.ID)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("Container: %+v %v", got, err)
	}
	target, err := s.Target(ctx, c.ID)
	if err != nil || !reflect.DeepEqual(target.Container, want) || target.Owner.Username != "alice" ||
		len(target.Keys) != 2 || target.Keys[0].ID != k1 || target.Keys[1].ID != k2 {
		t.Fatalf("Target: %+v %v", target, err)
	}

	// What is another's is absent.
	_, err = s.Container(ctx, bob, c.ID)
	wantCode(t, err, compute.CodeNotFound)
	_, err = s.SetDesired(ctx, bob, c.ID, compute.DesiredDeleted)
	wantCode(t, err, compute.CodeNotFound)
	_, err = s.SetSSH(ctx, bob, c.ID, false)
	wantCode(t, err, compute.CodeNotFound)

	// Unknown keys and those of others get the same answer, and nothing is stored.
	before := allEvents(t, s.Reader)
	for _, bad := range []int64{99, bobs} {
		_, err := s.CreateContainer(ctx, boxOf(alice, k1, bad), 3)
		wantCode(t, err, compute.CodeInvalid)
		if f := compute.AsError(err).Field; f != "ssh_key_ids" {
			t.Fatalf("the field at fault is %q", f)
		}
	}
	_, err = s.CreateContainer(ctx, boxOf(alice, k1, k1), 3)
	wantCode(t, err, compute.CodeInvalid)
	bad := boxOf(alice, k1)
	bad.MemoryMB = -1
	_, err = s.CreateContainer(ctx, bad, 3)
	wantCode(t, err, compute.CodeInvalid)
	_, err = s.CreateContainer(ctx, boxOf(99, k1), 3)
	wantCode(t, err, compute.CodeNotFound)
	if after := allEvents(t, s.Reader); len(after) != len(before) {
		t.Fatalf("refused requests left events: %+v", after[len(before):])
	}
	mustCount(t, s.db, 1, `SELECT count(*) FROM container_ids`)

	none := boxOf(alice, k1)
	none.MountPaths = nil
	c2, err := s.CreateContainer(ctx, none, 3)
	if err != nil || c2.MountPaths == nil || len(c2.MountPaths) != 0 || c2.Slot != 1 {
		t.Fatalf("without mount paths: %+v %v", c2, err)
	}
	list, err := s.Containers(ctx, alice)
	if err != nil || len(list) != 2 || list[0].ID != c.ID || list[1].ID != c2.ID {
		t.Fatalf("Containers: %+v %v", list, err)
	}
}

func TestSetSSH(t *testing.T) {
	ctx := t.Context()
	s := openNew(t, Options{})
	alice := addUser(t, s, "alice")
	c := addContainer(t, s, alice, addKey(t, s, alice, "one"))
	before := len(allEvents(t, s.Reader))
	for range 2 {
		got, err := s.SetSSH(ctx, alice, c.ID, false)
		if err != nil || got.SSHEnabled || got.Generation != c.Generation {
			t.Fatalf("SetSSH: %+v %v", got, err)
		}
	}
	if n := len(allEvents(t, s.Reader)); n != before+1 {
		t.Fatalf("%d events for one change", n-before)
	}
}

func TestDeleteAndPurge(t *testing.T) {
	ctx := t.Context()
	s := openNew(t, Options{})
	alice := addUser(t, s, "alice")
	key := addKey(t, s, alice, "one")
	c := addContainer(t, s, alice, key)
	addContainer(t, s, alice, key)
	addContainer(t, s, alice, key)

	wantCode(t, s.Purge(ctx, c.ID), compute.CodeConflict) // nobody deleted it
	got, err := s.SetDesired(ctx, alice, c.ID, compute.DesiredDeleted)
	if err != nil || got.Desired != compute.DesiredDeleted || got.Generation != 2 {
		t.Fatalf("delete: %+v %v", got, err)
	}
	// From now on it is absent, and the limit does not count it.
	_, err = s.Container(ctx, alice, c.ID)
	wantCode(t, err, compute.CodeNotFound)
	_, err = s.Target(ctx, c.ID)
	wantCode(t, err, compute.CodeNotFound)
	for _, d := range []compute.Desired{compute.DesiredRunning, compute.DesiredStopped, compute.DesiredDeleted} {
		_, err = s.SetDesired(ctx, alice, c.ID, d)
		wantCode(t, err, compute.CodeNotFound)
	}
	_, err = s.SetSSH(ctx, alice, c.ID, false)
	wantCode(t, err, compute.CodeNotFound)
	fourth := addContainer(t, s, alice, key)
	if fourth.Slot != 3 { // its slot stays taken
		t.Fatalf("slot %d was given while its holder is not purged", fourth.Slot)
	}
	// The loop still sees it.
	if got, err = s.ReconcileState(ctx, c.ID); err != nil || got.Desired != compute.DesiredDeleted {
		t.Fatalf("ReconcileState: %+v %v", got, err)
	}
	all, err := s.Reconcilable(ctx)
	if err != nil || len(all) != 4 {
		t.Fatalf("Reconcilable: %+v %v", all, err)
	}
	if err := s.RecordStorage(ctx, c.ID); err != nil { // a provision that was under way
		t.Fatal(err)
	}
	before := len(allEvents(t, s.Reader))
	if err := s.SetStatus(ctx, c.ID, got.Generation, compute.StatusFailed, "shows to nobody"); err != nil {
		t.Fatal(err)
	}
	for range 2 { // killed after the commit, the loop purges again
		if err := s.Purge(ctx, c.ID); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(allEvents(t, s.Reader)); n != before+1 {
		t.Fatalf("%d events for one purge", n-before)
	}
	_, err = s.ReconcileState(ctx, c.ID)
	wantCode(t, err, compute.CodeNotFound)
	wantCode(t, s.Purge(ctx, "00000000"), compute.CodeNotFound)
	wantCode(t, s.RecordStorage(ctx, c.ID), compute.CodeNotFound)
	wantCode(t, s.SetStatus(ctx, c.ID, 2, compute.StatusStopped, ""), compute.CodeNotFound)
}

func TestIDsNeverComeBack(t *testing.T) {
	ids := []compute.ContainerID{"aaaaaaaa", "aaaaaaaa", "bbbbbbbb", "aaaaaaaa", "bbbbbbbb", "cccccccc"}
	s := openNew(t, Options{NewID: func() compute.ContainerID {
		if len(ids) == 0 {
			return "aaaaaaaa"
		}
		id := ids[0]
		ids = ids[1:]
		return id
	}})
	alice := addUser(t, s, "alice")
	key := addKey(t, s, alice, "one")
	var got []compute.ContainerID
	for range 3 {
		c := addContainer(t, s, alice, key)
		got = append(got, c.ID)
		remove(t, s, c)
	}
	if !slices.Equal(got, []compute.ContainerID{"aaaaaaaa", "bbbbbbbb", "cccccccc"}) {
		t.Fatalf("ids %v", got)
	}
	// Where every proposal was taken before, the request fails and nothing is stored.
	_, err := s.CreateContainer(t.Context(), boxOf(alice, key), 3)
	wantCode(t, err, compute.CodeInternal)
	mustCount(t, s.db, 0, `SELECT count(*) FROM containers`)
}

// The schema itself refuses what would destroy a user's data or bring an id back, whatever a later version of this package
// gets wrong.
func TestSchemaRefuses(t *testing.T) {
	ctx := t.Context()
	s := openNew(t, Options{})
	alice, bob := addUser(t, s, "alice"), addUser(t, s, "bob")
	key := addKey(t, s, alice, "one")
	addKey(t, s, bob, "two") // key 2
	c := addContainer(t, s, alice, key)
	if err := s.RecordStorage(ctx, c.ID); err != nil {
		t.Fatal(err)
	}
	addRule(t, s, alice, c.ID, 443)
	gone := addContainer(t, s, alice, key)
	remove(t, s, gone)
	dying := addContainer(t, s, alice, key)
	if _, err := s.SetDesired(ctx, alice, dying.ID, compute.DesiredDeleted); err != nil {
		t.Fatal(err)
	}
	for name, query := range map[string]string{
		"forget an id":               `DELETE FROM container_ids WHERE id = '` + string(gone.ID) + `'`,
		"undo a tombstone":           `UPDATE container_ids SET deleted_at = NULL, purged_at = NULL WHERE id = '` + string(gone.ID) + `'`,
		"move an id":                 `UPDATE container_ids SET owner = 2 WHERE id = '` + string(gone.ID) + `'`,
		"reuse an id":                `INSERT INTO container_ids (id, owner, created_at) VALUES ('` + string(gone.ID) + `', 1, 0)`,
		"undelete":                   `UPDATE containers SET desired = 'stopped', ordinal = 2 WHERE id = '` + string(dying.ID) + `'`,
		"drop a living container":    `DELETE FROM containers WHERE id = '` + string(c.ID) + `'`,
		"drop an unpurged one":       `DELETE FROM containers WHERE id = '` + string(dying.ID) + `'`,
		"forget made storage":        `UPDATE containers SET storage_made = 0 WHERE id = '` + string(c.ID) + `'`,
		"deleted, and counted":       `UPDATE containers SET desired = 'deleted' WHERE id = '` + string(c.ID) + `'`,
		"another's key":              `INSERT INTO container_keys VALUES ('` + string(c.ID) + `', 2, 1)`,
		"another's key as his":       `INSERT INTO container_keys VALUES ('` + string(c.ID) + `', 2, 2)`,
		"a place twice":              `UPDATE containers SET ordinal = 0 WHERE id = '` + string(dying.ID) + `'`,
		"a slot twice":               `UPDATE containers SET slot = 0 WHERE id = '` + string(dying.ID) + `'`,
		"a slot beyond":              `UPDATE containers SET slot = 4 WHERE id = '` + string(c.ID) + `'`,
		"an SSH port outside":        `INSERT INTO ingress_rules VALUES (2, '` + string(c.ID) + `', 1, 32, 22, 22, 0)`,
		"a port beside":              `UPDATE ingress_rules SET port = 9000`,
		"a port inside that is none": `UPDATE ingress_rules SET target_port = 65536`,
		"a port twice":               `INSERT INTO ingress_rules VALUES (2, '` + string(c.ID) + `', 1, 32, 443, 22, 0)`,
		"a rule's place twice":       `INSERT INTO ingress_rules VALUES (2, '` + string(c.ID) + `', 0, 32, 80, 80, 0)`,
		"a rule too many":            `INSERT INTO ingress_rules VALUES (2, '` + string(c.ID) + `', 32, 32, 80, 80, 0)`,
		"a rule of nobody's":         `INSERT INTO ingress_rules VALUES (2, '` + string(gone.ID) + `', 0, 32, 80, 80, 0)`,
		"an unknown status":          `UPDATE containers SET status = 'lost'`,
		"a text for a number":        `UPDATE containers SET memory_mb = 'many'`,
		"mount paths that are none":  `UPDATE containers SET mount_paths = '/root'`,
		"a user with things":         `DELETE FROM users WHERE id = 1`,
		"a second installation":      `INSERT INTO installation VALUES (2, '00000000000000000000000000000000', 1)`,
		"an odd id":                  `INSERT INTO container_ids (id, owner, created_at) VALUES ('AAAAAAAA', 1, 0)`,
	} {
		_, err := s.writer.Exec(query)
		refused := sqliteCode(err)&0xff == 19 // SQLITE_CONSTRAINT
		switch code := postgresCode(err); {
		case code == "P0001", strings.HasPrefix(code, "22"), strings.HasPrefix(code, "23"):
			refused = true // by a trigger, for what it is, by a constraint
		}
		if !refused {
			t.Errorf("%s: %v", name, err)
		}
	}
}
