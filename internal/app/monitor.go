package app

import (
	"context"
	"math"
	"net"
	"time"

	"berth/internal/audit"
	"berth/internal/compute"
	"berth/internal/control"
	"berth/internal/httpapi"
	"berth/internal/link"
	"berth/internal/monitor"
	"berth/internal/session"
	"berth/internal/sshproxy"
	"berth/internal/version"
)

// openMonitor makes what counts and what is asked whether this process is ready, and serves both where there is an address
// for that.
func (b *berth) openMonitor() error {
	log := b.log.With("part", "monitor")
	b.metrics, b.ready = monitor.NewMetrics(version.String()), monitor.NewReadiness(log)
	if b.cfg.AdminAddr == "" {
		return nil
	}
	l, err := b.listenTCP("admin-addr", b.cfg.AdminAddr)
	if err != nil {
		return err
	}
	b.adminAddr = l.Addr()
	server := monitor.NewServer(b.metrics, b.ready, log)
	b.lastEdges = append(b.lastEdges, edge{func() error { return server.Serve(l) }, server.Shutdown})
	log.Info("metrics and profiles", "addr", l.Addr())
	return nil
}

// database is what tells whether there is one.
type database interface {
	LastEvent(ctx context.Context) (int64, error)
}

// watchDatabase has readiness depend on db.
func (b *berth) watchDatabase(db database) {
	b.ready.Add("the database does not answer", func(ctx context.Context) error {
		_, err := db.LastEvent(ctx)
		return err
	})
}

// watchLink counts the gateways that follow, and how far they are behind what was committed.
func (b *berth) watchLink(s *link.Server, db database) {
	b.metrics.Gauge("berth_link_gateways", func() float64 { return float64(len(s.Connected())) })
	b.metrics.Gauge("berth_link_lag_events", func() float64 {
		ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
		defer cancel()
		gateways := s.Connected() // before what is newest, or one might be ahead of it
		newest, err := db.LastEvent(ctx)
		if err != nil {
			return math.NaN()
		}
		lag := int64(0)
		for _, g := range gateways {
			lag = max(lag, newest-g.Seq)
		}
		return float64(lag)
	})
	b.metrics.Counts("berth_link_dropped_total", func() []monitor.Count { return []monitor.Count{{Value: s.Dropped()}} })
	b.metrics.Counts("berth_link_audit_forged_total", func() []monitor.Count { return []monitor.Count{{Value: s.Forged()}} })
}

// watchAudit counts the audit records that are lost.
func (b *berth) watchAudit(q *audit.Queue) {
	b.metrics.Counts("berth_audit_lost_total", func() []monitor.Count { return []monitor.Count{{Value: q.Missed()}} })
}

// watchSpool measures what waits for the control plane.
func (b *berth) watchSpool(s *link.Spool) {
	b.metrics.Gauge("berth_link_audit_waiting_bytes", func() float64 { return float64(s.Waiting()) })
}

// scrapeTimeout bounds what one figure may wait for.
const scrapeTimeout = time.Second

// watchReplica measures how old a gateway's knowledge of the control plane's state is, and has readiness depend on it.
func (b *berth) watchReplica(r *link.Replica) {
	b.metrics.Gauge("berth_link_age_seconds", func() float64 { return r.Age().Seconds() })
	b.ready.Add("it does not know who may enter, or has not heard of the control plane for too long", func(ctx context.Context) error {
		_, err := r.Accounts(ctx, "") // of nobody's key: what matters is that it answers
		return err
	})
}

// observer measures the reconcile loop.
func (b *berth) observer() control.Observer {
	return control.Observer{Passed: b.metrics.Pass, Settled: b.metrics.Settled}
}

// watchEngine has readiness depend on what the engine drives, where this process has it.
func (b *berth) watchEngine(here func() engine) {
	what := "containerd does not answer"
	if b.cfg.OnKubernetes() {
		what = "the cluster does not answer"
	}
	b.ready.Add(what, func(ctx context.Context) error {
		if e := here(); e != nil {
			return e.Answers(ctx)
		}
		return nil
	})
}

// watchControl counts what the control plane has to do, and has readiness depend on its engine.
func (b *berth) watchControl(s *control.Service) {
	drives := func() bool { return b.replica == nil || b.replica.driving() != nil }
	b.ready.Add("the containers' engine does not answer", func(context.Context) error {
		if !drives() {
			return nil // another one's does
		}
		return s.Ready()
	})
	b.metrics.Gauge("berth_drives_containers", func() float64 {
		if drives() {
			return 1
		}
		return 0
	})
	gauge := func(name string, read func(control.Backlog) float64) {
		b.metrics.Gauge(name, func() float64 { return read(s.Backlog()) })
	}
	gauge("berth_reconcile_backlog", func(b control.Backlog) float64 { return float64(b.Containers) })
	gauge("berth_reconcile_failing", func(b control.Backlog) float64 { return float64(b.Failing) })
	gauge("berth_reconcile_passes", func(b control.Backlog) float64 { return float64(b.Passes) })
	gauge("berth_reconcile_oldest_seconds", func(b control.Backlog) float64 { return b.Oldest.Seconds() })
}

// observeAnswer measures the API.
func (b *berth) observeAnswer(o httpapi.Observation) {
	b.metrics.Request(o.Method, o.Route, o.Status, o.Took)
}

// watchFeed counts the clients of the live feed.
func (b *berth) watchFeed(api *httpapi.Server) {
	b.metrics.Gauge("berth_feed_clients", func() float64 { return float64(api.Feeds().Clients) })
	b.metrics.Counts("berth_feed_dropped_total", func() []monitor.Count {
		f := api.Feeds()
		return []monitor.Count{
			{Labels: `{reason="slow"}`, Value: f.Slow},
			{Labels: `{reason="silent"}`, Value: f.Silent},
			{Labels: `{reason="token"}`, Value: f.Forbidden},
		}
	})
	b.metrics.Counts("berth_feed_refused_total", func() []monitor.Count { return []monitor.Count{{Value: api.Feeds().Refused}} })
	b.metrics.Counts("berth_feed_relisted_total", func() []monitor.Count { return []monitor.Count{{Value: api.Feeds().Relisted}} })
}

// watchGateway counts who is in.
func (b *berth) watchGateway(g *sshproxy.Gateway) {
	b.metrics.Gauge("berth_ssh_connections", func() float64 { return float64(g.Connections()) })
	b.metrics.Gauge("berth_sessions", func() float64 { return float64(g.Sessions()) })
}

// watchSessions counts the agents that are reached.
func (b *berth) watchSessions(m *session.Multiplexer) {
	b.metrics.Gauge("berth_agent_connections", func() float64 { return float64(m.Transports()) })
}

// meteredDialer measures how agents are reached.
type meteredDialer struct {
	session.Dialer
	observe func(took time.Duration, err error)
}

func (d meteredDialer) DialAgent(ctx context.Context, r compute.Ref) (net.Conn, error) {
	began := time.Now()
	nc, err := d.Dialer.DialAgent(ctx, r)
	d.observe(time.Since(began), err)
	return nc, err
}
