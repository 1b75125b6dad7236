package session

// Transports returns how many containers' agents there is a connection to, or one being made.
func (m *Multiplexer) Transports() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.transports)
}
