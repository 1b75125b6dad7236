package containerd

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/internal/compute"
	"berth/internal/enginetest"
)

// TestSocketReplaced has a tenant, root in there, put other things where the agent's socket is. The host must not follow
// or open any of them.
func TestSocketReplaced(t *testing.T) {
	r := newRig(t)
	e := r.open()
	s := newSpec()
	r.provision(s)
	r.run(s)

	// What a symlink could lead to: a socket of the host's, by a path that both sides have.
	trap := filepath.Join(t.TempDir(), "trap.sock")
	l, err := net.Listen("unix", trap)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	caught := make(chan struct{}, 10)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			nc.Close()
			caught <- struct{}{}
		}
	}()
	defer func() { l.Close(); <-ended }()
	if nc, err := net.Dial("unix", trap); err != nil { // the trap works
		t.Fatal(err)
	} else {
		nc.Close()
		<-caught
	}

	r.sh(s, "mkdir -p "+filepath.Dir(trap)+"; cp /bin/sh /tmp/sh")
	const sock = "/.berth/run/agent.sock"
	for _, script := range []string{
		"rm -f " + sock + "; ln -s " + trap + " " + sock,
		"rm -f " + sock + "; ln -s agent.sock " + sock,
		"rm -f " + sock + "; mkfifo " + sock,
		"rm -f " + sock + "; echo x > " + sock,
		"rm -f " + sock + "; mkdir " + sock,
		"rmdir " + sock,
	} {
		// The agent's listening socket stays reachable by a hard link, so that the next script can be run.
		out, err := e.viaLink(t.Context(), s.Ref, "ln "+sock+" /.berth/run/spare 2>/dev/null; "+script)
		if err != nil {
			t.Fatalf("%s: %q, %v", script, out, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		nc, err := e.DialAgent(ctx, s.Ref)
		cancel()
		if err == nil {
			nc.Close()
			t.Errorf("%s: the host connected", script)
		}
		if compute.CodeOf(err) != compute.CodeNotRunning {
			t.Errorf("%s: %v", script, err)
		}
	}
	select {
	case <-caught:
		t.Error("the host followed a tenant's symlink to a socket of its own")
	default:
	}
	// The directory itself is a mount point: it cannot be put aside, and takes no more than it has room for.
	if out, err := e.viaLink(t.Context(), s.Ref, "rmdir /.berth/run || rmdir /.berth || umount /.berth/run || echo kept"); err != nil ||
		!strings.Contains(out, "kept") {
		t.Errorf("%q, %v", out, err)
	}
	out, err := e.viaLink(t.Context(), s.Ref, "head -c 1M /dev/zero > /.berth/run/fill; stat -c %s /.berth/run/fill; "+
		"i=0; while [ $i -lt 100 ] && : > /.berth/run/f$i; do i=$((i+1)); done; echo $i")
	if err != nil || strings.Contains(out, "1048576") || strings.Contains(out, "100") {
		t.Errorf("the socket's directory is not bounded: %q, %v", out, err)
	}
	// An owner gets out of all this by a restart.
	s.Running = false
	r.apply(s)
	r.run(s)
	r.sh(s, "true")
}

// viaLink runs a script by way of the spare name of the agent's socket, or of its own while that is there.
func (e *Engine) viaLink(ctx context.Context, ref compute.Ref, script string) (string, error) {
	dir := e.layout.place(ref).socket()
	nc, err := new(net.Dialer).DialContext(ctx, "unix", dir+"/spare")
	if err != nil {
		if nc, err = dialSocket(ctx, dir); err != nil {
			return "", err
		}
	}
	defer nc.Close()
	out, _, err := enginetest.Shell(ctx, nc, script)
	return out, err
}

// TestTakingAll has a tenant take all it can get of what the kernel counts for many at once. The host and other containers
// must have what they need.
func TestTakingAll(t *testing.T) {
	r := newRig(t)
	r.open()
	greedy, other := newSpec(), newSpec()
	r.provision(greedy)
	r.provision(other)
	r.run(greedy)
	// A process that goes on holding all that it got, and says how much that is.
	take := func(s compute.Spec, what string) int {
		t.Helper()
		out := r.sh(s, `rm -f /tmp/n; mkfifo /tmp/n; setsid perl -e '
			my $inotify_init1 = qx(uname -m) =~ /x86/ ? 294 : 26;
			sub watcher { my $n = syscall($inotify_init1, 0); $n >= 0 ? $n : 0 }
			sub terminal { my $t; open($t, q(+<), q(/dev/ptmx)) ? $t : 0 }
			my ($one, @all);
			while ($one = `+what+`()) { push @all, $one }
			$| = 1; print scalar(@all), "\n$!\n"; sleep' >/tmp/n 2>/dev/null & head -2 /tmp/n`)
		held, why, _ := strings.Cut(out, "\n")
		n, err := strconv.Atoi(held)
		if err != nil || n < 1 {
			t.Fatalf("%s: took %q, then %s", what, held, why)
		}
		return n
	}
	if took := take(greedy, "watcher"); took > watchersLimit {
		t.Errorf("took %d inotify instances", took)
	}
	if took := take(greedy, "terminal"); took != terminalsLimit {
		t.Errorf("took %d terminals", took)
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Errorf("the host has no inotify instance left: %v", err)
	} else {
		unix.Close(fd)
	}
	r.run(other)
	for _, what := range []string{"watcher", "terminal"} {
		if took := take(other, what); took < 50 {
			t.Errorf("only %d of %s were left for another", took, what)
		}
	}
}

// TestNothingOfTheHost has a tenant look for other containers where the kernel tells of the whole machine.
func TestNothingOfTheHost(t *testing.T) {
	r := newRig(t)
	r.open()
	s, other := newSpec(), newSpec()
	r.provision(s)
	r.provision(other)
	r.run(s)
	r.run(other)
	if out := r.sh(s, "cat /sys/block/*/loop/backing_file /sys/devices/virtual/block/*/loop/backing_file 2>/dev/null; true"); out != "" {
		t.Errorf("sees %q", out)
	}
	if out := r.sh(s, "cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups"); len(strings.Fields(out)) != 7 ||
		!strings.HasSuffix(out, "allow\n") {
		t.Errorf("maps are %q", out)
	}
}

// TestDeepTree has a tenant nest directories far deeper than a path or a stack can be, outside its mount paths.
func TestDeepTree(t *testing.T) {
	r := newRig(t)
	r.open()
	s := newSpec()
	r.provision(s)
	r.run(s)
	r.sh(s, `p=$(printf 'd/%.0s' $(seq 500)); cd /tmp; for i in 1 2 3 4 5 6 7 8 9 10; do mkdir -p $p && cd $p; done; ln -s /etc link; : > file`)
	s.Running = false
	r.apply(s)
	r.run(s)
	if got := r.sh(s, "ls /tmp"); got != "" {
		t.Errorf("left in /tmp: %q", got)
	}
}

func TestRemoveTree(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.MkdirAll(outside+"/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	top, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	fd := top
	for range 5000 {
		if err := errors.Join(
			unix.Mkdirat(fd, "d", 0o700), unix.Symlinkat(outside, fd, "link"), unix.Mkdirat(fd, "e", 0), unix.Mkdirat(fd, "e/f", 0),
		); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(fd, "d", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		fd = next
	}
	unix.Close(fd)
	if err := os.Mkdir(dir+"/"+deepName+"1", 0o700); err != nil { // left by a removal that was cut off
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("cut off")
	cancel(why)
	if err := removeTree(ctx, dir, "d"); !errors.Is(err, why) {
		t.Errorf("cut off: %v", err)
	}
	for _, n := range []string{"d", "e", "link", deepName + "1", "absent"} {
		if err := removeTree(t.Context(), dir, n); err != nil {
			t.Error(err)
		}
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) > 0 {
		t.Errorf("left: %v, %v", list, err)
	}
	if _, err := os.Stat(outside + "/sub"); err != nil {
		t.Errorf("a symlink was followed: %v", err)
	}
}

// TestEtcIsAMountPath keeps a container startable, and the host's files its own, whatever a tenant makes of a persistent /etc.
func TestEtcIsAMountPath(t *testing.T) {
	r := newRig(t)
	r.open()
	s := newSpec()
	s.MountPaths = []string{"/etc"}
	r.provision(s)
	r.run(s)
	short := string(s.ID) + "\n"
	if got := r.sh(s, "cat /etc/hostname; grep -c nameserver /etc/resolv.conf"); got != short+"1\n" {
		t.Errorf("%q", got)
	}
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	r.sh(s, "umount /etc/hosts /etc/hostname /etc/resolv.conf 2>/dev/null; true")
	s.Running = false
	r.apply(s)
	// As the tenant could by starting without those mounts: here the volume is changed as only its owner's tree is.
	v := r.e.volume(s.Ref)
	if err := errors.Join(r.e.tree(s.Ref).makePlace(), v.mount()); err != nil {
		t.Fatal(err)
	}
	etc := v.at + "/" + mountsDir + "/" + mountName("/etc")
	err := errors.Join(os.Remove(etc+"/hosts"), os.Symlink(secret, etc+"/hosts"),
		os.Remove(etc+"/resolv.conf"), os.Mkdir(etc+"/resolv.conf", 0o755),
		os.Remove(etc+"/hostname"), os.Symlink("/proc/1/environ", etc+"/hostname"))
	if err := errors.Join(err, r.e.tree(s.Ref).dismantle(t.Context(), func(string) {})); err != nil {
		t.Fatal(err)
	}
	r.run(s)
	r.sh(s, "test -L /etc/hosts && test -d /etc/resolv.conf")
	if b, err := os.ReadFile(secret); err != nil || string(b) != "secret" {
		t.Errorf("the host's file was touched: %q, %v", b, err)
	}
}
