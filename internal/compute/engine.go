package compute

// Spec is what an engine must make true of one container.
type Spec struct {
	Ref
	// Generation is that of the desired state which this was made from; it is told back in what is observed. A running
	// container of another generation is restarted only for what cannot change while it runs, such as mount paths. Where a
	// fresh start is meant, control asks for a stop first.
	Generation int64
	Running    bool
	Hostname   string
	MilliCPU   int
	Arch       string // GOARCH of the instance type
	MemoryMB   int
	StorageGB  int
	MountPaths []string
}

// Phase is where an engine sees a container.
type Phase string

// The phases that engines report.
const (
	PhaseAbsent   Phase = "absent"   // nothing of it is left: no process, network or storage
	PhaseStopped  Phase = "stopped"  // storage alone
	PhaseStarting Phase = "starting" // being made
	PhaseRunning  Phase = "running"  // its agent accepts connections
	PhaseFailed   Phase = "failed"   // cannot go on by itself; Message says why
)

// Observation is one container as an engine saw it.
type Observation struct {
	Ref
	Generation int64 // of the Spec it was made from; 0 where unknown
	Phase      Phase
	Message    string // for the owner: a reason in words; empty where there is none
}
