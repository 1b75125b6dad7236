package k8s

import (
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth/internal/compute"
)

// whole is a container that runs, as the cluster shows it.
func whole() sight {
	one := int32(1)
	return sight{
		ref:       compute.Ref{Owner: 7, ID: "deadbeef"},
		namespace: &corev1.Namespace{}, claim: &corev1.PersistentVolumeClaim{},
		set: &appsv1.StatefulSet{
			ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{annotationGeneration: "5"}},
			Spec:       appsv1.StatefulSetSpec{Replicas: &one},
		},
		pod: &corev1.Pod{
			Spec: corev1.PodSpec{NodeSelector: map[string]string{corev1.LabelArchStable: "arm64"}},
			Status: corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{{
				Name: nameMain, ContainerID: "one", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
			}}},
		},
	}
}

func waitingFor(s *sight, reason string) {
	s.pod.Status.ContainerStatuses[0].ContainerID = ""
	s.pod.Status.ContainerStatuses[0].State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}}
}

func endedBefore(s *sight, t corev1.ContainerStateTerminated) {
	s.pod.Status.ContainerStatuses[0].LastTerminationState.Terminated = &t
}

// Phase and message are derived from what the cluster shows, and from nothing else.
func TestPhases(t *testing.T) {
	now := metav1.Now()
	none := int32(0)
	for _, c := range []struct {
		name    string
		change  func(*sight)
		phase   compute.Phase
		message string
	}{
		{"whole", func(*sight) {}, compute.PhaseRunning, ""},
		{"nothing", func(s *sight) { *s = sight{} }, compute.PhaseAbsent, ""},
		{"namespace deleted by hand", func(s *sight) { s.namespace.DeletionTimestamp = &now }, compute.PhaseFailed, "Its namespace is being deleted, and its storage with it."},
		{"volume deleted by hand", func(s *sight) { s.claim = nil }, compute.PhaseFailed, storageMissing().Message},
		{"volume lost", func(s *sight) { s.claim.Status.Phase = corev1.ClaimLost }, compute.PhaseFailed, storageMissing().Message},
		{"storage alone", func(s *sight) { s.set, s.pod = nil, nil }, compute.PhaseStopped, ""},
		{"stopped", func(s *sight) { s.set.Spec.Replicas, s.pod = &none, nil }, compute.PhaseStopped, ""},
		{"no pod yet", func(s *sight) { s.pod = nil }, compute.PhaseStarting, ""},
		{"no container yet", func(s *sight) { s.pod.Status.ContainerStatuses = nil }, compute.PhaseStarting, ""},
		{"creating", func(s *sight) { waitingFor(s, "ContainerCreating") }, compute.PhaseStarting, ""},
		{"pod deleted", func(s *sight) { s.pod.DeletionTimestamp = &now }, compute.PhaseStopped, "Its pod is being ended."},
		{"evicted for its disk", func(s *sight) {
			s.pod.Status = corev1.PodStatus{Phase: corev1.PodFailed, Reason: "Evicted", Message: "Pod ephemeral local storage usage exceeds the total limit"}
		}, compute.PhaseStopped, "It wrote more outside its mount paths than its storage_gb, and was ended."},
		{"evicted for the node's", func(s *sight) {
			s.pod.Status = corev1.PodStatus{Phase: corev1.PodFailed, Reason: "Evicted", Message: "The node was low on resource: memory."}
		}, compute.PhaseStopped, "Its node ran short of memory or disk, and ended it."},
		{"not prepared", func(s *sight) {
			s.pod.Status.ContainerStatuses[0].State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: exitUnprepared}}
		}, compute.PhaseStarting, ""},
		{"not prepared, again and again", func(s *sight) {
			waitingFor(s, "CrashLoopBackOff")
			endedBefore(s, corev1.ContainerStateTerminated{ExitCode: exitUnprepared})
		}, compute.PhaseStarting, ""},
		{"out of memory", func(s *sight) {
			s.pod.Status.ContainerStatuses[0].State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: "OOMKilled", ExitCode: 137}}
		}, compute.PhaseStopped, "It ran out of memory."},
		{"crashing", func(s *sight) {
			waitingFor(s, "CrashLoopBackOff")
			endedBefore(s, corev1.ContainerStateTerminated{ExitCode: 3})
		}, compute.PhaseStopped, "It ended by itself, with status 3."},
	} {
		s := whole()
		c.change(&s)
		if s = s.see(); s.phase != c.phase || s.message != c.message || (s.life != "") != (c.phase == compute.PhaseRunning) {
			t.Errorf("%s: %s, %q, life %q; want %s, %q", c.name, s.phase, s.message, s.life, c.phase, c.message)
		}
	}
}

// What keeps a container from starting is told in words that help its owner; the cluster's own are in the cause.
func TestTroubleHasWords(t *testing.T) {
	unschedulable := func(why string) func(*sight) {
		return func(s *sight) {
			s.pod.Status = corev1.PodStatus{Conditions: []corev1.PodCondition{{
				Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable, Message: why,
			}}}
		}
	}
	for _, c := range []struct {
		name    string
		change  func(*sight)
		code    compute.Code
		message string
		soon    bool
	}{
		{"memory", unschedulable("0/3 nodes are available: 3 Insufficient memory."), compute.CodeCapacity, "No node has room for its memory now; it starts as soon as one has. Stop another container, or ask for less.", true},
		{"architecture", unschedulable("0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."), compute.CodeCapacity, "no arm64 node is free for it; choose another instance type, or ask your operator.", true},
		{"volume", unschedulable("pod has unbound immediate PersistentVolumeClaims"), compute.CodeCapacity, "Its storage is not there yet: the cluster has not made it, or no node can reach it. It starts as soon as that is so.", true},
		{"image", func(s *sight) {
			waitingFor(s, "ImagePullBackOff")
			s.pod.Status.ContainerStatuses[0].Image = "nowhere/x"
		}, compute.CodeUnavailable, "Its image nowhere/x cannot be pulled; check the name, or ask your operator whether the cluster may pull it. It is tried again.", false},
		{"seeding", func(s *sight) {
			waitingFor(s, "RunContainerError") // comes first, and only follows
			s.pod.Status.ContainerStatuses = append(s.pod.Status.ContainerStatuses, helperEnded(nameSeed, "Error",
				"berth-agent: the storage has no room for what the image holds in /opt; choose a larger storage_gb\n"))
		}, compute.CodeCapacity, "The container could not be prepared: the storage has no room for what the image holds in /opt; choose a larger storage_gb.", false},
	} {
		s := whole()
		c.change(&s)
		err, soon := s.trouble()
		if err == nil || err.Code != c.code || err.Message != c.message || soon != c.soon || err.Cause == nil {
			t.Errorf("%s: %+v, %v; want %s: %s", c.name, err, soon, c.code, c.message)
		}
	}
	if err, _ := whole().trouble(); err != nil {
		t.Errorf("a whole one is in trouble: %v", err)
	}
}

func helperEnded(name, reason, said string) corev1.ContainerStatus {
	return corev1.ContainerStatus{Name: name, State: corev1.ContainerState{
		Terminated: &corev1.ContainerStateTerminated{ExitCode: 1, Reason: reason, Message: said},
	}}
}

// Of what ended a helper its owner is told what they can change, and nothing of how it is done; the operator is told all.
func TestUnpreparedHasWords(t *testing.T) {
	const seeOperator = "The container could not be prepared; your operator can see why."
	for _, c := range []struct {
		helper, reason, said string
		code                 compute.Code
		message              string
	}{
		{nameSeed, "Error", "berth-agent: seed mount path /etc/a b: it is a file in the image\n", compute.CodeInvalid, "Mount path /etc/a b is a file in the image."},
		{nameSeed, "Error", "berth-agent: seed mount path /p/x: it is /proc/x in the image, which belongs to the system\n", compute.CodeInvalid, "Mount path /p/x is /proc/x in the image, which belongs to the system."},
		{nameSeed, "Error", "berth-agent: mkdir /.berth-volume/mounts: no space left on device", compute.CodeCapacity, "The container could not be prepared: its storage is full; choose a larger storage_gb."},
		{nameSeed, "Error", "berth-agent: seed mount path /x: write /.berth-volume/seed/f: disk quota exceeded", compute.CodeCapacity, "The container could not be prepared: its storage is full; choose a larger storage_gb."},
		{nameInstall, "Error", "berth-agent: install the agent: write /.berth/agent.new: no space left on device", compute.CodeUnavailable, seeOperator},
		{nameSeed, "Error", "berth-agent: seed mount path /storage_gb: open /.berth-volume/seed/f: input/output error", compute.CodeUnavailable, seeOperator},
		{nameSeed, "Error", "berth-agent: seed mount path /x: mkdir /.berth-volume/seed: it is a file in the image", compute.CodeUnavailable, seeOperator},
		{nameSeed, "OOMKilled", "", compute.CodeUnavailable, "The container could not be prepared: what prepares it ran out of memory. It is tried again; ask your operator if it stays."},
		{nameInstall, "Error", "", compute.CodeUnavailable, seeOperator},
	} {
		s := whole()
		s.pod.Status.ContainerStatuses = append(s.pod.Status.ContainerStatuses, helperEnded(c.helper, c.reason, c.said))
		err, soon := s.trouble()
		if err == nil || err.Code != c.code || err.Message != c.message || soon {
			t.Errorf("%q: %+v, %v; want %s: %s", c.said, err, soon, c.code, c.message)
			continue
		}
		said := strings.TrimPrefix(strings.TrimSpace(c.said), "berth-agent: ")
		if cause := err.Cause.Error(); !strings.HasPrefix(cause, c.helper) || !strings.Contains(cause, c.reason) || !strings.HasSuffix(cause, said) {
			t.Errorf("%q: its cause is %q", c.said, cause)
		}
	}
}

// Watchers learn of a death even where the node was faster to start the container again than they were to look.
func TestDeathIsNotHiddenByTheNextLife(t *testing.T) {
	e := &Engine{watchers: map[*watcher]struct{}{}}
	w := &watcher{queue: map[compute.Ref]compute.Observation{}, wake: make(chan struct{}, 1)}
	e.watchers[w] = struct{}{}
	first := whole().see()
	u := &unit{known: first}
	e.tell(u, first)
	if len(w.queue) != 0 {
		t.Fatalf("told without need: %+v", w.queue)
	}
	second := whole()
	second.pod.Status.ContainerStatuses[0].ContainerID = "two"
	endedBefore(&second, corev1.ContainerStateTerminated{Reason: "OOMKilled"})
	e.tell(u, second.see())
	if o := w.queue[first.ref]; o.Phase != compute.PhaseStopped || o.Message != "It ran out of memory." || o.Generation != 5 {
		t.Errorf("told %+v", o)
	}
	starting := whole()
	starting.pod = nil
	e.tell(u, starting.see())
	e.tell(u, second.see())
	if o := w.queue[first.ref]; o.Phase != compute.PhaseStopped {
		t.Errorf("then told %+v", o)
	}
}
