package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"time"
)

const (
	createGoal  = 1.0 // seconds from the request to running
	restartGoal = 3.0 // seconds from berth up to ready, on a data directory that is there
	idle        = 100 // sessions
	settle      = 25 * time.Second
)

func seconds(limit float64) func(m *measure) {
	return func(m *measure) { m.Goal = &goal{fmt.Sprintf("< %.0f s", limit), m.Median < limit} }
}

// create measures the life of a container from the request to the end of its first command.
func (r *rig) create(ctx context.Context) ([]measure, error) {
	var running, first []float64
	for range r.o.runs {
		b, err := r.on.box(ctx, `{"name": "bench-new", "memory_mb": 256, "storage_gb": 2}`)
		if err != nil {
			return nil, err
		}
		c := contender{label: b.id, args: []string{"-F", r.on.sshConfig(), b.at()}}
		if _, _, err := c.clock(c.command(ctx, nil, "true")); err != nil {
			return nil, err
		}
		first = append(first, time.Since(b.created).Seconds())
		running = append(running, b.running.Sub(b.created).Seconds())
		if err := b.delete(ctx); err != nil {
			return nil, err
		}
	}
	const what = "a new container, from POST /compute/containers"
	rows := []measure{
		newMeasure("create", what, "berth, until running", "", "s", running),
		newMeasure("create", what, "berth, until `ssh … true` is over", r.name.cipher, "s", first),
	}
	seconds(createGoal)(&rows[0])
	return rows, nil
}

// restart measures a start of berth on a data directory with a running container.
func (r *rig) restart(ctx context.Context) ([]measure, error) {
	var took []float64
	for range min(r.o.runs, 5) {
		if err := r.on.stop(); err != nil {
			return nil, err
		}
		t, err := r.on.start(ctx)
		if err != nil {
			return nil, err
		}
		took = append(took, t.Seconds())
		if _, _, err := r.name.run(ctx, nil, nil, "true"); err != nil {
			return nil, fmt.Errorf("the container after a restart of berth: %w", err)
		}
	}
	m := newMeasure("restart", "a second start, with a running container, until ready", "berth up", "", "s", took)
	seconds(restartGoal)(&m)
	return []measure{m}, nil
}

// memory measures what an idle session costs, the command that it runs not counted. Berth starts anew for it, with a new
// container, and so a new agent: a process that has done much keeps memory from which sessions are then served.
func (r *rig) memory(ctx context.Context) (_ []measure, err error) {
	const what = "memory of an idle session, one of 100, after 25 s (proportional set size; berth: gateway and agent)"
	sshd, err := idleSessions(ctx, &r.sshd, func() (sum int64, err error) {
		pids, err := r.sshd.in.processes("sshd: ")
		for _, pid := range pids {
			m, memErr := memoryOf(pid)
			sum, err = sum+m, errors.Join(err, memErr)
		}
		return sum, err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.sshd.label, err)
	}
	if err := r.on.stop(); err != nil {
		return nil, err
	}
	if _, err := r.on.start(ctx); err != nil {
		return nil, err
	}
	fresh, err := r.on.box(ctx, `{"name": "bench-idle", "instance_type": "medium", "memory_mb": 2048, "storage_gb": 2}`)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, fresh.delete(ctx)) }()
	c := contender{label: r.name.label, args: []string{"-F", r.on.sshConfig(), fresh.at()}}
	net, err := fresh.network(ctx, c)
	if err != nil {
		return nil, err
	}
	berth, err := idleSessions(ctx, &c, func() (int64, error) {
		gateway, err1 := memoryOf(r.on.cmd.Process.Pid)
		agent, err2 := memoryOf(net.agent)
		return gateway + agent, errors.Join(err1, err2)
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.label, err)
	}
	rows := []measure{
		newMeasure("memory", what, r.sshd.label, r.sshd.cipher, "kB", []float64{float64(sshd) / idle / 1e3}),
		newMeasure("memory", what, r.name.label, r.name.cipher, "kB", []float64{float64(berth) / idle / 1e3}),
	}
	rows[1].against(rows[0], nil)
	rows[0].against(rows[0], nil)
	return rows, nil
}

// idleSessions opens sessions, each on a connection of its own, and returns by how much use grows.
func idleSessions(ctx context.Context, c *contender, use func() (int64, error)) (grown int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	before, err := use()
	if err != nil {
		return 0, err
	}
	type session struct {
		cmd   *exec.Cmd
		stdin io.Closer
	}
	var open []session
	defer func() {
		for _, s := range open {
			_ = s.stdin.Close() // the end of cat's input, and so of the session
			if endErr := s.cmd.Wait(); endErr != nil {
				err = errors.Join(err, fmt.Errorf("an idle session: %w", endErr))
			}
		}
	}()
	for range idle {
		cmd := c.command(ctx, nil, "echo "+begun+"; exec cat")
		stdin, err := cmd.StdinPipe()
		if err != nil {
			return 0, err
		}
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			return 0, err
		}
		if err := c.start(cmd); err != nil {
			return 0, err
		}
		open = append(open, session{cmd, stdin})
		if err := awaitBegun(stdout); err != nil {
			return 0, err
		}
	}
	// What the logins left behind goes back to the system only once the server is quiet.
	select {
	case <-time.After(settle):
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	after, err := use()
	return after - before, err
}
