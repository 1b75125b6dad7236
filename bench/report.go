package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// report is everything that one run of this program found.
type report struct {
	Berth      string    `json:"berth"`
	Client     string    `json:"client"`
	Server     string    `json:"server,omitempty"`
	Kernel     string    `json:"kernel"`
	CPUs       int       `json:"cpus"`
	LoadBefore float64   `json:"load_before"`
	LoadAfter  float64   `json:"load_after"`
	Runs       int       `json:"runs"`
	Size       int64     `json:"size"`
	Rows       []measure `json:"rows"`
	Notes      []string  `json:"notes,omitempty"`

	Containers []int    `json:"containers,omitempty"` // in the database, for each value of Growth
	Growth     []growth `json:"growth,omitempty"`
}

func (r *report) print(w io.Writer, asJSON bool) error {
	if asJSON {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	return r.table(w)
}

// table writes the rows for a person, those of one subject together.
func (r *report) table(out io.Writer) error {
	fmt.Fprintf(out, "\n%s", r.Berth)
	if r.Server != "" {
		fmt.Fprintf(out, " beside %s, client %s, %d runs", r.Server, r.Client, r.Runs)
	}
	fmt.Fprintf(out, "\n%d CPUs, Linux %s, load %.1f before and %.1f after\n", r.CPUs, r.Kernel, r.LoadBefore, r.LoadAfter)
	if r.LoadBefore > float64(r.CPUs)/2 {
		fmt.Fprintln(out, "The machine was busy before this began: figures are worse than they would be, ratios less sure.")
	}
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	what := ""
	for _, m := range r.Rows {
		if m.What != what {
			what = m.What
			if err := w.Flush(); err != nil {
				return err
			}
			fmt.Fprintf(out, "\n%s\n", what)
			fmt.Fprintln(w, "\tcipher\tmin\tmedian\tp99\tmax\tto sshd\tCPU\tgoal\t")
		}
		fmt.Fprintln(w, m.line())
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(r.Rows) > 0 {
		fmt.Fprintf(out, "\nto sshd: the median as a share of sshd's. CPU: seconds of one run, client and server together.\n")
	}
	for _, n := range r.Notes {
		fmt.Fprintf(out, "\n%s\n", n)
	}
	return r.growthTable(out)
}

// note adds a finding that is no row.
func (r *report) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

func (m measure) line() string {
	p99, ratio, cpu, verdict := "", "", "", ""
	if m.P99 > 0 {
		p99 = m.format(m.P99)
	}
	if m.Ratio > 0 {
		ratio = fmt.Sprintf("%.2f", m.Ratio)
	}
	if m.CPU > 0 {
		cpu = fmt.Sprintf("%.3g s", m.CPU)
	}
	if m.Goal != nil {
		verdict = m.Goal.verdict()
	}
	return strings.Join([]string{
		"  " + m.Who, m.Cipher, m.format(m.Min), m.format(m.Median), p99, m.format(m.Max), ratio, cpu, verdict, "",
	}, "\t")
}

func (m measure) format(v float64) string { return figure(v, m.Unit) }

// figure writes a value with as many places as mean something.
func figure(v float64, unit string) string {
	places := map[string]int{"s": 3, "ms": 2, "µs": 1}[unit] // and none for what is large
	return fmt.Sprintf("%.*f %s", places, v, unit)
}

func (g goal) verdict() string {
	if g.Met {
		return g.Text + " ok"
	}
	return g.Text + " MISS"
}

// missed is an error that names the goals that were not met.
func (r *report) missed() error {
	var errs []error
	for _, m := range r.Rows {
		if m.Goal != nil && !m.Goal.Met {
			errs = append(errs, fmt.Errorf("missed: %s: %s: %s, not %s", m.What, m.Who, m.format(m.Median), m.Goal.Text))
		}
	}
	for _, g := range r.Growth {
		if g.Goal != nil && !g.Goal.Met {
			errs = append(errs, fmt.Errorf("missed: %s, not %s", g.What, g.Goal.Text))
		}
	}
	return errors.Join(errs...)
}
