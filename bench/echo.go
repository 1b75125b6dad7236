package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/creack/pty"
)

const (
	echoesPerRun = 100
	keystroke    = 10 * time.Millisecond // between two, so that an echo finds everybody asleep, as a person's does
)

// echoAllowance is what an echo through berth, beside a transfer, may take over sshd's own without one.
const echoAllowance = 5.0 // milliseconds

// echo measures the time from a keystroke to its echo, on a terminal that is open already: alone, and beside transfers of the
// same container at full speed.
func (r *rig) echo(ctx context.Context) ([]measure, error) {
	beside := []struct {
		what     string
		transfer func(context.Context, *contender) (stop func() error, err error)
	}{
		{"echo of a keystroke, alone", nil},
		{"echo of a keystroke, beside a download at full speed", startDownload},
		{"echo of a keystroke, beside an upload at full speed", startUpload},
	}
	contenders := []*contender{&r.sshd, &r.name, &r.jump}
	samples := make([][][]float64, len(beside))
	for i := range samples {
		samples[i] = make([][]float64, len(contenders))
	}
	for range r.o.runs {
		for i, b := range beside {
			for j, c := range contenders {
				ms, err := echoes(ctx, c, b.transfer)
				if err != nil {
					return nil, fmt.Errorf("%s, %s: %w", c.label, b.what, err)
				}
				samples[i][j] = append(samples[i][j], ms...)
			}
		}
	}
	var rows []measure
	for i, b := range beside {
		var sshd measure
		for j, c := range contenders {
			m := newMeasure("echo", b.what, c.label, c.cipher, "ms", samples[i][j])
			if j == 0 {
				sshd = m
			}
			m.against(sshd, nil)
			if i > 0 && j > 0 {
				limit := rows[0].Median + echoAllowance
				m.Goal = &goal{fmt.Sprintf("≤ %.1f ms", limit), m.Median <= limit}
			}
			rows = append(rows, m)
		}
	}
	return rows, nil
}

// echoes types on a terminal and returns how many milliseconds each echo took.
func echoes(
	ctx context.Context, c *contender, transfer func(context.Context, *contender) (func() error, error),
) (ms []float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	if transfer != nil {
		stop, err := transfer(ctx, c)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, stop()) }()
	}
	// The terminal gives every byte to cat, and cat gives it back.
	cmd := c.command(ctx, []string{"-tt"}, "stty raw -echo && echo "+begun+" && exec cat")
	var tty *os.File
	err = c.in.within(func() (err error) {
		tty, err = pty.StartWithSize(cmd, &pty.Winsize{Rows: 24, Cols: 80})
		return err
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		_ = tty.Close() // hangs up
		_ = cmd.Wait()  // tells that it was hung up on
	}()
	if err := awaitBegun(tty); err != nil {
		return nil, err
	}
	tick := time.NewTicker(keystroke)
	defer tick.Stop()
	for range echoesPerRun {
		<-tick.C
		took, err := echoOnce(tty)
		if err != nil {
			return nil, err
		}
		ms = append(ms, took.Seconds()*1e3)
	}
	return ms, nil
}

func echoOnce(tty *os.File) (time.Duration, error) {
	key := []byte{'x'}
	began := time.Now()
	if _, err := tty.Write(key); err != nil {
		return 0, err
	}
	key[0] = 0
	if _, err := io.ReadFull(tty, key); err != nil {
		return 0, err
	}
	took := time.Since(began)
	if key[0] != 'x' {
		return 0, fmt.Errorf("the echo of x is %q", key)
	}
	return took, nil
}

// begun is what a remote command prints once it is there.
const begun = "bench-begun"

// awaitBegun reads up to that, a byte at a time: what follows is not for it.
func awaitBegun(r io.Reader) error {
	var text strings.Builder
	b := make([]byte, 1)
	for !strings.HasSuffix(text.String(), begun+"\n") {
		if _, err := io.ReadFull(r, b); err != nil {
			return fmt.Errorf("the session did not begin: %w: %s", err, text.String())
		}
		text.Write(b)
	}
	return nil
}

func startDownload(ctx context.Context, c *contender) (stop func() error, err error) {
	return startTransfer(c, c.command(ctx, nil, "echo "+begun+" >&2; exec cat /dev/zero"))
}

func startUpload(ctx context.Context, c *contender) (stop func() error, err error) {
	zero, err := os.Open("/dev/zero")
	if err != nil {
		return nil, err
	}
	defer zero.Close()
	cmd := c.command(ctx, nil, "echo "+begun+" >&2; exec cat >/dev/null")
	cmd.Stdin = zero
	return startTransfer(c, cmd)
}

// startTransfer starts a transfer without end and returns when it has begun.
func startTransfer(c *contender, cmd *exec.Cmd) (stop func() error, err error) {
	errs, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := c.start(cmd); err != nil {
		return nil, err
	}
	stop = func() error {
		_ = cmd.Process.Kill()
		var exit *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &exit) || exit.Exited() {
			return fmt.Errorf("the transfer ended by itself: %w", err)
		}
		return nil
	}
	if err := awaitBegun(bufio.NewReader(errs)); err != nil {
		return nil, errors.Join(err, stop())
	}
	return stop, nil
}
