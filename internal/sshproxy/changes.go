package sshproxy

import (
	"context"
	"time"

	"berth/internal/compute"
)

// changesRetry is how long the gateway waits before it asks again who may stay, when it got no answer, and before it
// subscribes again.
const changesRetry = 250 * time.Millisecond

// watchChanges puts out the clients that a committed change leaves no right to be in. It looks at everybody when it
// begins, and again whenever it may have missed something.
func (g *Gateway) watchChanges() {
	for g.ctx.Err() == nil {
		events, cancel := g.o.Changes()
		g.review(g.live())
		g.follow(events)
		cancel()
		g.pause() // whoever ended the subscription may do so again at once
	}
}

// follow reads changes until the subscription or the gateway ends.
func (g *Gateway) follow(events <-chan compute.Event) {
	for {
		select {
		case e, ok := <-events:
			if !ok {
				return
			}
			batch := []compute.Event{e}
			// What came meanwhile is looked at in one go.
			for more := true; more; {
				select {
				case e, ok := <-events:
					if !ok {
						more = false
						break
					}
					batch = append(batch, e)
				default:
					more = false
				}
			}
			g.review(g.affected(batch))
		case <-g.ctx.Done():
			return
		}
	}
}

// affected returns the connections that one of the changes may concern.
func (g *Gateway) affected(batch []compute.Event) []*conn {
	containers := make(map[compute.ContainerID]bool)
	everybody := false
	for _, e := range batch {
		switch e.Kind {
		case compute.EventContainerChanged, compute.EventContainerStatus, compute.EventContainerDeleted,
			compute.EventContainerPurged:
			containers[e.Container] = true
		case compute.EventKeyDeleted, compute.EventUserChanged:
			// Rare, and a key may open what belongs to others.
			everybody = true
		case compute.EventContainerCreated, compute.EventKeyAdded:
			// Take nothing away.
		}
	}
	var list []*conn
	for _, c := range g.live() {
		login, _, ok := c.loggedInAs()
		if ok && (everybody || !login.Lobby() && containers[login.Container]) {
			list = append(list, c)
		}
	}
	return list
}

// review asks for each connection whether it may stay. A directory that does not answer is asked again: neither letting
// somebody stay nor putting everybody out is right then.
func (g *Gateway) review(list []*conn) {
	for len(list) > 0 && g.ctx.Err() == nil {
		var again []*conn
		answers := make(map[question]answer) // one serves all who ask the same
		for _, c := range list {
			login, id, ok := c.loggedInAs()
			if !ok || c.ctx.Err() != nil {
				continue
			}
			q := question{container: login.Container, key: id.key}
			a, asked := answers[q]
			if !asked {
				a = g.mayStay(q)
				answers[q] = a
			}
			switch {
			case a.err != nil:
				g.log.Error("ask who may stay", "container", q.container, "err", a.err)
				again = append(again, c)
			case a.why != nil:
				g.log.Info("closed", "remote", c.nc.RemoteAddr(), "user", id.user, "key", id.key, "why", a.why)
				c.end(a.why)
			}
		}
		if list = again; len(list) > 0 {
			g.pause()
		}
	}
}

func (g *Gateway) pause() {
	t := time.NewTimer(changesRetry)
	defer t.Stop()
	select {
	case <-t.C:
	case <-g.ctx.Done():
	}
}

// question is what must be asked to know whether a connection may stay; without a container, it is in the lobby.
type question struct {
	container compute.ContainerID
	key       string
}

// answer is why a connection must end, if it must, or why that is not known.
type answer struct{ why, err error }

// mayStay answers a question. A container that starts again is no reason to end: its sessions have ended with it, and
// the client's next one will find it running.
func (g *Gateway) mayStay(q question) answer {
	ctx, cancel := context.WithTimeout(g.ctx, g.o.Limits.OpenTimeout)
	defer cancel()
	if q.container == "" {
		accounts, err := g.o.Directory.Accounts(ctx, q.key)
		switch {
		case err != nil && compute.CodeOf(err) == compute.CodeForbidden:
			return answer{why: err}
		case err == nil && len(accounts) == 0:
			return answer{why: errStranger}
		}
		return answer{err: err}
	}
	t, err := g.target(ctx, q.container, q.key)
	switch {
	case err != nil && compute.CodeOf(err) == compute.CodeForbidden:
		return answer{why: err}
	case err != nil && compute.CodeOf(err) == compute.CodeNotFound:
		return answer{why: errRevoked}
	case err != nil:
		return answer{err: err}
	case !t.Container.SSHEnabled:
		return answer{why: t.Container.Entry()}
	case t.Container.Desired != compute.DesiredRunning:
		return answer{why: compute.Errorf(compute.CodeNotRunning, "Container %s was stopped by its owner.", t.Container.ID)}
	}
	return answer{}
}
