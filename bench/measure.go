package main

import (
	"context"
	"math"
	"slices"
	"time"
)

// measure is one row of the table: a quantity of one contender from many runs.
type measure struct {
	Suite  string `json:"suite"`
	What   string `json:"what"`
	Who    string `json:"who"`
	Cipher string `json:"cipher,omitempty"`
	Unit   string `json:"unit"` // s, ms, MB/s or kB

	N      int     `json:"n"`
	Min    float64 `json:"min"`
	Median float64 `json:"median"`
	P99    float64 `json:"p99,omitempty"` // where there are enough runs for one
	Max    float64 `json:"max"`

	CPU   float64 `json:"cpu_seconds,omitempty"` // of one run, client and server together
	Ratio float64 `json:"ratio_to_sshd,omitempty"`
	Goal  *goal   `json:"goal,omitempty"`
}

// goal is what a row has to reach: its median, or its value beside the database that the goal is for.
type goal struct {
	Text string `json:"text"`
	Met  bool   `json:"met"`
}

// enoughForP99 is how many runs make a 99th percentile something else than the maximum.
const enoughForP99 = 200

func newMeasure(suite, what, who, cipher, unit string, values []float64) measure {
	v := slices.Sorted(slices.Values(values))
	m := measure{
		Suite: suite, What: what, Who: who, Cipher: cipher, Unit: unit,
		N: len(v), Min: v[0], Median: quantile(v, 0.5), Max: v[len(v)-1],
	}
	if len(v) >= enoughForP99 {
		m.P99 = quantile(v, 0.99)
	}
	return m
}

// quantile is the value below which the share q of the sorted values lies, between neighbours in proportion.
func quantile(sorted []float64, q float64) float64 {
	at := q * float64(len(sorted)-1)
	low := int(math.Floor(at))
	if low+1 >= len(sorted) {
		return sorted[len(sorted)-1]
	}
	return sorted[low] + (at-float64(low))*(sorted[low+1]-sorted[low])
}

// against sets the ratio to sshd's row and, when there is one, the goal for it.
func (m *measure) against(sshd measure, g func(ratio float64) *goal) {
	m.Ratio = m.Median / sshd.Median
	if g != nil {
		m.Goal = g(m.Ratio)
	}
}

// tally is what the runs of one contender have come to.
type tally struct {
	c       *contender
	seconds []float64
	cpu     time.Duration
}

// once is one run of a contender.
type once func(context.Context, *contender) (took, clientCPU time.Duration, err error)

// turns lets the contenders run one after the other, again and again, and counts what they, berth and the container use.
func (r *rig) turns(ctx context.Context, rounds int, contenders []*contender, once once) ([]tally, error) {
	return takeTurns(ctx, rounds, contenders, r.serverCPU, once)
}

// takeTurns lets the contenders run one after the other, again and again. The first turn of each is not counted: it warms up.
// used is the CPU time of what serves them.
func takeTurns(ctx context.Context, rounds int, contenders []*contender, used func() (time.Duration, error), once once) ([]tally, error) {
	tallies := make([]tally, len(contenders))
	for i, c := range contenders {
		tallies[i].c = c
		if _, _, err := once(ctx, c); err != nil {
			return nil, err
		}
	}
	for range rounds {
		for i, c := range contenders {
			before, err := used()
			if err != nil {
				return nil, err
			}
			took, client, err := once(ctx, c)
			if err != nil {
				return nil, err
			}
			after, err := used()
			if err != nil {
				return nil, err
			}
			tallies[i].seconds = append(tallies[i].seconds, took.Seconds())
			tallies[i].cpu += client + after - before
		}
	}
	return tallies, nil
}

// serverCPU is the CPU time that berth and the container have used so far. The client of a jump is in neither.
func (r *rig) serverCPU() (time.Duration, error) {
	berth, err := processTime(r.on.cmd.Process.Pid)
	if err != nil {
		return 0, err
	}
	box, err := r.sshd.in.used()
	return berth + box, err
}

// rows makes measures of tallies, of which the first is sshd's own. value makes a run's figure of its seconds, and goals
// holds what a contender's ratio has to be.
func (r *rig) rows(
	suite, what, unit string, tallies []tally, value func(seconds float64) float64, goals map[*contender]func(float64) *goal,
) []measure {
	var out []measure
	for _, t := range tallies {
		values := make([]float64, len(t.seconds))
		for i, s := range t.seconds {
			values[i] = value(s)
		}
		m := newMeasure(suite, what, t.c.label, t.c.cipher, unit, values)
		if t.c != &r.jump {
			m.CPU = t.cpu.Seconds() / float64(len(t.seconds))
		}
		if len(out) == 0 {
			out = append(out, m)
			out[0].against(m, nil)
			continue
		}
		m.against(out[0], goals[t.c])
		out = append(out, m)
	}
	return out
}
