package k8s

import (
	"crypto/sha256"
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/tools/cache"

	"berth/internal/compute"
)

// Bounds on how what others change is set back: at once, and ever more seldom where another program does so again and again.
const (
	settleAfter    = 100 * time.Millisecond // what changed with a change is seen together with it
	firstRestraint = time.Second
	longRestraint  = 5 * time.Minute
	quietAfter     = 2 * longRestraint // nothing changed for so long: the next time is as the first
)

// restraint is how long to wait before somebody's changes to one object are set back again.
type restraint struct {
	backoff backoff.ExponentialBackOff
	last    time.Time // when something was set back; zero: never
	until   time.Time
}

// wait returns for how long not to act yet; when it is none, the caller acts.
func (r *restraint) wait(now time.Time) time.Duration {
	if d := r.until.Sub(now); d > 0 {
		return d
	}
	if r.last.IsZero() || now.Sub(r.last) > quietAfter {
		r.backoff = backoff.ExponentialBackOff{InitialInterval: firstRestraint, MaxInterval: longRestraint, Multiplier: 2}
		r.backoff.Reset()
	}
	r.last, r.until = now, now.Add(r.backoff.NextBackOff())
	return 0
}

// restrained returns for how long not to set an object back yet; when it is none, the caller does. Engine.mu is held.
func (u *unit) restrained(name string) time.Duration {
	if u.restraints[name] == nil {
		if u.restraints == nil {
			u.restraints = make(map[string]*restraint)
		}
		u.restraints[name] = new(restraint)
	}
	return u.restraints[name].wait(time.Now())
}

// review looks at a container some time after something of it changed, or after a call: whether it is still as it was told
// of, and whether all that was applied stands. Where it does not, somebody changed it, and control is told so that it
// applies it again.
func (e *Engine) review(r compute.Ref) {
	e.mu.Lock()
	u := e.units[r]
	if u == nil || u.busy {
		e.mu.Unlock()
		return // the end of the call has it reviewed
	}
	spec, seeded := u.spec, u.seeded
	if len(e.watchers) == 0 {
		spec = nil // another control plane may apply other things
	}
	e.mu.Unlock()
	now := e.look(r)
	var edited map[string]string
	if spec != nil && now.claim != nil && now.namespace != nil && now.namespace.DeletionTimestamp == nil {
		edited = e.edited(u, *spec, seeded)
	}

	e.mu.Lock()
	defer e.mu.Unlock()
	if u.busy || e.units[r] != u {
		return
	}
	now = e.look(r) // what happened since may have been told of
	if now.silentIn > 0 {
		e.reviews.AddAfter(r, now.silentIn)
	}
	if e.tell(u, now) || len(edited) == 0 {
		return
	}
	var due []string
	wait := time.Duration(0)
	for _, name := range slices.Sorted(maps.Keys(edited)) {
		if d := u.restrained(name); d <= 0 {
			due = append(due, name+edited[name])
		} else if wait == 0 || d < wait {
			wait = d
		}
	}
	if len(due) > 0 {
		e.log.Warn("somebody changed what Berth made; it is set back", "container", r, "changed", due)
		e.post(now.observation()) // the review after that call sees to the rest
	} else {
		e.reviews.AddAfter(r, wait)
	}
}

// edited names what is not as it was applied, with who changed it where that is known. A lister's word is enough: what it has
// not heard of yet, it hears of soon.
func (e *Engine) edited(u *unit, s compute.Spec, seeded []string) map[string]string {
	wanted := append(e.maker.surroundings(s.Ref, e.outsideNow()), e.maker.namespace(s.Ref, e.outsideNow()))
	if s.Running || e.look(s.Ref).set != nil { // one that never ran has none
		wanted = append(wanted, e.makerNow().statefulSet(s, seeded))
	}
	list := make(map[string]string)
	for _, want := range wanted {
		live, followed := e.cached(want)
		switch {
		case !followed || live != nil && e.stands(u, want, live):
		case live == nil:
			list[nameOf(want)] = " (gone)"
		default:
			list[nameOf(want)] = lastEditor(live)
		}
	}
	return list
}

func nameOf(o object) string {
	return strings.ToLower(o.GetObjectKind().GroupVersionKind().Kind) + "/" + o.GetName()
}

func lastEditor(live any) string {
	o, err := meta.Accessor(live)
	if err != nil {
		return ""
	}
	who, at := "", time.Time{}
	for _, f := range o.GetManagedFields() {
		if f.Manager != fieldManager && f.Subresource == "" && f.Time != nil && !f.Time.Time.Before(at) {
			who, at = " (by "+f.Manager+")", f.Time.Time
		}
	}
	return who
}

// cached returns an object as the informers have it, nil where it is not there, and whether its kind is followed at all.
func (e *Engine) cached(want object) (live any, followed bool) {
	store := e.live[want.GetObjectKind().GroupVersionKind().Kind]
	if store == nil {
		return nil, false
	}
	key, err := cache.MetaNamespaceKeyFunc(want)
	if err != nil {
		return nil, true
	}
	live, there, err := store.GetByKey(key)
	if err != nil || !there {
		return nil, true
	}
	return live, true
}

// stands says whether every field that is wanted of an object is so, or as the API server made it when it was last applied:
// some drop a field that they do not know, or have something else change what is asked for.
func (e *Engine) stands(u *unit, want object, live any) bool {
	fields, err := fieldsOf(want)
	if err != nil {
		return false
	}
	has, err := fieldsOf(live)
	if err != nil {
		return false
	}
	got := project(has, fields)
	if reflect.DeepEqual(got, project(fields, fields)) {
		return true
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	bent, ok := u.bent[nameOf(want)]
	return ok && bent == digest(got)
}

// noteMade remembers what the API server made of an object that was applied, where that is not what was asked for.
func (e *Engine) noteMade(u *unit, want object, fields map[string]any, answer []byte) error {
	var made map[string]any
	if err := json.Unmarshal(answer, &made); err != nil {
		return err
	}
	got := project(made, fields)
	same := reflect.DeepEqual(got, project(fields, fields))
	e.mu.Lock()
	defer e.mu.Unlock()
	if same {
		delete(u.bent, nameOf(want))
		return nil
	}
	if u.bent == nil {
		u.bent = make(map[string][sha256.Size]byte)
	}
	u.bent[nameOf(want)] = digest(got)
	return nil
}

func digest(v any) [sha256.Size]byte {
	b, _ := json.Marshal(v) // what came from JSON goes into it
	return sha256.Sum256(b)
}

// fieldsOf is an object as a tree of its fields, without its status, which is the cluster's to say.
func fieldsOf(object any) (map[string]any, error) {
	b, err := json.Marshal(object)
	if err != nil {
		return nil, err
	}
	var fields map[string]any
	if err := json.Unmarshal(b, &fields); err != nil {
		return nil, err
	}
	delete(fields, "status")
	if spec, ok := fields["spec"].(map[string]any); ok && len(spec) == 0 { // a namespace's: nothing is asked for
		delete(fields, "spec")
	}
	return fields, nil
}

// entire are fields that are compared with all that is in them: nobody adds to a rule or a selector without changing what it
// means. In others, what is not wanted is somebody else's.
var entire = []string{"ingress", "egress", "selector", "podSelector", "nodeSelector", "matchLabels"}

// project is have, reduced to what want speaks of.
func project(have, want any) any {
	switch want := want.(type) {
	case map[string]any:
		has, _ := have.(map[string]any)
		out := make(map[string]any, len(want))
		if len(want) == 0 { // it is to be empty
			maps.Copy(out, has)
			return out
		}
		for k, w := range want {
			switch {
			case w == nil || k == "apiVersion" || k == "kind": // the latter two the caches do not have
			case slices.Contains(entire, k):
				out[k] = has[k]
			default:
				out[k] = project(has[k], w)
			}
		}
		return out
	case []any:
		has, _ := have.([]any)
		out := make([]any, 0, len(want))
		if key := keyOf(want); key != "" {
			for _, w := range want {
				i := slices.IndexFunc(has, func(h any) bool {
					m, ok := h.(map[string]any)
					return ok && m[key] == w.(map[string]any)[key]
				})
				if i < 0 {
					continue
				}
				out = append(out, project(has[i], w))
			}
			return out
		}
		if len(has) != len(want) {
			return have
		}
		for i, w := range want {
			out = append(out, project(has[i], w))
		}
		return out
	}
	return have
}

// keyOf is the field by which Kubernetes tells the entries of a list apart; empty where only their order does.
func keyOf(list []any) string {
	for _, key := range []string{"mountPath", "name"} {
		if !slices.ContainsFunc(list, func(v any) bool {
			m, ok := v.(map[string]any)
			return !ok || m[key] == nil
		}) {
			return key
		}
	}
	return ""
}
