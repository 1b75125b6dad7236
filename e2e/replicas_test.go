package e2e_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fasthttp/websocket"

	"berth/internal/pgtest"
)

// takeover is how long it may take until another control plane does the work of one that is gone or stopped: its lease, and the
// start of the engine.
const takeover = 9*time.Second + statusLimit

// ownReplicas returns two control planes on one database and one engine directory, the first's data directory, which end with
// the test. Neither is started.
func ownReplicas(t *testing.T, url string) (a, b *instance) {
	t.Helper()
	a = ownElsewhere(t)
	b, err := newInstance()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log("the second: " + tail(b.log))
		}
		if err := errors.Join(b.stop(), os.RemoveAll(b.dir)); err != nil {
			t.Error(err)
		}
	})
	a.apart, b.apart = true, true // the second has no gateway
	a.flags = []string{"--database", url, "--containers-per-user", "100"}
	b.flags = append([]string{"--engine-dir", a.data}, a.flags...)
	return a, b
}

// ownElsewhere is own for an instance whose database is a server's, or will be.
func ownElsewhere(t *testing.T) *instance {
	t.Helper()
	i, err := newInstance()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(tail(i.log))
		}
		stopErr := i.stop()
		_, downErr := i.run("down") // with --delete the database would go on to know the containers
		if err := errors.Join(stopErr, downErr, i.leaks(), os.RemoveAll(i.dir)); err != nil {
			t.Error(err)
		}
	})
	return i
}

// as is the account at another control plane.
func (a *account) as(t *testing.T, i *instance) *account {
	t.Helper()
	other := *a
	other.on = i
	token, err := i.run("token", "--user", a.name)
	if err != nil {
		t.Fatal(err)
	}
	other.token = token[:len(token)-1]
	return &other
}

// eventually repeats what may fail while a control plane or the database is away.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(takeover); ; <-tick.C {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

func TestReplicas(t *testing.T) {
	t.Parallel()
	testReplicas(t, nil)
}

// TestReplicasGiven is TestReplicas with a containerd that runs already.
func TestReplicasGiven(t *testing.T) {
	t.Parallel()
	testReplicas(t, ownContainerd(t))
}

// testReplicas has two control planes share a PostgreSQL and one engine. Either takes what users ask for; whichever drives the
// containers is killed in the middle of creates, and stopped past its lease in the middle of deletes; the other finishes the
// work, and one that was stopped never goes on. The database crashes under both, and so does containerd where one is given. A
// container that has nothing to do with all that runs on, and keeps its file.
func testReplicas(t *testing.T, given *machineContainerd) {
	server, err := pgtest.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	first, second := ownReplicas(t, server.URL("postgres"))
	if given != nil {
		first.env = []string{"BERTH_CONTAINERD_ADDRESS=" + given.address, "BERTH_CONTAINERD=/absent/containerd"}
		second.env = first.env
	}
	if err := first.start(); err != nil {
		t.Fatal(err)
	}
	for _, shared := range []string{"token.key", "link_ca.pem"} { // as the operator's page says
		text, err := os.ReadFile(filepath.Join(first.data, shared))
		if err == nil {
			err = os.WriteFile(filepath.Join(second.data, shared), text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := second.startMain(); err != nil {
		t.Fatal(err)
	}
	at := map[*instance]*account{first: personOn(t, first, "victim")}
	at[second] = at[first].as(t, second)
	feeds := []*websocket.Conn{at[first].feed(t), at[second].feed(t)}
	keeper := boxOf(t, at[second], `{"storage_gb": 1, "memory_mb": 64}`) // asked of the one that does not drive
	for n, feed := range feeds {
		if got := statuses(t, feed, keeper, "running"); !slices.Equal(got, []string{"pending", "initializing", "running"}) {
			t.Errorf("the feed of control plane %d says %v", n+1, got)
		}
	}
	if _, err := at[first].ssh(at[first].at(keeper), "echo kept >/root/file; sync; echo $PPID >/run/life"); err != nil {
		t.Fatal(err)
	}
	running := func(i *instance, id string) {
		t.Helper()
		eventually(t, id+" runs", func() error {
			var c container
			if err := at[i].get("/compute/containers/"+id, &c); err != nil {
				return err
			}
			if c.Status != "running" {
				return fmt.Errorf("it is %s: %s", c.Status, c.StatusMessage)
			}
			return nil
		})
	}

	takesOver := func(i *instance) {
		t.Helper()
		eventually(t, "the other takes over", func() error {
			holder := server.SQL(t, "postgres", "SELECT holder FROM lease WHERE expires_at > clock_timestamp()")
			if want := fmt.Sprintf("(pid %d)", i.main.cmd.Process.Pid); !strings.HasSuffix(holder, want) {
				return fmt.Errorf("the lease is %q's", holder)
			}
			return nil
		})
	}

	// Killed in the middle of a create, a step later each time. The other finishes it.
	steps := []string{"pending", "initializing", "running"}
	drives, stands := first, second
	var doomed []string
	for _, step := range steps {
		feed := at[stands].feed(t)
		c, err := at[stands].create(`{"storage_gb": 1, "memory_mb": 64}`)
		if err != nil {
			t.Fatal(err)
		}
		statuses(t, feed, c.ID, step)
		if err := drives.main.kill(); err != nil {
			t.Fatal(err)
		}
		takesOver(stands)
		running(stands, c.ID)
		doomed = append(doomed, c.ID)
		if err := drives.startMain(); err != nil {
			t.Fatal(err)
		}
		drives, stands = stands, drives
	}

	// Stopped in the middle of a delete and a create, for longer than its lease. It never goes on: the other ends it before it
	// takes over.
	for round, id := range doomed {
		feed := at[stands].feed(t)
		if err := at[stands].do(http.MethodDelete, "/compute/containers/"+id, "", nil); err != nil {
			t.Fatal(err)
		}
		another, err := at[stands].create(`{"storage_gb": 1, "memory_mb": 64}`)
		if err != nil {
			t.Fatal(err)
		}
		statuses(t, feed, another.ID, steps[round])
		if err := drives.main.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		takesOver(stands)
		running(stands, another.ID)
		if err := first.awaitGone(id); err != nil {
			t.Error(err)
		}
		select {
		case <-drives.main.exited:
		case <-time.After(takeover):
			t.Fatal("the control plane that was stopped is still there")
		}
		if err := drives.startMain(); err != nil {
			t.Fatal(err)
		}
		drives, stands = stands, drives
		if err := at[drives].do(http.MethodDelete, "/compute/containers/"+another.ID, "", nil); err != nil {
			t.Fatal(err)
		}
	}

	// The database crashes under both, for longer than the lease. Nothing need be restarted, and containerd goes on.
	containerd := first.containerd
	if given != nil {
		if pid, err := first.containerd(); err == nil {
			t.Errorf("it has a containerd of its own, %d", pid)
		}
		containerd = func() (int, error) { return given.cmd.Process.Pid, syscall.Kill(given.cmd.Process.Pid, 0) }
	}
	engine, err := containerd()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Stop(pgtest.Crash); err != nil {
		t.Fatal(err)
	}
	if status, _, body, err := at[stands].call(http.MethodGet, "/compute/containers", "", ""); err != nil || status != http.StatusServiceUnavailable {
		t.Errorf("without a database: %d %s, %v", status, body, err)
	}
	if out, err := at[first].ssh(at[first].at(keeper), "cat /root/file"); err != nil || out != "kept" {
		t.Errorf("without a database, the gateway: %q, %v", out, err)
	}
	eventually(t, "its term ends", func() error {
		text, err := os.ReadFile(drives.log)
		if last := text[bytes.LastIndex(text, []byte("drives the containers")):]; err == nil && !bytes.HasPrefix(last, []byte("drives the containers no more")) {
			return errors.New("it still drives")
		}
		return err
	})
	if pid, err := containerd(); err != nil || pid != engine {
		t.Errorf("containerd was %d and is %d: %v", engine, pid, err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	var after container
	eventually(t, "creates go on", func() (err error) {
		after, err = at[stands].create(`{"storage_gb": 1, "memory_mb": 64}`)
		return err
	})
	running(stands, after.ID)
	running(drives, keeper)
	for _, i := range []*instance{first, second} {
		eventually(t, "it is ready", func() error { return at[i].ready() })
	}

	// A containerd that is given crashes under them, and is started again by whom it belongs to.
	if given != nil {
		if err := given.kill(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it says so", func() error {
			if err := at[drives].ready(); err == nil || !strings.Contains(err.Error(), "containerd does not answer") {
				return fmt.Errorf("without containerd: %w", errors.Join(err, errors.New("not told")))
			}
			return nil
		})
		another, err := at[stands].create(`{"storage_gb": 1, "memory_mb": 64}`)
		if err != nil {
			t.Fatal(err)
		}
		given.start(t)
		running(stands, another.ID)
		eventually(t, "it is ready", func() error { return at[drives].ready() })
		if err := at[drives].do(http.MethodDelete, "/compute/containers/"+another.ID, "", nil); err != nil {
			t.Fatal(err)
		}
		if err := first.awaitGone(another.ID); err != nil {
			t.Error(err)
		}
		if out, err := given.ctr("--namespace", first.name(), "containers", "list", "--quiet"); err != nil || !strings.Contains(out, keeper) || !strings.Contains(out, after.ID) {
			t.Errorf("it has the containers %q, %v", out, err)
		}
	}

	// The keeper has its file, and is the same run as in the beginning: /run is of one life.
	if out, err := at[first].ssh(at[first].at(keeper), "cat /root/file; test -s /run/life && echo one life"); err != nil || out != "kept\none life" {
		t.Errorf("the container that nobody touched has %q, %v", out, err)
	}
	for _, id := range []string{after.ID, keeper} {
		if err := at[stands].do(http.MethodDelete, "/compute/containers/"+id, "", nil); err != nil {
			t.Fatal(err)
		}
		if err := first.awaitGone(id); err != nil {
			t.Error(err)
		}
	}
}

// feed opens the account's live feed.
func (a *account) feed(t *testing.T) *websocket.Conn {
	t.Helper()
	ws, _, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(a.on.ready.APIURL, "http")+"/compute/ws?token="+a.token, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ws.Close() })
	return ws
}

// statuses reads a feed until a container has a status, and returns all that the container had.
func statuses(t *testing.T, ws *websocket.Conn, id, last string) (list []string) {
	t.Helper()
	for {
		var m struct {
			Type string
			Data json.RawMessage
		}
		if err := errors.Join(ws.SetReadDeadline(time.Now().Add(statusLimit)), ws.ReadJSON(&m)); err != nil {
			t.Fatal(err)
		}
		if m.Type != "container_status" {
			continue
		}
		var change struct {
			ID     string `json:"container_id"`
			Status string
		}
		if err := json.Unmarshal(m.Data, &change); err != nil {
			t.Fatal(err)
		}
		if change.ID == id {
			list = append(list, change.Status)
		}
		if change.ID == id && change.Status == last {
			return list
		}
	}
}

// ready asks the account's control plane whether it can do its work.
func (a *account) ready() error {
	status, _, body, err := a.call(http.MethodGet, "/readyz", "", "")
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("%d: %s", status, body)
	}
	return err
}
