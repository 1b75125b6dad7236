package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// rig is what the measurements share: a berth that serves, and a container with sshd in it.
type rig struct {
	o    options
	out  io.Writer
	on   *instance
	box  *box
	sshd contender // first of all contenders: what the others are compared with
	gcm  contender // sshd, its client told to use AES-GCM
	name contender // berth by user name
	jump contender // berth by ssh_config
}

// suite is one group of measurements.
type suite struct {
	name string
	run  func(*rig, context.Context) ([]measure, error)
}

// suites in their order: the last two end the berth process that the others measure.
func suites() []suite {
	return []suite{
		{"connect", (*rig).connect},
		{"download", (*rig).download},
		{"upload", (*rig).upload},
		{"echo", (*rig).echo},
		{"create", (*rig).create},
		{"memory", (*rig).memory},
		{"restart", (*rig).restart},
	}
}

func suiteNames() []string {
	var names []string
	for _, s := range suites() {
		names = append(names, s.name)
	}
	for _, p := range parts() {
		names = append(names, p.name)
	}
	return append(names, "reconcile", "idle") // of a cluster, which has some of the others too
}

// chosen says whether a group of measurements is to be made.
func (o options) chosen(name string) bool { return len(o.only) == 0 || slices.Contains(o.only, name) }

// run measures everything, and removes all that it made.
func run(ctx context.Context, o options, out io.Writer) (*report, error) {
	began := time.Now()
	step := func(format string, args ...any) {
		fmt.Fprintf(out, "bench %4.0f s  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
	rep, err := describe(ctx, o)
	if err != nil {
		return nil, err
	}
	if o.devcluster != "" {
		err = onCluster(ctx, o, step, rep)
		rep.LoadAfter = loadAverage()
		return rep, err
	}
	if slices.ContainsFunc(suites(), func(s suite) bool { return o.chosen(s.name) }) {
		err = besideSSHD(ctx, o, out, step, rep)
	}
	if err == nil && slices.ContainsFunc(parts(), func(p part) bool { return o.chosen(p.name) }) {
		err = grown(ctx, o, step, rep)
	}
	if ctx.Err() != nil {
		err = errors.Join(errors.New("interrupted"), err)
	}
	rep.LoadAfter = loadAverage()
	return rep, err
}

// besideSSHD measures one container's berth and sshd.
func besideSSHD(ctx context.Context, o options, out io.Writer, step func(string, ...any), rep *report) (err error) {
	step("starting %s", o.berth)
	on, err := newInstance(o, o.berth, "up", "--ssh-addr", "127.0.0.1:0", "--keys-per-user", "100")
	if err != nil {
		return err
	}
	defer func() {
		step("removing everything")
		err = errors.Join(err, on.delete())
	}()
	if _, err := on.start(ctx); err != nil {
		return err
	}
	r := &rig{o: o, out: out, on: on}
	step("making a container with sshd")
	if err := r.prepare(ctx); err != nil {
		return err
	}
	rep.Server = r.sshd.peer
	for _, s := range suites() {
		if !o.chosen(s.name) {
			continue
		}
		step("measuring %s", s.name)
		rows, err := s.run(r, ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		rep.Rows = append(rep.Rows, rows...)
	}
	return nil
}

// prepare makes the container, and the contenders to reach it.
func (r *rig) prepare(ctx context.Context) (err error) {
	// More cores than most machines have: the limit must not be what is measured.
	if r.box, err = r.on.box(ctx, `{"name": "bench", "instance_type": "medium", "memory_mb": 2048, "storage_gb": 4}`); err != nil {
		return err
	}
	r.name = contender{label: "berth, ssh <id>@<zone>", args: []string{"-F", r.on.sshConfig(), r.box.at()}}
	r.jump = contender{label: "berth, ssh_config as written", args: []string{"-F", r.on.sshConfig(), r.box.hostname()}}
	net, err := r.box.network(ctx, r.name)
	if err != nil {
		return err
	}
	config, err := r.on.installSSHD(ctx, r.name)
	if err != nil {
		return fmt.Errorf("start sshd in the container: %w", err)
	}
	r.sshd = contender{label: "sshd, directly", args: []string{"-F", config, "sshd"}, in: net}
	r.gcm = contender{
		label: "sshd, client told AES-GCM", in: net,
		args: []string{"-F", config, "-c", "aes128-gcm@openssh.com,aes256-gcm@openssh.com", "sshd"},
	}
	for _, c := range r.contenders() {
		if err := c.learn(ctx); err != nil {
			return fmt.Errorf("%s: %w", c.label, err)
		}
		if err := c.verify(ctx); err != nil {
			return fmt.Errorf("%s: %w", c.label, err)
		}
	}
	return nil
}

func (r *rig) contenders() []*contender { return []*contender{&r.sshd, &r.gcm, &r.name, &r.jump} }

// describe says where and with what the measurements are made.
func describe(ctx context.Context, o options) (*report, error) {
	version, err := (&instance{o: o}).run(ctx, "--version")
	if err != nil {
		return nil, err
	}
	client, err := clientVersion(ctx)
	if err != nil {
		return nil, err
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, err
	}
	return &report{
		Berth: strings.TrimSpace(version), Client: client,
		Kernel: unix.ByteSliceToString(u.Release[:]), CPUs: runtime.NumCPU(), Size: o.size, Runs: o.runs,
		LoadBefore: loadAverage(),
	}, nil
}

// loadAverage is that of the last minute; a busy machine makes every figure worse, and none of them fair.
func loadAverage() (load float64) {
	text, err := os.ReadFile("/proc/loadavg")
	if err == nil {
		_, _ = fmt.Sscan(string(text), &load) // 0 where there is none
	}
	return load
}
