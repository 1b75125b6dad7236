package compute

// Spec is what an engine must make true of one container.
type Spec struct {
	Ref
	// Generation changes when the engine has something to do. A running container of another generation is restarted (a stop
	// followed at once by a start is a fresh start); one of the same generation is left alone.
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
