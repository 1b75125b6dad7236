package main

import (
	"context"
	"fmt"
	"strings"
	"time"
)

const (
	rolloutTimeout = "10m" // for images to be pulled, and each gateway to end in its turn
	lookEvery      = 3 * time.Second
	maxRestarts    = 3 // of a program while it is waited for, until that is given up
)

// rollOut waits until the programs serve, the control plane first: gateways wait for what it gives them.
func (c *cluster) rollOut(ctx context.Context, say func(string, ...any)) error {
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	looked := make(chan struct{})
	go func() {
		defer close(looked)
		c.look(ctx, say, giveUp)
	}()
	defer func() { giveUp(nil); <-looked }()
	for _, what := range []string{"deployment/berth-api", "statefulset/berth-gateway"} {
		err := c.follow(ctx, say, "--namespace", namespace, "rollout", "status", what, "--timeout", rolloutTimeout)
		if err != nil {
			return fmt.Errorf("%w\n%s", err, c.trouble(context.WithoutCancel(ctx)))
		}
	}
	return nil
}

// look says what keeps pods from running, each thing once, and gives up on a program that ends again and again.
func (c *cluster) look(ctx context.Context, say func(string, ...any), giveUp func(error)) {
	said := map[string]bool{}
	before := map[string]int{} // restarts of what is there from an earlier rollout
	for tick := time.NewTicker(lookEvery); ; {
		select {
		case <-ctx.Done():
			tick.Stop()
			return
		case <-tick.C:
		}
		var pods struct {
			Items []struct {
				Metadata struct{ Name string }
				Status   struct {
					ContainerStatuses []struct {
						RestartCount int
						State        struct {
							Waiting *struct{ Reason, Message string }
						}
					}
				}
			}
		}
		if err := c.get(ctx, &pods, "--namespace", namespace, "pods", "--selector", "app.kubernetes.io/part-of=berth"); err != nil {
			continue // the rollout itself says what is wrong with the cluster
		}
		for _, p := range pods.Items {
			for _, s := range p.Status.ContainerStatuses {
				if n, known := before[p.Metadata.Name]; !known || s.RestartCount < n {
					before[p.Metadata.Name] = s.RestartCount
				}
				w := s.State.Waiting
				if w == nil || w.Reason == "ContainerCreating" || w.Reason == "PodInitializing" {
					continue
				}
				if text := fmt.Sprintf("%s: %s: %s", p.Metadata.Name, w.Reason, w.Message); !said[text] {
					said[text] = true
					say("%s", text)
				}
				if s.RestartCount-before[p.Metadata.Name] >= maxRestarts {
					giveUp(fmt.Errorf("%s has ended %d times", p.Metadata.Name, s.RestartCount))
					return
				}
			}
		}
	}
}

// trouble is what kubectl knows of pods that do not become ready.
func (c *cluster) trouble(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var text strings.Builder
	for _, args := range [][]string{
		{"get", "pods", "-o", "wide"},
		{"get", "events", "--field-selector", "type=Warning", "--sort-by", ".lastTimestamp"},
		{"logs", "--tail=20", "--prefix", "--selector", "app.kubernetes.io/part-of=berth", "--ignore-errors"},
	} {
		out, err := c.do(ctx, "", append([]string{"--namespace", namespace}, args...)...)
		if err != nil {
			out += err.Error() + "\n"
		}
		text.WriteString(out)
	}
	return text.String()
}
