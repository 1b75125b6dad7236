// Package shiptest deploys Berth to development clusters as an operator does, uses it with stock clients, upgrades and removes
// it. `make test` runs it; it has no code of its own.
package shiptest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"berth/deploy/devcluster/clustertest"
)

// patience is how long anything that is waited for may take on a busy machine.
const patience = 3 * time.Minute

// rig is a Berth on a cluster, and a person's directory for it.
type rig struct {
	t       *testing.T
	cluster *clustertest.Cluster
	data    string
	given   string // the same directory, as seen from the source tree: make deploy says data
	images  string
	env     []string
	flags   []string // of ship up
	down    []string // of ship down
	ready   struct {
		APIURL  string `json:"api_url"`
		SSHAddr string `json:"ssh_addr"`
		Zone    string `json:"zone"`
		User    string `json:"user"`
	}
}

// newRig has a home without keys, so that a demo key is made in the data directory.
func newRig(t *testing.T, c *clustertest.Cluster) *rig {
	t.Helper()
	dir := t.TempDir()
	r := &rig{t: t, cluster: c, data: filepath.Join(dir, "data"), images: filepath.Join(dir, "images")}
	var err error
	if r.given, err = filepath.Rel(clustertest.Root(t), r.data); err != nil {
		t.Fatal(err)
	}
	r.env = append(os.Environ(), "KUBECONFIG=", "HOME="+dir)
	r.flags = []string{"--cluster", c.Dir, "--images", r.images}
	r.down = []string{"--cluster", c.Dir}
	r.pack("v1")
	return r
}

// pack makes the images of a version: other bytes, and so other digests.
func (r *rig) pack(version string) {
	r.t.Helper()
	r.ship("images", "--to", r.images, "--version", version, "--program", runtime.GOARCH+"=bin", "--base", "build/base-image.tar")
}

// ship runs the program that make deploy runs, which must succeed; it returns what it said.
func (r *rig) ship(args ...string) string {
	r.t.Helper()
	said, err := r.tryShip(args...)
	if err != nil {
		r.t.Fatalf("ship %v: %v\n%s", args, err, said)
	}
	r.t.Logf("ship %v\n%s", args, said)
	return said
}

func (r *rig) tryShip(args ...string) (string, error) {
	root := clustertest.Root(r.t)
	cmd := exec.CommandContext(r.t.Context(), filepath.Join(root, "build/ship"), args...)
	cmd.Dir, cmd.Env = root, r.env
	said, err := cmd.CombinedOutput()
	return string(said), err
}

// up deploys, and learns where Berth is.
func (r *rig) up(args ...string) string {
	r.t.Helper()
	said := r.ship(append(append([]string{"up", "--data", r.given}, r.flags...), args...)...)
	text, err := os.ReadFile(filepath.Join(r.data, "ready.json"))
	if err == nil {
		err = json.Unmarshal(text, &r.ready)
	}
	if err != nil {
		r.t.Fatalf("ready.json: %v", err)
	}
	return said
}

// undeploy removes Berth.
func (r *rig) undeploy(args ...string) string {
	r.t.Helper()
	return r.ship(append(append([]string{"down", "--data", r.given, "--yes"}, r.down...), args...)...)
}

// api asks the API with the token of the data directory.
func (r *rig) api(method, path string, body, into any) error {
	token, err := os.ReadFile(filepath.Join(r.data, "token"))
	if err != nil {
		return err
	}
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.t.Context(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, r.ready.APIURL+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, answer)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(answer, into)
}

// create makes a container by the command that ship prints and the README has, and waits until it runs.
func (r *rig) create(name string) string {
	r.t.Helper()
	script := fmt.Sprintf(`curl -sS --fail-with-body %s/compute/containers -H "Authorization: Bearer $(cat %s/token)" `+
		`-H 'Content-Type: application/json' -d '{"name": "%s", "ssh_key_ids": [1], "ssh_enabled": true}'`, r.ready.APIURL, r.data, name)
	out, err := exec.CommandContext(r.t.Context(), "bash", "-c", script).CombinedOutput()
	if err != nil {
		r.t.Fatalf("curl: %v\n%s", err, out)
	}
	var made struct{ ID string }
	if err := json.Unmarshal(out, &made); err != nil {
		r.t.Fatalf("%v in %s", err, out)
	}
	r.awaitRunning(made.ID)
	return made.ID
}

func (r *rig) awaitRunning(id string) {
	r.t.Helper()
	clustertest.Eventually(r.t, patience, func() error {
		var c struct {
			Status  string
			Message string `json:"status_message"`
		}
		if err := r.api(http.MethodGet, "/compute/containers/"+id, nil, &c); err != nil {
			return err
		}
		if c.Status != "running" {
			return fmt.Errorf("it is %s: %s", c.Status, c.Message)
		}
		return nil
	})
}

// client is stock ssh with the files that ship left.
func (r *rig) client(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(r.t.Context(), "ssh", append([]string{"-F", filepath.Join(r.data, "ssh_config"), "-o", "BatchMode=yes"}, args...)...)
	cmd.Env = r.env
	return cmd
}

// ssh runs a command, which must succeed.
func (r *rig) ssh(args ...string) string {
	r.t.Helper()
	cmd := r.client(args...)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		r.t.Fatalf("ssh %v: %v: %s", args, err, &complaint)
	}
	return string(out)
}

// kubectl asks the cluster, which must answer.
func (r *rig) kubectl(args ...string) string {
	r.t.Helper()
	return strings.TrimSpace(r.cluster.Do(r.t, args...))
}

// pods are the identities of Berth's pods by a program's name.
func (r *rig) pods(program string) []string {
	r.t.Helper()
	return strings.Fields(r.kubectl("-n", "berth", "get", "pods", "-l", "app.kubernetes.io/name="+program,
		"-o", "jsonpath={range .items[*]}{.metadata.uid}{\"\\n\"}{end}"))
}

// life tells one life of a container's pod from the next.
func (r *rig) life(id string) string {
	r.t.Helper()
	return r.kubectl("get", "pods", "-A", "-l", "berth/container="+id, "-o",
		"jsonpath={range .items[*]}{.metadata.uid} {.status.containerStatuses[*].containerID} {.status.containerStatuses[*].restartCount}{end}")
}

// conversation is a session that goes on.
type conversation struct {
	t    *testing.T
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  io.Reader
	errs bytes.Buffer
}

// converse begins a session with something that answers each line with the same.
func (r *rig) converse(args ...string) *conversation {
	r.t.Helper()
	c := &conversation{t: r.t, cmd: r.client(append(args, "cat")...)}
	var err error
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		r.t.Fatal(err)
	}
	if c.out, err = c.cmd.StdoutPipe(); err != nil {
		r.t.Fatal(err)
	}
	c.cmd.Stderr = &c.errs
	if err := c.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		_ = c.cmd.Process.Kill() // it has ended, unless the test failed
		_ = c.cmd.Wait()
	})
	c.say("begin")
	return c
}

// say has to come back.
func (c *conversation) say(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c.in, text+"\n"); err != nil {
		c.t.Fatalf("the session is over: %v: %s", err, &c.errs)
	}
	back := make([]byte, len(text)+1)
	done := make(chan error, 1)
	go func() {
		_, err := io.ReadFull(c.out, back)
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil || string(back) != text+"\n" {
			c.t.Fatalf("said %q, heard %q: %v", text, back, err)
		}
	case <-time.After(patience):
		c.t.Fatalf("said %q, and nothing came back", text)
	}
}

func (c *conversation) end() {
	c.t.Helper()
	c.in.Close()
	if err := c.cmd.Wait(); err != nil {
		c.t.Fatalf("the session's end: %v: %s", err, &c.errs)
	}
}
