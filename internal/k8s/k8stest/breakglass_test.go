package k8stest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth/deploy/devcluster/clustertest"
)

// testBreakGlass is docs/operator/transport.md's way in without a gateway, with the stock client: kubectl exec of the agent's own
// SSH server.
func testBreakGlass(t *testing.T, r *rig) {
	s := r.run()
	dir := t.TempDir()
	config := filepath.Join(dir, "config")
	text := fmt.Sprintf(`Host glass
  User root
  ProxyCommand %s --kubeconfig %s -n %s exec -i %s-0 -c main -- /.berth/agent ssh
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
`, r.cluster.Kubectl, r.cluster.Kubeconfig, s.String(), s.ID)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(stdin, program string, args ...string) (string, string, int) {
		t.Helper()
		cmd := exec.CommandContext(r.ctx(), program, append([]string{"-F", config}, args...)...)
		var out, errs bytes.Buffer
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
		err := cmd.Run()
		if cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return out.String(), errs.String(), cmd.ProcessState.ExitCode()
	}
	if out, errs, status := run("in", "ssh", "glass", "cat; echo out; echo err >&2; exit 7"); out != "inout\n" || errs != "err\n" || status != 7 {
		t.Errorf("ssh: %q, %q, %d", out, errs, status)
	}
	if out, errs, status := run("", "ssh", "-tt", "glass", "tty"); !strings.HasPrefix(out, "/dev/pts/") || status != 0 {
		t.Errorf("ssh -tt: %q, %q, %d", out, errs, status)
	}
	up, down := filepath.Join(dir, "up"), filepath.Join(dir, "down")
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	if err := os.WriteFile(up, data, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{up, "glass:/root/f"}, {"glass:/root/f", down}, {"-O", up, "glass:/root/g"}} {
		if _, errs, status := run("", "scp", args...); status != 0 {
			t.Errorf("scp %v: %q, %d", args, errs, status)
		}
	}
	if got, err := os.ReadFile(down); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes came back (%v)", len(got), err)
	}
	if out, err := r.sh(s, "cmp /root/f /root/g && echo same"); err != nil || out != "same\n" {
		t.Errorf("scp and scp -O: %q, %v", out, err)
	}
	if out, errs, status := run("ls /root\n", "sftp", "-b", "-", "glass"); status != 0 || !strings.Contains(out, "/root/f") {
		t.Errorf("sftp: %q, %q, %d", out, errs, status)
	}
	// Nothing of it stays in the container.
	clustertest.Eventually(t, 20*time.Second, func() error {
		out, err := r.sh(s, `for c in /proc/[0-9]*/cmdline; do tr '\0' ' ' < $c; echo; done 2>/dev/null | grep 'agent[ ]s' || true`)
		if err == nil && out != "" {
			err = fmt.Errorf("these run: %q", out)
		}
		return err
	})
}
