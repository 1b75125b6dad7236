package control_test

import (
	"testing"

	"berth/internal/compute"
)

// A rule is stored as asked for, within the limit, and is nothing to the engine.
func TestIngress(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		ref := r.create()
		r.want(ref, compute.StatusRunning, "")
		calls := len(r.eng.asked())
		add := func(port int) error {
			rule, err := r.svc.AddIngress(t.Context(), r.who, ref.ID, compute.IngressRequest{Port: &port})
			if err == nil && (rule.Port != port || rule.TargetPort != port) {
				t.Errorf("port %d became %+v", port, rule)
			}
			return err
		}
		limit := compute.DefaultLimits().RulesPerContainer
		for i := range limit {
			if err := add(8000 + i); err != nil {
				t.Fatal(err)
			}
		}
		if err := add(443); compute.CodeOf(err) != compute.CodeLimit {
			t.Errorf("rule %d: %v", limit+1, err)
		}
		for _, bad := range []int{0, 22, 65536} {
			if err := add(bad); compute.CodeOf(err) != compute.CodeInvalid {
				t.Errorf("port %d: %v", bad, err)
			}
		}
		if list, err := r.svc.ListIngress(t.Context(), r.who, ref.ID); err != nil || len(list) != limit {
			t.Errorf("listed %+v, %v", list, err)
		}
		if err := r.svc.DeleteIngress(t.Context(), r.who, ref.ID, 8000); err != nil {
			t.Error(err)
		}
		if err := r.svc.DeleteIngress(t.Context(), r.who, ref.ID, 8000); compute.CodeOf(err) != compute.CodeNotFound {
			t.Errorf("a second delete: %v", err)
		}
		if err := add(443); err != nil {
			t.Error(err)
		}
		r.settle()
		if c, err := r.svc.GetContainer(t.Context(), r.who, ref.ID); err != nil || !c.HTTPSEnabled || c.Status != compute.StatusRunning {
			t.Errorf("%+v, %v", c, err)
		}
		if got := r.eng.asked(); len(got) != calls {
			t.Errorf("the engine was asked to %v", got[calls:])
		}
	})
}
