package e2e_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// The same scripts run on a cluster where BERTH_E2E_CLUSTER names the directory of one that runs, with the images that
// BERTH_E2E_IMAGE and BERTH_E2E_AGENT name on its node. Lines that begin with [machine] or [cluster] are for one of them.
const clusterVariable = "BERTH_E2E_CLUSTER"

func onCluster() bool { return os.Getenv(clusterVariable) != "" }

// machineOnly are the scripts of the shared instance that look at the embedded engine itself, from this machine.
var machineOnly = map[string]string{
	"limits":       "control groups of the machine",
	"network":      "the firewall of the embedded engine; the development cluster enforces no policies",
	"storage-full": "one bound for all that a container writes; a pod has one for its volume, and is evicted for the rest",
}

// scripts lists the scripts to run: on a cluster those that have no instance of their own, which are about the embedded engine.
func scripts() ([]string, error) {
	all, err := filepath.Glob("testdata/*.txtar")
	if err != nil || !onCluster() {
		return all, err
	}
	var out []string
	for _, file := range all {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		_, machine := machineOnly[strings.TrimSuffix(filepath.Base(file), ".txtar")]
		if !machine && !bytes.Contains(text, []byte("\ninstance")) {
			out = append(out, file)
		}
	}
	return out, nil
}

// clusterInfo is what the cluster's ready.json says.
type clusterInfo struct {
	Kubeconfig string `json:"kubeconfig"`
	Kubectl    string `json:"kubectl"`
}

func readCluster() (c clusterInfo, err error) {
	text, err := os.ReadFile(filepath.Join(os.Getenv(clusterVariable), "ready.json"))
	if err == nil {
		err = json.Unmarshal(text, &c)
	}
	return c, err
}

// engineFlags are the flags that say what runs the containers.
func engineFlags() ([]string, error) {
	if !onCluster() {
		image, err := imagePath()
		return []string{"--image", image}, err
	}
	account, err := ownAccount()
	if err != nil {
		return nil, err
	}
	image, agent := os.Getenv("BERTH_E2E_IMAGE"), os.Getenv("BERTH_E2E_AGENT")
	if image == "" || agent == "" {
		return nil, errors.New("BERTH_E2E_IMAGE and BERTH_E2E_AGENT name the images on the cluster's node")
	}
	return []string{
		"--engine", "kubernetes", "--kubeconfig", account, "--image", image, "--agent", agent, "--pull-policy", "IfNotPresent",
		"--storage-class", "bounded",
		"--architecture", runtime.GOARCH,
	}, nil
}

// ownAccount returns the kubeconfig of an account that has the rights and the bounds of a deployment's control plane, and no more.
func ownAccount() (string, error) {
	c, err := readCluster()
	if err != nil {
		return "", err
	}
	file := "../build/berth-api.kubeconfig" // the cluster's directory is its own
	text, err := os.ReadFile(c.Kubeconfig)
	if err == nil {
		err = os.WriteFile(file, text, 0o600)
	}
	if err != nil {
		return "", err
	}
	base := "../deploy/kubernetes/base/"
	if _, err := kubectl("apply", "--server-side", "-f", base+"namespace.yaml", "-f", base+"rbac.yaml", "-f", base+"admission.yaml"); err != nil {
		return "", err
	}
	token, err := kubectl("--namespace", "berth", "create", "token", "berth-api", "--duration", "4h")
	if err == nil {
		_, err = kubectl("--kubeconfig", file, "config", "set-credentials", "berth-api", "--token", strings.TrimSpace(token))
	}
	if err == nil {
		_, err = kubectl("--kubeconfig", file, "config", "set-context", "--current", "--user", "berth-api")
	}
	return file, err
}

// kubectl runs it on the cluster.
func kubectl(args ...string) (string, error) {
	c, err := readCluster()
	if err != nil {
		return "", err
	}
	cmd := exec.Command(c.Kubectl, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, &errs)
	}
	return out.String(), nil
}

// ours lists the cluster's namespaces that are containers'.
func ours() ([]string, error) {
	text, err := kubectl("get", "namespaces", "-l", "app.kubernetes.io/managed-by=berth", "-o", "name")
	return strings.Fields(text), err
}

// emptyCluster waits until nothing of the instance's containers, which scripts deleted, is left on the cluster.
func (i *instance) emptyCluster() error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for deadline := time.Now().Add(statusLimit); ; <-tick.C {
		left, err := ours()
		left = slices.DeleteFunc(left, func(name string) bool { return slices.Contains(i.others, name) })
		if err == nil && len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("left on the cluster: %v (%w)", left, err)
		}
	}
}

// aboutOnCluster lists what there is of a container.
func aboutOnCluster(id string) ([]string, error) {
	all, err := kubectl("get", "namespaces,persistentvolumes", "-o", "custom-columns=K:.kind,N:.metadata.name,C:.spec.claimRef.namespace", "--no-headers")
	var out []string
	for line := range strings.Lines(all) {
		if strings.Contains(line, id) {
			out = append(out, strings.TrimSpace(line))
		}
	}
	return out, err
}
