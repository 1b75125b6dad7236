package hostnet

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The tests need a machine of their own: addresses, routes, forwarding and a firewall to take apart. So the test binary
// runs itself again in a fresh network namespace, with a /run of its own; this machine's network is never touched.
const insideEnv = "BERTH_TEST_HOSTNET"

func TestMain(m *testing.M) {
	flag.Parse()
	switch {
	case flag.Lookup("test.fuzzworker").Value.String() == "true":
		os.Exit(m.Run()) // where its parent is
	case os.Getenv(insideEnv) == "tests":
		if err := prepareMachine(); err != nil {
			fmt.Fprintln(os.Stderr, "prepare the tests' machine:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	case os.Getenv(insideEnv) == "instance":
		runInstance()
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=tests")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "these tests need root:", err)
		os.Exit(1)
	}
}

func prepareMachine() error {
	lo, err := netlink.LinkByName("lo")
	return errors.Join(
		err,
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"),
		netlink.LinkSetUp(lo),
	)
}

// Addresses of the tests' Internet.
const (
	hostPublic = "203.0.113.2"  // the machine's, on its uplink
	upstream   = "203.0.113.1"  // the router's
	internet   = "198.51.100.1" // a server behind the router
	private    = "10.200.0.1"   // a server in a private network behind the router
)

// space is a network namespace with a process that holds it.
type space struct {
	t    *testing.T
	cmd  *exec.Cmd
	path string
	fd   int
}

func newSpace(t *testing.T, flags uintptr) *space {
	t.Helper()
	cmd := exec.Command("/bin/cat")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | flags, Pdeathsig: syscall.SIGKILL}
	if flags&syscall.CLONE_NEWUSER != 0 {
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: 2_000_000, Size: 65536}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: 2_000_000, Size: 65536}}
	}
	stdin, err := cmd.StdinPipe() // cat lives until it closes
	check(t, err)
	check(t, cmd.Start())
	s := &space{t: t, cmd: cmd, path: fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid)}
	s.fd, err = unix.Open(s.path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	check(t, err)
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Wait()
		_ = unix.Close(s.fd)
	})
	return s
}

// do runs f inside; it fails the test on an error.
func (s *space) do(f func() error) {
	s.t.Helper()
	check(s.t, inNetns(s.fd, f))
}

// container is a namespace as a container has it: its owner is a user namespace of its own.
func container(t *testing.T) *space { return newSpace(t, syscall.CLONE_NEWUSER) }

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// world is the machine with an uplink to a router, behind which the Internet is.
type world struct {
	t      *testing.T
	router *space
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, router: newSpace(t, 0)}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "uplink0"
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerNamespace = "down0", netlink.NsFd(w.router.fd)
	check(t, netlink.LinkAdd(veth))
	t.Cleanup(func() { check(t, deleteLink("uplink0")) })
	l, err := netlink.LinkByName("uplink0")
	check(t, err)
	check(t, addAddr(l, hostPublic+"/24"))
	check(t, netlink.LinkSetUp(l))
	w.router.do(func() error {
		l, err := netlink.LinkByName("down0")
		if err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		return errors.Join(err, netlink.LinkSetUp(lo), addAddr(l, upstream+"/24"), addAddr(lo, internet+"/32"),
			addAddr(lo, private+"/32"), netlink.LinkSetUp(l))
	})
	check(t, netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(upstream)}))
	return w
}

func addAddr(l netlink.Link, cidr string) error {
	a, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	return netlink.AddrAdd(l, a)
}

// listen serves each connection to addr, inside s (nil: on the machine), with its peer's address as text.
func listen(t *testing.T, s *space, addr string) net.Listener {
	t.Helper()
	var l net.Listener
	open := func() (err error) {
		l, err = net.Listen("tcp4", addr)
		return err
	}
	if s == nil {
		check(t, open())
	} else {
		s.do(open)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, c.RemoteAddr().String())
			_ = c.Close()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return l
}

const (
	refusedAfter = 700 * time.Millisecond // that nothing arrives can only be waited for
	patience     = 20 * time.Second       // for what must arrive
)

// dial connects from inside s and returns what the server says.
func (s *space) dial(addr string, timeout time.Duration) (answer string, err error) {
	err = inNetns(s.fd, func() error {
		c, err := net.DialTimeout("tcp4", addr, timeout)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		b, err := io.ReadAll(c)
		answer = string(b)
		return err
	})
	return answer, err
}

func (s *space) mustDial(addr string) string {
	s.t.Helper()
	answer, err := s.dial(addr, patience)
	check(s.t, err)
	return answer
}

func (s *space) mustNotDial(addr string) {
	s.t.Helper()
	if answer, err := s.dial(addr, refusedAfter); err == nil {
		s.t.Errorf("connected to %s, which said %q", addr, answer)
	}
}

// open opens a network for a data directory and destroys it at the end.
func open(t *testing.T, o Options) *Network {
	t.Helper()
	if o.DataDir == "" {
		o.DataDir = t.TempDir()
	}
	if o.Log == nil {
		o.Log = slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	if o.Upstreams == nil {
		o.Upstreams = []netip.AddrPort{netip.MustParseAddrPort(internet + ":53")}
	}
	n, err := Open(testContext(t), o)
	check(t, err)
	t.Cleanup(func() {
		check(t, n.Close())
		check(t, Destroy(context.Background(), o.DataDir))
	})
	return n
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

func attach(t *testing.T, n *Network, id string) (*space, Attachment) {
	t.Helper()
	s := container(t)
	at, err := n.Attach(testContext(t), id, netip.Addr{}, s.path)
	check(t, err)
	return s, at
}

// runInstance is the process that a test kills: it opens a network, attaches what it is told to, says so, and waits.
func runInstance() {
	n, err := Open(context.Background(), Options{
		DataDir: os.Getenv("DATA_DIR"), Upstreams: []netip.AddrPort{netip.MustParseAddrPort(internet + ":53")},
	})
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	at, err := n.Attach(context.Background(), os.Getenv("CONTAINER"), netip.Addr{}, os.Getenv("NETNS"))
	fmt.Println("attached", at.Addr, err)
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}
