package k8s

import (
	"context"
	"encoding/json"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth/internal/compute"
)

// Stored lists every installation's containers on the cluster.
func (e *Engine) Stored(ctx context.Context) ([]compute.Stored, error) {
	managed := metav1.ListOptions{LabelSelector: labelManaged + "=" + managedBy}
	namespaces, err := e.client.CoreV1().Namespaces().List(ctx, managed)
	if err != nil {
		return nil, e.explain(ctx, "list namespaces", err)
	}
	claims, err := e.client.CoreV1().PersistentVolumeClaims("").List(ctx, managed)
	if err != nil {
		return nil, e.explain(ctx, "list volumes", err)
	}
	pods, err := e.client.CoreV1().Pods("").List(ctx, managed)
	if err != nil {
		return nil, e.explain(ctx, "list pods", err)
	}
	bytes, running := map[string]int64{}, map[string]bool{}
	for _, c := range claims.Items {
		bytes[c.Namespace] = c.Status.Capacity.Storage().Value()
	}
	for _, p := range pods.Items {
		running[p.Namespace] = running[p.Namespace] || p.Status.Phase == corev1.PodRunning
	}
	var list []compute.Stored
	for _, n := range namespaces.Items {
		r, err := compute.ParseRef(n.Name)
		if err != nil {
			continue // another program of this name
		}
		list = append(list, compute.Stored{Ref: r, Bytes: bytes[n.Name], Running: running[n.Name], Foreign: !e.ours(&n)})
	}
	return list, nil
}

// complaint is the newest warning about a container's objects that has words for its owner; nil where there is none. It is
// for what no object shows but an event.
func (e *Engine) complaint(ctx context.Context, now sight) error {
	about := map[types.UID]bool{now.claim.UID: now.claim.Status.Phase != corev1.ClaimBound, now.set.UID: now.pod == nil}
	if now.pod != nil {
		about[now.pod.UID] = true
	}
	list, err := e.client.CoreV1().Events(now.ref.String()).List(ctx, metav1.ListOptions{FieldSelector: "type=" + corev1.EventTypeWarning})
	if err != nil {
		return e.explain(ctx, "read the container's events", err)
	}
	var newest *corev1.Event
	for i, event := range list.Items {
		if about[event.InvolvedObject.UID] && ofEvent(event.Reason, event.Message) != nil && (newest == nil || newest.LastTimestamp.Before(&event.LastTimestamp)) {
			newest = &list.Items[i]
		}
	}
	if newest == nil {
		return nil
	}
	return ofEvent(newest.Reason, newest.Message)
}

// storeless says whether the container's volume is not there, or about to go.
func (s sight) storeless() bool {
	return s.claim == nil || s.claim.DeletionTimestamp != nil || s.claim.Status.Phase == corev1.ClaimLost ||
		s.namespace == nil || s.namespace.DeletionTimestamp != nil
}

// lookHarder asks the API server for what holds the container's storage. The caches are behind it where another control plane
// made that moments ago.
func (e *Engine) lookHarder(ctx context.Context, s sight) (_ sight, err error) {
	s.namespace, err = e.client.CoreV1().Namespaces().Get(ctx, s.ref.String(), metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		s.namespace, s.claim = nil, nil
		return s.see(), nil
	case err != nil:
		return s, e.explain(ctx, "look at the container's namespace", err)
	case !e.ours(s.namespace):
		return s, foreign()
	}
	s.claim, err = e.client.CoreV1().PersistentVolumeClaims(s.ref.String()).Get(ctx, nameStorage, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		s.claim = nil
	case err != nil:
		return s, e.explain(ctx, "look at the container's volume", err)
	}
	return s.see(), nil
}

// awaitStorage returns when the caches have the container's volume as the API server has it: all that follows looks there.
func (e *Engine) awaitStorage(ctx context.Context, u *unit, r compute.Ref, claim *corev1.PersistentVolumeClaim) error {
	if !labelled(claim, e.maker.labels(r)) {
		if err := e.relabel(ctx, u, r, claim); err != nil {
			return err
		}
	}
	bounded, cancel := context.WithTimeoutCause(ctx, seenWithin, unseen())
	defer cancel()
	return e.await(bounded, u, r, func(now sight) (bool, error) {
		return !now.storeless() && now.claim.UID == claim.UID, nil
	})
}

// relabel gives a volume that lost our labels them back: without them, it does not come to the caches.
func (e *Engine) relabel(ctx context.Context, u *unit, r compute.Ref, claim *corev1.PersistentVolumeClaim) error {
	name := "persistentvolumeclaim/" + claim.Name
	e.mu.Lock()
	wait := u.restrained(name)
	e.mu.Unlock()
	if wait > 0 {
		return unseen()
	}
	e.log.Warn("somebody changed what Berth made; it is set back", "container", r, "changed", name+lastEditor(claim))
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": claim.UID, "labels": e.maker.labels(r)}})
	if err != nil {
		return err
	}
	_, err = e.client.CoreV1().PersistentVolumeClaims(r.String()).Patch(ctx, claim.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager})
	if err != nil {
		return e.explain(ctx, "give the container's volume its labels back", err)
	}
	return nil
}

func labelled(o metav1.Object, with map[string]string) bool {
	has := o.GetLabels()
	for k, v := range with {
		if has[k] != v {
			return false
		}
	}
	return true
}

func unseen() *compute.Error {
	return compute.Errorf(compute.CodeUnavailable, "The cluster does not show the container's storage at the moment; this is tried again.")
}
