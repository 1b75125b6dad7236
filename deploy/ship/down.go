package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"
)

// kept are the kinds of objects that stay unless everything is to go: the namespace, with the database and the keys in it.
var kept = []string{"Namespace", "PersistentVolumeClaim", "Secret"}

// down removes Berth from the cluster.
func down(ctx context.Context, o options, say func(string, ...any), stdin *os.File, out io.Writer) error {
	c, err := findCluster(o)
	if err != nil {
		return err
	}
	if err := c.introduce(ctx, say); err != nil {
		return err
	}
	if o.overlay == "" {
		o.overlay = filepath.Join(o.tree, "deploy/kubernetes/base")
	}
	objects, err := c.objects(ctx, o.overlay)
	if err != nil {
		return err
	}
	containers, probes, err := c.tenants(ctx, o.remove)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("This removes Berth's programs and rights from the cluster. Its database and keys stay, and containers (%d) go on running.", len(containers))
	if o.remove {
		what = fmt.Sprintf("This removes Berth from the cluster, its database, and all containers (%d) with what they store. There is no way back.", len(containers))
	}
	if !o.yes {
		if err := ask(what, stdin, out); err != nil {
			return err
		}
	}

	// The programs first: the control plane would make what is missing again.
	if err := c.remove(ctx, objects, func(kind string) bool { return slices.Contains([]string{"Deployment", "StatefulSet"}, kind) }); err != nil {
		return err
	}
	say("the programs have ended")
	if gone := append(containers, probes...); o.remove && len(gone) > 0 {
		if _, err := c.do(ctx, "", append([]string{"delete", "namespaces", "--ignore-not-found"}, gone...)...); err != nil {
			return err
		}
		say("containers are removed: %d", len(containers))
	}
	if err := c.remove(ctx, objects, func(kind string) bool { return o.remove || !slices.Contains(kept, kind) }); err != nil {
		return err
	}
	if !o.remove {
		if _, err := c.do(ctx, "", "--namespace", namespace, "delete", "configmap", "--ignore-not-found",
			"--selector", "app.kubernetes.io/part-of=berth"); err != nil {
			return err
		}
	}
	var errs []error
	for _, name := range []string{"ssh_config", "known_hosts", "token", "ready.json"} {
		if err := os.Remove(filepath.Join(o.data, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	say("removed")
	return errors.Join(errs...)
}

// tenants are the namespaces that the control plane has made: containers', and what a probe of the network has left. To be removed,
// containers must be of one installation.
func (c *cluster) tenants(ctx context.Context, remove bool) (containers, probes []string, err error) {
	var list struct {
		Items []struct {
			Metadata struct {
				Name   string
				Labels map[string]string
			}
		}
	}
	if err := c.get(ctx, &list, "namespaces", "--selector", "app.kubernetes.io/managed-by=berth"); err != nil {
		return nil, nil, err
	}
	var installations []string
	for _, ns := range list.Items {
		if ns.Metadata.Labels["berth/container"] == "" {
			probes = append(probes, ns.Metadata.Name)
			continue
		}
		containers = append(containers, ns.Metadata.Name)
		installations = append(installations, ns.Metadata.Labels["berth/installation"])
	}
	slices.Sort(installations)
	if installations = slices.Compact(installations); remove && len(installations) > 1 {
		return nil, nil, fmt.Errorf("this cluster has containers of %d installations (label berth/installation: %s), of which at most one is this one. "+
			"Remove the others' namespaces first, if nobody needs them", len(installations), strings.Join(installations, ", "))
	}
	return containers, probes, nil
}

// object is a manifest, and what kind it is.
type object struct{ kind, text string }

// objects are the manifests, one by one.
func (c *cluster) objects(ctx context.Context, overlay string) ([]object, error) {
	text, err := c.do(ctx, "", "kustomize", overlay)
	if err != nil {
		return nil, err
	}
	var list []object
	for doc := range strings.SplitSeq(text, "\n---\n") {
		var o struct{ Kind string }
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			return nil, fmt.Errorf("%s: %w", overlay, err)
		}
		list = append(list, object{o.Kind, doc})
	}
	return list, nil
}

// remove deletes those of the objects that are of chosen kinds, and waits until they are gone.
func (c *cluster) remove(ctx context.Context, objects []object, chosen func(kind string) bool) error {
	var docs []string
	for _, o := range objects {
		if chosen(o.kind) {
			docs = append(docs, o.text)
		}
	}
	_, err := c.do(ctx, strings.Join(docs, "\n---\n"), "delete", "--ignore-not-found", "--cascade=foreground", "--wait", "-f", "-")
	return err
}

// ask has the person at the terminal agree.
func ask(what string, stdin *os.File, out io.Writer) error {
	if _, err := unix.IoctlGetTermios(int(stdin.Fd()), unix.TCGETS); err != nil {
		return fmt.Errorf("%s Nobody is at a terminal to be asked: say ARGS=--yes if that is what you want", what)
	}
	fmt.Fprintf(out, "%s\nType yes to go on: ", what)
	answer, err := bufio.NewReader(stdin).ReadString('\n')
	if err != nil || strings.TrimSpace(answer) != "yes" {
		return errors.New("nothing was removed")
	}
	return nil
}
