package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/fasthttp/websocket"
)

// listenJob is clients of the feed: so many of each token.
type listenJob struct {
	Address string   `json:"address"`
	Tokens  []string `json:"tokens"`
	Each    int      `json:"each"`
	Status  string   `json:"status"` // what is waited for
}

// heard says, of a container that got that status, how many clients were told, and when the last one was.
type heard struct {
	Clients int           `json:"clients"`
	Last    time.Duration `json:"last"`
}

// Bounds of a helper's clients.
const (
	handshakes     = 64 // at once
	handshakeLimit = 30 * time.Second
)

// listeners are the clients of one helper.
type listeners struct {
	mu     sync.Mutex // guards all below
	ending bool
	heard  map[string]heard
	failed error
}

// listen prints {} once all clients have the list of their containers, and what they heard once its input ends.
func listen(in *json.Decoder, out io.Writer) error {
	var job listenJob
	if err := in.Decode(&job); err != nil {
		return err
	}
	l := &listeners{heard: map[string]heard{}}
	var opening, reading sync.WaitGroup
	conns := make([]*websocket.Conn, len(job.Tokens)*job.Each)
	turns := make(chan struct{}, handshakes)
	for i := range conns {
		turns <- struct{}{}
		opening.Go(func() {
			defer func() { <-turns }()
			c, err := dialFeed(job.Address, job.Tokens[i/job.Each])
			if err != nil {
				l.fail(err)
				return
			}
			conns[i] = c
			reading.Go(func() { l.read(c, job.Status) })
		})
	}
	opening.Wait()
	l.mu.Lock()
	err := l.failed
	l.mu.Unlock()
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(out, "{}"); err != nil {
		return err
	}
	var nothing struct{}
	if err := in.Decode(&nothing); !errors.Is(err, io.EOF) {
		return fmt.Errorf("a second job: %w", err)
	}
	l.mu.Lock()
	l.ending = true
	l.mu.Unlock()
	for _, c := range conns {
		_ = c.Close() // there is nothing to say to a server that is measured no more
	}
	reading.Wait()
	if l.failed != nil {
		return l.failed
	}
	return json.NewEncoder(out).Encode(l.heard)
}

func (l *listeners) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.ending && l.failed == nil {
		l.failed = err
	}
}

// dialFeed opens the feed and reads the list.
func dialFeed(address, token string) (*websocket.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), handshakeLimit)
	defer cancel()
	dialer := websocket.Dialer{ReadBufferSize: 1024, WriteBufferSize: 256}
	dialer.NetDialContext = (&net.Dialer{}).DialContext
	c, _, err := dialer.DialContext(ctx, "ws://"+address+"/compute/ws", http.Header{"Authorization": {"Bearer " + token}})
	if err != nil {
		return nil, fmt.Errorf("open the feed: %w", err)
	}
	_, text, err := c.ReadMessage()
	if err == nil && !bytes.Contains(text, []byte(`"type":"containers"`)) {
		err = fmt.Errorf("the feed began with %s", text)
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// read notes when the client is told of the status.
func (l *listeners) read(c *websocket.Conn, status string) {
	for {
		_, text, err := c.ReadMessage()
		at := now()
		if err != nil {
			l.fail(fmt.Errorf("a client of the feed: %w", err))
			return
		}
		var m struct {
			Type string `json:"type"`
			Data struct {
				ContainerID string `json:"container_id"`
				Status      string `json:"status"`
			} `json:"data"`
		}
		if !bytes.Contains(text, []byte(`"`+status+`"`)) {
			continue
		}
		if err := json.Unmarshal(text, &m); err != nil || m.Type != "container_status" || m.Data.Status != status {
			continue
		}
		l.mu.Lock()
		h := l.heard[m.Data.ContainerID]
		l.heard[m.Data.ContainerID] = heard{h.Clients + 1, max(h.Last, at)}
		l.mu.Unlock()
	}
}
