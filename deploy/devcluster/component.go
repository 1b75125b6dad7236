package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

const (
	restartAfter = time.Second     // a component that ended by itself is started again then
	stopWithin   = 2 * time.Second // of a TERM; then it is killed: the API server would wait a minute for who watches it
	readyWithin  = 2 * time.Minute // of its start, on a busy machine
	probeEvery   = 50 * time.Millisecond
)

// component is one program of the node. A goroutine of its own starts it, and again when it ends, as an init system would.
type component struct {
	name  string
	args  []string
	ready func(context.Context) error // asks once

	orders chan order
	done   chan struct{} // closed when the goroutine has ended, and the program with it

	mu    sync.Mutex
	ended error // why it ended last, since it was last ordered to start
}

// order is what its goroutine is asked for; kill and stop end the program, start and restart leave it running.
type order struct {
	verb  string
	reply chan error
}

func newComponent(name string, ready func(context.Context) error, args ...string) *component {
	return &component{name: name, args: args, ready: ready, orders: make(chan order), done: make(chan struct{})}
}

// serve runs until ctx ends, and then ends the program. It begins stopped.
func (c *component) serve(ctx context.Context) {
	defer close(c.done)
	var p process
	wanted := false
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			p.end(syscall.SIGTERM)
			return
		case err := <-p.exited:
			p = process{}
			slog.Warn("ended by itself", "component", c.name, "error", err)
			c.note(err)
			again = time.After(restartAfter)
		case <-again:
			again = nil
			if wanted {
				p = c.start()
			}
		case o := <-c.orders:
			again = nil
			switch o.verb {
			case "stop", "restart":
				p.end(syscall.SIGTERM)
				p = process{}
			case "kill":
				p.end(syscall.SIGKILL)
				p = process{}
			}
			if wanted = o.verb != "stop"; wanted && p.exited == nil {
				c.note(nil)
				p = c.start()
			}
			slog.Info(o.verb, "component", c.name)
			o.reply <- nil
		}
	}
}

func (c *component) note(ended error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = ended
}

func (c *component) lastEnd() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended
}

// do gives an order, and waits until it is carried out and the program, where it is to run, answers.
func (c *component) do(ctx context.Context, verb string) error {
	o := order{verb, make(chan error, 1)}
	select {
	case c.orders <- o:
	case <-c.done:
		return errors.New("the node is being stopped")
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := <-o.reply; err != nil || verb == "stop" {
		return err
	}
	return c.awaitReady(ctx)
}

func (c *component) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	err := until(ctx, func(ctx context.Context) error {
		if err := c.lastEnd(); err != nil {
			return final{fmt.Errorf("it ended: %w", err)}
		}
		return c.ready(ctx)
	})
	if err != nil {
		return fmt.Errorf("%s is not ready: %w; its log is log/%s.log", c.name, err, c.name)
	}
	return nil
}

// final is an error after which asking again is of no use.
type final struct{ error }

// until asks again and again, for want of an event to wait on, and returns the last error when ctx ends.
func until(ctx context.Context, ask func(context.Context) error) error {
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		err := ask(ctx)
		if stop := (final{}); err == nil || errors.As(err, &stop) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

// process is a run of a component's program; its zero value is none.
type process struct {
	cmd    *exec.Cmd
	exited chan error
}

func (c *component) start() process {
	exited := make(chan error, 1)
	log, err := os.OpenFile(filepath.Join(nodeDir, "log", c.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		exited <- err
		return process{exited: exited}
	}
	defer log.Close()
	cmd := exec.Command(c.args[0], c.args[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		exited <- err
		return process{exited: exited}
	}
	go func() {
		err := cmd.Wait()
		if err == nil {
			err = errors.New("exit status 0")
		}
		exited <- err
	}()
	return process{cmd, exited}
}

// end sends the signal and waits for the end, which it forces after a while.
func (p process) end(s syscall.Signal) {
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Signal(s) // fails only when it has ended
	select {
	case <-p.exited:
	case <-time.After(stopWithin):
		_ = p.cmd.Process.Kill()
		<-p.exited
	}
}
