package k8s

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"berth/internal/compute"
)

// sight is a container as the cluster's own objects show it at one moment.
type sight struct {
	ref       compute.Ref
	namespace *corev1.Namespace
	claim     *corev1.PersistentVolumeClaim
	set       *appsv1.StatefulSet
	pod       *corev1.Pod
	silent    bool          // the cluster hears nothing of the pod's node, and has not for some time
	silentIn  time.Duration // until that is so; zero where it hears of it

	phase   compute.Phase
	message string
	life    string // tells one run of its first process from another; empty while none runs
}

// see derives phase and message from the objects. It is a pure function of them.
func (s sight) see() sight {
	switch {
	case s.namespace == nil:
		s.phase = compute.PhaseAbsent
	case s.namespace.DeletionTimestamp != nil:
		s.phase, s.message = compute.PhaseFailed, "Its namespace is being deleted, and its storage with it."
	case s.claim == nil, s.claim.Status.Phase == corev1.ClaimLost:
		s.phase, s.message = compute.PhaseFailed, storageMissing().Message
	case s.pod == nil && !s.wanted():
		s.phase = compute.PhaseStopped
	case s.pod == nil:
		s.phase = compute.PhaseStarting
	case s.silent:
		// Not ended: a node that answers again goes on with what it runs.
		s.phase, s.message = compute.PhaseFailed, noAnswer(s.pod).Message
	case s.pod.DeletionTimestamp != nil:
		s.phase, s.message = compute.PhaseStopped, disrupted(s.pod, "Its pod is being ended.")
	case s.pod.Status.Phase == corev1.PodFailed:
		s.phase, s.message = compute.PhaseStopped, evicted(s.pod)
	default:
		s.phase = compute.PhaseStarting
		status := statusOf(s.pod.Status.ContainerStatuses, nameMain)
		switch {
		case status == nil:
		case status.State.Running != nil:
			s.phase, s.life = compute.PhaseRunning, status.ContainerID
		case unprepared(*status): // nobody was let in
		case status.State.Terminated != nil:
			s.phase, s.message = compute.PhaseStopped, ending(status.State.Terminated)
		case s.crashed():
			s.phase, s.message = compute.PhaseStopped, s.lastEnding()
		}
	}
	return s
}

// wanted says whether the StatefulSet is to run the container.
func (s sight) wanted() bool {
	return s.set != nil && s.set.Spec.Replicas != nil && *s.set.Spec.Replicas > 0
}

// generation is that of the desired state that was applied last.
func (s sight) generation() int64 {
	if s.set == nil {
		return 0
	}
	n, _ := strconv.ParseInt(s.set.Annotations[annotationGeneration], 10, 64) // 0 where somebody wrote another thing
	return n
}

// crashed says whether the node waits before it starts the container again.
func (s sight) crashed() bool {
	status := statusOf(s.pod.Status.ContainerStatuses, nameMain)
	return status != nil && status.State.Waiting != nil && status.State.Waiting.Reason == "CrashLoopBackOff"
}

// outdated says whether a pod that does not run was made of an older template: what keeps it from running may be mended.
func (s sight) outdated() bool {
	current := s.set.Status.UpdateRevision
	return s.life == "" && s.set.Status.ObservedGeneration == s.set.Generation && current != "" &&
		s.pod.Labels[appsv1.ControllerRevisionHashLabelKey] != current
}

// lastEnding says how the run before this one ended.
func (s sight) lastEnding() string {
	if s.pod != nil {
		if status := statusOf(s.pod.Status.ContainerStatuses, nameMain); status != nil && status.LastTerminationState.Terminated != nil {
			return ending(status.LastTerminationState.Terminated)
		}
	}
	return "It ended by itself."
}

func (s sight) observation() compute.Observation {
	return compute.Observation{Ref: s.ref, Generation: s.generation(), Phase: s.phase, Message: s.message}
}

func statusOf(list []corev1.ContainerStatus, name string) *corev1.ContainerStatus {
	for i := range list {
		if list[i].Name == name {
			return &list[i]
		}
	}
	return nil
}

func ending(t *corev1.ContainerStateTerminated) string {
	switch {
	case t.Reason == "OOMKilled":
		return "It ran out of memory."
	case t.Signal != 0:
		return fmt.Sprintf("It was ended by signal %d.", t.Signal)
	case t.ExitCode == 0:
		return "It ended by itself."
	}
	return fmt.Sprintf("It ended by itself, with status %d.", t.ExitCode)
}

func evicted(p *corev1.Pod) string {
	switch {
	case p.Status.Reason == "Evicted" && strings.Contains(p.Status.Message, "ephemeral"):
		return "It wrote more outside its mount paths than its storage_gb, and was ended."
	case p.Status.Reason == "Evicted":
		return "Its node ran short of memory or disk, and ended it."
	case p.Status.Reason == "NodeLost", p.Status.Reason == "NodeShutdown", p.Status.Reason == "Terminated":
		return "Its node went down."
	}
	return disrupted(p, "It ended by itself.")
}

// disrupted says why the cluster ends a pod, where it tells.
func disrupted(p *corev1.Pod, otherwise string) string {
	for _, c := range p.Status.Conditions {
		if c.Type != corev1.DisruptionTarget || c.Status != corev1.ConditionTrue {
			continue
		}
		switch c.Reason {
		case "DeletionByTaintManager", "DeletionByPodGC":
			return "Its node was lost; it starts on another as soon as its storage can be had there."
		case "EvictionByEvictionAPI":
			return "Its node is being emptied; it starts on another."
		case corev1.PodReasonPreemptionByScheduler:
			return "It had to make room for what is more important."
		}
	}
	return otherwise
}

// noAnswer is what its owner is told while the cluster hears nothing of a container's node.
func noAnswer(p *corev1.Pod) *compute.Error {
	err := &compute.Error{
		Code: compute.CodeUnavailable, Message: "Its node does not answer. It goes on when the node does, or starts on another once the cluster gives this one up.",
		Cause: fmt.Errorf("node %s is not heard of", p.Spec.NodeName),
	}
	if p.DeletionTimestamp != nil {
		err.Message = "Its node was lost. It starts on another as soon as the cluster is sure that it does not run there any more; your operator can see to that."
		err.Cause = fmt.Errorf("node %s is not heard of, and its pod cannot be ended: delete the node, or taint it node.kubernetes.io/out-of-service, once it is down for sure",
			p.Spec.NodeName)
	}
	return err
}

// held is what keeps a namespace that is being deleted, in the cluster's own words.
func (s sight) held() error {
	errs := []error{errors.New("the namespace is still there")}
	if s.namespace != nil {
		for _, c := range s.namespace.Status.Conditions {
			if c.Status == corev1.ConditionTrue {
				errs = append(errs, fmt.Errorf("%s: %s", c.Type, c.Message))
			}
		}
	}
	return errors.Join(errs...)
}

// trouble is what keeps a container from starting: an error in words for its owner, nil where nothing is known to. Soon says
// that it may pass by itself within moments, as in a start's usual course.
func (s sight) trouble() (err *compute.Error, soon bool) {
	switch {
	case s.pod == nil:
		return nil, false
	case s.silent:
		return noAnswer(s.pod), false
	case s.pod.DeletionTimestamp != nil:
		return nil, false
	}
	for _, c := range s.pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && c.Reason == corev1.PodReasonUnschedulable {
			return &compute.Error{Code: compute.CodeCapacity, Message: unschedulable(c.Message, s.pod), Cause: fmt.Errorf("unschedulable: %s", c.Message)}, true
		}
	}
	// What prepares the main container is why that cannot start.
	for _, status := range s.pod.Status.ContainerStatuses {
		if t := failed(status); t != nil && status.Name != nameMain {
			return unpreparable(status.Name, t), false
		}
	}
	for _, status := range s.pod.Status.ContainerStatuses {
		if w := status.State.Waiting; w != nil {
			if err := waiting(w, status.Image); err != nil {
				return err, false
			}
		}
	}
	return nil, false
}

// What the agent says of a mount path that cannot be had, in words for its owner; a path has no colon.
var (
	wrongInImage = regexp.MustCompile(`^seed mount path (/[^:]*): it (is (?:a file|/[^:]*) in the image(?:, which belongs to the system)?)$`)
	noRoomFor    = regexp.MustCompile(`^the storage has no room for what the image holds in /[^:]*; choose a larger storage_gb$`)
)

// unpreparable gives words to the end of what prepares the main container. What it says of anything but its known causes has
// paths and errors that are the operator's.
func unpreparable(name string, t *corev1.ContainerStateTerminated) *compute.Error {
	said := strings.TrimPrefix(strings.TrimSpace(t.Message), "berth-agent: ")
	err := &compute.Error{
		Code: compute.CodeUnavailable, Message: "The container could not be prepared; your operator can see why.",
		Cause: fmt.Errorf("%s ended with status %d (%s): %s", name, t.ExitCode, t.Reason, said),
	}
	wrong := wrongInImage.FindStringSubmatch(said)
	switch {
	case t.Reason == "OOMKilled":
		err.Message = "The container could not be prepared: what prepares it ran out of memory. It is tried again; ask your operator if it stays."
	case name != nameSeed:
	case wrong != nil:
		err.Code, err.Field, err.Message = compute.CodeInvalid, "mount_paths", fmt.Sprintf("Mount path %s %s.", wrong[1], wrong[2])
	case noRoomFor.MatchString(said):
		err.Code, err.Message = compute.CodeCapacity, "The container could not be prepared: "+said+"."
	case strings.HasSuffix(said, syscall.ENOSPC.Error()), strings.HasSuffix(said, syscall.EDQUOT.Error()):
		err.Code, err.Message = compute.CodeCapacity, "The container could not be prepared: its storage is full; choose a larger storage_gb."
	}
	return err
}

// unprepared says whether the agent let nobody in, because what prepares the mount paths failed.
func unprepared(main corev1.ContainerStatus) bool {
	t := failed(main)
	return t != nil && t.ExitCode == exitUnprepared
}

const exitUnprepared = 78 // the agent's

// failed is a container's last failure, if it failed and did not succeed since.
func failed(status corev1.ContainerStatus) *corev1.ContainerStateTerminated {
	switch t, last := status.State.Terminated, status.LastTerminationState.Terminated; {
	case t != nil && t.ExitCode != 0:
		return t
	case status.State.Waiting != nil && last != nil && last.ExitCode != 0:
		return last
	}
	return nil
}

func waiting(w *corev1.ContainerStateWaiting, image string) *compute.Error {
	cause := fmt.Errorf("%s: %s", w.Reason, w.Message)
	switch w.Reason {
	case "ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "SignatureValidationFailed":
		return &compute.Error{Code: compute.CodeUnavailable, Cause: cause, Message: fmt.Sprintf(
			"Its image %s cannot be pulled; check the name, or ask your operator whether the cluster may pull it. It is tried again.", image)}
	case "InvalidImageName", "ErrImageNeverPull", "ImageInspectError":
		return &compute.Error{Code: compute.CodeInvalid, Cause: cause, Message: fmt.Sprintf(
			"Its image %s is not one that the cluster has or can pull; check the name, or ask your operator.", image)}
	case "CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PreStartHookError", "PostStartHookError":
		return &compute.Error{
			Code: compute.CodeUnavailable, Cause: cause, Message: "Its node could not make the container; this is tried again.",
		}
	}
	return nil
}

// unschedulable gives the scheduler's reasons words.
func unschedulable(why string, p *corev1.Pod) string {
	switch {
	case strings.Contains(why, "Insufficient memory"):
		return "No node has room for its memory now; it starts as soon as one has. Stop another container, or ask for less."
	case strings.Contains(why, "Insufficient cpu"):
		return "No node has room for its processors now; it starts as soon as one has."
	case strings.Contains(why, "Insufficient ephemeral-storage"):
		return "No node has room on its disk now; it starts as soon as one has."
	case strings.Contains(why, "PersistentVolumeClaim"), strings.Contains(why, "persistentvolumeclaim"), strings.Contains(why, "volume"):
		return "Its storage is not there yet: the cluster has not made it, or no node can reach it. It starts as soon as that is so."
	case strings.Contains(why, "node affinity/selector"):
		return fmt.Sprintf("no %s node is free for it; choose another instance type, or ask your operator.", p.Spec.NodeSelector[corev1.LabelArchStable])
	}
	return "No node can run it now; it starts as soon as one can."
}

func oneLine(s string) string {
	s = strings.TrimSuffix(strings.Join(strings.Fields(s), " "), ".")
	if len(s) > 300 {
		s = strings.ToValidUTF8(s[:300], "") + "…"
	}
	return s
}

// ofEvent gives words to what only events say: FailedMount of a kubelet, FailedCreate of the StatefulSet's controller.
func ofEvent(reason, message string) *compute.Error {
	cause := fmt.Errorf("%s: %s", reason, message)
	switch reason {
	case "FailedMount", "FailedAttachVolume":
		return &compute.Error{Code: compute.CodeUnavailable, Cause: cause, Message: "Its storage cannot be attached to the node yet; this is tried again."}
	case "ProvisioningFailed":
		return &compute.Error{Code: compute.CodeCapacity, Cause: cause, Message: "The cluster cannot make its storage; this is tried again. Ask your operator if it stays."}
	case "FailedCreate":
		if overQuota(message) {
			return &compute.Error{Code: compute.CodeCapacity, Cause: cause, Message: quotaMessage}
		}
		return &compute.Error{Code: compute.CodeUnavailable, Cause: cause, Message: "The cluster refuses to make its pod; your operator can see why. It is tried again."}
	case "FailedCreatePodSandBox":
		return &compute.Error{Code: compute.CodeUnavailable, Cause: cause, Message: "Its node could not make the container's network; this is tried again."}
	}
	return nil
}

func storageMissing() *compute.Error {
	return compute.Errorf(compute.CodeStorageMissing,
		"storage missing: the container's disk is gone, and is not made anew; ask your operator to restore it.")
}
