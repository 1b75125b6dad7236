package containerd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"berth/internal/containerd/hostnet"
)

// Check is one thing that the engine needs of the machine.
type Check struct {
	Name    string
	Problem error // one line that says what is missing and how to get it; nil when all is well
	Fatal   bool  // without it the engine does not start
}

// Checks looks for everything that the engine needs, without changing anything.
func Checks(ctx context.Context, o Options) []Check {
	network := hostnet.Options{DataDir: o.DataDir, Subnet: o.Subnet, Upstreams: o.Upstreams}
	list := append(machineChecks(ctx, o), Check{"network", hostnet.Check(ctx, network), true})
	if list[0].Problem != nil {
		return list // not root, who alone sees what follows
	}
	warnings, err := hostnet.Warnings(network)
	if err != nil {
		return append(list, Check{"other firewalls", err, false})
	}
	if len(warnings) == 0 {
		return append(list, Check{"other firewalls", nil, false})
	}
	for _, w := range warnings {
		list = append(list, Check{"other firewalls", errors.New(w), false})
	}
	return list
}

// required runs the checks that Open needs; the network's own opening finds what is wrong with that.
func required(ctx context.Context, o Options, log *slog.Logger) error {
	for _, c := range machineChecks(ctx, o) {
		if c.Problem != nil && c.Fatal {
			return c.Problem
		}
		if c.Problem != nil {
			log.Warn(c.Problem.Error())
		}
	}
	return nil
}

func machineChecks(ctx context.Context, o Options) []Check {
	if o.ContainerdPath == "" {
		o.ContainerdPath = "containerd"
	}
	list := []Check{{"root", checkRoot(), true}}
	if list[0].Problem != nil {
		return list // the rest cannot be seen
	}
	list = append(list, Check{"kernel", checkKernel(), true})
	if o.ContainerdAddress != "" { // which brings its own runc
		l, err := o.layout()
		if err == nil {
			err = checkGiven(ctx, l)
		}
		list = append(list, Check{"containerd", err, true})
	} else {
		list = append(list,
			Check{"containerd", checkProgram(o.ContainerdPath, "containerd"), true},
			Check{"runc", errors.Join(checkProgram("runc", "runc"), checkProgram("containerd-shim-runc-v2", "containerd")), true},
		)
	}
	return append(list,
		Check{"mkfs.ext4", checkProgram("mkfs.ext4", "e2fsprogs"), true},
		Check{"loop devices", checkLoop(), true},
		Check{"user namespaces", checkUserNamespaces(), true},
		Check{"control groups", checkCgroups(), true},
		Check{"overlayfs", checkOverlay(), true},
		Check{"disk space", checkDisk(o), false},
	)
}

func checkRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("containers need root: run berth with sudo")
	}
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	if err := unix.Capget(&h, &d[0]); err != nil {
		return err
	}
	if d[0].Effective&(1<<unix.CAP_SYS_ADMIN) == 0 {
		return errors.New("root lacks the capability SYS_ADMIN, as in an ordinary container: run berth on the machine itself, or in a privileged container")
	}
	return nil
}

func checkKernel() error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	release := unix.ByteSliceToString(u.Release[:])
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return fmt.Errorf("unknown kernel release %q", release)
	}
	if major < 5 || major == 5 && minor < 10 {
		return fmt.Errorf("the kernel is %s; install 5.10 or later", release)
	}
	if _, err := os.Stat("/proc/sys/kernel/seccomp"); err != nil {
		return errors.New("the kernel has no seccomp filters: install the distribution's own kernel")
	}
	return nil
}

func checkProgram(name, pkg string) error {
	if _, err := sbin(name); err != nil {
		return fmt.Errorf("%s is missing: install it, on Debian with `apt-get install %s`", name, pkg)
	}
	return nil
}

func checkLoop() error {
	f, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("there are no loop devices: run `modprobe loop`, or give the container that berth is in /dev/loop-control (%w)", err)
	}
	return f.Close()
}

func checkUserNamespaces() error {
	b, err := os.ReadFile("/proc/sys/user/max_user_namespaces")
	if err != nil {
		return errors.New("the kernel has no user namespaces: install the distribution's own kernel")
	}
	if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err != nil || n == 0 {
		return errors.New("user namespaces are turned off: run `sysctl user.max_user_namespaces=15000`")
	}
	return nil
}

func checkCgroups() error {
	if m := missingControllers(); len(m) > 0 {
		return fmt.Errorf("the control groups lack %s: mount them, or boot with cgroup_enable=memory", strings.Join(m, ", "))
	}
	return nil
}

// checkOverlay mounts one, in a mount namespace that ends with it.
func checkOverlay() error {
	err := hostnet.OnSpentThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
			return err
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		const at = "/proc" // a directory that is always there
		if err := unix.Mount("tmpfs", at, "tmpfs", 0, ""); err != nil {
			return err
		}
		for _, d := range []string{"lower", "upper", "work", "root"} {
			if err := os.Mkdir(filepath.Join(at, d), 0o700); err != nil {
				return err
			}
		}
		return unix.Mount("overlay", at+"/root", "overlay", 0, "lowerdir="+at+"/lower,upperdir="+at+"/upper,workdir="+at+"/work")
	})
	if err != nil {
		return fmt.Errorf("overlayfs cannot be mounted: run `modprobe overlay`, or install the distribution's own kernel (%w)", err)
	}
	return nil
}

func checkDisk(o Options) error {
	dir := o.DataDir
	var st unix.Statfs_t
	err := unix.Statfs(dir, &st)
	for errors.Is(err, unix.ENOENT) && dir != filepath.Dir(dir) {
		dir = filepath.Dir(dir)
		err = unix.Statfs(dir, &st)
	}
	if err != nil {
		return err
	}
	if free := int64(st.Bavail) * st.Bsize; free < o.ReserveBytes {
		return fmt.Errorf("the disk of %s has %.1f GB free, less than the reserve of %.1f GB: no container can be created until some is freed",
			o.DataDir, float64(free)/(1<<30), float64(o.ReserveBytes)/(1<<30))
	}
	return nil
}
