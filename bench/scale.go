package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"berth/internal/compute"
	"berth/internal/config"
	"berth/internal/link"
	"berth/internal/store"
)

// What is done beside each database.
const (
	accounts    = 600    // that have a token
	requestRate = 1000   // requests a second
	requests    = 6000   // of each kind
	lookups     = 20_000 // of keys

	feedAccounts  = 100
	feedHelpers   = 2
	feedEach      = 100 / feedHelpers // clients of an account in one helper: all that it may have
	feedEvents    = 200
	feedRate      = 20 // events a second
	feedClients   = feedAccounts * feedEach * feedHelpers
	memoryLimitKB = 50
)

// grownRig is a control plane on a database of a size.
type grownRig struct {
	*instance
	people *population
	tokens map[int]string // of some accounts
	rep    *report
}

// part is one group of measurements that is made beside every database.
type part struct {
	name string
	run  func(*grownRig, context.Context) error
}

func parts() []part {
	return []part{
		{"snapshot", (*grownRig).snapshot},
		{"keys", (*grownRig).keys},
		{"requests", (*grownRig).requests},
		{"feed", (*grownRig).feed},
	}
}

// beside is another program of the same build.
func (o options) beside(name string) string { return filepath.Join(filepath.Dir(o.berth), name) }

// grown measures a control plane, and a gateway beside it, on databases of several sizes. No container can be started there,
// so that an event costs no more than itself.
func grown(ctx context.Context, o options, step func(string, ...any), rep *report) (err error) {
	on, err := newInstance(o, o.beside("berth-api"), "--admin-addr", "127.0.0.1:0", "--reserve-gb", "1000000")
	if err != nil {
		return err
	}
	defer func() {
		step("removing everything")
		err = errors.Join(err, on.delete())
	}()
	r := &grownRig{instance: on, people: &population{data: on.data}, rep: rep}
	for _, n := range o.containers {
		step("filling a database with %d containers", n)
		if err := r.people.grow(ctx, n); err != nil {
			return fmt.Errorf("fill a database: %w", err)
		}
		rep.Containers = append(rep.Containers, n)
		if err := r.begin(ctx, step); err != nil {
			return err
		}
		for _, p := range parts() {
			if !o.chosen(p.name) {
				continue
			}
			step("measuring %s", p.name)
			if err := p.run(r, ctx); err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
		}
		if err := on.stop(); err != nil {
			return err
		}
	}
	return nil
}

// begin starts the control plane and waits until it has looked at every container.
func (r *grownRig) begin(ctx context.Context, step func(string, ...any)) (err error) {
	if r.tokens, err = r.people.tokens(ctx, config.Default().Zone, accounts); err != nil {
		return fmt.Errorf("issue tokens: %w", err)
	}
	step("starting berth-api")
	if len(r.rep.Containers) == 1 { // the first start imports the image
		if _, err := r.start(ctx); err != nil {
			return err
		}
		if err := r.stop(); err != nil {
			return err
		}
	}
	began := time.Now()
	if _, err := r.start(ctx); err != nil {
		return err
	}
	err = poll(ctx, 20*time.Millisecond, startLimit, func() (bool, error) {
		resp, err := http.Get(r.ready.APIURL + "/readyz")
		if err != nil {
			return false, err
		}
		return resp.StatusCode == http.StatusOK, resp.Body.Close()
	})
	r.rep.grew("start", "berth-api, from its start until it is ready", "s", time.Since(began).Seconds(), 0)
	return err
}

// address is the API's.
func (r *grownRig) address() string { return strings.TrimPrefix(r.ready.APIURL, "http://") }

// requests measures a list and a look at one, of accounts in turn.
func (r *grownRig) requests(ctx context.Context) error {
	users := slices.Collect(maps.Keys(r.tokens)) // in no order
	for _, kind := range []string{"list", "get"} {
		job := loadJob{Address: r.address(), Rate: requestRate}
		for _, user := range users {
			id := containerOf(user, rand.IntN(perUser))
			path := "/compute/containers"
			if kind == "get" {
				path += "/" + id
			}
			job.Requests = append(job.Requests, request{http.MethodGet, path, r.tokens[user], `"id":"` + id + `"`})
		}
		job.Count = requestRate // warms up
		if _, err := runLoad(ctx, job); err != nil {
			return err
		}
		before, err := processTime(r.cmd.Process.Pid)
		if err != nil {
			return err
		}
		job.Count = requests
		result, err := runLoad(ctx, job)
		if err != nil {
			return err
		}
		after, err := processTime(r.cmd.Process.Pid)
		if err != nil {
			return err
		}
		took := slices.Sorted(slices.Values(milliseconds(result.Took)))
		name := fmt.Sprintf("%s, %d a second, ", kind, requestRate)
		r.rep.grew("requests", name+"median", "ms", quantile(took, 0.5), 0)
		r.rep.grew("requests", name+"p99", "ms", quantile(took, 0.99), 10)
		r.rep.grew("requests", name+"CPU of one", "ms", float64((after-before).Microseconds())/1e3/requests, 0)
	}
	return nil
}

// keys measures whose a key is, which every login asks: in the database, as berth up does.
func (r *grownRig) keys(ctx context.Context) (err error) {
	s, err := store.OpenReadOnly(ctx, r.people.database())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	return r.lookUp(ctx, "in the database", s.Accounts)
}

func (r *grownRig) lookUp(ctx context.Context, where string, accounts func(context.Context, string) ([]compute.User, error)) error {
	took := make([]float64, lookups)
	for i := range took {
		user := r.people.first + rand.IntN(r.people.last-r.people.first+1)
		fingerprint := fingerprintOf(user)
		began := time.Now()
		list, err := accounts(ctx, fingerprint)
		took[i] = float64(time.Since(began)) / float64(time.Microsecond)
		if err == nil && (len(list) != 1 || int(list[0].ID) != user) {
			err = fmt.Errorf("the key %s is said to be of %v", fingerprint, list)
		}
		if err != nil {
			return err
		}
	}
	slices.Sort(took)
	r.rep.grew("keys", "whose a key is, "+where+", median", "µs", quantile(took, 0.5), 0)
	r.rep.grew("keys", "whose a key is, "+where+", p99", "µs", quantile(took, 0.99), 1000)
	return nil
}

// snapshot measures a gateway that knows nothing yet: from its start until it has the whole state on its disk and lets people
// in. Then it asks what the gateway has.
func (r *grownRig) snapshot(ctx context.Context) (err error) {
	files := link.ReplicaFiles(filepath.Join(r.data, "link_replica"))
	for _, f := range files {
		if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.o.beside("berth-gateway"), "--data-dir", r.data, "--ssh-addr", "127.0.0.1:0")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopLimit
	cmd.Env = environment()
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = cmd.Stdout
	before, err := processTime(r.cmd.Process.Pid)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return err
	}
	said, err := readUntil(out, "The gateway is ready")
	took := time.Since(began)
	after, timeErr := processTime(r.cmd.Process.Pid)
	memory, memoryErr := memoryOf(cmd.Process.Pid)
	cancel()
	_, _ = io.Copy(io.Discard, out)
	if waitErr := cmd.Wait(); !cmd.ProcessState.Success() {
		err = errors.Join(err, fmt.Errorf("berth-gateway: %w: %s", waitErr, said))
	}
	if err := errors.Join(err, timeErr, memoryErr); err != nil {
		return err
	}
	st, err := os.Stat(files[0])
	if err != nil {
		return err
	}
	n := float64(r.people.containers())
	r.rep.grew("snapshot", "a gateway's copy, on its disk, for a container", "B", float64(st.Size())/n, 500)
	r.rep.grew("snapshot", "a gateway with no copy, from its start until it has one", "s", took.Seconds(), 5)
	r.rep.grew("snapshot", "CPU of the control plane for that", "s", (after - before).Seconds(), 0)
	r.rep.grew("snapshot", "memory of that gateway", "MB", float64(memory)/1e6, 0)
	replica := link.OpenReplica(files[0], link.ReplicaOptions{})
	defer func() { err = errors.Join(err, replica.Close()) }()
	return r.lookUp(ctx, "in a gateway's copy", func(_ context.Context, fingerprint string) ([]compute.User, error) {
		return replica.Accounts(context.Background(), fingerprint)
	})
}

// readUntil returns what a program said up to a line that has those words.
func readUntil(out io.Reader, words string) (said string, err error) {
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		said += lines.Text() + "\n"
		if strings.Contains(lines.Text(), words) {
			return said, nil
		}
	}
	return said, errors.Join(lines.Err(), fmt.Errorf("it never said %q", words))
}

// feed measures clients of the live feed, and how soon all of an account's know of a change: from when the request is due
// that makes it.
func (r *grownRig) feed(ctx context.Context) error {
	users := slices.Sorted(maps.Keys(r.tokens))
	job := listenJob{Address: r.address(), Each: feedEach, Status: string(compute.StatusPending)}
	for i := range feedAccounts {
		users[i] = users[i*len(users)/feedAccounts]
		job.Tokens = append(job.Tokens, r.tokens[users[i]])
	}
	users = users[:feedAccounts]
	before, residentBefore, err := r.inUse(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var ends []func() (map[string]heard, error)
	for range feedHelpers {
		in, out, wait, err := help(ctx, "listen", job)
		if err != nil {
			return err
		}
		answers := json.NewDecoder(out)
		var nothing struct{}
		if err := answers.Decode(&nothing); err != nil {
			cancel()
			return errors.Join(wait(), err)
		}
		ends = append(ends, func() (told map[string]heard, err error) {
			err = errors.Join(in.Close(), answers.Decode(&told))
			return told, errors.Join(wait(), err)
		})
	}
	after, residentAfter, err := r.inUse(ctx)
	if err != nil {
		return err
	}
	name := fmt.Sprintf("memory of one of %d clients of the feed, ", feedClients)
	r.rep.grew("feed", name+"in use", "kB", float64(after-before)/feedClients/1e3, memoryLimitKB)
	r.rep.grew("feed", name+"resident", "kB", float64(residentAfter-residentBefore)/feedClients/1e3, memoryLimitKB)

	changes := loadJob{Address: job.Address, Rate: feedRate, Count: feedEvents}
	for i := range feedEvents {
		user := users[i%len(users)]
		path := "/compute/containers/" + containerOf(user, i/len(users)) + "/start"
		changes.Requests = append(changes.Requests, request{http.MethodPost, path, r.tokens[user], `"pending"`})
	}
	due, err := runLoad(ctx, changes)
	if err != nil {
		return err
	}
	// Nothing is to be done about them beside the next database.
	changes.Rate = 5 * feedRate
	for i := range changes.Requests {
		changes.Requests[i].Path = strings.TrimSuffix(changes.Requests[i].Path, "/start") + "/stop"
		changes.Requests[i].Want = `"id"`
	}
	if _, err := runLoad(ctx, changes); err != nil {
		return err
	}
	all := map[string]heard{}
	for _, end := range ends {
		told, err := end()
		if err != nil {
			return err
		}
		for id, h := range told {
			all[id] = heard{all[id].Clients + h.Clients, max(all[id].Last, h.Last)}
		}
	}
	var took []time.Duration
	for i, c := range changes.Requests {
		id := strings.Split(c.Path, "/")[3]
		if h := all[id]; h.Clients != feedEach*feedHelpers {
			return fmt.Errorf("%d of %d clients were told of container %s", h.Clients, feedEach*feedHelpers, id)
		}
		took = append(took, all[id].Last-due.Due[i])
	}
	sorted := slices.Sorted(slices.Values(milliseconds(took)))
	name = fmt.Sprintf("a change, until all %d clients of its owner know, ", feedEach*feedHelpers)
	r.rep.grew("feed", name+"median", "ms", quantile(sorted, 0.5), 0)
	r.rep.grew("feed", name+"p99", "ms", quantile(sorted, 0.99), 100)
	return nil
}

// inUse is what the control plane holds of memory once all garbage is gone, its heap and its stacks, and what is resident of
// it then, which is also what the collector keeps for the next garbage.
func (r *grownRig) inUse(ctx context.Context) (bytes, resident int64, err error) {
	for range 5 { // pools and stacks give up what they do not need step by step
		if _, err := r.admin(ctx, "/debug/pprof/heap?gc=1"); err != nil {
			return 0, 0, err
		}
	}
	text, err := r.admin(ctx, "/metrics")
	if err != nil {
		return 0, 0, err
	}
	found := 0
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if name == "go_memstats_heap_alloc_bytes" || name == "go_memstats_stack_inuse_bytes" {
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				return 0, 0, err
			}
			bytes += n
			found++
		}
	}
	if found != 2 {
		return 0, 0, errors.New("the metrics do not tell of heap and stacks")
	}
	resident, err = memoryOf(r.cmd.Process.Pid)
	return bytes, resident, err
}

// admin asks the admin address.
func (r *grownRig) admin(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.ready.Admin+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %d: %s", path, resp.StatusCode, text)
	}
	return text, err
}
