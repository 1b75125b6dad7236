package e2e_test

import (
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// TestNamesResolve holds that a container's names go through Berth to the resolver that the operator named.
func TestNamesResolve(t *testing.T) {
	t.Parallel()
	mux := dns.NewServeMux()
	mux.HandleFunc("answer.example.", func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(q)
		if q.Question[0].Qtype == dns.TypeA {
			a, err := dns.NewRR("answer.example. 60 IN A 192.0.2.77")
			if err != nil {
				t.Error(err)
			}
			m.Answer = append(m.Answer, a)
		}
		_ = w.WriteMsg(m) // who does not get it asks again
	})
	mux.HandleFunc(".", func(w dns.ResponseWriter, q *dns.Msg) {
		_ = w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeNameError))
	})
	started := make(chan struct{})
	server := &dns.Server{Addr: "127.0.0.1:0", Net: "udp", Handler: mux, NotifyStartedFunc: func() { close(started) }}
	ended := make(chan error, 1)
	go func() { ended <- server.ListenAndServe() }()
	select {
	case <-started:
	case err := <-ended:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(server.Shutdown(), <-ended); err != nil {
			t.Error(err)
		}
	})
	i := own(t)
	i.flags = []string{"--dns-upstream", server.PacketConn.LocalAddr().String()}
	if err := i.start(); err != nil {
		t.Fatal(err)
	}
	a := personOn(t, i, "names")
	id := boxOf(t, a, `{"storage_gb": 1}`)
	if out, err := a.ssh(a.at(id), "getent ahostsv4 answer.example | head -n 1"); err != nil || !strings.HasPrefix(out, "192.0.2.77 ") {
		t.Errorf("answer.example is %q, %v", out, err)
	}
	if out, err := a.ssh(a.at(id), "getent hosts absent.example || echo none"); err != nil || out != "none" {
		t.Errorf("absent.example is %q, %v", out, err)
	}
}

// TestOddDataDirectory runs on a path that is long, and has what shells, ssh_config, mount options and URLs treat specially.
func TestOddDataDirectory(t *testing.T) {
	t.Parallel()
	i := own(t)
	i.data = filepath.Join(i.dir, "odd, path: 100% of ünïcode & "+strings.Repeat("long ", 20), "data")
	if err := os.MkdirAll(i.data, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := i.start(); err != nil {
		t.Fatal(err)
	}
	a := personOn(t, i, "odd")
	id := boxOf(t, a, `{"storage_gb": 1}`)
	if out, err := a.ssh(a.at(id), "id -un"); err != nil || out != "root" {
		t.Errorf("by name: %q, %v", out, err)
	}
	// The ssh_config that Berth wrote, for the first admin.
	cmd := exec.Command("ssh", "-F", filepath.Join(i.data, "ssh_config"), "-o", "BatchMode=yes", i.ready.Zone, "whoami")
	if out, err := cmd.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != i.ready.User {
		t.Errorf("with the ssh_config that was written: %q, %v", out, err)
	}
}

// TestReboot takes away what a machine forgets when it boots: processes, mounts, links, tables, control groups and /run. The
// next start brings the containers back with their storage.
func TestReboot(t *testing.T) {
	t.Parallel()
	i := own(t)
	if err := i.start(); err != nil {
		t.Fatal(err)
	}
	a := personOn(t, i, "reboot")
	up, down := boxOf(t, a, `{"storage_gb": 1}`), boxOf(t, a, `{"storage_gb": 1}`)
	for _, id := range []string{up, down} {
		if _, err := a.ssh(a.at(id), "echo "+id+" >/root/file; touch /srv/loose; sync"); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.do(http.MethodPost, "/compute/containers/"+down+"/stop", "", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := a.await(down, "stopped", statusLimit); err != nil {
		t.Fatal(err)
	}
	i.forget(t)
	if err := i.start(); err != nil {
		t.Fatal(err)
	}
	if err := a.prepare(); err != nil {
		t.Fatal(err)
	}
	if c, err := a.await(up, "running", 0); err == nil { // so it is said, right after ready: then it is so
		if out, err := a.ssh(a.at(up), "true"); err != nil {
			t.Errorf("container %s is said to be %s: %q, %v", up, c.Status, out, err)
		}
	}
	if _, err := a.await(down, "stopped", 0); err != nil {
		t.Error(err)
	}
	if err := a.do(http.MethodPost, "/compute/containers/"+down+"/start", "", nil); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{up, down} {
		if _, err := a.await(id, "running", statusLimit); err != nil {
			t.Fatal(err)
		}
		if out, err := a.ssh(a.at(id), "cat /root/file; ls /srv"); err != nil || out != id {
			t.Errorf("container %s has %q, %v", id, out, err)
		}
	}
}

// forget does to the instance what a reboot does.
func (i *instance) forget(t *testing.T) {
	t.Helper()
	daemon, err := i.containerd()
	if err != nil {
		t.Fatal(err)
	}
	if err := i.kill(); err != nil {
		t.Fatal(err)
	}
	kill := func(pid int) {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return // it ended
		}
		defer unix.Close(fd)
		_ = unix.PidfdSendSignal(fd, syscall.SIGKILL, nil, 0)
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000)
	}
	kill(daemon)
	cmdlines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range cmdlines { // shims first, so that none tidies up
		if line, err := os.ReadFile(p); err == nil && strings.Contains(string(line), "containerd-shim") && strings.Contains(string(line), i.name()) {
			pid, _ := strconv.Atoi(strings.Split(p, "/")[2])
			kill(pid)
		}
	}
	groups, err := filepath.Glob("/sys/fs/cgroup/*/" + i.name())
	if err != nil {
		t.Fatal(err)
	}
	groups = append(groups, filepath.Join("/sys/fs/cgroup", i.name()))
	for _, g := range groups {
		var dirs []string
		_ = filepath.WalkDir(g, func(path string, d os.DirEntry, err error) error { // one that is not there has nothing
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for _, dir := range slices.Backward(dirs) {
			procs, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
			for pid := range strings.FieldsSeq(string(procs)) {
				n, _ := strconv.Atoi(pid)
				kill(n)
			}
			rmdirEmpty(t, dir)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	var at []string
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); strings.HasPrefix(f[1], "/run/"+i.name()+"/") {
			at = append(at, f[1])
		}
	}
	for _, m := range slices.Backward(at) {
		if err := unix.Unmount(m, 0); err != nil {
			t.Fatalf("unmount %s: %v", m, err)
		}
	}
	if err := os.RemoveAll(filepath.Join("/run", i.name())); err != nil {
		t.Fatal(err)
	}
	script := `for l in $(ip -o link show | sed -n "s/^[0-9]*: \(b$0[^:@]*\).*/\1/p"); do ip link del $l; done
		for t in $(nft list tables | grep $0 | cut -d' ' -f2,3 | tr ' ' :); do nft delete table ${t%:*} ${t#*:}; done`
	if out, err := exec.Command("sh", "-euc", script, i.links()).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// rmdirEmpty removes a control group whose processes were killed. The kernel tells nobody when it is empty, so this asks again.
func rmdirEmpty(t *testing.T, dir string) {
	t.Helper()
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	deadline := time.After(10 * time.Second)
	for errors.Is(unix.Rmdir(dir), unix.EBUSY) {
		select {
		case <-again.C:
		case <-deadline:
			t.Fatalf("%s is not empty 10 s after its processes were killed", dir)
		}
	}
}

// TestStalledSessionsCostLittle floods 100 sessions whose clients read nothing. Their bytes wait in the containers, and not in
// the gateway's memory.
func TestStalledSessionsCostLittle(t *testing.T) {
	t.Parallel()
	i := own(t)
	if err := i.start(); err != nil {
		t.Fatal(err)
	}
	a := personOn(t, i, "stalled")
	id := boxOf(t, a, `{"storage_gb": 1, "memory_mb": 512}`)
	before := i.memory(t)
	for range 20 {
		client := a.dial(t, id)
		for range 5 {
			s := newSession(t, client)
			if _, err := s.StdoutPipe(); err != nil { // which nobody reads
				t.Fatal(err)
			}
			if err := s.Start("cat /dev/zero"); err != nil {
				t.Fatal(err)
			}
		}
	}
	began := time.Now()
	if out, err := a.ssh(a.at(id), "pgrep -c -f '^cat /dev/zero'"); err != nil || out != "100" {
		t.Fatalf("%q commands run, %v", out, err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("a command beside 100 stalled ones took %v", took)
	}
	after := i.memory(t)
	t.Logf("the gateway's memory: %d MB before, %d MB with 100 stalled sessions", before>>10, after>>10)
	if after-before > 300<<10 {
		t.Errorf("100 stalled sessions take %d MB", (after-before)>>10)
	}
}

// memory is the resident memory of berth in kB.
func (i *instance) memory(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/" + strconv.Itoa(i.main.cmd.Process.Pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// gatewayAudits checks that who came to a gateway in a process of its own is in the control plane's records, as of that
// gateway, over REST and in the file; also who came while the control plane was down.
func gatewayAudits(t *testing.T, i *instance, a *account, id string, logins int) {
	t.Helper()
	var list struct {
		Records []struct {
			Action, Outcome, Username, Via, Gateway, Session, Source string
		}
	}
	soon(t, "the records of the gateway are with the control plane", func() bool {
		if err := a.do(http.MethodGet, "/compute/audit?limit=1000&container="+id, "", &list); err != nil {
			t.Fatal(err)
		}
		count := map[string]int{}
		for _, r := range list.Records {
			if r.Via != "ssh" || r.Outcome != "allowed" {
				continue
			}
			if r.Gateway != "local" || r.Username != a.name || r.Source == "" || r.Action != "login" && r.Session == "" {
				t.Fatalf("%+v", r)
			}
			count[r.Action]++
		}
		return count["login"] >= logins && count["openSSHSession"] >= logins && count["endSSHSession"] >= logins-2
	})
	text, err := os.ReadFile(filepath.Join(i.data, "audit.jsonl"))
	if err != nil || !strings.Contains(string(text), `"action":"endSSHSession"`) || !strings.Contains(string(text), `"gateway":"local"`) {
		t.Errorf("the file lacks them, %v", err)
	}
}
