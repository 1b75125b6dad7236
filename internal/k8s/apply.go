package k8s

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"berth/internal/compute"
)

func podName(r compute.Ref) string { return statefulSetName(r) + "-0" }

// Provision makes the container's namespace and volume unless they are there.
func (e *Engine) Provision(ctx context.Context, s compute.Spec) (err error) {
	u, ctx, release, err := e.acquire(ctx, s.Ref)
	if err != nil {
		return err
	}
	defer func() { release(err) }()
	ns, err := e.claimNamespace(ctx, s.Ref)
	if err != nil {
		return err
	}
	if err := e.surround(ctx, s.Ref, ns); err != nil {
		return err
	}
	// Made, never applied: what is there already is the container's own, whatever its size.
	claims := e.client.CoreV1().PersistentVolumeClaims(s.String())
	_, err = claims.Get(ctx, nameStorage, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = claims.Create(ctx, e.maker.storage(s), metav1.CreateOptions{FieldManager: fieldManager})
	}
	if err != nil {
		return e.explain(ctx, "make the container's storage", err)
	}
	return e.await(ctx, u, s.Ref, func(now sight) (bool, error) { return now.claim != nil && now.namespace != nil, nil })
}

// claimNamespace makes the namespace, or sees that the one of this name is ours.
func (e *Engine) claimNamespace(ctx context.Context, r compute.Ref) (*corev1.Namespace, error) {
	_, key := e.outsideNow()
	want := e.maker.namespace(r, key)
	made, err := e.client.CoreV1().Namespaces().Create(ctx, want, metav1.CreateOptions{FieldManager: fieldManager})
	if err == nil {
		return made, nil
	}
	if !apierrors.IsAlreadyExists(err) {
		return nil, e.explain(ctx, "make the container's namespace", err)
	}
	there, err := e.client.CoreV1().Namespaces().Get(ctx, r.String(), metav1.GetOptions{})
	switch {
	case err != nil:
		return nil, e.explain(ctx, "look at the container's namespace", err)
	case !e.ours(there):
		return nil, foreign()
	case there.DeletionTimestamp != nil:
		return nil, compute.Errorf(compute.CodeUnavailable, "What was there under this container's name is still being deleted; this is tried again.")
	}
	want.UID = there.UID
	return want, e.apply(ctx, e.client.CoreV1().RESTClient(), "namespaces", want)
}

func (e *Engine) ours(n *corev1.Namespace) bool {
	return n.Labels[labelManaged] == managedBy && n.Labels[labelInstallation] == e.opt.InstallationID
}

func foreign() *compute.Error {
	return compute.Errorf(compute.CodeConflict,
		"The namespace under this container's name is another installation's; it is left alone until your operator looks at it.")
}

// resourceOf says by which client and name an object's kind is reached.
func (e *Engine) resourceOf(object object) (rest.Interface, string) {
	switch object.GetObjectKind().GroupVersionKind().GroupKind() {
	case schema.GroupKind{Kind: "ResourceQuota"}:
		return e.client.CoreV1().RESTClient(), "resourcequotas"
	case schema.GroupKind{Kind: "LimitRange"}:
		return e.client.CoreV1().RESTClient(), "limitranges"
	case schema.GroupKind{Kind: "Secret"}:
		return e.client.CoreV1().RESTClient(), "secrets"
	case schema.GroupKind{Kind: "Service"}:
		return e.client.CoreV1().RESTClient(), "services"
	case schema.GroupKind{Kind: "PersistentVolumeClaim"}:
		return e.client.CoreV1().RESTClient(), "persistentvolumeclaims"
	case schema.GroupKind{Group: "networking.k8s.io", Kind: "NetworkPolicy"}:
		return e.client.NetworkingV1().RESTClient(), "networkpolicies"
	}
	return e.client.AppsV1().RESTClient(), "statefulsets"
}

// apply has the API server make an object as it should be: fields of ours are set, whoever set them last, others stay.
func (e *Engine) apply(ctx context.Context, client rest.Interface, resource string, object object) error {
	b, err := patchOf(object)
	if err != nil {
		return err
	}
	force := true
	err = client.Patch(types.ApplyPatchType).Resource(resource).NamespaceIfScoped(object.GetNamespace(), object.GetNamespace() != "").
		Name(object.GetName()).VersionedParams(&metav1.PatchOptions{FieldManager: fieldManager, Force: &force}, metav1.ParameterCodec).
		Body(b).Do(ctx).Error()
	if err != nil {
		return e.explain(ctx, "apply "+resource+" "+object.GetName(), err)
	}
	return nil
}

// patchOf is an object as a patch: without its status, which is the cluster's to say.
func patchOf(object any) ([]byte, error) {
	b, err := json.Marshal(object)
	if err != nil {
		return nil, err
	}
	var fields map[string]any
	if err := json.Unmarshal(b, &fields); err != nil {
		return nil, err
	}
	delete(fields, "status")
	return json.Marshal(fields)
}

// Apply drives the container to s.
func (e *Engine) Apply(ctx context.Context, s compute.Spec) (err error) {
	u, ctx, release, err := e.acquire(ctx, s.Ref)
	if err != nil {
		return err
	}
	defer func() { release(err) }()
	now := e.look(s.Ref)
	if now.phase == compute.PhaseAbsent {
		if there, err := e.client.CoreV1().Namespaces().Get(ctx, s.String(), metav1.GetOptions{}); err == nil && !e.ours(there) {
			return foreign()
		} else if err != nil && !apierrors.IsNotFound(err) {
			return e.explain(ctx, "look at the container's namespace", err)
		}
	}
	if now.claim == nil || now.claim.Status.Phase == corev1.ClaimLost || now.namespace == nil || now.namespace.DeletionTimestamp != nil {
		return storageMissing() // what runs is left running: it may hold the only copy
	}
	if s.Running {
		return e.start(ctx, u, s, now)
	}
	return e.stop(ctx, u, s, now)
}

func (e *Engine) stop(ctx context.Context, u *unit, s compute.Spec, now sight) error {
	if now.set == nil && now.pod == nil {
		return nil
	}
	if err := e.applySet(ctx, s, now); err != nil {
		return err
	}
	return e.await(ctx, u, s.Ref, func(now sight) (bool, error) {
		return now.generation() == s.Generation && !now.wanted() && now.pod == nil, nil
	})
}

func (e *Engine) applySet(ctx context.Context, s compute.Spec, now sight) error {
	set := e.makerNow().statefulSet(s, seededOn(now.claim))
	client, resource := e.resourceOf(set)
	return e.apply(ctx, client, resource, set)
}

func (e *Engine) start(ctx context.Context, u *unit, s compute.Spec, now sight) error {
	if err := e.surround(ctx, s.Ref, now.namespace); err != nil {
		return err
	}
	if err := e.grow(ctx, s, now.claim); err != nil {
		return err
	}
	if err := e.applySet(ctx, s, now); err != nil {
		return err
	}
	began, replaced := time.Now(), types.UID("")
	err := e.await(ctx, u, s.Ref, func(now sight) (bool, error) {
		if now.generation() != s.Generation || !now.wanted() {
			return false, nil
		}
		late := time.Since(began) >= patience
		if p := now.pod; p != nil && p.DeletionTimestamp == nil && p.UID != replaced &&
			(p.Annotations[annotationMounts] != mountsKey(s.MountPaths) || now.crashed() || now.outdated()) {
			replaced = p.UID
			return false, e.deletePod(ctx, s.Ref, p)
		}
		if now.phase == compute.PhaseRunning && now.pod.UID != replaced {
			return true, nil
		}
		if err, soon := now.trouble(); err != nil && (late || !soon) {
			return false, err
		}
		if time.Since(began) >= longPatience && now.claim != nil {
			return false, e.complaint(ctx, now)
		}
		return false, nil
	})
	if err != nil {
		return err
	}
	if err := e.noteSeeded(ctx, s, now.claim); err != nil {
		return err
	}
	return e.resize(ctx, u, s)
}

// noteSeeded keeps on the volume which mount paths a pod runs with, so that the next one prepares nothing.
func (e *Engine) noteSeeded(ctx context.Context, s compute.Spec, claim *corev1.PersistentVolumeClaim) error {
	seeded := seededOn(claim)
	if allIn(s.MountPaths, seeded) {
		return nil
	}
	for _, p := range s.MountPaths {
		if !slices.Contains(seeded, p) {
			seeded = append(seeded, p)
		}
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid": claim.UID, "annotations": map[string]string{annotationSeeded: mountsKey(seeded)},
	}})
	if err != nil {
		return err
	}
	_, err = e.client.CoreV1().PersistentVolumeClaims(s.String()).Patch(ctx, claim.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager})
	if err != nil {
		return e.explain(ctx, "note what is seeded", err)
	}
	return nil
}

// deletePod has the StatefulSet make another one, as its template is now.
func (e *Engine) deletePod(ctx context.Context, r compute.Ref, p *corev1.Pod) error {
	err := e.client.CoreV1().Pods(r.String()).Delete(ctx, p.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &p.UID}})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return e.explain(ctx, "end the container's pod", err)
	}
	return nil
}

// await returns when done says so of what is seen, which is asked again at each change, and now and then while none comes.
func (e *Engine) await(ctx context.Context, u *unit, r compute.Ref, done func(sight) (bool, error)) error {
	again := time.NewTicker(patience / 5)
	defer again.Stop()
	for {
		now := e.look(r)
		ok, err := done(now)
		if err != nil {
			return err
		}
		if ok {
			e.mu.Lock()
			u.known = now
			e.mu.Unlock()
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-u.wake:
		case <-again.C:
		}
	}
}

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
	return e.await(ctx, u, r, func(now sight) (bool, error) { return now.namespace == nil && now.pod == nil && now.claim == nil, nil })
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

var errSlow = errors.New("the pod takes longer than its grace period to end")

func (e *Engine) deleteNamespace(ctx context.Context, n *corev1.Namespace) error {
	err := e.client.CoreV1().Namespaces().Delete(ctx, n.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &n.UID}})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) { // conflict: another call deletes it already
		return e.explain(ctx, "delete the container's namespace", err)
	}
	return nil
}

// explain gives an owner words for what the API server answers. What it lacks in rights is in the cause, for the operator.
func (e *Engine) explain(ctx context.Context, op string, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if own := compute.AsError(err); own != nil {
		return err
	}
	cause := fmt.Errorf("%s: %w", op, err)
	var status apierrors.APIStatus
	switch {
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		return &compute.Error{Code: compute.CodeUnavailable, Cause: cause, Message: "The cluster refuses what this needs; your operator can see why. It is tried again."}
	case apierrors.IsInvalid(err):
		return compute.Internal(op, err)
	case errors.As(err, &status) && status.Status().Code != 0 && status.Status().Code < http.StatusInternalServerError && !apierrors.IsTooManyRequests(err):
		return compute.Internal(op, err)
	}
	return unreachable(op, err)
}

func unreachable(op string, err error) *compute.Error {
	return &compute.Error{
		Code: compute.CodeUnavailable, Cause: fmt.Errorf("%s: %w", op, err),
		Message: "The cluster does not answer at the moment; this is tried again.",
	}
}
