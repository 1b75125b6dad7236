package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The class bounded is what a cluster's storage is at its best: a volume has the size that was asked for, is made where its
// first pod will be, and grows while it is used. Each is a file with XFS, which grows without the right that ext4 wants of who
// enlarges it (CAP_SYS_RESOURCE); a machine may lack that.
const (
	boundedClass  = "bounded"
	provisioner   = "berth.local/loop"
	volumesDir    = nodeDir + "/volumes"
	smallestXFS   = 300 << 20
	watchAgain    = 200 * time.Millisecond // after the API server was away, or something failed
	selectedNode  = "volume.kubernetes.io/selected-node"
	provisionedBy = "pv.kubernetes.io/provisioned-by"
)

// mountVolumes mounts what an earlier start left.
func mountVolumes(ctx context.Context) error {
	list, err := filepath.Glob(volumesDir + "/*.xfs")
	if err != nil {
		return err
	}
	for _, file := range list {
		if err := mountVolume(ctx, strings.TrimSuffix(filepath.Base(file), ".xfs")); err != nil {
			return err
		}
	}
	return nil
}

func volumeFile(name string) string { return filepath.Join(volumesDir, name+".xfs") }
func volumeAt(name string) string   { return filepath.Join(volumesDir, name) }

func mountVolume(ctx context.Context, name string) error {
	if err := os.MkdirAll(volumeAt(name), 0o755); err != nil {
		return err
	}
	if exec.CommandContext(ctx, "mountpoint", "-q", volumeAt(name)).Run() == nil {
		return nil
	}
	return tool(ctx, "mount", "-o", "loop,nouuid", volumeFile(name), volumeAt(name))
}

func tool(ctx context.Context, name string, args ...string) error {
	return command(exec.CommandContext(ctx, name, args...))
}

// startVolumes makes, enlarges and removes volumes as claims and volumes ask for it, until stop.
func (n *node) startVolumes(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	wg.Go(func() { follow(ctx, n, "persistentvolumeclaims", n.serveClaim) })
	wg.Go(func() { follow(ctx, n, "persistentvolumes", n.serveReleased) })
	return func() {
		cancel()
		wg.Wait()
	}
}

// follow calls serve with every object, and again with each that changes. What fails is told again when the watch begins anew.
func follow[T any](ctx context.Context, n *node, kind string, serve func(context.Context, *T) error) {
	again := time.NewTicker(watchAgain)
	defer again.Stop()
	for {
		if err := watchOnce(ctx, n, kind, serve); err != nil && ctx.Err() == nil && !errors.Is(err, io.EOF) {
			slog.Warn("volumes", "kind", kind, "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-again.C:
		}
	}
}

func watchOnce[T any](ctx context.Context, n *node, kind string, serve func(context.Context, *T) error) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, n.server()+"/api/v1/"+kind+"?watch=1", nil)
	if err != nil {
		return err
	}
	endless := *n.api
	endless.Timeout = 0
	answer, err := endless.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("the API server answers %s", answer.Status)
	}
	for events := json.NewDecoder(answer.Body); ; {
		var event struct {
			Type   string
			Object json.RawMessage
		}
		if err := events.Decode(&event); err != nil {
			return err
		}
		if event.Type != "ADDED" && event.Type != "MODIFIED" {
			continue
		}
		object := new(T)
		if err := json.Unmarshal(event.Object, object); err != nil {
			return err
		}
		if err := serve(ctx, object); err != nil {
			return err
		}
	}
}

// serveClaim makes a claim's volume once it is known where, and enlarges it.
func (n *node) serveClaim(ctx context.Context, c *corev1.PersistentVolumeClaim) error {
	if c.Spec.StorageClassName == nil || *c.Spec.StorageClassName != boundedClass || c.DeletionTimestamp != nil {
		return nil
	}
	want := c.Spec.Resources.Requests[corev1.ResourceStorage]
	if c.Spec.VolumeName == "" {
		if c.Annotations[selectedNode] == "" {
			return nil
		}
		return n.makeVolume(ctx, c, want)
	}
	if has := c.Status.Capacity[corev1.ResourceStorage]; c.Status.Phase != corev1.ClaimBound || want.Cmp(has) <= 0 {
		return nil
	}
	if err := enlarge(ctx, c.Spec.VolumeName, want.Value()); err != nil {
		return err
	}
	capacity := map[string]any{"capacity": map[string]string{"storage": want.String()}}
	if err := n.send(ctx, http.MethodPatch, "/api/v1/persistentvolumes/"+c.Spec.VolumeName, map[string]any{"spec": capacity}); err != nil {
		return err
	}
	return n.send(ctx, http.MethodPatch, "/api/v1/namespaces/"+c.Namespace+"/persistentvolumeclaims/"+c.Name+"/status", map[string]any{"status": capacity})
}

func (n *node) makeVolume(ctx context.Context, c *corev1.PersistentVolumeClaim, size resource.Quantity) error {
	name := "pvc-" + string(c.UID)
	if err := makeFile(ctx, name, max(size.Value(), smallestXFS)); err != nil {
		return err
	}
	if err := mountVolume(ctx, name); err != nil {
		return err
	}
	err := n.send(ctx, http.MethodPost, "/api/v1/persistentvolumes", &corev1.PersistentVolume{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolume"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{provisionedBy: provisioner}},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: corev1.ResourceList{corev1.ResourceStorage: size}, AccessModes: c.Spec.AccessModes,
			StorageClassName: boundedClass, PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			ClaimRef:               &corev1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: c.Namespace, Name: c.Name, UID: c.UID},
			PersistentVolumeSource: corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: volumeAt(name)}},
		},
	})
	if errors.Is(err, errConflict) {
		return nil // made before, and not bound yet
	}
	return err
}

// makeFile makes the file of a volume, which counts once it is whole.
func makeFile(ctx context.Context, name string, size int64) error {
	if _, err := os.Stat(volumeFile(name)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(volumesDir, 0o755); err != nil {
		return err
	}
	unfinished := volumeFile(name) + ".new"
	if err := os.WriteFile(unfinished, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(unfinished, size); err != nil {
		return err
	}
	if err := tool(ctx, "mkfs.xfs", "-q", "-f", unfinished); err != nil {
		return err
	}
	return os.Rename(unfinished, volumeFile(name))
}

func enlarge(ctx context.Context, name string, size int64) error {
	if st, err := os.Stat(volumeFile(name)); err != nil {
		return err
	} else if st.Size() < size {
		if err := os.Truncate(volumeFile(name), size); err != nil {
			return err
		}
	}
	device, err := exec.CommandContext(ctx, "findmnt", "--noheadings", "--output", "SOURCE", "--mountpoint", volumeAt(name)).Output()
	if err != nil {
		return fmt.Errorf("find the device of %s: %w", name, err)
	}
	if err := tool(ctx, "losetup", "--set-capacity", strings.TrimSpace(string(device))); err != nil {
		return err
	}
	return tool(ctx, "xfs_growfs", volumeAt(name))
}

// serveReleased removes a volume that nobody claims any more.
func (n *node) serveReleased(ctx context.Context, v *corev1.PersistentVolume) error {
	if v.Annotations[provisionedBy] != provisioner || v.Status.Phase != corev1.VolumeReleased {
		return nil
	}
	if err := unix.Unmount(volumeAt(v.Name), unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return err
	}
	if err := errors.Join(os.RemoveAll(volumeFile(v.Name)), os.Remove(volumeAt(v.Name))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return n.send(ctx, http.MethodDelete, "/api/v1/persistentvolumes/"+v.Name, nil)
}

var errConflict = errors.New("it is there already")

// send asks the API server to change something.
func (n *node) send(ctx context.Context, method, path string, object any) error {
	text, err := json.Marshal(object)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, method, n.server()+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	if method == http.MethodPatch {
		request.Header.Set("Content-Type", "application/merge-patch+json")
	}
	answer, err := n.api.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	said, err := io.ReadAll(io.LimitReader(answer.Body, 4<<10))
	switch {
	case err != nil:
		return err
	case answer.StatusCode == http.StatusConflict && method == http.MethodPost:
		return errConflict
	case answer.StatusCode == http.StatusNotFound && method == http.MethodDelete:
		return nil
	case answer.StatusCode >= http.StatusBadRequest:
		return fmt.Errorf("%s %s: %s: %s", method, path, answer.Status, said)
	}
	return nil
}
