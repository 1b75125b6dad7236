package k8s

import (
	"encoding/json"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth/internal/compute"
)

// What others add to an object is theirs; what they change of what was applied is seen, wherever it is.
func TestEditsAreSeen(t *testing.T) {
	m := maker{opt: Options{InstallationID: "i", Image: "base", AgentImage: "agent", GatewayNamespace: "berth"}}
	s := goldenSpec()
	policy := func(name string) func() object {
		return func() object {
			for _, p := range m.policies(s.Ref, nil) {
				if p.Name == name {
					return p
				}
			}
			t.Fatalf("no policy %s", name)
			return nil
		}
	}
	for _, c := range []struct {
		name string
		make func() object
		edit func(object)
		seen bool
	}{
		{"nothing", policy("deny"), func(object) {}, false},
		{"a label and an annotation more", policy("deny"), func(o object) {
			o.GetLabels()["team"] = "red"
			o.SetAnnotations(map[string]string{"note": "x"})
		}, false},
		{"a label of ours", policy("deny"), func(o object) { o.GetLabels()[labelContainer] = "other" }, true},
		{"an empty selector that selects", policy("deny"), func(o object) {
			o.(*networkingv1.NetworkPolicy).Spec.PodSelector.MatchLabels = map[string]string{"a": "b"}
		}, true},
		{"a rule more", policy("to-public"), func(o object) {
			p := o.(*networkingv1.NetworkPolicy)
			p.Spec.Egress = append(p.Spec.Egress, networkingv1.NetworkPolicyEgressRule{})
		}, true},
		{"a range less", policy("to-public"), func(o object) {
			to := o.(*networkingv1.NetworkPolicy).Spec.Egress[0].To[0].IPBlock
			to.Except = to.Except[1:]
		}, true},
		{"a selector's label more", policy("from-gateway"), func(o object) {
			o.(*networkingv1.NetworkPolicy).Spec.Ingress[0].From[0].NamespaceSelector.MatchLabels["x"] = "y"
		}, true},
		{"what the cluster fills in", func() object { return m.statefulSet(s, nil) }, func(o object) {
			set := o.(*appsv1.StatefulSet)
			set.Spec.PodManagementPolicy = appsv1.OrderedReadyPodManagement
			set.Spec.Template.Spec.RestartPolicy = corev1.RestartPolicyAlways
			set.Spec.Template.Spec.Containers[0].TerminationMessagePath = "/dev/termination-log"
			set.Status.Replicas = 1
		}, false},
		{"a container beside ours", func() object { return m.statefulSet(s, nil) }, func(o object) {
			spec := &o.(*appsv1.StatefulSet).Spec.Template.Spec
			spec.Containers = append([]corev1.Container{{Name: "sidecar"}}, spec.Containers...)
		}, false},
		{"replicas", func() object { return m.statefulSet(s, nil) }, func(o object) { *o.(*appsv1.StatefulSet).Spec.Replicas = 0 }, true},
		{"a capability back", func() object { return m.statefulSet(s, nil) }, func(o object) {
			caps := o.(*appsv1.StatefulSet).Spec.Template.Spec.Containers[0].SecurityContext.Capabilities
			caps.Drop = caps.Drop[:1]
		}, true},
		{"a mount elsewhere", func() object { return m.statefulSet(s, nil) }, func(o object) {
			mounts := o.(*appsv1.StatefulSet).Spec.Template.Spec.Containers[2].VolumeMounts // the main one
			mounts[len(mounts)-1].SubPath = "elsewhere"
		}, true},
		{"a quota's number", func() object { return m.quota(s.Ref) }, func(o object) {
			o.(*corev1.ResourceQuota).Spec.Hard[corev1.ResourcePods] = *quantity(9)
		}, true},
		{"a quota's number more", func() object { return m.quota(s.Ref) }, func(o object) {
			o.(*corev1.ResourceQuota).Spec.Hard[corev1.ResourceConfigMaps] = *quantity(9)
		}, false},
	} {
		e, u, want, live := &Engine{}, &unit{}, c.make(), c.make()
		c.edit(live)
		live.SetResourceVersion("7")
		live.SetCreationTimestamp(metav1.Now())
		if e.stands(u, want, live) == c.seen {
			t.Errorf("%s: seen %v", c.name, !c.seen)
		}
		// What the API server made of what was applied is taken as it is, and nothing else.
		fields, err := fieldsOf(want)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := json.Marshal(live)
		if err != nil {
			t.Fatal(err)
		}
		if err := e.noteMade(u, want, fields, answer); err != nil {
			t.Fatal(err)
		}
		if !e.stands(u, want, live) {
			t.Errorf("%s: what was made does not stand", c.name)
		}
		live.GetLabels()[labelManaged] = "somebody"
		if e.stands(u, want, live) {
			t.Errorf("%s: another change is not seen", c.name)
		}
	}
}

// Who changes something again and again is answered ever more seldom; after a long quiet at once.
func TestRestraint(t *testing.T) {
	var r restraint
	began := time.Now()
	now := began
	acted := 0
	for now.Sub(began) < time.Hour {
		d := r.wait(now)
		if d == 0 {
			acted++
			d = 10 * time.Millisecond // and it is undone
		}
		now = now.Add(d)
	}
	if acted < 15 || acted > 25 {
		t.Errorf("in an hour it was set back %d times", acted)
	}
	now = now.Add(longRestraint + quietAfter + time.Second)
	if d := r.wait(now); d != 0 {
		t.Errorf("after a long quiet it waits %s", d)
	}
	if d := r.wait(now.Add(time.Millisecond)); d <= 0 || d > firstRestraint {
		t.Errorf("then it waits %s", d)
	}
}

// A node that is not heard of is no death: its containers may go on.
func TestSilentNode(t *testing.T) {
	s := whole()
	s.silent = true
	if s = s.see(); s.phase != compute.PhaseFailed || s.message == "" || s.life != "" {
		t.Errorf("%s %q", s.phase, s.message)
	}
	if err, soon := s.trouble(); err == nil || soon || err.Cause == nil {
		t.Errorf("trouble is %v, %v", err, soon)
	}
	now := metav1.Now()
	s.pod.DeletionTimestamp = &now
	lost := s.see()
	if lost.phase != compute.PhaseFailed || lost.message == s.message {
		t.Errorf("%s %q", lost.phase, lost.message)
	}
}
