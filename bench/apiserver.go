package main

import (
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// counting passes requests on to an API server, and counts them.
type counting struct {
	server *http.Server
	served chan error

	mu    sync.Mutex // guards what follows
	calls map[string]int
	busy  int // answers that say so: 429
}

// newCounting serves on this machine, and writes the kubeconfig by which it is reached.
func newCounting(config *rest.Config, kubeconfig string) (*counting, error) {
	config = rest.CopyConfig(config)
	config.NextProtos = []string{"http/1.1"} // HTTP/2 has no upgrades
	transport, err := rest.TransportFor(config)
	if err != nil {
		return nil, err
	}
	target, err := url.Parse(config.Host)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	c := &counting{served: make(chan error, 1), calls: make(map[string]int)}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.Transport, proxy.FlushInterval = transport, -1
	proxy.ModifyResponse = func(r *http.Response) error {
		if r.StatusCode == http.StatusTooManyRequests {
			c.mu.Lock()
			c.busy++
			c.mu.Unlock()
		}
		return nil
	}
	c.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		c.mu.Lock()
		c.calls[callOf(q)]++
		c.mu.Unlock()
		proxy.ServeHTTP(w, q)
	})}
	go func() { c.served <- c.server.Serve(l) }()
	file := clientcmdapi.NewConfig()
	file.Clusters["bench"] = &clientcmdapi.Cluster{Server: "http://" + l.Addr().String()}
	file.AuthInfos["bench"] = clientcmdapi.NewAuthInfo()
	file.Contexts["bench"] = &clientcmdapi.Context{Cluster: "bench", AuthInfo: "bench"}
	file.CurrentContext = "bench"
	return c, clientcmd.WriteToFile(*file, kubeconfig)
}

func (c *counting) close() {
	_ = c.server.Close() // what is still connected is cut off
	<-c.served
}

// take returns what was counted since the last time.
func (c *counting) take() (calls map[string]int, busy int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	calls, busy = c.calls, c.busy
	c.calls, c.busy = make(map[string]int), 0
	return calls, busy
}

// callOf is a request's verb and resource, as RBAC has them.
func callOf(q *http.Request) string {
	parts := strings.Split(strings.Trim(q.URL.Path, "/"), "/")
	switch {
	case len(parts) > 2 && parts[0] == "api":
		parts = parts[2:]
	case len(parts) > 3 && parts[0] == "apis":
		parts = parts[3:]
	default:
		return strings.ToLower(q.Method) + " " + q.URL.Path
	}
	if len(parts) > 2 && parts[0] == "namespaces" {
		parts = parts[2:]
	}
	resource := parts[0]
	if len(parts) > 2 {
		resource += "/" + parts[2]
	}
	verb := map[string]string{"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete", "GET": "get"}[q.Method]
	switch {
	case q.URL.Query().Get("watch") != "":
		verb = "watch"
	case verb == "get" && len(parts) == 1:
		verb = "list"
	}
	return verb + " " + resource
}

// summary lists calls, those that were made most often first, and their sum.
func summary(calls map[string]int) (sum int, text string) {
	names := slices.SortedFunc(maps.Keys(calls), func(a, b string) int {
		if calls[a] != calls[b] {
			return calls[b] - calls[a]
		}
		return strings.Compare(a, b)
	})
	var list []string
	for _, name := range names {
		sum += calls[name]
		list = append(list, fmt.Sprintf("%d %s", calls[name], name))
	}
	return sum, strings.Join(list, ", ")
}
