package containerd

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth/internal/compute"
)

const (
	agentDir   = "/.berth"
	socketName = "agent.sock"

	pidsLimit  = 4096    // processes and threads of one container
	filesLimit = 1 << 19 // open files of one process, where berth's own limit allows it
	cpuPeriod  = 100000  // microseconds

	terminalsLimit = 256 // pseudo-terminals of one container

	oomScoreAdj = 100 // over everything of the host's

	specAnnotation = "berth.spec" // what the container was started from, as JSON
)

// dropped are the capabilities that containerd grants by default and berth does not: with raw sockets a container could
// forge packets, and devices it has no use for. Ping works without: see the sysctl below.
var dropped = []string{"CAP_NET_RAW", "CAP_MKNOD"}

// ociSpec is what runc makes of a container. resolved are the mount paths as the image has them.
func (e *Engine) ociSpec(ctx context.Context, s compute.Spec, t tree, resolved []string) (*oci.Spec, error) {
	conf := t.image.config
	args := []string{agentDir + "/agent", "init", "--socket", agentDir + "/run/" + socketName}
	if len(e.opt.AcceptEnv) > 0 {
		args = append(args, "--accept-env", strings.Join(e.opt.AcceptEnv, ","))
	}
	if conf.User != "" {
		args = append(args, "--user", conf.User)
	}
	if command := slices.Concat(conf.Entrypoint, conf.Cmd); len(command) > 0 {
		args = append(append(args, "--"), command...)
	}
	cwd := "/"
	if conf.WorkingDir != "" {
		cwd = conf.WorkingDir
	}
	mounts, err := e.mounts(s, t, resolved)
	if err != nil {
		return nil, err
	}
	return oci.GenerateSpec(namespaces.WithNamespace(ctx, e.layout.name), nil, &containers.Container{ID: s.String()},
		oci.WithRootFSPath(t.place.rootfs()),
		oci.WithProcessArgs(args...),
		oci.WithProcessCwd(cwd),
		oci.WithEnv(environment(conf.Env)),
		oci.WithHostname(identity{hostname: s.Hostname}.shortHostname()),
		oci.WithUserNamespace(e.ids.mapping(), e.ids.mapping()),
		oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.CgroupNamespace}),
		oci.WithDroppedCapabilities(dropped),
		oci.WithNewPrivileges, // sudo
		oci.WithDefaultUnixDevices,
		oci.WithoutRunMount, // the image's /run, on the volume
		oci.WithMounts(mounts),
		oci.WithCgroup(string(e.cgroupOf(s.Ref))),
		func(_ context.Context, _ oci.Client, _ *containers.Container, sp *oci.Spec) error {
			return annotate(sp, s)
		},
		limits(s),
		withoutTheHost,
		boundWatches,
		seccomp.WithDefaultProfile(), // after capabilities, on which it depends
	)
}

// environment is the image's, with a PATH where it names none. Of two values programs take the first.
func environment(image []string) []string {
	if slices.ContainsFunc(image, func(v string) bool { return strings.HasPrefix(v, "PATH=") }) {
		return image
	}
	return append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, image...)
}

// withoutTheHost takes away what containerd's default mounts show of the host, or share with it. The kernel bounds
// pseudo-terminals for all containers together, and a block device's entry in sysfs names the file below it: every
// container's path, owner and id.
func withoutTheHost(_ context.Context, _ oci.Client, _ *containers.Container, sp *oci.Spec) error {
	for i, m := range sp.Mounts {
		if m.Type == "devpts" {
			sp.Mounts[i].Options = append(m.Options, "max="+strconv.Itoa(terminalsLimit))
		}
	}
	sp.Linux.MaskedPaths = append(sp.Linux.MaskedPaths, "/sys/devices/virtual/block")
	return nil
}

// mounts are those beyond the default ones, in the order in which they are made.
func (e *Engine) mounts(s compute.Spec, t tree, resolved []string) ([]specs.Mount, error) {
	mounts := []specs.Mount{{
		Type: "cgroup", Source: "cgroup", Destination: "/sys/fs/cgroup",
		Options: []string{"ro", "nosuid", "noexec", "nodev", "relatime"},
	}}
	bind := func(from, to string, opts ...string) {
		mounts = append(mounts, specs.Mount{Type: "bind", Source: from, Destination: to, Options: append(opts, "rbind", "rprivate")})
	}
	for i, p := range s.MountPaths {
		bind(t.volume.at+"/"+mountsDir+"/"+mountName(p), resolved[i], "nodev")
	}
	identity, err := t.coveredIdentity(s.MountPaths, resolved)
	if err != nil {
		return nil, err
	}
	for _, name := range identity {
		bind(t.volume.at+"/"+identityDir+"/"+name, "/etc/"+name, "nodev", "nosuid")
	}
	bind(e.layout.dir("agent", e.agent), agentDir, "ro", "nodev", "nosuid")
	bind(t.place.socket(), agentDir+"/run", "nodev", "nosuid", "noexec")
	return mounts, nil
}

// limits bounds what the container takes of the machine.
func limits(s compute.Spec) oci.SpecOpts {
	return func(_ context.Context, _ oci.Client, _ *containers.Container, sp *oci.Spec) error {
		var files unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
			return err
		}
		hard := min(files.Max, filesLimit)
		adj := oomScoreAdj
		sp.Process.OOMScoreAdj = &adj
		sp.Process.Rlimits = []specs.POSIXRlimit{
			{Type: "RLIMIT_NOFILE", Soft: min(1024, hard), Hard: hard},
			{Type: "RLIMIT_CORE"},
		}
		// A group id of the container's own namespace: all that the kernel can map there.
		sp.Linux.Sysctl = map[string]string{"net.ipv4.ping_group_range": fmt.Sprintf("0 %d", idCount-1)}
		devices := sp.Linux.Resources.Devices
		sp.Linux.Resources = resources(s)
		sp.Linux.Resources.Devices = devices
		return nil
	}
}

// resources are the limits that may change while the container runs.
func resources(s compute.Spec) *specs.LinuxResources {
	memory := int64(s.MemoryMB) << 20
	quota, period, shares := int64(s.MilliCPU)*cpuPeriod/1000, uint64(cpuPeriod), uint64(max(2, s.MilliCPU*1024/1000))
	pids := int64(pidsLimit)
	r := &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: &memory},
		CPU:    &specs.LinuxCPU{Quota: &quota, Period: &period, Shares: &shares},
		Pids:   &specs.LinuxPids{Limit: &pids},
	}
	if swapLimited() {
		r.Memory.Swap = &memory // memory and swap together: none
	}
	return r
}

// annotate records what a container is started from. Labels would be the place, were they not bounded to 4 kB.
func annotate(sp *oci.Spec, s compute.Spec) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if sp.Annotations == nil {
		sp.Annotations = make(map[string]string)
	}
	sp.Annotations[specAnnotation] = string(b)
	return nil
}

// startedFrom reads what a container was started from.
func startedFrom(sp *oci.Spec) (compute.Spec, error) {
	var s compute.Spec
	err := json.Unmarshal([]byte(sp.Annotations[specAnnotation]), &s)
	return s, err
}

// identityDir holds copies of the files of /etc for a container that has a mount path over them.
const identityDir = "identity"

// coveredIdentity names the files of /etc that a mount path hides and that can be put over it: where there is a plain file,
// so that the mount succeeds and lands there. The tree below is one that the tenant wrote.
func (t tree) coveredIdentity(paths, resolved []string) ([]string, error) {
	i := slices.Index(resolved, "/etc")
	if i < 0 {
		return nil, nil
	}
	root, err := os.OpenRoot(t.volume.at + "/" + mountsDir + "/" + mountName(paths[i]))
	if err != nil {
		return nil, err
	}
	defer root.Close()
	var names []string
	for name := range (identity{}).files() {
		if fi, err := root.Lstat(name); err == nil && fi.Mode().IsRegular() {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}
