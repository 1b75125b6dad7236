package monitor

import (
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// Upper bounds of the histograms' buckets, in seconds.
var (
	requestBuckets   = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10}
	reconcileBuckets = []float64{.01, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}
	dialBuckets      = []float64{.0005, .001, .005, .01, .05, .1, .5, 1, 5, 10}
)

// Outcomes of an attempt, as the label "result" has them.
const (
	resultOK     = "ok"
	resultFailed = "failed"
)

// Metrics is what is counted and measured, of one process. Its methods may be called concurrently.
type Metrics struct{ set *metrics.Set }

// NewMetrics returns Metrics that say which version of Berth this is.
func NewMetrics(version string) *Metrics {
	metrics.ExposeMetadata(true) // the library has this for the whole process; nothing else in it uses the library
	m := &Metrics{set: metrics.NewSet()}
	m.Gauge("berth_build_info{version="+strconv.Quote(version)+"}", func() float64 { return 1 })
	return m
}

// Write writes everything in Prometheus' text format.
func (m *Metrics) Write(w io.Writer) {
	m.set.WritePrometheus(w)
	metrics.WriteProcessMetrics(w)
}

// Gauge has read asked for a value that goes up and down. The name may have labels.
func (m *Metrics) Gauge(name string, read func() float64) { m.set.NewGauge(name, read) }

// Count is one value of a counter.
type Count struct {
	Labels string // such as `{reason="slow"}`; may be empty
	Value  uint64
}

// Counts has read asked for the values of a counter that somebody else keeps.
func (m *Metrics) Counts(name string, read func() []Count) {
	m.set.RegisterMetricsWriter(func(w io.Writer) {
		metrics.WriteMetadataIfNeeded(w, name, "counter")
		for _, c := range read() {
			fmt.Fprintf(w, "%s%s %d\n", name, c.Labels, c.Value)
		}
	})
}

// Request counts an answer of the API. The route is the pattern that was registered, and the method one that it was registered
// for: never what the client sent.
func (m *Metrics) Request(method, route string, status int, took time.Duration) {
	m.set.GetOrCreateCounter(fmt.Sprintf(`berth_http_requests_total{method=%q,route=%q,code="%d"}`, method, route, status)).Inc()
	m.set.GetOrCreatePrometheusHistogramExt(fmt.Sprintf(`berth_http_request_seconds{route=%q}`, route), requestBuckets).
		Update(took.Seconds())
}

// Pass counts one attempt of the reconcile loop to make one container as it is desired.
func (m *Metrics) Pass(took time.Duration, err error) {
	name := fmt.Sprintf(`berth_reconcile_pass_seconds{result=%q}`, result(err))
	m.set.GetOrCreatePrometheusHistogramExt(name, reconcileBuckets).Update(took.Seconds())
}

// Settled counts a container that is as desired, took after it began not to be.
func (m *Metrics) Settled(took time.Duration) {
	m.set.GetOrCreatePrometheusHistogramExt("berth_reconcile_settle_seconds", reconcileBuckets).Update(took.Seconds())
}

// Dial counts a connection to a container's agent.
func (m *Metrics) Dial(took time.Duration, err error) {
	name := fmt.Sprintf(`berth_agent_dial_seconds{result=%q}`, result(err))
	m.set.GetOrCreatePrometheusHistogramExt(name, dialBuckets).Update(took.Seconds())
}

func result(err error) string {
	if err != nil {
		return resultFailed
	}
	return resultOK
}
