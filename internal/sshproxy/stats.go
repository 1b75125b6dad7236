package sshproxy

// Connections returns how many connections there are, those that have not logged in and those inside jumps included.
func (g *Gateway) Connections() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.conns)
}
