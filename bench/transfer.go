package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"time"

	"github.com/dustin/go-humanize"
)

// transferLimit bounds one transfer.
const transferLimit = 10 * time.Minute

// connectsPerRun is how many logins are measured for one transfer: they are short, and vary more.
const connectsPerRun = 3

func atMost(limit float64) func(float64) *goal {
	return func(ratio float64) *goal { return &goal{fmt.Sprintf("≤ %.2f", limit), ratio <= limit} }
}

func atLeast(limit float64) func(float64) *goal {
	return func(ratio float64) *goal { return &goal{fmt.Sprintf("≥ %.2f", limit), ratio >= limit} }
}

// connect measures `ssh … true`, on a new connection each time.
func (r *rig) connect(ctx context.Context) ([]measure, error) {
	tallies, err := r.turns(ctx, connectsPerRun*r.o.runs, []*contender{&r.sshd, &r.name, &r.jump}, logIn)
	if err != nil {
		return nil, err
	}
	return r.rows("connect", connectTitle, "s", tallies, func(s float64) float64 { return s },
		map[*contender]func(float64) *goal{&r.name: atMost(0.1), &r.jump: atMost(0.25)}), nil
}

const connectTitle = "`ssh … true`, a new connection"

func logIn(ctx context.Context, c *contender) (time.Duration, time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	return c.clock(c.command(ctx, nil, "true"))
}

// throughput makes rows of transfers. It counts whole commands, with their logins, in millions of bytes a second.
func (r *rig) throughput(ctx context.Context, suite, what string, once once) ([]measure, error) {
	tallies, err := r.turns(ctx, r.o.runs, r.contenders(), once)
	if err != nil {
		return nil, err
	}
	return r.rows(suite, what, "MB/s", tallies, rate(r.o.size), map[*contender]func(float64) *goal{&r.name: atLeast(0.9)}), nil
}

// rate makes millions of bytes a second of seconds.
func rate(size int64) func(seconds float64) float64 {
	return func(seconds float64) float64 { return float64(size) / 1e6 / seconds }
}

func (r *rig) download(ctx context.Context) ([]measure, error) {
	return r.throughput(ctx, "download", downloadTitle(r.o.size), fetch(r.o.size))
}

func (r *rig) upload(ctx context.Context) ([]measure, error) {
	return r.throughput(ctx, "upload", uploadTitle(r.o.size), push(r.o.size))
}

func downloadTitle(size int64) string {
	return fmt.Sprintf("download of %s: `ssh … 'head -c N /dev/zero' >/dev/null`", humanize.IBytes(uint64(size)))
}

func uploadTitle(size int64) string {
	return fmt.Sprintf("upload of %s: `head -c N /dev/zero | ssh … 'cat >/dev/null'`", humanize.IBytes(uint64(size)))
}

func fetch(size int64) once {
	return func(ctx context.Context, c *contender) (time.Duration, time.Duration, error) {
		ctx, cancel := context.WithTimeout(ctx, transferLimit)
		defer cancel()
		return c.clock(c.command(ctx, nil, fmt.Sprintf("head -c %d /dev/zero", size)))
	}
}

func push(size int64) once {
	return func(ctx context.Context, c *contender) (time.Duration, time.Duration, error) {
		ctx, cancel := context.WithTimeout(ctx, transferLimit)
		defer cancel()
		head := exec.CommandContext(ctx, "head", "-c", strconv.FormatInt(size, 10), "/dev/zero")
		in, out, err := os.Pipe()
		if err != nil {
			return 0, 0, err
		}
		head.Stdout = out
		err = head.Start()
		_ = out.Close() // head has its own
		if err != nil {
			_ = in.Close()
			return 0, 0, err
		}
		cmd := c.command(ctx, nil, "cat >/dev/null")
		cmd.Stdin = in
		took, cpu, err := c.clock(cmd)
		_ = in.Close() // before the wait: a head that nobody reads from must end
		if headErr := head.Wait(); err == nil {
			err = headErr
		}
		return took, cpu, err
	}
}
