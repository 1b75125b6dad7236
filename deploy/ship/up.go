package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"berth/deploy/images/pack"
	"berth/internal/app"
)

// up brings Berth to the cluster.
func up(ctx context.Context, o options, say func(string, ...any), out io.Writer) error {
	began := time.Now()
	c, err := findCluster(o)
	if err != nil {
		return err
	}
	if err := o.complete(c); err != nil {
		return err
	}
	if err := checkData(o.data); err != nil {
		return err
	}
	if err := c.introduce(ctx, say); err != nil {
		return err
	}
	images, err := pack.Push(ctx, o.images, o.registry, o.version, func(s string) { say("pushed %s", s) })
	if err != nil {
		return err
	}
	dir, err := o.kustomization(images)
	if err != nil {
		return err
	}
	if _, err := c.do(ctx, "", "apply", "--server-side", "--force-conflicts", "--field-manager=berth-deploy", "-k", dir); err != nil {
		return err
	}
	say("applied %s", o.overlay)
	if err := c.rollOut(ctx, say); err != nil {
		return err
	}
	if err := c.dropOldSettings(ctx); err != nil {
		return err
	}
	p, err := c.places(ctx, say)
	if err != nil {
		return err
	}
	user, err := c.welcome(ctx, o, p)
	if err != nil {
		return err
	}
	p.tell(out, o, user, time.Since(began))
	return nil
}

// complete fills in what the development cluster has, and refuses what no other cluster can be guessed to have.
func (o *options) complete(c *cluster) error {
	overlay := "deploy/kubernetes/base"
	if c.dev != nil {
		overlay = "deploy/kubernetes/overlays/dev"
		if o.registry == "" {
			o.registry = c.dev.Registry + "/berth"
		}
		if o.zone == "" {
			o.zone = "compute.localhost"
		}
	}
	if o.overlay == "" {
		o.overlay = filepath.Join(o.tree, overlay)
	}
	var missing []string
	if o.registry == "" {
		missing = append(missing, "where its nodes get images from: REGISTRY=registry.example.com/berth")
	}
	if o.zone == "" {
		missing = append(missing, "the DNS zone of the containers' names: ZONE=compute.example.com")
	}
	if len(missing) > 0 {
		return fmt.Errorf("this cluster is not the development cluster (`make cluster-up` starts that), so say %s", strings.Join(missing, ", and "))
	}
	return nil
}

// checkData refuses a directory whose ssh_config, token and ready.json belong to another Berth.
func checkData(dir string) error {
	for _, name := range []string{"berth.db", "database.json"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return fmt.Errorf("%s belongs to a Berth on this machine; give another directory for what is needed to use the cluster's: BERTH_DATA=DIR", dir)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return os.MkdirAll(dir, 0o755)
}

// kustomization writes what is applied: the overlay, with these images and this zone. It stays there for whoever wants to see
// it, or to apply it by hand.
func (o options) kustomization(images map[string]pack.Pushed) (string, error) {
	dir := filepath.Join(o.tree, "build/kubernetes")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	overlay, err := filepath.Abs(o.overlay)
	if err != nil {
		return "", err
	}
	if overlay, err = filepath.Rel(dir, overlay); err != nil {
		return "", err
	}
	for _, name := range pack.Names() {
		if images[name].Ref == "" {
			return "", fmt.Errorf("%s has no image %s; `make images` makes all", o.images, name)
		}
	}
	architecture := "" // that of the instance type
	if list := images[pack.Base].Architectures; len(list) == 1 {
		architecture = list[0]
	}
	var text strings.Builder
	fmt.Fprintf(&text, `# Written by make deploy.
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [%q]
images:
`, overlay)
	for _, name := range []string{pack.API, pack.Gateway} {
		place, digest, _ := strings.Cut(images[name].Ref, "@")
		fmt.Fprintf(&text, "- {name: berth/%s, newName: %q, digest: %q}\n", name, place, digest)
	}
	fmt.Fprintf(&text, `configMapGenerator:
- name: berth-settings
  namespace: berth
  behavior: merge
  literals:
  - BERTH_ZONE=%s
  - BERTH_IMAGE=%s
  - BERTH_AGENT=%s
  - BERTH_ARCHITECTURE=%s
`, o.zone, images[pack.Base].Ref, images[pack.Agent].Ref, architecture)
	return dir, os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text.String()), 0o644)
}

// dropOldSettings removes the settings of earlier deployments, which kustomize names by their content.
func (c *cluster) dropOldSettings(ctx context.Context) error {
	current, err := c.do(ctx, "", "--namespace", namespace, "get", "deployment/berth-api", "-o",
		"jsonpath={.spec.template.spec.containers[0].envFrom[0].configMapRef.name}")
	if err != nil {
		return err
	}
	_, err = c.do(ctx, "", "--namespace", namespace, "delete", "configmap", "--selector", "app.kubernetes.io/part-of=berth",
		"--field-selector", "metadata.name!="+current)
	return err
}

// welcome makes the caller an administrator, unless there is one of their name, and leaves them what they need in the data
// directory. It returns their name there.
func (c *cluster) welcome(ctx context.Context, o options, p places) (string, error) {
	dir, err := filepath.Abs(o.data) // ssh_config is used from anywhere
	if err != nil {
		return "", err
	}
	client, err := app.NewClient(dir)
	if err != nil {
		return "", err
	}
	user := client.Username()
	if err := c.addAdmin(ctx, client, user); err != nil {
		return "", err
	}
	token, err := c.berth(ctx, "", "token", "--user", user, "--name", "make deploy", "--ttl", "24h")
	if err != nil {
		return "", err
	}
	keys, err := c.hostKeys(ctx)
	if err != nil {
		return "", err
	}
	if err := client.WriteSSH(o.zone, p.SSHAddr, user, keys); err != nil {
		return "", fmt.Errorf("write ssh_config: %w", err)
	}
	if err := client.WriteFile("token", token, 0o600); err != nil {
		return "", fmt.Errorf("write the token: %w", err)
	}
	p.Zone, p.User = o.zone, user
	return user, p.write(client)
}
