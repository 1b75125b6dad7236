package k8s

import (
	"context"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/remotecommand"
)

// A probe runs as containers do, where they do, and is taken for none.
func TestProbeIsNoContainer(t *testing.T) {
	p := prober{maker: maker{opt: Options{
		InstallationID: "i", AgentImage: "registry.example/agent:1", RuntimeClass: "gvisor", NodeSelector: map[string]string{"tenants": "yes"},
	}}}
	set := p.set("berth-probe-00000000")
	pod := set.Spec.Template.Spec
	for _, labels := range []map[string]string{set.Labels, set.Spec.Template.Labels} {
		if len(labels) != 2 || labels[labelManaged] != managedBy || labels[labelProbe] == "" {
			t.Errorf("its labels are %v", labels)
		}
	}
	if len(pod.InitContainers)+len(pod.Volumes) > 0 || len(pod.Containers) != 1 || pod.Containers[0].Image != "registry.example/agent:1" {
		t.Errorf("it is made of %+v", pod)
	}
	if *pod.RuntimeClassName != "gvisor" || len(pod.NodeSelector) != 1 || pod.NodeSelector["tenants"] != "yes" || *pod.AutomountServiceAccountToken {
		t.Errorf("it runs otherwise than containers: %+v", pod)
	}
	if got := pod.Containers[0].Resources.Limits[corev1.ResourceMemory]; got.Value() != 256<<20 {
		t.Errorf("it may have %s of memory", got.String())
	}
}

func TestJudge(t *testing.T) {
	for _, c := range []struct {
		reached, there, problem bool
		detail                  string
	}{
		{reached: true, there: true, problem: true},
		{reached: true, there: false, problem: true},
		{reached: false, there: true, detail: "blocked"},
		{reached: false, there: false, detail: "nothing answers there, so that nothing can be said"},
	} {
		if got := judge("to x", "mend it", c.reached, c.there); (got.Problem != nil) != c.problem || got.Detail != c.detail {
			t.Errorf("%+v is judged %+v", c, got)
		}
	}
}

// A kubelet that begins a command and never ends it is no reason to wait for ever.
func TestProbeStalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := play(t, nil)
		p := &probe{prober: prober{client: e.client, config: e.exec.config}, pod: &corev1.Pod{}}
		stalls := func(_ execer, ctx context.Context, _ *url.URL, _ remotecommand.StreamOptions) error {
			<-ctx.Done()
			return ctx.Err()
		}
		began := time.Now()
		_, err := p.exec(context.WithoutCancel(t.Context()), stalls)
		if took := time.Since(began); err == nil || !strings.Contains(err.Error(), "no answer within") || took != probeAnswer {
			t.Errorf("after %s: %v", took, err)
		}
	})
}
