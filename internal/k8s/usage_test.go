package k8s

import (
	"testing"
	"time"
)

func TestMemoryMeasured(t *testing.T) {
	since := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	const pod = `{"timestamp": "2026-01-02T03:04:06Z", "containers": [
		{"name": "install", "usage": {"cpu": "1", "memory": "9Mi"}}, {"name": "main", "usage": {"cpu": "1", "memory": "3072Ki"}}]}`
	for metrics, want := range map[string]int64{
		pod: 3 << 20,
		`{"timestamp": "2026-01-02T03:04:04Z", "containers": [{"name": "main", "usage": {"memory": "1Gi"}}]}`: 0, // of another life
		`{"timestamp": "2026-01-02T03:04:06Z", "containers": [{"name": "main", "usage": {"memory": "-1"}}]}`:  0,
		`{"timestamp": "2026-01-02T03:04:06Z", "containers": [{"name": "other"}]}`:                            0,
		`{"containers": [{"name": "main", "usage": {"memory": "much"}}]}`:                                     0,
		`[`: 0, ``: 0,
	} {
		if got := memoryIn([]byte(metrics), since); got != want {
			t.Errorf("%s is %d, want %d", metrics, got, want)
		}
	}
}
