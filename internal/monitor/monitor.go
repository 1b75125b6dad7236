// Package monitor is what an operator's machines ask of a Berth that runs: its metrics, in Prometheus' text format, its
// profiles, and whether it is up and ready.
//
// It knows none of the parts: internal/app tells it what to count and what to try. It asks for no credential, so it belongs on
// an address that only operators reach. Its labels take their values from sets that are known beforehand, never from what
// clients send.
package monitor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"strconv"
	"time"

	"berth/internal/compute"
)

const (
	longestProfile = time.Minute
	answerTimeout  = 10 * time.Second // net/http/pprof adds what a profile takes
	readTimeout    = 5 * time.Second
	idleTimeout    = 2 * time.Minute
	maxHeader      = 16 << 10
)

// Server serves the admin address.
type Server struct {
	http *http.Server
	end  context.CancelFunc // of every request's context
}

// NewServer returns a Server of m and r. It does no I/O.
func NewServer(m *Metrics, r *Readiness, log *slog.Logger) *Server {
	base, end := context.WithCancel(context.Background())
	return &Server{end: end, http: &http.Server{
		Handler: handler(m, r), BaseContext: func(net.Listener) context.Context { return base },
		ReadTimeout: readTimeout, WriteTimeout: answerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}}
}

// Serve answers on l, which it closes, until Shutdown or until l fails. It returns nil after Shutdown.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Shutdown stops accepting and cuts profiles short. When ctx ends first, every connection is closed.
func (s *Server) Shutdown(ctx context.Context) error {
	s.end()
	err := s.http.Shutdown(ctx)
	if err != nil {
		_ = s.http.Close() // the first error says why
	}
	return err
}

func handler(m *Metrics, r *Readiness) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { say(w, http.StatusOK, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, req *http.Request) {
		if err := r.Check(req.Context()); err != nil {
			say(w, http.StatusServiceUnavailable, compute.UserMessage(err))
			return
		}
		say(w, http.StatusOK, "ok")
	})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		m.Write(w)
	})
	// On a mux of our own: importing the package puts them on the default one too, which nothing here serves.
	mux.HandleFunc("GET /debug/pprof/", bounded(pprof.Index))
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", bounded(pprof.Profile))
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", bounded(pprof.Trace))
	return mux
}

// bounded refuses a profile that would take too long.
func bounded(f http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if text := r.FormValue("seconds"); text != "" {
			s, err := strconv.ParseFloat(text, 64)
			if err != nil || !(s >= 0 && s <= longestProfile.Seconds()) { // not a number is neither
				say(w, http.StatusBadRequest, fmt.Sprintf("seconds: choose from 0 to %.0f.", longestProfile.Seconds()))
				return
			}
		}
		f(w, r)
	}
}

func say(w http.ResponseWriter, status int, text string) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text+"\n") // a client that is gone needs no answer
}
