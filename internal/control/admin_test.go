package control_test

import (
	"slices"
	"testing"

	"berth/internal/compute"
)

// What is for administrators is refused to others here too, whatever an edge lets through.
func TestAdministratorsAlone(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		ref := r.create()
		r.want(ref, compute.StatusRunning, "")
		ctx, yes := t.Context(), true
		lost := compute.Ref{Owner: 99, ID: "0badf00d"}
		r.eng.set(func() { r.eng.storage[lost] = true })
		for name, f := range map[string]func(compute.Principal) error{
			"list users": func(p compute.Principal) error { _, _, err := r.svc.ListUsers(ctx, p, 0, 10); return err },
			"get user":   func(p compute.Principal) error { _, err := r.svc.GetUser(ctx, p, ref.Owner); return err },
			"add user": func(p compute.Principal) error {
				_, err := r.svc.AddUser(ctx, p, "new", compute.RoleUser, nil)
				return err
			},
			"change user": func(p compute.Principal) error {
				_, err := r.svc.ChangeUser(ctx, p, ref.Owner, compute.UserChange{Disabled: &yes})
				return err
			},
			"list containers": func(p compute.Principal) error {
				_, _, err := r.svc.ListAllContainers(ctx, p, compute.ContainerFilter{}, 0, 10)
				return err
			},
			"stop":            func(p compute.Principal) error { _, err := r.svc.StopAnyContainer(ctx, p, ref.ID); return err },
			"list storage":    func(p compute.Principal) error { _, err := r.svc.Quarantined(ctx, p); return err },
			"discard storage": func(p compute.Principal) error { return r.svc.DiscardStorage(ctx, p, lost) },
		} {
			r.settle() // what an administrator asked for has happened
			before := r.events()
			if err := f(compute.Principal{User: ref.Owner, Role: compute.RoleUser}); compute.CodeOf(err) != compute.CodeForbidden {
				t.Errorf("%s by a user: %v", name, err)
			}
			if n := r.events(); n != before {
				t.Errorf("%s by a user is %d events", name, n-before)
			}
			if err := f(compute.Principal{User: 98, Role: compute.RoleAdmin}); err != nil {
				t.Errorf("%s by an administrator: %v", name, err)
			}
		}
		r.want(ref, compute.StatusStopped, "")
	})
}

// The loop leaves what the database does not know; only an administrator's word takes it, and not what is known.
func TestQuarantine(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		admin := compute.Principal{User: 98, Username: "root", Role: compute.RoleAdmin}
		ref := r.create()
		lost, other := compute.Ref{Owner: 99, ID: "0badf00d"}, compute.Ref{Owner: ref.Owner + 1, ID: ref.ID}
		r.eng.set(func() { r.eng.storage[lost], r.eng.storage[other] = true, true })
		r.want(ref, compute.StatusRunning, "")
		is := func(want ...compute.Ref) {
			t.Helper()
			list, err := r.svc.Quarantined(t.Context(), admin)
			if err != nil {
				t.Fatal(err)
			}
			var got []compute.Ref
			for _, v := range list {
				got = append(got, v.Ref)
			}
			if !slices.Equal(got, want) {
				t.Errorf("quarantined is %v, want %v", got, want)
			}
		}
		is(other, lost)
		if err := r.svc.DiscardStorage(t.Context(), admin, ref); compute.CodeOf(err) != compute.CodeConflict {
			t.Errorf("what is known: %v", err)
		}
		for _, x := range []compute.Ref{lost, other} {
			if err := r.svc.DiscardStorage(t.Context(), admin, x); err != nil {
				t.Error(err)
			}
		}
		is()
		if err := r.svc.DiscardStorage(t.Context(), admin, lost); compute.CodeOf(err) != compute.CodeNotFound {
			t.Errorf("what is not there: %v", err)
		}
		r.want(ref, compute.StatusRunning, "")
		r.eng.set(func() {
			if !r.eng.storage[ref] {
				t.Error("the known container's storage went")
			}
		})
	})
}
