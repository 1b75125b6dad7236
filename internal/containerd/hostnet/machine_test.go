package hostnet

import (
	"bufio"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
)

// machine describes everything of the machine's network that a user could find changed.
func machine(t *testing.T) map[string]string {
	t.Helper()
	m := make(map[string]string)
	links, err := netlink.LinkList()
	check(t, err)
	for _, l := range links {
		m["link "+l.Attrs().Name] = fmt.Sprint(l.Attrs().Flags, l.Attrs().MTU)
	}
	routes, err := allRoutes()
	check(t, err)
	for _, r := range routes {
		m["route "+r.String()] = ""
	}
	c, err := nftables.New()
	check(t, err)
	tables, err := c.ListTables()
	check(t, err)
	for _, table := range tables {
		m[fmt.Sprintf("nftables table %s of family %d", table.Name, table.Family)] = ""
	}
	for _, dir := range []string{"/proc/sys/net", "/run"} {
		check(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || path == dir {
				return err
			}
			m[path] = ""
			if d.Type().IsRegular() && filepath.Base(path) != "nf_conntrack_count" {
				if data, err := os.ReadFile(path); err == nil {
					m[path] = string(data)
				}
			}
			return nil
		}))
	}
	return m
}

func compare(t *testing.T, before, after map[string]string) {
	t.Helper()
	for k, v := range before {
		if w, ok := after[k]; !ok {
			t.Errorf("%s is gone", k)
		} else if v != w {
			t.Errorf("%s was %q and is %q", k, v, w)
		}
	}
	for k, v := range after {
		if _, ok := before[k]; !ok {
			t.Errorf("left behind: %s %q", k, v)
		}
	}
}

func forwardingOf(t *testing.T, link string) bool {
	t.Helper()
	on, err := forwards(link)
	check(t, err)
	return on
}

// conn is an open connection from a container to an echo server of the Internet.
type conn struct{ net.Conn }

func holdConn(t *testing.T, w *world, s *space) conn {
	t.Helper()
	var l net.Listener
	w.router.do(func() (err error) {
		l, err = net.Listen("tcp4", internet+":7")
		return err
	})
	done := make(chan struct{})
	accepted := make(chan net.Conn, 1)
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		accepted <- c
		_, _ = io.Copy(c, c)
		_ = c.Close()
	}()
	var c conn
	s.do(func() (err error) {
		c.Conn, err = net.DialTimeout("tcp4", internet+":7", patience)
		return err
	})
	t.Cleanup(func() {
		_ = c.Close()
		_ = l.Close()
		select {
		case server := <-accepted:
			_ = server.Close() // the link is gone, and the client's end with it
		default:
		}
		<-done
	})
	c.ping(t)
	return c
}

// ping sends a line and reads it back.
func (c conn) ping(t *testing.T) {
	t.Helper()
	check(t, c.SetDeadline(time.Now().Add(10*time.Second)))
	_, err := io.WriteString(c, "hello\n")
	check(t, err)
	line, err := bufio.NewReader(c).ReadString('\n')
	check(t, err)
	if line != "hello\n" {
		t.Errorf("echo of hello is %q", line)
	}
}

// instance is another process that has a network open.
type instance struct {
	cmd   *exec.Cmd
	stdin io.Closer
}

// startInstance returns when the process has attached the container.
func startInstance(t *testing.T, dataDir, id, netns string) *instance {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), insideEnv+"=instance", "DATA_DIR="+dataDir, "CONTAINER="+id, "NETNS="+netns)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	check(t, err)
	stdout, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	i := &instance{cmd: cmd, stdin: stdin}
	t.Cleanup(i.kill)
	line, err := bufio.NewReader(stdout).ReadString('\n')
	check(t, err)
	if !strings.HasSuffix(line, "<nil>\n") {
		t.Fatalf("the other process says %q", line)
	}
	return i
}

// kill ends the process as kill -9 does.
func (i *instance) kill() {
	_ = i.cmd.Process.Kill()
	_ = i.cmd.Wait()
	_ = i.stdin.Close()
}
