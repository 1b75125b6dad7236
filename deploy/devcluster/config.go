package main

import (
	"bytes"
	"context"
	"crypto/x509/pkix"
	"embed"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"text/template"
	"time"
)

//go:embed files
var files embed.FS

// fill is a file of ours with the cluster's values.
func (n *node) fill(name string) ([]byte, error) {
	t, err := template.ParseFS(files, "files/"+name)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = t.Execute(&out, map[string]any{
		"Name": n.Name, "Pause": pauseImage, "DNS": n.dns(), "NodePods": n.nodePods(),
	})
	return out.Bytes(), err
}

// nodePods are the addresses of this node's pods: the first range that the controller-manager gives away.
func (n *node) nodePods() netip.Prefix { return netip.PrefixFrom(n.pods().Addr(), nodePodBits) }

const nodePodBits = 22

func configured(name string) string { return filepath.Join(nodeDir, "config", name) }

// configure writes the components' files.
func (n *node) configure() error {
	for name, to := range map[string]string{
		"containerd.toml": "containerd.toml", "kubelet.yaml": "kubelet.yaml",
		"bridge.conflist": "cni/10-pods.conflist", "objects.yaml": "objects.yaml",
	} {
		text, err := n.fill(name)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(configured(to)), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(configured(to), text, 0o644); err != nil {
			return err
		}
	}
	hosts := filepath.Join(configured("registries"), n.registry())
	if err := os.MkdirAll(hosts, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(hosts, "hosts.toml"), []byte(n.hostsFile()), 0o644); err != nil {
		return err
	}
	if err := writePauseImage(configured("pause.tar"), nodePrograms+"/pause"); err != nil {
		return fmt.Errorf("make the image of pods' first process: %w", err)
	}
	return nil
}

// identify gives each component a certificate, and a kubeconfig as who it is to the API server.
func (n *node) identify() error {
	ca, err := openAuthority(nodeDir + "/pki")
	if err != nil {
		return err
	}
	if err := ca.serviceAccountKey(); err != nil {
		return err
	}
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if err := ca.issue("apiserver", pkix.Name{CommonName: "kube-apiserver"}, []netip.Addr{loopback, n.node(), n.firstService()},
		"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"); err != nil {
		return err
	}
	if err := ca.issue("kubelet", pkix.Name{CommonName: "system:node:" + n.Name, Organization: []string{"system:nodes"}},
		[]netip.Addr{loopback, n.node()}, n.Name); err != nil {
		return err
	}
	masters := []string{"system:masters"}
	for name, subject := range map[string]pkix.Name{
		"admin":              {CommonName: "admin", Organization: masters},
		"apiserver-kubelet":  {CommonName: "kube-apiserver-kubelet-client", Organization: masters},
		"controller-manager": {CommonName: "system:kube-controller-manager"},
		"scheduler":          {CommonName: "system:kube-scheduler"},
		"proxy":              {CommonName: "system:kube-proxy"},
	} {
		if err := ca.issue(name, subject, nil); err != nil {
			return err
		}
	}
	for _, name := range []string{"admin", "kubelet", "controller-manager", "scheduler", "proxy"} {
		text, err := ca.kubeconfig(n.Name, name, n.server())
		if err != nil {
			return err
		}
		if err := os.WriteFile(configured(name+".kubeconfig"), text, 0o600); err != nil {
			return err
		}
	}
	trust, err := ca.tlsClient("admin")
	if err != nil {
		return err
	}
	n.api = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: trust, DisableKeepAlives: true}}
	return nil
}

func (l layout) server() string { return "https://" + net.JoinHostPort(l.node().String(), "6443") }

// list is the components, with the flags that differ from what they do by themselves.
func (n *node) list() []*component {
	kube := nodePrograms + "/kube"
	pki := func(name string) string { return nodeDir + "/pki/" + name }
	kubeconfig := func(name string) string { return "--kubeconfig=" + nodeDir + "/config/" + name + ".kubeconfig" }
	healthy := func(url string) func(context.Context) error {
		return func(ctx context.Context) error { return n.get(ctx, url, nil) }
	}
	const gates = "--feature-gates=HostnameOverride=true" // from 1.35 on by default
	return []*component{
		newComponent("containerd", n.containerdReady, "containerd", "--config", nodeDir+"/config/containerd.toml"),
		newComponent("etcd", healthy("http://127.0.0.1:2379/readyz"), kube, "etcd",
			"--data-dir="+nodeDir+"/etcd", "--unsafe-no-fsync", "--log-level=warn",
			"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
			"--listen-peer-urls=http://127.0.0.1:2380"),
		newComponent("registry", healthy("http://"+n.registry()+"/v2/"), nodePrograms+"/devcluster", registryVerb,
			n.registry(), nodeDir+"/registry"),
		newComponent("apiserver", healthy(n.server()+"/readyz"), kube, "apiserver",
			"--etcd-servers=http://127.0.0.1:2379", "--advertise-address="+n.node().String(),
			"--service-cluster-ip-range="+n.services().String(), "--authorization-mode=Node,RBAC", "--allow-privileged",
			"--enable-admission-plugins=NodeRestriction", gates,
			"--client-ca-file="+pki("ca.crt"), "--tls-cert-file="+pki("apiserver.crt"), "--tls-private-key-file="+pki("apiserver.key"),
			"--kubelet-certificate-authority="+pki("ca.crt"), "--kubelet-preferred-address-types=InternalIP",
			"--kubelet-client-certificate="+pki("apiserver-kubelet.crt"), "--kubelet-client-key="+pki("apiserver-kubelet.key"),
			"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
			"--service-account-key-file="+pki("sa.key"), "--service-account-signing-key-file="+pki("sa.key")),
		newComponent("controller-manager", healthy("https://127.0.0.1:10257/healthz"), kube, "controller-manager", kubeconfig("controller-manager"),
			"--tls-cert-file="+pki("apiserver.crt"), "--tls-private-key-file="+pki("apiserver.key"), "--leader-elect=false",
			"--use-service-account-credentials", "--service-account-private-key-file="+pki("sa.key"), "--root-ca-file="+pki("ca.crt"),
			"--cluster-signing-cert-file="+pki("ca.crt"), "--cluster-signing-key-file="+pki("ca.key"),
			"--allocate-node-cidrs", "--cluster-cidr="+n.pods().String(), fmt.Sprintf("--node-cidr-mask-size=%d", nodePodBits),
			"--service-cluster-ip-range="+n.services().String(), "--enable-hostpath-provisioner"),
		newComponent("scheduler", healthy("https://127.0.0.1:10259/healthz"), kube, "scheduler", kubeconfig("scheduler"),
			"--tls-cert-file="+pki("apiserver.crt"), "--tls-private-key-file="+pki("apiserver.key"), "--leader-elect=false"),
		newComponent("kubelet", healthy("http://127.0.0.1:10248/healthz"), kube, "kubelet", kubeconfig("kubelet"),
			"--config="+nodeDir+"/config/kubelet.yaml", "--root-dir="+nodeDir+"/kubelet", "--cert-dir="+nodeDir+"/kubelet/pki",
			"--hostname-override="+n.Name, "--node-ip="+n.node().String(), gates),
		// Connection tracking's limits are the machine's, and its own default is enough.
		newComponent("proxy", healthy("http://127.0.0.1:10256/healthz"), kube, "proxy", kubeconfig("proxy"),
			"--proxy-mode=nftables", "--hostname-override="+n.Name, "--cluster-cidr="+n.pods().String(), "--oom-score-adj=0",
			"--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s"),
	}
}
