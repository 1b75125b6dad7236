package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
)

const controlSocket = "control.sock"

// control asks the running node for something: a verb and the component it is about.
func (l layout) control(ctx context.Context, verb, component string) error {
	if pid, err := l.running(); err != nil {
		return err
	} else if pid == 0 {
		return fmt.Errorf("no cluster runs in %s: devcluster up", l.Dir)
	}
	client := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(l.Run, controlSocket))
		},
		DisableKeepAlives: true,
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://node/"+verb+"/"+component, nil)
	if err != nil {
		return err
	}
	answer, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("ask the node: %w", err)
	}
	defer answer.Body.Close()
	if answer.StatusCode == http.StatusOK {
		return nil
	}
	text, err := io.ReadAll(io.LimitReader(answer.Body, 64<<10))
	if err != nil {
		return err
	}
	return fmt.Errorf("%s", strings.TrimSpace(string(text)))
}

// serveControl answers such questions until ctx ends.
func (n *node) serveControl(ctx context.Context) (stop func(), err error) {
	listener, err := net.Listen("unix", filepath.Join(nodeRun, controlSocket))
	if err != nil {
		return nil, err
	}
	server := &http.Server{
		Handler:     http.HandlerFunc(n.answer),
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(listener) // ErrServerClosed
	}()
	return func() {
		server.Close()
		<-served
	}, nil
}

func (n *node) answer(w http.ResponseWriter, r *http.Request) {
	verb, name, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	c := n.components[name]
	if c == nil {
		http.Error(w, fmt.Sprintf("no component is called %q: there are %s", name, strings.Join(componentNames, ", ")), http.StatusNotFound)
		return
	}
	if !slices.Contains([]string{"start", "stop", "restart", "kill"}, verb) {
		http.Error(w, "no such verb: "+verb, http.StatusNotFound)
		return
	}
	if err := c.do(r.Context(), verb); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}
