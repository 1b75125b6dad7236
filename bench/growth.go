package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/dustin/go-humanize"
)

// goalContainers is how many containers are in the database for which there are goals.
const goalContainers = 300_000

// growth is one row of the table of sizes: a quantity beside each of the databases.
type growth struct {
	Part   string    `json:"part"`
	What   string    `json:"what"`
	Unit   string    `json:"unit"` // s, ms, µs, MB, kB or B
	Values []float64 `json:"values"`
	Goal   *goal     `json:"goal,omitempty"`
}

// grew adds what was measured beside the newest database. A limit of 0 is none.
func (r *report) grew(part, what, unit string, value, limit float64) {
	i := 0
	for i < len(r.Growth) && r.Growth[i].What != what {
		i++
	}
	if i == len(r.Growth) {
		r.Growth = append(r.Growth, growth{Part: part, What: what, Unit: unit})
	}
	g := &r.Growth[i]
	g.Values = append(g.Values, value)
	if limit > 0 && r.Containers[len(r.Containers)-1] == goalContainers {
		g.Goal = &goal{fmt.Sprintf("< %g %s", limit, unit), value < limit}
	}
}

func (r *report) growthTable(out io.Writer) error {
	if len(r.Growth) == 0 {
		return nil
	}
	fmt.Fprintf(out, "\nbeside so many containers in the database, and a third as many accounts\n")
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	for _, n := range r.Containers {
		fmt.Fprintf(w, "\t%s", humanize.Comma(int64(n)))
	}
	fmt.Fprintf(w, "\tgoal at %s\t\n", humanize.Comma(goalContainers))
	for _, g := range r.Growth {
		fmt.Fprintf(w, "  %s", g.What)
		for i := range r.Containers {
			text := ""
			if i < len(g.Values) {
				text = figure(g.Values[i], g.Unit)
			}
			fmt.Fprintf(w, "\t%s", text)
		}
		verdict := ""
		if g.Goal != nil {
			verdict = g.Goal.verdict()
		}
		fmt.Fprintf(w, "\t%s\t\n", verdict)
	}
	return w.Flush()
}
