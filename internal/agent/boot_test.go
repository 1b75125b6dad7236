package agent_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/internal/agentproto"
)

const (
	firstID = 3_300_000 // of the containers' users on this machine
	alice   = 4242
)

// built is the agent as it is delivered, made once for all tests.
var built struct {
	sync.Once
	dir string
	err error
}

func buildAgent(t testing.TB) string {
	t.Helper()
	built.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "berth-agent"); built.err != nil {
			return
		}
		out := filepath.Join(built.dir, "agent")
		build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, "berth/cmd/agent")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			built.err = fmt.Errorf("%w: %s", err, out)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return filepath.Join(built.dir, "agent")
}

// machine is a container without an engine: the built agent as the first process of its own user, PID, mount and
// network namespaces, in a root of its own.
type machine struct {
	t     testing.TB
	root  string
	agent string // the program that it has as its agent
	cmd   *exec.Cmd
	once  sync.Once
	err   error
}

// Kinds of machines: with the agent and nothing else, with this machine's programs too, and the latter with an agent for another
// architecture.
const (
	bareMachine     = "bare"
	fullMachine     = "full"
	emulatedMachine = "emulated"
)

// boot starts a machine. A bare one has the agent and nothing else, another one this machine's programs too.
func boot(t testing.TB, bare bool, args ...string) *machine {
	t.Helper()
	kind := fullMachine
	if bare {
		kind = bareMachine
	}
	return bootAgent(t, kind, buildAgent(t), args...)
}

func bootAgent(t testing.TB, kind, agent string, args ...string) *machine {
	t.Helper()
	m := &machine{t: t, root: t.TempDir(), agent: agent}
	for d := m.root; d != "/tmp" && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m.populate(kind == bareMachine)
	m.cmd = exec.Command("/proc/self/exe", append([]string{m.root, kind, "/.berth/agent", "init"}, args...)...)
	m.cmd.Args[0] = "berth-boot"
	m.cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "IMAGE=yes"}
	m.cmd.Stderr = os.Stderr
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: firstID, Size: 65536}}
	m.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET |
			syscall.CLONE_NEWIPC,
		UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
		Credential: &syscall.Credential{Uid: 0, Gid: 0},
	}
	ready := m.awaitSocket()
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = m.cmd.Process.Kill()
		_ = m.wait()
	})
	if err := ready(); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *machine) wait() error {
	m.once.Do(func() { m.err = m.cmd.Wait() })
	return m.err
}

func (m *machine) path(name string) string { return filepath.Join(m.root, name) }

func (m *machine) socket() string { return m.path(".berth/run/agent.sock") }

// populate makes the root, which belongs to the container's root.
func (m *machine) populate(bare bool) {
	m.t.Helper()
	dirs := []string{".berth/run", "proc", "dev/pts", "tmp"}
	files := map[string]string{}
	if !bare {
		dirs = append(dirs, "usr", "etc", "root", "home/alice", "run")
		files["etc/passwd"] = "root:x:0:0:root:/root:/bin/bash\nalice:x:4242:4242::/home/alice:/bin/bash\n" +
			"nobody:x:65534:65534::/:/bin/sh\n"
		files["etc/group"] = "root:x:0:\nalice:x:4242:\n"
		files["etc/motd"] = "what survives a stop: /root\n"
	}
	for _, d := range dirs {
		if err := os.MkdirAll(m.path(d), 0o755); err != nil {
			m.t.Fatal(err)
		}
	}
	// Not a copy: a child that is forked meanwhile would hold it open for writing, and it could not be run.
	if err := os.Link(m.agent, m.path(".berth/agent")); err != nil {
		m.t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(m.path(name), []byte(text), 0o644); err != nil {
			m.t.Fatal(err)
		}
	}
	if err := filepath.WalkDir(m.root, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, firstID, firstID)
	}); err != nil {
		m.t.Fatal(err)
	}
	if !bare {
		if err := os.Chown(m.path("home/alice"), firstID+alice, firstID+alice); err != nil {
			m.t.Fatal(err)
		}
	}
}

// bootMain is the machine's first process up to the agent: it arranges the file systems as a container engine does.
func bootMain(args []string) error {
	root, kind, argv := args[0], args[1], args[2:]
	mount := func(source, target, kind string, flags uintptr, data string) error {
		if err := unix.Mount(source, filepath.Join(root, target), kind, flags, data); err != nil {
			return fmt.Errorf("mount %s: %w", target, err)
		}
		return nil
	}
	errs := []error{
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount(root, root, "", unix.MS_BIND, ""),
		mount("proc", "proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""),
		mount("devpts", "dev/pts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC,
			"newinstance,ptmxmode=0666,mode=0620,gid=5"),
		mount("tmpfs", "tmp", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"),
		os.Symlink("pts/ptmx", filepath.Join(root, "dev/ptmx")),
	}
	for _, dev := range []string{"null", "zero", "urandom", "tty"} {
		file := filepath.Join(root, "dev", dev)
		errs = append(errs, os.WriteFile(file, nil, 0o666), mount("/dev/"+dev, "dev/"+dev, "", unix.MS_BIND, ""))
	}
	if kind == emulatedMachine {
		errs = append(errs, emulate(filepath.Join(root, "proc")))
	}
	if kind != bareMachine {
		errs = append(errs, mount("/usr", "usr", "", unix.MS_BIND|unix.MS_REC, ""))
		for _, dir := range []string{"bin", "sbin", "lib", "lib64"} {
			errs = append(errs, os.Symlink("usr/"+dir, filepath.Join(root, dir)))
		}
	}
	// Not chroot(2): who is in one can make no user namespace.
	errs = append(errs, os.Chdir(root), unix.PivotRoot(".", "."), unix.Unmount(".", unix.MNT_DETACH), os.Chdir("/"))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return unix.Exec(argv[0], argv, os.Environ())
}

// awaitSocket watches the place of the socket; the function that it returns waits until the agent accepts connections
// there.
func (m *machine) awaitSocket() func() error {
	m.t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		m.t.Fatal(err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	// The mode is set once the agent listens.
	if _, err := unix.InotifyAddWatch(fd, m.path(".berth/run"), unix.IN_ATTRIB|unix.IN_ONLYDIR); err != nil {
		m.t.Fatal(err)
	}
	return func() error {
		defer events.Close()
		if err := events.SetReadDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		buf := make([]byte, 4096)
		for {
			n, err := events.Read(buf)
			if err != nil {
				return fmt.Errorf("the agent makes no socket: %w", err)
			}
			if strings.Contains(string(buf[:n]), "agent.sock") {
				return nil
			}
		}
	}
}

// dial is a gateway's connection to the machine's agent.
func (m *machine) dial() *agentproto.Conn {
	m.t.Helper()
	nc, err := net.Dial("unix", m.socket())
	if err != nil {
		m.t.Fatal(err)
	}
	conn, err := agentproto.Dial(within(m.t), nc, agentproto.Config{})
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { conn.Close() })
	return conn
}

// inside is a command that runs in the machine as its root, as `kubectl exec` does.
func (m *machine) inside(args ...string) *exec.Cmd {
	return exec.Command("nsenter", append(m.enter(), args...)...)
}

func (m *machine) enter() []string {
	return strings.Fields(fmt.Sprintf("-t %d -U -m -p -n -i -r -w -S 0 -G 0 --", m.cmd.Process.Pid))
}
