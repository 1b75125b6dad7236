package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/containerd/containerd/api/services/containers/v1"
	"github.com/containerd/containerd/api/services/events/v1"
	"github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/services/version/v1"
	inside "github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs/pkg/errgrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/anypb"
)

// rpc is the part of containerd's API that the engine uses, in one namespace; its errors are those of errdefs. containerd's
// client package would bring in registries, snapshots and tracing: a sixth of all that Berth compiles.
type rpc struct {
	conn       *grpc.ClientConn
	tasks      tasks.TasksClient
	containers containers.ContainersClient
	events     events.EventsClient
	namespaces namespaces.NamespacesClient
	version    version.VersionClient
}

// connect prepares calls to the containerd at the socket; it need not be there yet.
func connect(socket, namespace string) (*rpc, error) {
	unary := func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker,
		opts ...grpc.CallOption,
	) error {
		// No call waits for ever for a containerd that does not come back, or hangs. Only the end of a process may take
		// as long as it takes.
		if !strings.HasSuffix(method, "/Wait") {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, callTimeout)
			defer cancel()
		}
		return errgrpc.ToNative(invoke(inside.WithNamespace(ctx, namespace), method, req, reply, cc, opts...))
	}
	stream := func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer,
		opts ...grpc.CallOption,
	) (grpc.ClientStream, error) {
		s, err := open(inside.WithNamespace(ctx, namespace), desc, cc, method, opts...)
		return s, errgrpc.ToNative(err)
	}
	conn, err := grpc.NewClient("unix://"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		// It comes back soon, and may be away for a moment at any call.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1.5, MaxDelay: 250 * time.Millisecond},
			MinConnectTimeout: time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)),
		grpc.WithUnaryInterceptor(unary), grpc.WithStreamInterceptor(stream),
	)
	if err != nil {
		return nil, fmt.Errorf("connect to containerd: %w", err)
	}
	return &rpc{
		conn:       conn,
		tasks:      tasks.NewTasksClient(conn),
		containers: containers.NewContainersClient(conn),
		events:     events.NewEventsClient(conn),
		namespaces: namespaces.NewNamespacesClient(conn),
		version:    version.NewVersionClient(conn),
	}, nil
}

// list returns the records of all containers.
func (c *rpc) list(ctx context.Context) ([]*containers.Container, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	s, err := c.containers.ListStream(ctx, &containers.ListContainersRequest{})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	var all []*containers.Container
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("list containers: %w", errgrpc.ToNative(err))
		}
		all = append(all, m.Container)
	}
}

func marshalSpec(s *specs.Spec) (*anypb.Any, error) { return marshalJSON("Spec", s) }
func marshalResources(r *specs.LinuxResources) (*anypb.Any, error) {
	return marshalJSON("LinuxResources", r)
}

// marshalJSON is for the types of the OCI runtime specification, which containerd knows by these names.
func marshalJSON(name string, v any) (*anypb.Any, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	url := fmt.Sprintf("types.containerd.io/opencontainers/runtime-spec/%d/%s", specs.VersionMajor, name)
	return &anypb.Any{TypeUrl: url, Value: b}, nil
}

// specOf reads the OCI specification that a container's record has.
func specOf(c *containers.Container) (*specs.Spec, error) {
	var s specs.Spec
	if err := json.Unmarshal(c.GetSpec().GetValue(), &s); err != nil {
		return nil, fmt.Errorf("the record of %s: %w", c.GetID(), err)
	}
	return &s, nil
}
