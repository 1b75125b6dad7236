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
	tallies, err := r.turns(ctx, connectsPerRun*r.o.runs, []*contender{&r.sshd, &r.name, &r.jump},
		func(ctx context.Context, c *contender) (time.Duration, time.Duration, error) {
			ctx, cancel := context.WithTimeout(ctx, commandLimit)
			defer cancel()
			return c.clock(c.command(ctx, nil, "true"))
		})
	if err != nil {
		return nil, err
	}
	return r.rows("connect", "`ssh … true`, a new connection", "s", tallies, func(s float64) float64 { return s },
		map[*contender]func(float64) *goal{&r.name: atMost(0.1), &r.jump: atMost(0.25)}), nil
}

// throughput makes rows of transfers. It counts whole commands, with their logins, in millions of bytes a second.
func (r *rig) throughput(
	ctx context.Context, suite, what string, once func(context.Context, *contender) (time.Duration, time.Duration, error),
) ([]measure, error) {
	tallies, err := r.turns(ctx, r.o.runs, r.contenders(), once)
	if err != nil {
		return nil, err
	}
	return r.rows(suite, fmt.Sprintf(what, humanize.IBytes(uint64(r.o.size))), "MB/s", tallies,
		func(s float64) float64 { return float64(r.o.size) / 1e6 / s },
		map[*contender]func(float64) *goal{&r.name: atLeast(0.9)}), nil
}

func (r *rig) download(ctx context.Context) ([]measure, error) {
	remote := fmt.Sprintf("head -c %d /dev/zero", r.o.size)
	return r.throughput(ctx, "download", "download of %s: `ssh … 'head -c N /dev/zero' >/dev/null`",
		func(ctx context.Context, c *contender) (time.Duration, time.Duration, error) {
			ctx, cancel := context.WithTimeout(ctx, transferLimit)
			defer cancel()
			return c.clock(c.command(ctx, nil, remote))
		})
}

func (r *rig) upload(ctx context.Context) ([]measure, error) {
	return r.throughput(ctx, "upload", "upload of %s: `head -c N /dev/zero | ssh … 'cat >/dev/null'`",
		func(ctx context.Context, c *contender) (time.Duration, time.Duration, error) {
			ctx, cancel := context.WithTimeout(ctx, transferLimit)
			defer cancel()
			head := exec.CommandContext(ctx, "head", "-c", strconv.FormatInt(r.o.size, 10), "/dev/zero")
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
		})
}
