package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/valyala/fasthttp"
	"golang.org/x/sys/unix"
)

// These parts of the program run in processes of their own, so that their garbage and their descriptors are not in the way
// of whoever looks at the clock. Each reads one job as JSON and prints one result.
var helpers = map[string]func(in *json.Decoder, out io.Writer) error{"load": load, "listen": listen}

// help starts a helper on a job. Closing in lets one go that waits for that; result waits for its end.
func help(ctx context.Context, name string, job any) (in io.Closer, out io.Reader, wait func() error, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, nil, err
	}
	cmd := exec.CommandContext(ctx, self, name)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, nil, err
	}
	wait = func() error {
		if err := cmd.Wait(); err != nil {
			return fmt.Errorf("%s: %w: %s", name, err, &errs)
		}
		return nil
	}
	return stdin, stdout, wait, json.NewEncoder(stdin).Encode(job)
}

// now is a clock that all processes of a machine share and nobody sets.
func now() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) // there always is one
	return time.Duration(t.Nano())
}

// request is one request of a load, and what its answer holds if it is the right one.
type request struct {
	Method string `json:"method"`
	Path   string `json:"path"`
	Token  string `json:"token"`
	Want   string `json:"want"`
}

// loadJob is an open loop: a request is due every 1/Rate seconds, whether the ones before it were answered or not.
type loadJob struct {
	Address  string    `json:"address"`
	Rate     int       `json:"rate"` // a second
	Count    int       `json:"count"`
	Requests []request `json:"requests"` // again and again
}

// loadResult says of each request when it was due, and how long after that its answer was there: what waits for a connection
// because the server is slow, waits at the server's expense.
type loadResult struct {
	Due    []time.Duration `json:"due"`
	Took   []time.Duration `json:"took"`
	Failed int             `json:"failed"`
	Why    string          `json:"why"`
}

// connections are how many a load opens at most, and requestLimit is for one answer.
const (
	connections  = 256
	requestLimit = 10 * time.Second
)

func load(in *json.Decoder, out io.Writer) error {
	var job loadJob
	if err := in.Decode(&job); err != nil {
		return err
	}
	client := &fasthttp.HostClient{
		Addr: job.Address, MaxConns: connections, MaxConnWaitTimeout: requestLimit, ReadTimeout: requestLimit,
		MaxIdleConnDuration: time.Minute,
	}
	r := loadResult{Due: make([]time.Duration, job.Count), Took: make([]time.Duration, job.Count)}
	var mu sync.Mutex // guards Failed and Why
	var all sync.WaitGroup
	began := now() + 100*time.Millisecond
	for i := range job.Count {
		due := began + time.Duration(i)*time.Second/time.Duration(job.Rate)
		if early := due - now(); early > 0 {
			<-time.After(early)
		}
		all.Go(func() {
			err := send(client, job.Requests[i%len(job.Requests)])
			r.Due[i], r.Took[i] = due, now()-due
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				r.Failed++
				r.Why = err.Error()
			}
		})
	}
	all.Wait()
	return json.NewEncoder(out).Encode(r)
}

func send(client *fasthttp.HostClient, r request) error {
	req, resp := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
	defer fasthttp.ReleaseRequest(req)
	defer fasthttp.ReleaseResponse(resp)
	req.Header.SetMethod(r.Method)
	req.SetRequestURI("http://" + client.Addr + r.Path)
	req.Header.Set("Authorization", "Bearer "+r.Token)
	if err := client.DoTimeout(req, resp, requestLimit); err != nil {
		return err
	}
	if resp.StatusCode() != fasthttp.StatusOK || !bytes.Contains(resp.Body(), []byte(r.Want)) {
		return fmt.Errorf("%s %s: %d: %s", r.Method, r.Path, resp.StatusCode(), resp.Body())
	}
	return nil
}

// runLoad has a helper send a load, and fails when an answer was not as it has to be.
func runLoad(ctx context.Context, job loadJob) (r loadResult, err error) {
	in, out, wait, err := help(ctx, "load", job)
	if err != nil {
		return r, err
	}
	defer in.Close()
	err = json.NewDecoder(out).Decode(&r)
	if err = errors.Join(wait(), err); err != nil {
		return r, err
	}
	if r.Failed > 0 {
		return r, fmt.Errorf("%d of %d requests failed: %s", r.Failed, job.Count, r.Why)
	}
	return r, nil
}

// milliseconds makes figures of durations.
func milliseconds(list []time.Duration) []float64 {
	out := make([]float64, len(list))
	for i, d := range list {
		out[i] = float64(d) / float64(time.Millisecond)
	}
	return out
}
