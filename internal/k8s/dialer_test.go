package k8s

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth/internal/compute"
)

var box = compute.Ref{Owner: 7, ID: "0a1b2c3d"}

// against returns a Dialer on something that answers as h does where an API server should be.
func against(t *testing.T, h http.HandlerFunc) *Dialer {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	d, err := NewDialer(DialerOptions{Kubeconfig: kubeconfigFor(t, server)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func kubeconfigFor(t *testing.T, server *httptest.Server) (file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "kubeconfig")
	text := "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n" +
		"users: [{name: u, user: {}}]\nclusters: [{name: c, cluster: {server: \"" + server.URL + "\"}}]\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func answer(w http.ResponseWriter, code int, object any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(object)
}

func refusing(code int, reason metav1.StatusReason) metav1.Status {
	return metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure, Code: int32(code), Reason: reason,
		Message: "words of the API server",
	}
}

func isExec(q *http.Request) bool { return strings.HasSuffix(q.URL.Path, "/exec") }

func isWebSocket(q *http.Request) bool { return q.Header.Get("Upgrade") == "websocket" }

func TestDialerAnswers(t *testing.T) {
	running := corev1.Pod{Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{
		Name: nameMain, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
	}}}}
	const path = "/api/v1/namespaces/compute-7-0a1b2c3d/pods/0a1b2c3d-0"
	for what, tc := range map[string]struct {
		exec, pod func(http.ResponseWriter)
		code      compute.Code
		words     string
		execs     int32 // requests for it
	}{
		"no pod": {
			func(w http.ResponseWriter) { answer(w, 404, refusing(404, metav1.StatusReasonNotFound)) }, nil,
			compute.CodeNotRunning, "not running", 1,
		},
		"a pod that does not run": {
			func(w http.ResponseWriter) { answer(w, 400, refusing(400, metav1.StatusReasonBadRequest)) },
			func(w http.ResponseWriter) { answer(w, 200, corev1.Pod{}) },
			compute.CodeNotRunning, "not running", 1,
		},
		"no rights": {
			func(w http.ResponseWriter) { answer(w, 403, refusing(403, metav1.StatusReasonForbidden)) },
			func(w http.ResponseWriter) { answer(w, 403, refusing(403, metav1.StatusReasonForbidden)) },
			compute.CodeNotRunning, "is gone, or the cluster does not let", 1,
		},
		"a kubelet that is away": {
			func(w http.ResponseWriter) { answer(w, 502, refusing(502, metav1.StatusReasonUnknown)) },
			func(w http.ResponseWriter) { answer(w, 200, running) },
			compute.CodeUnavailable, "does not answer", 1,
		},
		"neither protocol passes": {
			func(w http.ResponseWriter) { http.Error(w, "not here", http.StatusBadGateway) },
			func(w http.ResponseWriter) { answer(w, 200, running) },
			compute.CodeUnavailable, "does not answer", 2,
		},
	} {
		var execs atomic.Int32
		d := against(t, func(w http.ResponseWriter, q *http.Request) {
			switch q.URL.Path {
			case path + "/exec":
				execs.Add(1)
				tc.exec(w)
			case path:
				tc.pod(w)
			default:
				t.Errorf("%s: it asked for %s", what, q.URL.Path)
			}
		})
		nc, err := d.DialAgent(t.Context(), box)
		if nc != nil || compute.CodeOf(err) != tc.code || !strings.Contains(compute.UserMessage(err), tc.words) || execs.Load() != tc.execs {
			t.Errorf("%s: %v, after %d attempts", what, err, execs.Load())
		}
	}
}

// Who is told to come back later does so as late as that, and not before.
func TestDialerBusy(t *testing.T) {
	for what, passesSPDY := range map[string]bool{"SPDY": true, "WebSocket": false} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			var asked []time.Time
			d := against(t, func(w http.ResponseWriter, q *http.Request) {
				if isExec(q) && !isWebSocket(q) && !passesSPDY {
					http.Error(w, "no SPDY here", http.StatusBadRequest)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				if asked = append(asked, time.Now()); len(asked) <= 2 {
					w.Header().Set("Retry-After", "1")
					http.Error(w, "Too many requests, please try again later.", http.StatusTooManyRequests)
					return
				}
				answer(w, 404, refusing(404, metav1.StatusReasonNotFound))
			})
			if _, err := d.DialAgent(t.Context(), box); compute.CodeOf(err) != compute.CodeNotRunning {
				t.Errorf("dial: %v", err)
			}
			least := time.Second
			if !passesSPDY {
				least = firstWait // of the header client-go keeps nothing
			}
			if len(asked) != 3 || asked[1].Sub(asked[0]) < least || asked[2].Sub(asked[1]) < least {
				t.Errorf("asked at %v", asked)
			}
		})
	}
}

func TestDialerBusyForLong(t *testing.T) {
	d := against(t, func(w http.ResponseWriter, _ *http.Request) {
		answer(w, 429, refusing(429, metav1.StatusReasonTooManyRequests))
	})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := d.DialAgent(ctx, box); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("dial: %v", err)
	}
}

// An API server that takes a request and never answers holds nobody up for longer than they want, and nothing stays of it.
func TestDialerSilence(t *testing.T) {
	for what, passesSPDY := range map[string]bool{"SPDY": true, "WebSocket": false} {
		t.Run(what, func(t *testing.T) {
			asked := make(chan struct{}, 1)
			d := against(t, func(w http.ResponseWriter, q *http.Request) {
				if isExec(q) && !isWebSocket(q) && !passesSPDY {
					http.Error(w, "no SPDY here", http.StatusBadRequest)
					return
				}
				asked <- struct{}{}
				<-q.Context().Done() // until its client is gone
			})
			ctx, cancel := context.WithCancel(t.Context())
			began := time.Now()
			go func() {
				<-asked
				cancel()
			}()
			if _, err := d.DialAgent(ctx, box); !errors.Is(err, context.Canceled) {
				t.Errorf("dial: %v", err)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("it took %v", took)
			}
			stack := make([]byte, 1<<20)
			stack = stack[:runtime.Stack(stack, true)]
			if strings.Contains(string(stack), "execer.stream") {
				t.Errorf("something waits yet:\n%s", stack)
			}
		})
	}
}

func TestDialerBound(t *testing.T) {
	var now, most atomic.Int32
	var once sync.Once
	full := make(chan struct{})
	d := against(t, func(w http.ResponseWriter, q *http.Request) {
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		if n == maxDials {
			once.Do(func() { close(full) })
		}
		<-q.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 3 * maxDials {
		wg.Go(func() {
			if _, err := d.DialAgent(ctx, box); !errors.Is(err, context.Canceled) {
				t.Errorf("dial: %v", err)
			}
		})
	}
	<-full
	cancel()
	wg.Wait()
	if most.Load() > maxDials {
		t.Errorf("%d at a time", most.Load())
	}
}
