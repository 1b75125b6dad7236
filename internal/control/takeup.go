package control

import (
	"context"

	"berth/internal/compute"
)

// takeUp has every container looked at, a few at a time: what is asked for meanwhile waits for those few alone, and a
// hundred thousand take neither a goroutine each nor the loop's lock for long.
func (l *loop) takeUp(ctx context.Context, list []compute.Container) {
	room := make(chan struct{}, takenAtOnce) // holds one for each that had no pass yet
	for i, c := range list {
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
			l.mu.Lock()
			l.left -= len(list) - i
			l.mu.Unlock()
			return
		}
		l.mu.Lock()
		l.left--
		it := l.items[c.ID]
		switch {
		case it == nil && c.Desired == compute.DesiredStopped && c.Status == compute.StatusStopped && !c.StorageMade:
			<-room // nothing was ever made of it, and the engine has nothing
		case it != nil && it.active: // it may be waiting for long
			<-room
			l.start(c.ID, it)
		default:
			it = l.item(c.Ref())
			it.room = room
			l.start(c.ID, it)
		}
		l.mu.Unlock()
	}
}

// catchUp looks at what another process may have stored unnoticed: at once where a pass is known to be old, and a few at a time
// where nothing is known. Before the first sync it does nothing: that takes up every container.
func (l *loop) catchUp(list []compute.Container) {
	var known, unknown []compute.Container
	l.mu.Lock()
	for _, c := range list {
		if l.items[c.ID] == nil {
			unknown = append(unknown, c)
		} else {
			known = append(known, c)
		}
	}
	if ctx := l.ctx; ctx != nil && ctx.Err() == nil {
		l.left += len(unknown)
		l.wg.Go(func() { l.takeUp(ctx, unknown) })
	}
	l.mu.Unlock()
	for _, c := range known {
		l.kickNewer(c.Ref(), c.Generation)
	}
}

// leaveRoom lets the sync take up another container. loop.mu is held.
func (it *item) leaveRoom() {
	if it.room != nil {
		<-it.room
		it.room = nil
	}
}
