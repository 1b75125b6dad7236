package k8s

import (
	"context"
	"errors"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"

	"berth/internal/compute"
)

// Remove destroys the container with its storage.
func (e *Engine) Remove(ctx context.Context, r compute.Ref) (err error) {
	u, ctx, release, err := e.acquire(ctx, r)
	if err != nil {
		return err
	}
	defer func() { release(err) }()
	if err := e.removeBalancer(ctx, r); err != nil { // before the namespace, whose end is the container's
		return err
	}
	there, err := e.client.CoreV1().Namespaces().Get(ctx, r.String(), metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		there = nil
	case err != nil:
		return e.explain(ctx, "look at the container's namespace", err)
	case !e.ours(there):
		return foreign()
	default:
		if err := e.endPod(ctx, u, r); err != nil {
			return err
		}
		if err := e.deleteNamespace(ctx, there); err != nil {
			return err
		}
	}
	bounded, cancel := context.WithTimeoutCause(ctx, goneWithin, errSlow)
	defer cancel()
	err = e.awaitGone(bounded, u, r, there)
	if errors.Is(err, errSlow) {
		return &compute.Error{
			Code: compute.CodeUnavailable, Message: "The cluster has not deleted it yet; this is tried again.", Cause: e.look(r).held(),
		}
	}
	if err != nil {
		return err
	}
	return e.removeBalancer(ctx, r) // a start that was cut off may have had it made after all
}

// Discard destroys a container's namespace, whichever installation's it is, because an administrator says so.
func (e *Engine) Discard(ctx context.Context, r compute.Ref, unknown func(context.Context) error) (err error) {
	u, ctx, release, err := e.acquire(ctx, r)
	if err != nil {
		return err
	}
	defer func() { release(err) }()
	there, err := e.client.CoreV1().Namespaces().Get(ctx, r.String(), metav1.GetOptions{})
	if apierrors.IsNotFound(err) || err == nil && there.Labels[labelManaged] != managedBy {
		return compute.NotFound("storage")
	}
	if err != nil {
		return e.explain(ctx, "look at the namespace", err)
	}
	if err := unknown(ctx); err != nil {
		return err
	}
	if err := e.endPod(ctx, u, r); err != nil {
		return err
	}
	if err := e.removeBalancer(ctx, r); err != nil {
		return err
	}
	if err := e.deleteNamespace(ctx, there); err != nil {
		return err
	}
	return e.awaitGone(ctx, u, r, there)
}

// endPod ends the container before its namespace is deleted: who deletes a namespace with a pod in it looks again only after
// half of the pod's grace period.
func (e *Engine) endPod(ctx context.Context, u *unit, r compute.Ref) error {
	now := e.look(r)
	if now.set != nil {
		err := e.client.AppsV1().StatefulSets(r.String()).Delete(ctx, now.set.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &now.set.UID}})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return e.explain(ctx, "end the container", err)
		}
	}
	if now.pod == nil {
		return nil
	}
	if err := e.deletePod(ctx, r, now.pod); err != nil {
		return err
	}
	bounded, cancel := context.WithTimeoutCause(ctx, e.opt.StopGrace, errSlow)
	defer cancel()
	err := e.await(bounded, u, r, func(now sight) (bool, error) { return now.pod == nil, nil })
	if errors.Is(err, errSlow) {
		return nil // its node may be gone: the namespace goes all the same
	}
	return err
}

var errSlow = errors.New("it takes longer than it should")

func (e *Engine) deleteNamespace(ctx context.Context, n *corev1.Namespace) error {
	err := e.client.CoreV1().Namespaces().Delete(ctx, n.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &n.UID}})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) { // conflict: another call deletes it already
		return e.explain(ctx, "delete the container's namespace", err)
	}
	return nil
}

// awaitGone returns when a container's namespace, if there was one, is no longer there, nor anything of it in the caches. These
// may not have heard of it yet, and have only this installation's.
func (e *Engine) awaitGone(ctx context.Context, u *unit, r compute.Ref, n *corev1.Namespace) error {
	for n != nil {
		there, err := e.client.CoreV1().Namespaces().Get(ctx, n.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) || err == nil && there.UID != n.UID {
			break
		}
		if err != nil {
			return e.explain(ctx, "look at the namespace", err)
		}
		w, err := e.client.CoreV1().Namespaces().Watch(ctx, metav1.ListOptions{
			FieldSelector: fields.OneTermEqualSelector("metadata.name", n.Name).String(), ResourceVersion: there.ResourceVersion,
		})
		if err != nil {
			return e.explain(ctx, "watch the namespace", err)
		}
		for event := range w.ResultChan() {
			if event.Type == watch.Deleted {
				break
			}
		}
		w.Stop()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return e.await(ctx, u, r, func(now sight) (bool, error) { return now.namespace == nil && now.pod == nil && now.claim == nil, nil })
}
