package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

func TestQuantile(t *testing.T) {
	for _, c := range []struct {
		sorted []float64
		q      float64
		want   float64
	}{
		{[]float64{3}, 0.5, 3},
		{[]float64{1, 2, 4}, 0.5, 2},
		{[]float64{1, 2, 4, 8}, 0.5, 3},
		{[]float64{1, 2, 4, 8}, 1, 8},
		{[]float64{1, 2, 4, 8}, 0, 1},
		{[]float64{0, 100}, 0.99, 99},
	} {
		if got := quantile(c.sorted, c.q); got != c.want {
			t.Errorf("quantile(%v, %v) = %v, want %v", c.sorted, c.q, got, c.want)
		}
	}
}

func TestMeasureDoesNotMindOrder(t *testing.T) {
	m := newMeasure("connect", "w", "who", "", "s", []float64{5, 1, 3})
	if m.Min != 1 || m.Median != 3 || m.Max != 5 || m.N != 3 || m.P99 != 0 {
		t.Errorf("%+v", m)
	}
	if m = newMeasure("echo", "w", "who", "", "ms", make([]float64, enoughForP99-1)); m.P99 != 0 {
		t.Error("a 99th percentile of too few")
	}
	many := make([]float64, enoughForP99)
	for i := range many {
		many[i] = float64(i + 1)
	}
	if m = newMeasure("echo", "w", "who", "", "ms", many); m.P99 < 198 || m.P99 >= m.Max {
		t.Errorf("the 99th percentile of 1 to %d is %v", enoughForP99, m.P99)
	}
}

// sample is a report in which one goal is met and one is missed.
func sample() *report {
	r := &rig{
		sshd: contender{label: "sshd", cipher: "chacha20-poly1305"},
		name: contender{label: "by name", cipher: "aes128-gcm"},
		jump: contender{label: "by jump", cipher: "aes128-gcm"},
	}
	tallies := []tally{
		{c: &r.sshd, seconds: []float64{0.4, 0.4, 0.2}, cpu: 3e8},
		{c: &r.name, seconds: []float64{0.04, 0.03, 0.05}, cpu: 3e7},
		{c: &r.jump, seconds: []float64{0.2, 0.3, 0.1}, cpu: 3e7},
	}
	goals := map[*contender]func(float64) *goal{&r.name: atMost(0.1), &r.jump: atMost(0.25)}
	return &report{
		Berth: "berth 1", Server: "OpenSSH_1", Client: "OpenSSH_2", Kernel: "6", CPUs: 2, Runs: 1, LoadBefore: 1.5,
		Rows: r.rows("connect", "what", "s", tallies, func(s float64) float64 { return s }, goals),
	}
}

func TestGoals(t *testing.T) {
	r := sample()
	if g := r.Rows[0].Goal; g != nil || r.Rows[0].Ratio != 1 {
		t.Errorf("sshd is held to a goal: %v", g)
	}
	if g := r.Rows[1].Goal; g == nil || !g.Met {
		t.Errorf("0.04 of 0.4 is 0.1, which is the goal: %+v", r.Rows[1])
	}
	if g := r.Rows[2].Goal; g == nil || g.Met {
		t.Errorf("0.2 of 0.4 is more than 0.25: %+v", r.Rows[2])
	}
	err := r.missed()
	if err == nil || !strings.Contains(err.Error(), "by jump") || strings.Contains(err.Error(), "by name") {
		t.Errorf("missed: %v", err)
	}
	r.Rows = r.Rows[:2]
	if err := r.missed(); err != nil {
		t.Error(err)
	}
	if g := atLeast(0.9)(0.9); !g.Met {
		t.Error("0.9 is at least 0.9")
	}
}

func TestTable(t *testing.T) {
	var out bytes.Buffer
	if err := sample().print(&out, false); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"berth 1 beside OpenSSH_1, client OpenSSH_2", "busy before this began",
		"sshd     chacha20-poly1305  0.200 s  0.400 s       0.400 s  1.00     0.1 s",
		"by name  aes128-gcm         0.030 s  0.040 s       0.050 s  0.10     0.01 s  ≤ 0.10 ok",
		"by jump  aes128-gcm         0.100 s  0.200 s       0.300 s  0.50             ≤ 0.25 MISS",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table has no %q:\n%s", want, &out)
		}
	}
}

func TestJSONHoldsEverything(t *testing.T) {
	var out bytes.Buffer
	if err := sample().print(&out, true); err != nil {
		t.Fatal(err)
	}
	var back report
	if err := json.Unmarshal(out.Bytes(), &back); err != nil {
		t.Fatal(err)
	}
	if len(back.Rows) != 3 || back.Rows[2].Goal == nil || back.Rows[2].Goal.Met || back.Rows[1].Cipher != "aes128-gcm" {
		t.Errorf("%+v", back)
	}
}
