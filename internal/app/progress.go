package app

import (
	"fmt"
	"io"
	"sync"

	"github.com/dustin/go-humanize"
)

// progress tells a person of long work, a line at each quarter, so that it reads well on a terminal and in a log alike.
type progress struct {
	out io.Writer

	mu      sync.Mutex // guards what follows
	stage   string
	quarter int64
}

func newProgress(out io.Writer) *progress { return &progress{out: out} }

// step says that done of total bytes of a stage are over. A total of 0 is one that nobody knows.
func (p *progress) step(stage string, done, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if stage != p.stage {
		p.stage, p.quarter = stage, 0
		fmt.Fprintf(p.out, "%s …\n", stage)
	}
	if total <= 0 {
		return
	}
	if q := done * 4 / total; q > p.quarter {
		p.quarter = q
		fmt.Fprintf(p.out, "  %d%% of %s\n", q*25, humanize.IBytes(uint64(total)))
	}
}
