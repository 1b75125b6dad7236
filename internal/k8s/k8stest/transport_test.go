package k8stest

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"berth/deploy/devcluster/clustertest"
	"berth/internal/compute"
	"berth/internal/enginetest"
	"berth/internal/k8s"
	"berth/internal/pinned"
	"berth/internal/session"
)

// TestTransports has what pod exec and the pods' addresses carry sessions through, for a gateway that has no more than its rights.
func TestTransports(t *testing.T) {
	r := newRig(t)
	for _, part := range []struct {
		name string
		test func(*testing.T, *rig)
	}{
		{"a gateway's rights", testGatewayRights},
		{"a pod's address", testPodAddress},
		{"a load balancer ends what is idle", testIdle},
		{"a slow reader", testSlowReader},
		{"what survives", testSurvives},
		{"break-glass", testBreakGlass},
	} {
		t.Run(part.name, func(t *testing.T) { part.test(t, r.in(t)) })
	}
}

// transports are both ways to agents.
var transports = map[string]bool{"exec": false, "address": true}

// gateway gives a service account what gateways have in a container's namespace, and returns its kubeconfig.
func (r *rig) gateway(s compute.Spec) string {
	r.t.Helper()
	ns := s.String()
	r.cluster.Apply(r.t, `
apiVersion: v1
kind: ServiceAccount
metadata: {name: gateway-of-test, namespace: `+ns+`}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: gateway-of-test, namespace: `+ns+`}
rules:
- {apiGroups: [""], resources: [pods], verbs: [get]}
- {apiGroups: [""], resources: [pods/exec], verbs: [get, create]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: gateway-of-test, namespace: `+ns+`}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: gateway-of-test}
subjects: [{kind: ServiceAccount, name: gateway-of-test, namespace: `+ns+`}]
`)
	config, err := clientcmd.LoadFromFile(r.cluster.Kubeconfig)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, user := range config.AuthInfos {
		user.ClientCertificate, user.ClientCertificateData, user.ClientKey, user.ClientKeyData = "", nil, "", nil
		user.Token = strings.TrimSpace(r.cluster.Do(r.t, "-n", ns, "create", "token", "gateway-of-test"))
	}
	return r.write(*config)
}

func (r *rig) write(config clientcmdapi.Config) string {
	r.t.Helper()
	file := filepath.Join(r.t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(config, file); err != nil {
		r.t.Fatal(err)
	}
	return file
}

// through returns a kubeconfig by which the API server is reached at another address.
func (r *rig) through(address string) string {
	r.t.Helper()
	config, err := clientcmd.LoadFromFile(r.cluster.Kubeconfig)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, c := range config.Clusters {
		c.TLSServerName = strings.Split(strings.TrimPrefix(c.Server, "https://"), ":")[0]
		c.Server = "https://" + address
	}
	return r.write(*config)
}

func (r *rig) dialer(kubeconfig string, addresses bool) *k8s.Dialer {
	r.t.Helper()
	d, err := k8s.NewDialer(k8s.DialerOptions{
		Kubeconfig: kubeconfig, Addresses: addresses,
		Log: slog.New(slog.NewTextHandler(testWriter{r.t}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = d.Close() })
	return d
}

// sessions are those of a gateway.
func (r *rig) sessions(d session.Dialer) *session.Multiplexer {
	m := session.New(session.Options{Dialer: d, DialTimeout: 30 * time.Second})
	r.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), enginetest.Timeout)
		defer cancel()
		if err := m.Close(ctx); err != nil {
			r.t.Errorf("close the multiplexer: %v", err)
		}
	})
	return m
}

// begin begins a command as root; it ends with ctx.
func begin(ctx context.Context, t *testing.T, m *session.Multiplexer, ref compute.Ref, line string) session.Channel {
	t.Helper()
	a, err := m.Attach(ctx, ref, session.Client{User: "root"})
	if err != nil {
		t.Fatalf("attach: %v", err)
	}
	context.AfterFunc(ctx, func() { _ = a.Close() })
	ch, err := a.Open(ctx, "session", nil)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	payload := append(binary.BigEndian.AppendUint32(nil, uint32(len(line))), line...) // RFC 4254, section 6.5
	if ok, err := ch.Request(ctx, "exec", true, payload); err != nil || !ok {
		t.Fatalf("exec: %v, %v", ok, err)
	}
	go func() { // its status is not asked for
		for r := range ch.Requests() {
			_ = r.Reply(true, nil)
		}
	}()
	go func() { _, _ = io.Copy(io.Discard, ch.Stderr()) }()
	return ch
}

// echoes says whether a cat at the other end still answers.
func echoes(ch session.Channel) error {
	if _, err := io.WriteString(ch, "there?"); err != nil {
		return err
	}
	b := make([]byte, 6)
	if _, err := io.ReadFull(ch, b); err != nil || string(b) != "there?" {
		return fmt.Errorf("it answers %q (%v)", b, err)
	}
	return nil
}

func testGatewayRights(t *testing.T, r *rig) {
	s := r.run()
	kubeconfig := r.gateway(s)
	for name, addresses := range transports {
		t.Run(name, func(t *testing.T) {
			d := (&rig{t: t}).dialer(kubeconfig, addresses)
			nc, err := d.DialAgent(r.ctx(), s.Ref)
			if err != nil {
				t.Fatal(err)
			}
			if out, _, err := enginetest.Shell(r.ctx(), nc, "cat; echo through"); err != nil || out != "through\n" {
				t.Errorf("%q, %v", out, err)
			}
			// Another namespace, where there is a container, and none.
			if _, err := d.DialAgent(r.ctx(), compute.Ref{Owner: 8, ID: s.ID}); compute.CodeOf(err) != compute.CodeNotRunning || !strings.Contains(err.Error(), "this gateway") {
				t.Errorf("without rights: %v", err)
			}
			nc, err = d.DialAgent(r.ctx(), s.Ref)
			if err != nil {
				t.Fatal(err)
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
			if _, err := nc.Read(make([]byte, 1)); err == nil {
				t.Error("a connection outlives its dialer")
			}
			_ = nc.Close()
		})
	}
	s.Running, s.Generation = false, 2
	if err := r.e.Apply(r.ctx(), s); err != nil {
		t.Fatal(err)
	}
	for name, addresses := range transports {
		if _, err := r.dialer(kubeconfig, addresses).DialAgent(r.ctx(), s.Ref); compute.CodeOf(err) != compute.CodeNotRunning {
			t.Errorf("%s: while it is stopped: %v", name, err)
		}
	}
}

// testPodAddress is what needs the API server, and what does not, and what follows a container's new life.
func testPodAddress(t *testing.T, r *rig) {
	s := r.run()
	d := r.dialer(r.cluster.Kubeconfig, true)
	sh := func(script string) (string, string, error) {
		nc, err := d.DialAgent(r.ctx(), s.Ref)
		if err != nil {
			return "", "", err
		}
		out, _, err := enginetest.Shell(r.ctx(), nc, script)
		return out, nc.RemoteAddr().String(), err
	}
	ip := r.cluster.Do(t, "-n", s.String(), "get", "pod", string(s.ID)+"-0", "-o", "jsonpath={.status.podIP}")
	address := net.JoinHostPort(ip, strconv.Itoa(pinned.Port))
	if out, at, err := sh("echo first"); err != nil || out != "first\n" || at != address {
		t.Errorf("%q at %s, %v; want %s", out, at, err, address)
	}
	r.cluster.Run(t, "stop", "apiserver")
	out, at, err := sh("echo second")
	r.cluster.Run(t, "start", "apiserver")
	if err != nil || out != "second\n" || at != address {
		t.Errorf("without an API server: %q at %s, %v", out, at, err)
	}
	// Another life has another key, at the same address.
	if _, _, err := sh("kill -TERM 1; cat"); err == nil {
		t.Log("the session ended in order before its container did")
	}
	clustertest.Eventually(t, time.Minute, func() error {
		out, at, err := sh("echo third")
		if err == nil && (out != "third\n" || at != address) {
			err = fmt.Errorf("%q at %s", out, at)
		}
		return err
	})
	// Nobody else is served there.
	stranger, err := pinned.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	nc, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stranger.Dial(r.ctx(), nc, pinned.Key{}); err == nil {
		t.Error("a stranger was served")
	}
}

// impatient passes connections on to an address, and ends those that were idle for as long as a load balancer allows.
type impatient struct {
	net.Listener
	to    string
	after time.Duration

	mu    sync.Mutex
	ended int
}

func (p *impatient) serve() {
	for {
		near, err := p.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", p.to)
		if err != nil {
			_ = near.Close()
			continue
		}
		idle := time.AfterFunc(p.after, func() {
			p.mu.Lock()
			p.ended++
			p.mu.Unlock()
			_ = near.Close()
			_ = far.Close()
		})
		pass := func(to, from net.Conn) {
			defer to.Close()
			b := make([]byte, 32<<10)
			for {
				n, err := from.Read(b)
				if err != nil {
					return
				}
				idle.Reset(p.after)
				if _, err := to.Write(b[:n]); err != nil {
					return
				}
			}
		}
		go func() {
			defer idle.Stop()
			go pass(near, far)
			pass(far, near)
		}()
	}
}

// testIdle holds a session without a word through something that ends idle connections after 35 s.
func testIdle(t *testing.T, r *rig) {
	s := r.run()
	config, err := clientcmd.BuildConfigFromFlags("", r.cluster.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := &impatient{Listener: l, to: strings.TrimPrefix(config.Host, "https://"), after: 35 * time.Second}
	go p.serve()
	m := r.sessions(r.dialer(r.through(l.Addr().String()), false))
	ctx, cancel := context.WithCancel(r.ctx())
	defer cancel()
	ch := begin(ctx, t, m, s.Ref, "cat")
	if err := echoes(ch); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ch.Done():
		t.Error("it ended")
	case <-time.After(50 * time.Second): // the time is the subject
	}
	if err := echoes(ch); err != nil {
		t.Error(err)
	}
}

// count writes the numbers from 1 on, a line each, as seq(1) does, until limit bytes.
func count(w io.Writer, limit int64) error {
	b := make([]byte, 0, 64<<10)
	for i := int64(1); limit > 0; i++ {
		b = append(strconv.AppendInt(b, i, 10), '\n')
		if len(b) >= cap(b)-32 || int64(len(b)) >= limit {
			n := min(int64(len(b)), limit)
			if _, err := w.Write(b[:n]); err != nil {
				return err
			}
			limit -= n
			b = b[:0]
		}
	}
	return nil
}

// testSlowReader copies 1 GB either way, with pauses at the receiving end, and compares sums.
func testSlowReader(t *testing.T, r *rig) {
	const size = 1 << 30
	sum := sha256.New()
	if err := count(sum, size); err != nil {
		t.Fatal(err)
	}
	want := hex.EncodeToString(sum.Sum(nil))
	s := r.run()
	for name, addresses := range transports {
		t.Run(name, func(t *testing.T) {
			m := (&rig{t: t}).sessions((&rig{t: t}).dialer(r.cluster.Kubeconfig, addresses))
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			down := begin(ctx, t, m, s.Ref, fmt.Sprintf("seq 1 200000000 | head -c %d", size))
			got := sha256.New()
			for part := int64(size / 8); ; {
				n, err := io.CopyN(got, down, part)
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatalf("after %d bytes: %v", n, err)
				}
				select {
				case <-time.After(700 * time.Millisecond): // what it was sent meanwhile must wait
				case <-ctx.Done():
					t.Fatal(context.Cause(ctx))
				}
			}
			if sum := hex.EncodeToString(got.Sum(nil)); sum != want {
				t.Errorf("what came down has the sum %s", sum)
			}
			// The end of the input goes through, and the answer comes after it.
			up := begin(ctx, t, m, s.Ref, "sleep 2; sha256sum")
			if err := count(up, size); err != nil {
				t.Fatal(err)
			}
			if err := up.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			answer, err := io.ReadAll(up)
			if sum, _, _ := strings.Cut(string(answer), " "); err != nil || sum != want {
				t.Errorf("what went up has the sum %q (%v)", answer, err)
			}
		})
	}
}

// survivors says what of a live session outlives the sudden end of a component, by transport. docs/operator/transport.md has
// the same table.
var survivors = map[string]map[string]bool{
	"exec":    {"apiserver": false, "kubelet": false, "containerd": false, "etcd": true, "proxy": true, "scheduler": true},
	"address": {"apiserver": true, "kubelet": true, "containerd": true, "etcd": true, "proxy": true, "scheduler": true},
}

func testSurvives(t *testing.T, r *rig) {
	s := r.run()
	if _, err := r.sh(s, "echo here > /tmp/mark"); err != nil {
		t.Fatal(err)
	}
	gateways := map[string]*session.Multiplexer{}
	for name, addresses := range transports {
		gateways[name] = r.sessions(r.dialer(r.cluster.Kubeconfig, addresses))
	}
	for _, component := range []string{"scheduler", "proxy", "etcd", "kubelet", "containerd", "apiserver"} {
		t.Run(component, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			typed, moving := map[string]session.Channel{}, map[string]session.Channel{}
			for name, m := range gateways {
				typed[name] = begin(ctx, t, m, s.Ref, "cat")
				if err := echoes(typed[name]); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				moving[name] = begin(ctx, t, m, s.Ref, "cat /dev/zero")
				go func() { _, _ = io.Copy(io.Discard, moving[name]) }()
			}
			r.cluster.Run(t, "restart", "--kill", component)
			for name := range gateways {
				lives := survivors[name][component]
				for what, ch := range map[string]session.Channel{"a session": typed[name], "a transfer": moving[name]} {
					if !lives {
						select {
						case <-ch.Done():
						case <-time.After(time.Minute):
							t.Errorf("%s: %s outlives it, against what is documented", name, what)
						}
						continue
					}
					select {
					case <-ch.Done():
						t.Errorf("%s: %s ended", name, what)
					default:
					}
				}
				if lives {
					if err := echoes(typed[name]); err != nil {
						t.Errorf("%s: %v", name, err)
					}
				}
				// A new one is possible, in the same life of the container.
				clustertest.Eventually(t, time.Minute, func() error {
					result, err := gateways[name].Run(ctx, s.Ref, session.Client{User: "root"}, session.Command{Argv: []string{"cat", "/tmp/mark"}}, 100)
					if err == nil && string(result.Stdout.Bytes) != "here\n" {
						t.Fatalf("%s: another life: %+v", name, result)
					}
					return err
				})
			}
		})
	}
}
