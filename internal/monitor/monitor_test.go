package monitor

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"berth/internal/compute"
)

const patience = 20 * time.Second // for what should take milliseconds

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// served starts a server on a real socket and returns its address, and a function that stops it.
func served(t *testing.T, m *Metrics, r *Readiness) (url string, stop func(context.Context) error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(m, r, slog.New(slog.DiscardHandler))
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	var once sync.Once
	stop = func(ctx context.Context) (err error) {
		once.Do(func() {
			err = s.Shutdown(ctx)
			if serr := <-done; serr != nil {
				t.Errorf("serve: %v", serr)
			}
		})
		return err
	}
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := stop(ctx); err != nil {
			t.Error(err)
		}
	})
	return "http://" + l.Addr().String(), stop
}

func ask(t *testing.T, method, url string) (status int, body string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func quiet() *Readiness { return NewReadiness(slog.New(slog.DiscardHandler)) }

// line is what the format allows (https://prometheus.io/docs/instrumenting/exposition_formats): a comment, or a value.
var line = regexp.MustCompile(`^(# (HELP|TYPE) [a-z_]+.*|[a-z_]+(\{\w+="[^"]*"(, ?\w+="[^"]*")*\})? [-+0-9.eInf]+)$`)

func TestMetrics(t *testing.T) {
	m := NewMetrics(`v1 "odd"`)
	clients := 3.0
	m.Gauge("berth_feed_clients", func() float64 { return clients })
	m.Counts("berth_feed_dropped_total", func() []Count { return []Count{{`{reason="slow"}`, 7}, {`{reason="silent"}`, 8}} })
	m.Request("GET", "/compute/containers/:id", 200, 3*time.Millisecond)
	m.Request("GET", "/compute/containers/:id", 404, 30*time.Millisecond)
	m.Request("GET", "/compute/containers/:id", 200, time.Hour)
	m.Pass(time.Second, nil)
	m.Pass(time.Second, errors.New("no"))
	m.Settled(2 * time.Second)
	m.Dial(time.Millisecond, nil)
	url, _ := served(t, m, quiet())
	status, text := ask(t, "GET", url+"/metrics")
	if status != 200 {
		t.Fatalf("%d %s", status, text)
	}
	for _, want := range []string{
		"# TYPE berth_feed_clients gauge\nberth_feed_clients 3\n",
		"# TYPE berth_feed_dropped_total counter\n" + `berth_feed_dropped_total{reason="slow"} 7` + "\n",
		"# TYPE berth_http_requests_total counter\n" +
			`berth_http_requests_total{method="GET",route="/compute/containers/:id",code="200"} 2` + "\n",
		`berth_http_requests_total{method="GET",route="/compute/containers/:id",code="404"} 1` + "\n",
		"# TYPE berth_http_request_seconds histogram\n",
		`berth_http_request_seconds_bucket{route="/compute/containers/:id",le="0.005"} 1` + "\n",
		`berth_http_request_seconds_bucket{route="/compute/containers/:id",le="0.05"} 2` + "\n",
		`berth_http_request_seconds_bucket{route="/compute/containers/:id",le="+Inf"} 3` + "\n",
		`berth_reconcile_pass_seconds_count{result="ok"} 1` + "\n", `berth_reconcile_pass_seconds_count{result="failed"} 1` + "\n",
		"berth_reconcile_settle_seconds_sum 2\n", `berth_agent_dial_seconds_count{result="ok"} 1` + "\n",
		"\nprocess_resident_memory_bytes ", "\ngo_goroutines ", `berth_build_info{version="v1 \"odd\""} 1` + "\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not there", want)
		}
	}
	types := map[string]bool{}
	for l := range strings.Lines(strings.ReplaceAll(text, `\"`, "")) {
		l = strings.TrimSuffix(l, "\n")
		if !line.MatchString(l) {
			t.Errorf("this is not Prometheus' format: %q", l)
		}
		if strings.HasPrefix(l, "# TYPE") {
			if types[l] {
				t.Errorf("twice: %s", l)
			}
			types[l] = true
		}
	}
	clients = 4
	if _, text := ask(t, "GET", url+"/metrics"); !strings.Contains(text, "berth_feed_clients 4\n") {
		t.Error("a value that changed is not told")
	}
}

func TestProbesAndProfiles(t *testing.T) {
	m, r := NewMetrics("v1"), quiet()
	broken := make(chan error, 1)
	r.Add("the database does not answer", func(context.Context) error {
		select {
		case err := <-broken:
			return err
		default:
			return nil
		}
	})
	r.now = ticking()
	url, _ := served(t, m, r)
	for path, want := range map[string]string{"/healthz": "ok\n", "/readyz": "ok\n", "/debug/pprof/goroutine?debug=1": "goroutine profile"} {
		if status, text := ask(t, "GET", url+path); status != 200 || !strings.HasPrefix(text, want) {
			t.Errorf("%s: %d %.100q", path, status, text)
		}
	}
	broken <- errors.New("disk I/O error: secret")
	if status, text := ask(t, "GET", url+"/readyz"); status != 503 || text != "It is not ready: the database does not answer.\n" {
		t.Errorf("%d %q", status, text)
	}
	if status, _ := ask(t, "GET", url+"/healthz"); status != 200 {
		t.Error("what is not ready is not dead")
	}
	if status, _ := ask(t, "POST", url+"/metrics"); status != http.StatusMethodNotAllowed {
		t.Errorf("POST is %d", status)
	}
	if status, _ := ask(t, "GET", url+"/compute/containers"); status != 404 {
		t.Errorf("another path is %d", status)
	}
	for _, path := range []string{"profile?seconds=61", "trace?seconds=1e9", "heap?seconds=3600", "profile?seconds=x", "trace?seconds=-1", "profile?seconds=NaN"} {
		if status, text := ask(t, "GET", url+"/debug/pprof/"+path); status != 400 {
			t.Errorf("%s is %d %q", path, status, text)
		}
	}
}

// ticking is a clock that moves two seconds at every look.
func ticking() func() time.Time {
	var mu sync.Mutex
	at := time.Unix(1e9, 0)
	return func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		at = at.Add(2 * time.Second)
		return at
	}
}

// A profile that takes long ends with the server.
func TestShutdownCutsProfilesShort(t *testing.T) {
	began := make(chan struct{})
	m := NewMetrics("v1")
	m.Gauge("berth_test", func() float64 { return 0 })
	url, stop := served(t, m, quiet())
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		req, _ := http.NewRequestWithContext(t.Context(), "GET", url+"/debug/pprof/trace?seconds=59", nil)
		close(began)
		if resp, err := http.DefaultClient.Do(req); err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	}()
	<-began
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := stop(ctx); err != nil {
		t.Errorf("the profile was not cut short: %v", err)
	}
	<-answered
}

func TestReadiness(t *testing.T) {
	var log bytes.Buffer
	r := NewReadiness(slog.New(slog.NewTextHandler(&log, nil)))
	at := time.Unix(1e9, 0)
	r.now = func() time.Time { return at }
	var asked int
	var broken error
	r.Add("the database does not answer", func(context.Context) error { asked++; return broken })
	check := func(wantAsked int, want string) {
		t.Helper()
		got := ""
		if err := r.Check(t.Context()); err != nil {
			got = compute.UserMessage(err)
			if compute.CodeOf(err) != compute.CodeUnavailable {
				t.Errorf("%v", err)
			}
		}
		if got != want || asked != wantAsked {
			t.Errorf("%q after %d looks, want %q after %d", got, asked, want, wantAsked)
		}
	}
	check(1, "")
	broken = errors.New("disk I/O error")
	check(1, "") // fresh
	at = at.Add(fresh)
	const down = "It is not ready: the database does not answer."
	check(2, down)
	check(2, down)
	at = at.Add(fresh)
	check(3, down)
	if n := strings.Count(log.String(), "level=WARN"); n != 1 || !strings.Contains(log.String(), "disk I/O error") {
		t.Errorf("logged %d times: %s", n, log.String())
	}
	broken = nil
	at = at.Add(fresh)
	check(4, "")
	if !strings.Contains(log.String(), "ready again") {
		t.Error(log.String())
	}
	r.Stop()
	check(4, "It is stopping.")
}

// Many who ask at once cost one look, and one of them that is gone changes nothing for the others.
func TestReadinessIsAskedOnce(t *testing.T) {
	r := quiet()
	looking, release := make(chan struct{}, 100), make(chan struct{})
	r.Add("it does not answer", func(ctx context.Context) error {
		looking <- struct{}{}
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	at := time.Unix(1e9, 0)
	r.now = func() time.Time { return at }
	gone, leave := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = r.Check(gone) })
	<-looking
	leave()
	for range 50 {
		wg.Go(func() {
			if err := r.Check(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	if err := r.Check(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("somebody who is gone was told %v", err)
	}
	close(release)
	wg.Wait()
	if n := len(looking); n != 0 {
		t.Errorf("%d looks more", n)
	}
}
