package k8s

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"berth/internal/compute"
)

// Labels and annotations of ours. Everything that belongs to a container carries all three labels.
const (
	labelManaged      = "app.kubernetes.io/managed-by"
	labelInstallation = "berth/installation"
	labelContainer    = "berth/container"
	managedBy         = "berth"

	annotationGeneration = "berth/generation" // of the desired state that was applied last
	annotationMounts     = "berth/mounts"     // of a pod: the mount paths that it was made with
	annotationSeeded     = "berth/seeded"     // of the volume: the mount paths that a pod started with since they were seeded
	annotationTried      = "berth/tried"      // of a StatefulSet whose pod could not be made: when it was asked for again
	annotationRegistries = "berth/registries" // of the namespace: which state of the registries' credentials it has

	annotationDefault = "kubectl.kubernetes.io/default-container" // of a pod: where kubectl exec goes
)

// Names within a container's namespace.
const (
	nameService = "container"
	nameStorage = "storage"
	nameMain    = "main"    // the container that the tenant is in
	nameInstall = "install" // brings the agent, and then stands by
	nameSeed    = "seed"    // fills mount paths from the image, once, and then stands by
	nameGuard   = "berth"   // quota and limits

	agentDir   = "/.berth"
	agentPath  = agentDir + "/agent"
	agentRun   = agentDir + "/run"
	socketPath = agentRun + "/agent.sock"
	seededMark = agentDir + "/seeded" // there when the mount paths are as they should be
	volumeDir  = "/.berth-volume"     // where the seeding container has all of the volume
	mountsDir  = "mounts"             // on the volume: a directory for each mount path
	cpuRequest = 10                   // a container is promised this part of the processors that it may take
)

// maker makes a container's objects: pure functions of what is asked for and of the configuration.
type maker struct {
	opt   Options
	image image
}

func statefulSetName(r compute.Ref) string { return string(r.ID) }

func (m maker) labels(r compute.Ref) map[string]string {
	return map[string]string{labelManaged: managedBy, labelInstallation: m.opt.InstallationID, labelContainer: string(r.ID)}
}

func (m maker) meta(r compute.Ref, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, Namespace: r.String(), Labels: m.labels(r)}
}

func (m maker) namespace(r compute.Ref, o outside) *corev1.Namespace {
	n := &corev1.Namespace{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
		ObjectMeta: metav1.ObjectMeta{Name: r.String(), Labels: m.labels(r)},
	}
	if m.opt.PullSecrets != nil {
		n.Annotations = map[string]string{annotationRegistries: o.version}
	}
	for _, mode := range []string{"enforce", "warn"} {
		n.Labels["pod-security.kubernetes.io/"+mode] = "baseline"
	}
	return n
}

// storage is the container's volume. It is an object of its own, not a template of the StatefulSet's, which would make a
// missing one anew, empty.
func (m maker) storage(s compute.Spec) *corev1.PersistentVolumeClaim {
	c := &corev1.PersistentVolumeClaim{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeClaim"},
		ObjectMeta: m.meta(s.Ref, nameStorage),
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: gigabytes(s.StorageGB)}},
		},
	}
	if m.opt.StorageClass != "" {
		c.Spec.StorageClassName = &m.opt.StorageClass
	}
	return c
}

// quota bounds the number of objects; what one container takes is bounded by its pod's own limits.
func (m maker) quota(r compute.Ref) *corev1.ResourceQuota {
	return &corev1.ResourceQuota{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ResourceQuota"},
		ObjectMeta: m.meta(r, nameGuard),
		Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{
			corev1.ResourcePods:                   resource.MustParse("1"),
			corev1.ResourcePersistentVolumeClaims: resource.MustParse("1"),
			corev1.ResourceServices:               resource.MustParse("1"),
			corev1.ResourceServicesLoadBalancers:  resource.MustParse("0"),
			corev1.ResourceServicesNodePorts:      resource.MustParse("0"),
		}},
	}
}

// limitRange bounds what does not bound itself: nothing of ours, but an operator's pod for looking into a namespace.
func (m maker) limitRange(r compute.Ref) *corev1.LimitRange {
	few := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("64Mi"),
		corev1.ResourceEphemeralStorage: resource.MustParse("64Mi"),
	}
	return &corev1.LimitRange{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "LimitRange"},
		ObjectMeta: m.meta(r, nameGuard),
		Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{{
			Type: corev1.LimitTypeContainer, Default: few, DefaultRequest: few,
		}}},
	}
}

// service is the headless one that a StatefulSet wants.
func (m maker) service(r compute.Ref) *corev1.Service {
	return &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: m.meta(r, nameService),
		Spec:       corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone, Selector: m.labels(r)},
	}
}

// statefulSet runs the container, or not, on a volume where some mount paths are seeded. OnDelete: a change of its template
// restarts nobody; Apply deletes the pod where a change needs that.
func (m maker) statefulSet(s compute.Spec, seeded []string) *appsv1.StatefulSet {
	set := &appsv1.StatefulSet{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "StatefulSet"},
		ObjectMeta: m.meta(s.Ref, statefulSetName(s.Ref)),
		Spec: appsv1.StatefulSetSpec{
			Replicas:       new(int32),
			ServiceName:    nameService,
			Selector:       &metav1.LabelSelector{MatchLabels: map[string]string{labelContainer: string(s.ID)}},
			UpdateStrategy: appsv1.StatefulSetUpdateStrategy{Type: appsv1.OnDeleteStatefulSetStrategyType},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{
					Labels: m.labels(s.Ref), Annotations: map[string]string{
						annotationMounts: mountsKey(s.MountPaths), annotationDefault: nameMain,
					},
				},
				Spec: m.pod(s, seeded),
			},
			RevisionHistoryLimit: new(int32),
		},
	}
	if s.Running {
		*set.Spec.Replicas = 1
	}
	set.Annotations = map[string]string{annotationGeneration: strconv.FormatInt(s.Generation, 10)}
	return set
}

// pod is the container's. Its first process is root's, and may become more (sudo); what it may not is bounded by the
// namespace's Pod Security, by capabilities and by seccomp.
//
// What prepares it runs beside it, in the order of the list: a kubelet starts a container once the hook of the one before
// has ended. Init containers would come in order too, but a kubelet takes up to a second to see that one has ended.
func (m maker) pod(s compute.Spec, seeded []string) corev1.PodSpec {
	grace := int64(m.opt.StopGrace.Seconds())
	short, _, _ := strings.Cut(s.Hostname, ".")
	p := corev1.PodSpec{
		AutomountServiceAccountToken:  new(bool),
		EnableServiceLinks:            new(bool),
		TerminationGracePeriodSeconds: &grace,
		HostnameOverride:              &short, // where the cluster can: else a StatefulSet's pod is called by its own name
		NodeSelector:                  map[string]string{corev1.LabelArchStable: s.Arch},
		Tolerations:                   m.opt.Tolerations,
		PriorityClassName:             m.opt.PriorityClass,
		SecurityContext: &corev1.PodSecurityContext{
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			// Ping without raw sockets. Groups of a user namespace end at 65535.
			Sysctls: []corev1.Sysctl{{Name: "net.ipv4.ping_group_range", Value: "0 65535"}},
		},
		Containers: m.containers(s, seeded),
		Volumes: []corev1.Volume{
			{Name: "agent", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
			{Name: "run", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{
				Medium: corev1.StorageMediumMemory, SizeLimit: quantity(1 << 20),
			}}},
			{Name: "storage", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: nameStorage},
			}},
		},
	}
	for k, v := range m.opt.NodeSelector {
		p.NodeSelector[k] = v
	}
	if m.opt.RuntimeClass != "" {
		p.RuntimeClassName = &m.opt.RuntimeClass
	}
	if m.opt.UserNamespaces {
		p.HostUsers = new(bool)
	}
	if m.opt.Spread {
		p.Affinity = m.spread()
	}
	if m.opt.PullSecrets != nil {
		p.ImagePullSecrets = []corev1.LocalObjectReference{{Name: namePull}}
	}
	if r := m.opt.Resolver; r.IsValid() {
		p.DNSPolicy, p.DNSConfig = corev1.DNSNone, &corev1.PodDNSConfig{Nameservers: []string{r.String()}}
	}
	return p
}

// spread prefers a node that has fewer of this installation's containers.
func (m maker) spread() *corev1.Affinity {
	ours := &metav1.LabelSelector{MatchLabels: map[string]string{labelManaged: managedBy, labelInstallation: m.opt.InstallationID}}
	return &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{
		PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{{
			Weight:          100,
			PodAffinityTerm: corev1.PodAffinityTerm{LabelSelector: ours, NamespaceSelector: ours, TopologyKey: corev1.LabelHostname},
		}},
	}}
}

func (m maker) containers(s compute.Spec, seeded []string) []corev1.Container {
	list := []corev1.Container{m.install(s)}
	seeds := !allIn(s.MountPaths, seeded)
	if seeds {
		list = append(list, m.seed(s))
	}
	return append(list, m.main(s, seeds))
}

func allIn(paths, seeded []string) bool {
	return !slices.ContainsFunc(paths, func(p string) bool { return !slices.Contains(seeded, p) })
}

func (m maker) install(s compute.Spec) corev1.Container {
	return m.helper(nameInstall, m.opt.AgentImage,
		[]string{"/agent", "install", "--stand-by", "--hostname", s.Hostname, agentDir},
		[]string{"/agent", "await", agentPath},
		corev1.VolumeMount{Name: "agent", MountPath: agentDir})
}

func (m maker) seed(s compute.Spec) corev1.Container {
	command := []string{agentPath, "seed", "--stand-by", "--mark", seededMark, "--volume", volumeDir}
	for _, p := range s.MountPaths {
		command = append(command, mountName(p)+":"+p)
	}
	return m.helper(nameSeed, m.image.reference, command,
		[]string{agentPath, "await", "--within", seedWithin, seededMark},
		corev1.VolumeMount{Name: "agent", MountPath: agentDir},
		corev1.VolumeMount{Name: "storage", MountPath: volumeDir})
}

// seedWithin bounds the copying of an image's directories to a slow volume.
const seedWithin = "1h"

func (m maker) main(s compute.Spec, seeds bool) corev1.Container {
	command := []string{agentPath, "init", "--socket", socketPath}
	if len(m.opt.AcceptEnv) > 0 {
		command = append(command, "--accept-env", strings.Join(m.opt.AcceptEnv, ","))
	}
	if seeds {
		command = append(command, "--prepared", seededMark)
	}
	if m.image.user != "" {
		command = append(command, "--user", m.image.user)
	}
	if len(m.image.command) > 0 {
		command = append(append(command, "--"), m.image.command...)
	}
	mounts := []corev1.VolumeMount{
		{Name: "agent", MountPath: agentDir, ReadOnly: true},
		{Name: "run", MountPath: agentRun},
		{Name: "agent", MountPath: "/etc/hosts", SubPath: "hosts"},
	}
	for _, p := range s.MountPaths {
		mounts = append(mounts, corev1.VolumeMount{Name: "storage", MountPath: p, SubPath: mountsDir + "/" + mountName(p)})
	}
	c := m.container(nameMain, m.image.reference, command, mounts...)
	c.Resources = resources(s)
	return c
}

// helper prepares the main container; no tenant enters it.
func (m maker) helper(name, image string, command, await []string, mounts ...corev1.VolumeMount) corev1.Container {
	c := m.container(name, image, command, mounts...)
	c.Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: await}}}
	c.Resources = corev1.ResourceRequirements{
		Limits: corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse("1"), corev1.ResourceMemory: resource.MustParse("128Mi"),
			corev1.ResourceEphemeralStorage: resource.MustParse("64Mi"),
		},
		Requests: corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse("1m"), corev1.ResourceMemory: resource.MustParse("8Mi"),
			corev1.ResourceEphemeralStorage: resource.MustParse("16Mi"),
		},
	}
	return c
}

// container is what all have in common. $(NAME) in a command would be Kubernetes' to replace: $$ keeps it as it is.
func (m maker) container(name, image string, command []string, mounts ...corev1.VolumeMount) corev1.Container {
	escaped := make([]string, len(command))
	for i, arg := range command {
		escaped[i] = strings.ReplaceAll(arg, "$", "$$")
	}
	root := int64(0)
	return corev1.Container{
		Name: name, Image: image, ImagePullPolicy: m.opt.PullPolicy, Command: escaped, VolumeMounts: mounts,
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
		SecurityContext: &corev1.SecurityContext{
			RunAsUser: &root, RunAsGroup: &root,
			Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"NET_RAW", "MKNOD"}},
		},
	}
}

// resources bounds a container. Memory is promised whole, so that who uses all of theirs takes nobody else's; processors
// are shared.
func resources(s compute.Spec) corev1.ResourceRequirements {
	memory := *quantity(int64(s.MemoryMB) << 20)
	return corev1.ResourceRequirements{
		Limits: corev1.ResourceList{
			corev1.ResourceCPU:              *resource.NewMilliQuantity(int64(s.MilliCPU), resource.DecimalSI),
			corev1.ResourceMemory:           memory,
			corev1.ResourceEphemeralStorage: gigabytes(s.StorageGB),
		},
		Requests: corev1.ResourceList{
			corev1.ResourceCPU:              *resource.NewMilliQuantity(int64(max(1, s.MilliCPU/cpuRequest)), resource.DecimalSI),
			corev1.ResourceMemory:           memory,
			corev1.ResourceEphemeralStorage: resource.MustParse("64Mi"),
		},
	}
}

func quantity(bytes int64) *resource.Quantity { return resource.NewQuantity(bytes, resource.BinarySI) }

func gigabytes(n int) resource.Quantity { return *quantity(int64(n) << 30) }

// mountName is a mount path's directory on the volume: paths may be longer than names can.
func mountName(p string) string {
	sum := sha256.Sum256([]byte(p))
	return hex.EncodeToString(sum[:16])
}

// mountsKey is what a pod remembers of the mount paths that it was made with.
func mountsKey(paths []string) string {
	b, _ := json.Marshal(paths) // strings never fail
	return string(b)
}

// seededOn are the mount paths of a volume that need no seeding any more.
func seededOn(claim *corev1.PersistentVolumeClaim) (paths []string) {
	if claim != nil && json.Unmarshal([]byte(claim.Annotations[annotationSeeded]), &paths) != nil {
		return nil // none yet, or somebody wrote another thing: a seeding that finds all done costs little
	}
	return paths
}

// mainOf is the pod's container that the tenant is in.
func mainOf(p *corev1.Pod) *corev1.Container {
	for i := range p.Spec.Containers {
		if p.Spec.Containers[i].Name == nameMain {
			return &p.Spec.Containers[i]
		}
	}
	return new(corev1.Container) // somebody else's pod under this name
}

// object is what every kind of ours is.
type object interface {
	metav1.Object
	runtime.Object
}

// surroundings are the objects around the pod and its storage.
func (m maker) surroundings(r compute.Ref, o outside) []object {
	list := []object{m.quota(r), m.limitRange(r), m.service(r), m.gatewayRole(r)}
	for _, p := range m.policies(r, o.addresses) {
		list = append(list, p)
	}
	if m.opt.PullSecrets != nil {
		list = append(list, m.pullSecret(r, o))
	}
	if m.opt.LoadBalancers != nil {
		list = append(list, m.balancer(r))
	}
	return list
}
