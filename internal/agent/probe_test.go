package agent_test

import (
	"encoding/json"
	"net"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"berth/internal/agent"
)

// probe runs the agent's probe and returns what it found.
func probe(t *testing.T, args ...string) agent.Probed {
	t.Helper()
	var out strings.Builder
	var p agent.Probed
	if err := agent.Probe(&out, args); err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	if err := json.Unmarshal([]byte(out.String()), &p); err != nil {
		t.Fatalf("%v: %v: %q", args, err, &out)
	}
	return p
}

func TestProbeReaches(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	open := l.Addr().String()
	closing, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	shut := closing.Addr().String()
	closing.Close()
	for _, c := range []struct{ want, how, seconds, first, second string }{
		{open, "reached", "0", shut, open},
		{open, "reached", "1", open, shut},
		{open, "missed", "1", shut, open},
		{"", "missed", "20", shut, shut},
		{open + " " + open, "reached", "20", open, open},
	} {
		if got := probe(t, c.how, c.seconds, c.first, c.second).Reached; strings.Join(got, " ") != c.want {
			t.Errorf("%+v: reached %v", c, got)
		}
	}
	go func() { // what is let through at first
		if c, err := l.Accept(); err == nil {
			c.Close()
		}
		l.Close()
	}()
	if got := probe(t, "missed", "60", open).Reached; len(got) != 0 {
		t.Errorf("reached %v after it closed", got)
	}
}

func TestProbeArguments(t *testing.T) {
	for _, args := range [][]string{nil, {"all"}, {"listen"}, {"reached", "5"}, {"missed", "soon", "127.0.0.1:1"}, {"processes", "0"}, {"processes", "many"}} {
		if err := agent.Probe(&strings.Builder{}, args); err == nil {
			t.Errorf("probe %v did nothing, and said nothing", args)
		}
	}
}

// TestProbeBuilt is about what needs a process of its own.
func TestProbeBuilt(t *testing.T) {
	program := buildAgent(t)
	out, err := exec.Command(program, "probe", "processes", "20").Output()
	if err != nil || strings.TrimSpace(string(out)) != `{"processes":20}` {
		t.Errorf("processes: %q, %v", out, err)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free.Close()
	listening := exec.Command(program, "probe", "listen", free.Addr().String())
	if err := listening.Start(); err != nil {
		t.Fatal(err)
	}
	if got := probe(t, "reached", "60", free.Addr().String()).Reached; len(got) != 1 {
		t.Error("what listens is not reached")
	}
	if err := listening.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := listening.Wait(); err != nil {
		t.Errorf("listen: %v", err)
	}
}
