// Package control is Berth's use cases and its reconcile loop: what a principal may ask for is checked here, stored as
// desired state, and then driven through an Engine until what is observed matches.
//
// It declares the Store and the Engine that it needs. It knows no SQL, no containers and no wire: edges call Service,
// and nothing but the loop calls the engine to change something.
package control

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"berth/internal/compute"
)

// Config is what a Service is made of. All fields but Log and Observer are required.
type Config struct {
	Store    Store
	Engine   Engine
	Limits   compute.Limits
	Types    []compute.InstanceType
	Zone     string // DNS zone of the hostnames
	Log      *slog.Logger
	Observer Observer
}

// Service is the control plane's use cases. Its methods may be called concurrently; Run must be running for desired state to
// become real.
type Service struct {
	store  Store
	engine Engine
	limits compute.Limits
	types  map[string]compute.InstanceType
	order  []compute.InstanceType
	zone   string
	log    *slog.Logger
	loop   *loop

	observer Observer
}

// New returns a Service. It does no I/O.
func New(c Config) *Service {
	s := &Service{
		store: c.Store, engine: c.Engine, limits: c.Limits, order: c.Types, zone: c.Zone,
		types: make(map[string]compute.InstanceType), log: c.Log, observer: c.Observer,
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	for _, t := range c.Types {
		s.types[t.Name] = t
	}
	s.loop = newLoop(s)
	return s
}

// Run reconciles until ctx ends, then waits for what it began. Desired state that is not reached by then is taken up by the
// next Run, here or in another process.
func (s *Service) Run(ctx context.Context) error { return s.loop.run(ctx) }

// ContainerView is a container as its owner sees it.
type ContainerView struct {
	compute.Container
	Usage compute.Usage // zero unless the container runs
}

// usageTimeout bounds how long an answer waits for figures that it can do without.
const usageTimeout = 2 * time.Second

// ListContainers returns the principal's containers, oldest first.
func (s *Service) ListContainers(ctx context.Context, p compute.Principal) ([]ContainerView, error) {
	list, err := s.store.Containers(ctx, p.User)
	if err != nil {
		return nil, err
	}
	return s.views(ctx, list), nil
}

// ListContainersAt is ListContainers for a reader of events: it also returns the number of the last event whose change the
// list shows.
func (s *Service) ListContainersAt(ctx context.Context, p compute.Principal) ([]ContainerView, int64, error) {
	list, seq, err := s.store.ContainersAt(ctx, p.User)
	if err != nil {
		return nil, 0, err
	}
	return s.views(ctx, list), seq, nil
}

func (s *Service) views(ctx context.Context, list []compute.Container) []ContainerView {
	views := make([]ContainerView, len(list))
	var wg sync.WaitGroup
	for i, c := range list {
		wg.Go(func() { views[i] = s.view(ctx, c) })
	}
	wg.Wait()
	return views
}

func (s *Service) view(ctx context.Context, c compute.Container) ContainerView {
	v := ContainerView{Container: c}
	if c.Status != compute.StatusRunning {
		return v
	}
	ctx, cancel := context.WithTimeout(ctx, usageTimeout)
	defer cancel()
	usage, err := s.engine.Usage(ctx, c.Ref())
	if err != nil {
		if compute.CodeOf(err) != compute.CodeNotRunning {
			s.log.Warn("measure usage", "container", c.ID, "err", err)
		}
		return v
	}
	v.Usage = usage
	return v
}

// CreateContainer stores a new container, which the loop then makes and starts.
func (s *Service) CreateContainer(ctx context.Context, p compute.Principal, r compute.ContainerRequest) (ContainerView, error) {
	c, err := r.Validate(s.limits, s.order)
	if err != nil {
		return ContainerView{}, err
	}
	c.Owner = p.User
	if err := s.engine.Admit(ctx, s.spec(c)); err != nil {
		return ContainerView{}, err
	}
	c, err = s.store.CreateContainer(ctx, c, s.limits.ContainersPerUser)
	if err != nil {
		return ContainerView{}, err
	}
	s.loop.kick(c.Ref(), c.Generation)
	return ContainerView{Container: c}, nil
}

// GetContainer returns one of the principal's containers.
func (s *Service) GetContainer(ctx context.Context, p compute.Principal, id compute.ContainerID) (ContainerView, error) {
	c, err := s.store.Container(ctx, p.User, id)
	if err != nil {
		return ContainerView{}, err
	}
	return s.view(ctx, c), nil
}

// StartContainer asks for the container to run. One that runs is left alone; one that failed is tried again.
func (s *Service) StartContainer(ctx context.Context, p compute.Principal, id compute.ContainerID) (ContainerView, error) {
	return s.setDesired(ctx, p, id, compute.DesiredRunning)
}

// StopContainer asks for the container to stop; its storage is kept.
func (s *Service) StopContainer(ctx context.Context, p compute.Principal, id compute.ContainerID) (ContainerView, error) {
	return s.setDesired(ctx, p, id, compute.DesiredStopped)
}

// DeleteContainer stores that the container is to go, storage and all. From then on it is absent for its owner.
func (s *Service) DeleteContainer(ctx context.Context, p compute.Principal, id compute.ContainerID) error {
	_, err := s.setDesired(ctx, p, id, compute.DesiredDeleted)
	return err
}

func (s *Service) setDesired(
	ctx context.Context, p compute.Principal, id compute.ContainerID, d compute.Desired,
) (ContainerView, error) {
	c, err := s.store.SetDesired(ctx, p.User, id, d)
	if err != nil {
		return ContainerView{}, err
	}
	s.loop.kick(c.Ref(), c.Generation)
	return s.view(ctx, c), nil
}

// SSHEnabled says whether SSH is on for the container.
func (s *Service) SSHEnabled(ctx context.Context, p compute.Principal, id compute.ContainerID) (bool, error) {
	c, err := s.store.Container(ctx, p.User, id)
	return c.SSHEnabled, err
}

// SetSSHEnabled switches SSH on or off. Switching it off ends the live sessions of the container.
func (s *Service) SetSSHEnabled(ctx context.Context, p compute.Principal, id compute.ContainerID, on bool) (bool, error) {
	c, err := s.store.SetSSH(ctx, p.User, id, on)
	return c.SSHEnabled, err
}

// ListKeys returns the principal's SSH keys, oldest first.
func (s *Service) ListKeys(ctx context.Context, p compute.Principal) ([]compute.SSHKey, error) {
	return s.store.Keys(ctx, p.User)
}

// AddKey stores a public key. An empty name takes the key's comment.
func (s *Service) AddKey(ctx context.Context, p compute.Principal, name, publicKey string) (compute.SSHKey, error) {
	line, fingerprint, comment, err := compute.ParsePublicKey(publicKey, s.limits)
	if err != nil {
		return compute.SSHKey{}, err
	}
	if name == "" {
		name = comment
	}
	if name, err = compute.ValidateName(name, s.limits.MaxNameRunes); err != nil {
		return compute.SSHKey{}, err
	}
	return s.store.AddKey(ctx, compute.SSHKey{
		Owner: p.User, Name: name, PublicKey: line, Fingerprint: fingerprint,
	}, s.limits.KeysPerUser)
}

// DeleteKey removes a key, also from the containers it opens; live sessions that it opened end.
func (s *Service) DeleteKey(ctx context.Context, p compute.Principal, id int64) error {
	return s.store.DeleteKey(ctx, p.User, id)
}

// spec returns what the engine must make of c. A type that the operator's table no longer has gets the smallest share of CPU
// there is, so that a container outlives an edit of the table.
func (s *Service) spec(c compute.Container) compute.Spec {
	t, ok := s.types[c.InstanceType]
	if !ok && len(s.order) > 0 {
		t = s.order[0]
	}
	return compute.Spec{
		Ref: c.Ref(), Generation: c.Generation, Running: c.Desired == compute.DesiredRunning, Hostname: string(c.ID) + "." + s.zone,
		MilliCPU: t.MilliCPU, Arch: t.Architecture, MemoryMB: c.MemoryMB, StorageGB: c.StorageGB, MountPaths: c.MountPaths,
	}
}
