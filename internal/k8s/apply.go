package k8s

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
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
	if err := e.claimNamespace(ctx, u, s.Ref); err != nil {
		return err
	}
	if err := e.applyAll(ctx, u, e.maker.surroundings(s.Ref, e.outsideNow())); err != nil {
		return err
	}
	// Made, never applied: what is there already is the container's own, whatever its size.
	claims := e.client.CoreV1().PersistentVolumeClaims(s.String())
	claim, err := claims.Get(ctx, nameStorage, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		claim, err = claims.Create(ctx, e.maker.storage(s), metav1.CreateOptions{FieldManager: fieldManager})
	}
	if err != nil {
		return e.explain(ctx, "make the container's storage", err)
	}
	return e.awaitStorage(ctx, u, s.Ref, claim)
}

// claimNamespace makes the namespace, or sees that the one of this name is ours.
func (e *Engine) claimNamespace(ctx context.Context, u *unit, r compute.Ref) error {
	want := e.maker.namespace(r, e.outsideNow())
	_, err := e.client.CoreV1().Namespaces().Create(ctx, want, metav1.CreateOptions{FieldManager: fieldManager})
	if err == nil {
		return nil
	}
	if !apierrors.IsAlreadyExists(err) {
		return e.explain(ctx, "make the container's namespace", err)
	}
	there, err := e.client.CoreV1().Namespaces().Get(ctx, r.String(), metav1.GetOptions{})
	switch {
	case err != nil:
		return e.explain(ctx, "look at the container's namespace", err)
	case !e.ours(there):
		return foreign()
	case there.DeletionTimestamp != nil:
		return compute.Errorf(compute.CodeUnavailable, "What was there under this container's name is still being deleted; this is tried again.")
	}
	want.UID = there.UID
	return e.apply(ctx, u, want)
}

func (e *Engine) ours(n *corev1.Namespace) bool {
	return n.Labels[labelManaged] == managedBy && n.Labels[labelInstallation] == e.opt.InstallationID
}

func foreign() *compute.Error {
	return compute.Errorf(compute.CodeConflict,
		"The namespace under this container's name is another installation's; it is left alone until your operator looks at it.")
}

// restore makes what is around the pod as it should be, whoever changed it, and asks for nothing where it is.
func (e *Engine) restore(ctx context.Context, u *unit, now sight) error {
	namespace := e.maker.namespace(now.ref, e.outsideNow())
	namespace.UID = now.namespace.UID // never another one
	var list []object
	for _, want := range e.maker.surroundings(now.ref, e.outsideNow()) {
		if live, _ := e.cached(want); live == nil || !e.stands(u, want, live) {
			list = append(list, want)
		}
	}
	if err := e.applyAll(ctx, u, list); err != nil {
		return err
	}
	if live, _ := e.cached(namespace); live == nil || !e.stands(u, namespace, live) {
		return e.apply(ctx, u, namespace) // the last: it says what the others are
	}
	return nil
}

func (e *Engine) applyAll(ctx context.Context, u *unit, list []object) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, object := range list {
		g.Go(func() error { return e.apply(ctx, u, object) })
	}
	return g.Wait()
}

// resourceOf says by which client and name an object's kind is reached.
func (e *Engine) resourceOf(object object) (rest.Interface, string) {
	switch object.GetObjectKind().GroupVersionKind().GroupKind() {
	case schema.GroupKind{Kind: "Namespace"}:
		return e.client.CoreV1().RESTClient(), "namespaces"
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
	case schema.GroupKind{Group: rbacv1.GroupName, Kind: "RoleBinding"}:
		return e.client.RbacV1().RESTClient(), "rolebindings"
	}
	return e.client.AppsV1().RESTClient(), "statefulsets"
}

// apply has the API server make an object as it should be: fields of ours are set, whoever set them last, others stay.
func (e *Engine) apply(ctx context.Context, u *unit, object object) error {
	client, resource := e.resourceOf(object)
	fields, err := fieldsOf(object)
	if err != nil {
		return err
	}
	b, err := json.Marshal(fields)
	if err != nil {
		return err
	}
	force := true
	answer := client.Patch(types.ApplyPatchType).Resource(resource).NamespaceIfScoped(object.GetNamespace(), object.GetNamespace() != "").
		Name(object.GetName()).VersionedParams(&metav1.PatchOptions{FieldManager: fieldManager, Force: &force}, metav1.ParameterCodec).
		Body(b).SetHeader("Accept", runtime.ContentTypeJSON).Do(ctx)
	if err := answer.Error(); err != nil { // which has the API server's own words, as Raw's has not
		return e.explain(ctx, "apply "+resource+" "+object.GetName(), err)
	}
	made, err := answer.Raw()
	if err != nil {
		return err
	}
	return e.noteMade(u, object, fields, made)
}

// Apply drives the container to s.
func (e *Engine) Apply(ctx context.Context, s compute.Spec) (err error) {
	u, ctx, release, err := e.acquire(ctx, s.Ref)
	if err != nil {
		return err
	}
	defer func() { release(err) }()
	now := e.look(s.Ref)
	if now.storeless() {
		if now, err = e.lookHarder(ctx, now); err != nil {
			return err
		}
		if now.storeless() {
			return storageMissing() // what runs is left running: it may hold the only copy
		}
		if err := e.awaitStorage(ctx, u, s.Ref, now.claim); err != nil {
			return err
		}
		now = e.look(s.Ref)
	}
	e.expect(u, nil)
	if err := e.restore(ctx, u, now); err != nil {
		return err
	}
	if s.Running {
		return e.start(ctx, u, s, now)
	}
	return e.stop(ctx, u, s, now)
}

// expect notes what was applied, against which somebody else's changes are seen.
func (e *Engine) expect(u *unit, s *compute.Spec, seeded ...string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	u.spec, u.seeded = s, seeded
}

func (e *Engine) stop(ctx context.Context, u *unit, s compute.Spec, now sight) error {
	if now.set == nil && now.pod == nil {
		e.expect(u, &s)
		return nil
	}
	if err := e.apply(ctx, u, e.makerNow().statefulSet(s, seededOn(now.claim))); err != nil {
		return err
	}
	e.expect(u, &s, seededOn(now.claim)...)
	return e.await(ctx, u, s.Ref, func(now sight) (bool, error) {
		if now.pod != nil && now.silent {
			return false, noAnswer(now.pod)
		}
		return now.generation() == s.Generation && !now.wanted() && now.pod == nil, nil
	})
}

func (e *Engine) start(ctx context.Context, u *unit, s compute.Spec, now sight) error {
	if err := e.grow(ctx, s, now.claim); err != nil {
		return err
	}
	waits := now.wanted() && now.pod == nil && now.generation() == s.Generation
	seeded := seededOn(now.claim)
	if err := e.apply(ctx, u, e.makerNow().statefulSet(s, seeded)); err != nil {
		return err
	}
	e.expect(u, &s, seeded...)
	if waits {
		if err := e.nudge(ctx, now.set); err != nil {
			return err
		}
	}
	answered := func() types.UID { return "" }
	if now.phase != compute.PhaseRunning {
		answered = e.askEarly(ctx, s.Ref)
	}
	began, replaced := time.Now(), types.UID("")
	err := e.await(ctx, u, s.Ref, func(now sight) (bool, error) {
		if now.storeless() {
			return false, unseen() // the next try looks harder
		}
		if now.generation() != s.Generation || !now.wanted() {
			return false, nil
		}
		if now.pod != nil && now.silent {
			return false, noAnswer(now.pod) // what runs there may go on: it is not deleted for a newer template
		}
		late := time.Since(began) >= patience
		if p := now.pod; p != nil && p.DeletionTimestamp == nil && p.UID != replaced &&
			(p.Annotations[annotationMounts] != mountsKey(s.MountPaths) || now.crashed() || now.outdated()) {
			replaced = p.UID
			return false, e.deletePod(ctx, s.Ref, p)
		}
		if now.pod != nil && now.pod.UID == replaced {
			return false, nil // what is wrong with it is no matter any more
		}
		if now.phase == compute.PhaseRunning {
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
	by := answered()
	if err != nil {
		return err
	}
	if err := e.resize(ctx, u, s); err != nil {
		return err
	}
	if p := e.look(s.Ref).pod; p == nil || p.UID != by {
		if err := e.awaitAgent(ctx, u, s.Ref); err != nil {
			return err
		}
	}
	return e.noteSeeded(ctx, s, now.claim)
}

// askEarly asks a pod's agent for a connection from when its node has it: a kubelet takes up to a second more to tell that
// a container runs. What it returns stops that, and says which pod's agent gave one, if any did. Where many start at a time,
// most are not asked.
func (e *Engine) askEarly(ctx context.Context, r compute.Ref) (answered func() types.UID) {
	ctx, cancel := context.WithCancel(ctx)
	by := make(chan types.UID, 1)
	go func() { // ends with the function that is returned
		defer close(by)
		for tries := 0; ; tries++ {
			wait := askEvery
			if tries > askOften {
				wait = longAgentRetry
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
			p := e.look(r).pod
			if p == nil || p.DeletionTimestamp != nil || p.Status.StartTime == nil {
				continue
			}
			select {
			case e.asking <- struct{}{}:
			default:
				continue
			}
			_, err := e.exec.run(ctx, r, 0, agentPath, "connect")
			<-e.asking
			if later := e.look(r).pod; err == nil && later != nil && later.UID == p.UID {
				by <- p.UID
				return
			} else if refused(err) {
				return // it is asked again, and told then
			}
		}
	}()
	return func() types.UID {
		cancel()
		return <-by
	}
}

// noteSeeded keeps on the volume which mount paths a pod runs with, so that the next one prepares nothing. Only its agent's
// answer shows that they were seeded: a kubelet starts the main container also where that failed.
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

// nudge has the StatefulSet's controller try at once to make the pod: by itself it waits up to a quarter of an hour between
// its tries, once they fail.
func (e *Engine) nudge(ctx context.Context, set *appsv1.StatefulSet) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid": set.UID, "annotations": map[string]any{annotationTried: time.Now().UTC().Format(time.RFC3339Nano)},
	}})
	if err != nil {
		return err
	}
	_, err = e.client.AppsV1().StatefulSets(set.Namespace).Patch(ctx, set.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager + "-again"})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return e.explain(ctx, "have the pod made", err)
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
	var phase compute.Phase
	for {
		now := e.look(r)
		if now.phase != phase {
			phase = now.phase
			e.log.Debug("step", "container", r, "seen", phase, "message", now.message)
		}
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

// awaitAgent returns when the agent accepts connections: it takes one from a client that says nothing, and lets it go.
func (e *Engine) awaitAgent(ctx context.Context, u *unit, r compute.Ref) error {
	bounded, cancel := context.WithTimeoutCause(ctx, agentTimeout, &compute.Error{
		Code: compute.CodeUnavailable, Message: "The container's agent does not accept connections; this is tried again.",
	})
	defer cancel()
	life := e.look(r).life
	for wait := firstAgentRetry; ; wait = min(2*wait, longAgentRetry) {
		_, err := e.exec.run(bounded, r, 0, agentPath, "connect")
		if err == nil {
			return nil
		}
		if bounded.Err() != nil {
			return context.Cause(bounded)
		}
		if now := e.look(r); now.phase != compute.PhaseRunning || now.life != life {
			return compute.Errorf(compute.CodeUnavailable, "The container ended as soon as it was started: %s", now.lastEnding())
		}
		if refused(err) {
			return e.explain(ctx, "ask the agent whether it accepts connections", err)
		}
		e.log.Debug("the agent does not accept connections yet", "container", r, "err", err)
		select {
		case <-bounded.Done():
		case <-time.After(wait):
		}
	}
}
