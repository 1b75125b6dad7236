package store

import (
	"reflect"
	"testing"
	"time"

	"berth/internal/compute"
)

const maxRules = 4 // of these tests

func addRule(t testing.TB, s *Store, owner compute.UserID, id compute.ContainerID, port int) compute.IngressRule {
	t.Helper()
	r, err := s.AddIngressRule(t.Context(), owner, id, compute.IngressRule{Port: port, TargetPort: port}, maxRules)
	if err != nil {
		t.Fatalf("AddIngressRule %d: %v", port, err)
	}
	return r
}

func TestIngressRules(t *testing.T) {
	ctx := t.Context()
	clk := newClock()
	s := openNew(t, Options{Now: clk.now})
	alice, bob := addUser(t, s, "alice"), addUser(t, s, "bob")
	key := addKey(t, s, alice, "one")
	c, other := addContainer(t, s, alice, key), addContainer(t, s, alice, key)
	if list, err := s.IngressRules(ctx, alice, c.ID); err != nil || list == nil || len(list) != 0 {
		t.Fatalf("at first: %+v %v", list, err)
	}

	clk.add(1500 * time.Millisecond)
	first, err := s.AddIngressRule(ctx, alice, c.ID, compute.IngressRule{ID: 99, Port: 8080, TargetPort: 3000}, maxRules)
	if want := (compute.IngressRule{ID: 1, Port: 8080, TargetPort: 3000, CreatedAt: clk.now()}); err != nil || first != want {
		t.Fatalf("got %+v %v, want %+v", first, err, want)
	}
	second := addRule(t, s, alice, c.ID, 80)
	addRule(t, s, alice, other.ID, 8080) // the same port of another container
	list, err := s.IngressRules(ctx, alice, c.ID)
	if err != nil || !reflect.DeepEqual(list, []compute.IngressRule{first, second}) {
		t.Fatalf("IngressRules: %+v %v", list, err)
	}

	// What is another's is absent, as what is not there at all.
	before := len(allEvents(t, s.Reader))
	for as, id := range map[compute.UserID]compute.ContainerID{bob: c.ID, alice: "ffffffff"} {
		_, err = s.IngressRules(ctx, as, id)
		wantCode(t, err, compute.CodeNotFound)
		_, err = s.AddIngressRule(ctx, as, id, compute.IngressRule{Port: 443, TargetPort: 443}, maxRules)
		wantCode(t, err, compute.CodeNotFound)
		wantCode(t, s.DeleteIngressRule(ctx, as, id, 80), compute.CodeNotFound)
	}
	// Refused, and nothing is stored.
	_, err = s.AddIngressRule(ctx, alice, c.ID, compute.IngressRule{Port: 8080, TargetPort: 1}, maxRules)
	wantCode(t, err, compute.CodeConflict)
	for _, bad := range []compute.IngressRule{{Port: 22, TargetPort: 22}, {Port: 9000, TargetPort: 80}, {Port: 443, TargetPort: 65536}} {
		_, err = s.AddIngressRule(ctx, alice, c.ID, bad, maxRules)
		wantCode(t, err, compute.CodeInvalid)
	}
	for _, port := range []int{443, 0, -1, 22, 1 << 40} {
		wantCode(t, s.DeleteIngressRule(ctx, alice, c.ID, port), compute.CodeNotFound)
	}
	if after := len(allEvents(t, s.Reader)); after != before {
		t.Fatalf("%d events of what was refused", after-before)
	}
	if got, err := s.Container(ctx, alice, c.ID); err != nil || got.HTTPSEnabled || got.Generation != 1 {
		t.Fatalf("%+v %v", got, err)
	}

	if err := s.DeleteIngressRule(ctx, alice, c.ID, 8080); err != nil {
		t.Fatal(err)
	}
	wantCode(t, s.DeleteIngressRule(ctx, alice, c.ID, 8080), compute.CodeNotFound)
	if again := addRule(t, s, alice, c.ID, 8080); again.ID <= second.ID {
		t.Fatalf("a rule's id came back: %+v", again)
	}
	if list, err := s.IngressRules(ctx, alice, other.ID); err != nil || len(list) != 1 {
		t.Fatalf("of the other container: %+v %v", list, err)
	}
	if _, err := s.SetUserDisabled(ctx, alice, true); err != nil {
		t.Fatal(err)
	}
	_, err = s.AddIngressRule(ctx, alice, c.ID, compute.IngressRule{Port: 443, TargetPort: 443}, maxRules)
	wantCode(t, err, compute.CodeForbidden)
}

func TestIngressRulesAreBounded(t *testing.T) {
	ctx := t.Context()
	s := openNew(t, Options{})
	alice := addUser(t, s, "alice")
	key := addKey(t, s, alice, "one")
	c, other := addContainer(t, s, alice, key), addContainer(t, s, alice, key)
	add := func(port, limit int) error {
		_, err := s.AddIngressRule(ctx, alice, c.ID, compute.IngressRule{Port: port, TargetPort: port}, limit)
		return err
	}
	for port := 8000; port < 8000+maxRules; port++ {
		addRule(t, s, alice, c.ID, port)
	}
	wantCode(t, add(80, maxRules), compute.CodeLimit)
	wantCode(t, add(8000, maxRules), compute.CodeConflict) // at the limit, that it is there is the better answer
	addRule(t, s, alice, other.ID, 80)                     // each container has a limit of its own
	if err := s.DeleteIngressRule(ctx, alice, c.ID, 8001); err != nil {
		t.Fatal(err)
	}
	wantCode(t, add(80, maxRules-1), compute.CodeLimit) // the limit was lowered meanwhile
	if err := add(80, maxRules); err != nil {
		t.Fatal(err)
	}
}

// HTTPS of a container is on while it has a rule for port 443, and each change of a rule is told of once.
func TestHTTPSFollowsPort443(t *testing.T) {
	ctx := t.Context()
	s := openNew(t, Options{})
	alice := addUser(t, s, "alice")
	key := addKey(t, s, alice, "one")
	c, other := addContainer(t, s, alice, key), addContainer(t, s, alice, key)
	for _, step := range []struct {
		add   bool
		port  int
		https bool
	}{
		{true, 80, false},
		{true, 443, true},
		{true, 8443, true},
		{false, 80, true},
		{false, 443, false},
		{true, 443, true},
		{false, 8443, true},
		{false, 443, false},
	} {
		before, err := s.LastEvent(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if step.add {
			addRule(t, s, alice, c.ID, step.port)
		} else if err := s.DeleteIngressRule(ctx, alice, c.ID, step.port); err != nil {
			t.Fatal(err)
		}
		target, err := s.Target(ctx, c.ID)
		if err != nil || target.Container.HTTPSEnabled != step.https || target.Container.Generation != 1 {
			t.Fatalf("%+v: %+v %v", step, target.Container, err)
		}
		events, err := s.Events(ctx, before, 10)
		if err != nil || len(events) != 1 || events[0].Kind != compute.EventContainerChanged || events[0].Container != c.ID ||
			events[0].Owner != alice {
			t.Fatalf("%+v: events %+v %v", step, events, err)
		}
	}
	if got, err := s.Container(ctx, alice, other.ID); err != nil || got.HTTPSEnabled {
		t.Fatalf("the other container: %+v %v", got, err)
	}
}

// A delete takes the rules along, at once.
func TestRulesGoWithTheirContainer(t *testing.T) {
	ctx := t.Context()
	s := openNew(t, Options{})
	alice := addUser(t, s, "alice")
	key := addKey(t, s, alice, "one")
	c, other := addContainer(t, s, alice, key), addContainer(t, s, alice, key)
	for _, id := range []compute.ContainerID{c.ID, other.ID} {
		addRule(t, s, alice, id, 443)
		addRule(t, s, alice, id, 8000)
	}
	if _, err := s.SetDesired(ctx, alice, c.ID, compute.DesiredDeleted); err != nil {
		t.Fatal(err)
	}
	mustCount(t, s.db, 0, `SELECT count(*) FROM ingress_rules WHERE container = ?`, c.ID)
	_, err := s.IngressRules(ctx, alice, c.ID)
	wantCode(t, err, compute.CodeNotFound)
	_, err = s.AddIngressRule(ctx, alice, c.ID, compute.IngressRule{Port: 80, TargetPort: 80}, maxRules)
	wantCode(t, err, compute.CodeNotFound)
	wantCode(t, s.DeleteIngressRule(ctx, alice, c.ID, 443), compute.CodeNotFound)
	if err := s.Purge(ctx, c.ID); err != nil {
		t.Fatal(err)
	}
	if list, err := s.IngressRules(ctx, alice, other.ID); err != nil || len(list) != 2 {
		t.Fatalf("of the other container: %+v %v", list, err)
	}
}
