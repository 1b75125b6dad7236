package hostnet

import (
	"strings"
	"testing"
)

func TestConnects(t *testing.T) {
	w := newWorld(t)
	listen(t, w.router, internet+":80")
	n := open(t, Options{})
	s, at := attach(t, n, "0000000a")
	if from := s.mustDial(internet + ":80"); !strings.HasPrefix(from, hostPublic+":") {
		t.Errorf("the Internet sees %s, not the machine's address", from)
	}
	t.Log(at)
}
