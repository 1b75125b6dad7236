package store

import (
	"slices"

	"pgregory.net/rapid"

	"berth/internal/compute"
)

// modelRules is how many ingress rules a container has in the walks at most: few, so that they get there.
const modelRules = 3

func (m *model) anyPort(t *rapid.T) int {
	return rapid.SampledFrom([]int{80, 443, 8000, 8080, 8999}).Draw(t, "port")
}

// seen says whether the user sees the container.
func (b *modelBox) seen(as compute.UserID) bool {
	return as == b.Owner && !b.purged && b.Desired != compute.DesiredDeleted
}

func (b *modelBox) ruleFor(port int) int {
	return slices.IndexFunc(b.rules, func(r compute.IngressRule) bool { return r.Port == port })
}

func (m *model) addRule(t *rapid.T) {
	b, as := m.anyBox(t)
	rule := compute.IngressRule{Port: m.anyPort(t), TargetPort: rapid.IntRange(1, 65535).Draw(t, "target")}
	got, err := m.s.AddIngressRule(t.Context(), as, b.ID, rule, modelRules)
	switch {
	case !b.seen(as):
		m.want(t, err, compute.CodeNotFound)
	case m.users[as]:
		m.want(t, err, compute.CodeForbidden)
	case b.ruleFor(rule.Port) >= 0:
		m.want(t, err, compute.CodeConflict)
	case len(b.rules) >= modelRules:
		m.want(t, err, compute.CodeLimit)
	default:
		m.want(t, err, "")
		rule.CreatedAt = m.clk.now()
		if got.ID == 0 || got.Port != rule.Port || got.TargetPort != rule.TargetPort || !got.CreatedAt.Equal(rule.CreatedAt) {
			t.Fatalf("got %+v, want %+v", got, rule)
		}
		b.rules = append(b.rules, rule)
		b.HTTPSEnabled = b.HTTPSEnabled || rule.Port == 443
		m.event(compute.EventContainerChanged, b.Owner, b.ID, 0)
	}
}

func (m *model) deleteRule(t *rapid.T) {
	b, as := m.anyBox(t)
	port := m.anyPort(t)
	err := m.s.DeleteIngressRule(t.Context(), as, b.ID, port)
	i := b.ruleFor(port)
	if !b.seen(as) || i < 0 {
		m.want(t, err, compute.CodeNotFound)
		return
	}
	m.want(t, err, "")
	b.rules = slices.Delete(b.rules, i, i+1)
	b.HTTPSEnabled = b.HTTPSEnabled && port != 443
	m.event(compute.EventContainerChanged, b.Owner, b.ID, 0)
}

// checkRules compares one container's rules with the model.
func (m *model) checkRules(t *rapid.T) {
	b, as := m.anyBox(t)
	list, err := m.s.IngressRules(t.Context(), as, b.ID)
	if !b.seen(as) {
		m.want(t, err, compute.CodeNotFound)
		return
	}
	m.want(t, err, "")
	if len(list) != len(b.rules) {
		t.Fatalf("rules %+v, want %+v", list, b.rules)
	}
	last := int64(0)
	for i, r := range list {
		if r.ID <= last {
			t.Fatalf("rule %d follows %d", r.ID, last)
		}
		last, r.ID = r.ID, 0
		if r != b.rules[i] {
			t.Fatalf("rule %+v, want %+v", r, b.rules[i])
		}
	}
}

func (m *model) mounts(t *rapid.T) {
	b, as := m.anyBox(t)
	paths := rapid.SampledFrom([][]string{
		nil, {}, {"/root"}, {"/root", "/var/data"}, {"/var/data", "/root"}, {"/srv"}, {"/root", "/srv"},
	}).Draw(t, "paths")
	c, changed, err := m.s.SetMountPaths(t.Context(), as, b.ID, paths)
	if !b.seen(as) {
		m.want(t, err, compute.CodeNotFound)
		return
	}
	m.want(t, err, "")
	same := len(paths) == len(b.MountPaths)
	for _, p := range paths {
		same = same && slices.Contains(b.MountPaths, p)
	}
	if changed == same {
		t.Fatalf("%q after %q: changed is %v", paths, b.MountPaths, changed)
	}
	if !same {
		b.MountPaths = append([]string{}, paths...)
		b.Generation++
		m.event(compute.EventContainerChanged, b.Owner, b.ID, 0)
		if b.Desired == compute.DesiredRunning {
			m.walk(b, compute.StatusPending, "")
		}
	}
	if c.Generation != b.Generation || c.Status != b.Status || !slices.Equal(c.MountPaths, b.MountPaths) {
		t.Fatalf("returned %+v, want %+v", c, b.Container)
	}
}
