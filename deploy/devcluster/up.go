package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ready is what ready.json holds while the cluster runs.
type ready struct {
	Process       int    `json:"process"` // the node's first: all of it ends with that
	Kubeconfig    string `json:"kubeconfig"`
	Kubectl       string `json:"kubectl"`
	Node          string `json:"node"`
	NodeAddress   string `json:"node_address"`
	Machine       string `json:"machine_address"` // where pods reach what listens on this machine
	Network       string `json:"network"`
	LoadBalancers string `json:"load_balancers"` // addresses that a test may give to a Service
	Containerd    string `json:"containerd"`
	Logs          string `json:"logs"`
	Registry      string `json:"registry"`   // where images may be pushed to
	Registries    string `json:"registries"` // of others, for containerd: HOST/hosts.toml
}

func (l layout) describe(process int) ready {
	return ready{
		Process:    process,
		Kubeconfig: l.kubeconfig(), Kubectl: filepath.Join(l.Programs, "kubectl"), Node: l.Name,
		NodeAddress: l.node().String(), Machine: l.machine().String(), Network: l.Net.String(),
		LoadBalancers: l.loadBalancers().String(), Containerd: l.containerd(), Logs: l.logs(),
		Registry: l.registry(), Registries: filepath.Join(l.Dir, "config/registries"),
	}
}

// up starts the cluster, unless it runs.
func up(ctx context.Context, l layout, asJSON bool) error {
	began := time.Now()
	release, err := l.lock()
	if err != nil {
		return err
	}
	defer release()
	pid, err := l.running()
	if err != nil {
		return err
	}
	if _, err := os.Stat(l.ready()); pid != 0 && err == nil {
		fmt.Fprintln(os.Stderr, "cluster  it runs already")
		return status(l, asJSON)
	}
	if pid != 0 {
		// Who started this one would have the lock.
		fmt.Fprintln(os.Stderr, "cluster  an earlier start was killed: beginning again")
		if err := end(ctx, pid); err != nil {
			return err
		}
	}
	if err := l.clean(ctx); err != nil {
		return err
	}
	if err := l.prepare(); err != nil {
		return err
	}
	if err := l.makeGroups(); err != nil {
		return err
	}
	if err := l.startNode(ctx, began); err != nil {
		return errors.Join(err, l.clean(context.WithoutCancel(ctx)))
	}
	return status(l, asJSON)
}

// startNode starts the node's first process in namespaces of its own, and waits until it says that all is ready.
func (l *layout) startNode(ctx context.Context, began time.Time) (err error) {
	log, err := os.Create(filepath.Join(l.logs(), "node.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	layoutIn, layoutOut, err := os.Pipe()
	if err != nil {
		return err
	}
	defer layoutOut.Close()
	said, saying, err := os.Pipe()
	if err != nil {
		return err
	}
	defer said.Close()
	cmd := exec.Command(filepath.Join(l.Programs, "devcluster"), initVerb, l.Name) // the name is for who lists processes
	cmd.Args[0] = "devcluster"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{layoutIn, saying}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
	}
	err = cmd.Start()
	layoutIn.Close()
	saying.Close()
	if err != nil {
		return fmt.Errorf("make the node's namespaces: %w", err)
	}
	defer func() {
		if err != nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}()

	if err := l.join(cmd.Process.Pid); err != nil {
		return err
	}
	if err := json.NewEncoder(layoutOut).Encode(l); err != nil {
		return err
	}
	layoutOut.Close()
	stop := context.AfterFunc(ctx, func() { said.Close() })
	defer stop()
	for lines := json.NewDecoder(said); ; {
		var p progress
		switch err := lines.Decode(&p); {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, io.EOF):
			return fmt.Errorf("the node ended before it was ready: see %s", log.Name())
		case err != nil:
			return err
		case p.Error != "":
			return fmt.Errorf("%s (logs: %s)", p.Error, l.logs())
		case p.Ready:
			return l.announce(cmd.Process.Pid)
		}
		fmt.Fprintf(os.Stderr, "cluster %4.1f s  %s\n", time.Since(began).Seconds(), p.Say)
	}
}

// join gives the node its network. Two clusters that choose one at a time would choose the same, so /run is locked meanwhile.
func (l *layout) join(pid int) error {
	f, err := os.Open("/run")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	if err := l.chooseNetwork(); err != nil {
		return err
	}
	return l.connect(pid)
}

// announce writes what scripts read. It is for who called sudo, if somebody did.
func (l layout) announce(process int) error {
	config, err := os.ReadFile(filepath.Join(l.Dir, "config/admin.kubeconfig"))
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(l.describe(process), "", "  ")
	if err != nil {
		return err
	}
	for _, f := range []struct {
		path string
		text []byte
	}{{l.kubeconfig(), config}, {l.ready(), append(text, '\n')}} {
		if err := os.WriteFile(f.path+".new", f.text, 0o600); err != nil {
			return err
		}
		if uid, err := strconv.Atoi(os.Getenv("SUDO_UID")); err == nil {
			if err := os.Chown(f.path+".new", uid, -1); err != nil {
				return err
			}
		}
		if err := os.Rename(f.path+".new", f.path); err != nil {
			return err
		}
	}
	return nil
}

// status says where the cluster is, or fails where none runs.
func status(l layout, asJSON bool) error {
	pid, err := l.running()
	if err != nil {
		return err
	}
	if pid == 0 {
		return fmt.Errorf("no cluster runs in %s", l.Dir)
	}
	if l, err = layoutOf(l.Dir, l.Programs); err != nil {
		return err
	}
	text, err := os.ReadFile(l.ready())
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the cluster in %s runs and is not ready: see %s, or devcluster down", l.Dir, l.logs())
	} else if err != nil {
		return err
	}
	if asJSON {
		_, err := os.Stdout.Write(text)
		return err
	}
	fmt.Printf("cluster ready: node %s, process %d, %s\n", l.Name, pid, l.Net)
	fmt.Printf("  export KUBECONFIG=%s PATH=%s:$PATH\n", l.kubeconfig(), l.Programs)
	return nil
}

// load puts images on the node.
func load(ctx context.Context, l layout, archives []string) error {
	pid, err := l.running()
	if err != nil {
		return err
	}
	if pid == 0 {
		return fmt.Errorf("no cluster runs in %s: devcluster up", l.Dir)
	}
	for _, archive := range archives {
		if err := ctr(ctx, l.containerd(), "--namespace", "k8s.io", "images", "import", archive); err != nil {
			return fmt.Errorf("load %s: %w", archive, err)
		}
	}
	return nil
}
