package k8s

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"berth/internal/compute"
)

// Admit refuses a container that cannot be made, before anything of it is stored.
func (e *Engine) Admit(ctx context.Context, s compute.Spec) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := e.makerNow().image.checkMounts(s.MountPaths); err != nil {
		return err
	}
	return e.roomFor(s)
}

// AdmitChange refuses mount paths that the image makes impossible, and sizes that the cluster cannot give.
func (e *Engine) AdmitChange(ctx context.Context, was, s compute.Spec) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := e.makerNow().image.checkMounts(s.MountPaths); err != nil {
		return err
	}
	if s.StorageGB > was.StorageGB {
		if err := e.mayGrow(ctx, s.Ref); err != nil {
			return err
		}
	}
	if !s.Running || s.MemoryMB <= was.MemoryMB {
		return nil
	}
	return e.roomFor(s)
}

// roomFor asks whether any node could run the container, were it empty. Whether one has room now is the scheduler's to say.
func (e *Engine) roomFor(s compute.Spec) error {
	nodes, err := e.nodes.List(labels.SelectorFromSet(e.opt.NodeSelector))
	if err != nil {
		return compute.Internal("list nodes", err)
	}
	return roomOn(nodes, s, e.opt)
}

func roomOn(nodes []*corev1.Node, s compute.Spec, opt Options) error {
	var largest int64
	known, able := map[string]bool{}, !opt.UserNamespaces
	for _, n := range nodes {
		known[n.Labels[corev1.LabelArchStable]] = true
		able = able || mapsUsers(n, opt.RuntimeClass)
		if n.Labels[corev1.LabelArchStable] == s.Arch {
			largest = max(largest, n.Status.Allocatable.Memory().Value())
		}
	}
	if !known[s.Arch] {
		return compute.Errorf(compute.CodeCapacity, "no %s node: the cluster has none; choose another instance type.", s.Arch)
	}
	if !able {
		return compute.Errorf(compute.CodeCapacity,
			"No node can give a container users of its own, which this installation asks for; your operator can see why in the nodes' status.")
	}
	if want := int64(s.MemoryMB) << 20; want > largest {
		return compute.Errorf(compute.CodeCapacity,
			"No node has %d MB of memory: the largest of its kind has %d MB; ask for less.", s.MemoryMB, largest>>20)
	}
	return nil
}

// mapsUsers says whether a node's runtime has user namespaces for pods. Which handler a RuntimeClass means is not known here.
func mapsUsers(n *corev1.Node, class string) bool {
	return slices.ContainsFunc(n.Status.RuntimeHandlers, func(h corev1.NodeRuntimeHandler) bool {
		return (h.Name == "" || class != "") && h.Features != nil && h.Features.UserNamespaces != nil && *h.Features.UserNamespaces
	})
}

// mayGrow asks the volume's class.
func (e *Engine) mayGrow(ctx context.Context, r compute.Ref) error {
	name := e.opt.StorageClass
	if claim := e.look(r).claim; claim != nil && claim.Spec.StorageClassName != nil {
		name = *claim.Spec.StorageClassName
	}
	allowed := false
	if name != "" {
		class, err := e.client.StorageV1().StorageClasses().Get(ctx, name, metav1.GetOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return e.explain(ctx, "look at the storage class", err)
		}
		allowed = err == nil && class.AllowVolumeExpansion != nil && *class.AllowVolumeExpansion
	}
	if !allowed {
		return compute.Errorf(compute.CodeCapacity,
			"The cluster's storage cannot grow once it is made; make a container with more, and copy over what you need.")
	}
	return nil
}

// grow asks for a larger volume where the class can give one. A volume that cannot grow keeps its container from nothing:
// AdmitChange refused the change, unless the class was changed since.
func (e *Engine) grow(ctx context.Context, s compute.Spec, claim *corev1.PersistentVolumeClaim) error {
	want := gigabytes(s.StorageGB)
	if has := claim.Spec.Resources.Requests[corev1.ResourceStorage]; want.Cmp(has) <= 0 {
		return nil
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": claim.UID}, // never another one
		"spec":     map[string]any{"resources": map[string]any{"requests": map[string]any{"storage": want.String()}}},
	})
	if err != nil {
		return err
	}
	_, err = e.client.CoreV1().PersistentVolumeClaims(s.String()).Patch(ctx, claim.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager})
	if apierrors.IsForbidden(err) || apierrors.IsInvalid(err) {
		e.log.Warn("the storage does not grow", "container", s.Ref, "err", err)
		return nil
	}
	if err != nil {
		return e.explain(ctx, "enlarge the storage", err)
	}
	return nil
}

// resize gives a running container the size it has now, in place, and returns when its node has done so. A cluster or a node
// that cannot gives it at the next start.
func (e *Engine) resize(ctx context.Context, u *unit, s compute.Spec) error {
	want := resources(s)
	p := e.look(s.Ref).pod
	if p == nil || sized(mainOf(p).Resources, want) {
		return nil
	}
	// What is on disk cannot change in place.
	fixed := mainOf(p).Resources
	for _, list := range []struct{ to, from corev1.ResourceList }{{want.Limits, fixed.Limits}, {want.Requests, fixed.Requests}} {
		list.to[corev1.ResourceEphemeralStorage] = list.from[corev1.ResourceEphemeralStorage]
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": p.UID},
		"spec":     map[string]any{"containers": []any{map[string]any{"name": nameMain, "resources": want}}},
	})
	if err != nil {
		return err
	}
	later := func(why error) error {
		e.log.Warn("the container's new size waits, for its next start at the latest", "container", s.Ref, "err", why)
		return nil
	}
	asked, err := e.client.CoreV1().Pods(s.String()).Patch(ctx, p.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager}, "resize")
	switch {
	case apierrors.IsNotFound(err), apierrors.IsInvalid(err), apierrors.IsForbidden(err), apierrors.IsMethodNotSupported(err):
		return later(err)
	case err != nil:
		return e.explain(ctx, "resize the container", err)
	}
	bounded, cancel := context.WithTimeoutCause(ctx, resizeWithin, errSlow)
	defer cancel()
	err = e.await(bounded, u, s.Ref, func(now sight) (bool, error) {
		if now.phase != compute.PhaseRunning || now.pod.UID != p.UID {
			return false, compute.Errorf(compute.CodeUnavailable, "The container ended while it was given its new size; this is tried again.")
		}
		return resized(now.pod, asked.Generation, want)
	})
	if errors.Is(err, errNotResized) || errors.Is(err, errSlow) {
		return later(err)
	}
	return err
}

var errNotResized = errors.New("the node does not resize it")

// resized says whether a pod has the size that it is to have since a generation. A node refuses memory that has no room on it,
// and to take away what is in use.
func resized(p *corev1.Pod, generation int64, want corev1.ResourceRequirements) (bool, error) {
	for _, c := range p.Status.Conditions {
		switch older := c.ObservedGeneration > 0 && c.ObservedGeneration < generation; { // Kubernetes 1.33 does not say
		case c.Status != corev1.ConditionTrue || older:
		case c.Type == corev1.PodResizePending:
			return false, &compute.Error{
				Code: compute.CodeCapacity, Message: "Its node has no room for its new size now; stop it and start it to have it elsewhere.",
				Cause: fmt.Errorf("resize: %s: %s", c.Reason, c.Message),
			}
		case c.Type == corev1.PodResizeInProgress && c.Reason == corev1.PodReasonError:
			return false, fmt.Errorf("%w: %s", errNotResized, c.Message)
		}
	}
	status := statusOf(p.Status.ContainerStatuses, nameMain)
	return status != nil && status.Resources != nil && sized(*status.Resources, want), nil
}

// sized says whether processors and memory are as wanted.
func sized(has, want corev1.ResourceRequirements) bool {
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		if a, b := has.Limits[name], want.Limits[name]; a.Cmp(b) != 0 {
			return false
		}
	}
	return true
}
