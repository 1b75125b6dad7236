package k8stest

import (
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"time"

	"berth/deploy/devcluster/clustertest"
	"berth/internal/k8s"
)

// testShrinkInUse lowers a container's memory below what it holds, which a kubelet does not do in place.
func testShrinkInUse(t *testing.T, r *rig) {
	said := &logged{}
	r = r.with(func(o *k8s.Options) { o.Log = slog.New(slog.NewTextHandler(said, nil)) })
	s := newSpec()
	s.MemoryMB = 512
	s = r.runOf(s)
	held := make(chan struct{})
	go func() { // until the container is stopped
		defer close(held)
		_, _ = r.sh(s, "{ head -c 300M /dev/zero; sleep 600; } | tail -n 1 > /dev/null")
	}()
	clustertest.Eventually(t, time.Minute, func() error {
		out, err := r.sh(s, "cd /sys/fs/cgroup; cat memory.current 2>/dev/null || cat memory/memory.usage_in_bytes")
		if n, _ := strconv.Atoi(strings.TrimSpace(out)); err == nil && n < 300<<20 {
			err = fmt.Errorf("it holds %s", out)
		}
		return err
	})

	was := s
	s.MemoryMB, s.Generation = 128, s.Generation+1
	if err := r.e.AdmitChange(r.ctx(), was, s); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	began := time.Now()
	go func() { ended <- r.e.Apply(r.ctx(), s) }()
	r.want(r.run(), "echo here", "here\n") // another one meanwhile
	err := <-ended
	took := time.Since(began)
	t.Logf("it took %s", took)
	if err != nil || took > time.Minute {
		t.Errorf("after %s: %v", took, err)
	}
	if text := said.String(); !strings.Contains(text, "new size waits") {
		t.Errorf("the log has %s", text)
	}
	const limit = "cd /sys/fs/cgroup; cat memory.max 2>/dev/null || cat memory/memory.limit_in_bytes"
	r.want(s, limit, fmt.Sprintln(512<<20))
	s.Generation++
	if err := r.e.Apply(r.ctx(), s); err != nil { // nothing waits for it any more
		t.Error(err)
	}
	r.apply(&s, false)
	<-held
	r.apply(&s, true)
	r.want(s, limit, fmt.Sprintln(128<<20))
}
