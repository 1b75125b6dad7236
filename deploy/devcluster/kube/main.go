// Command kube is a whole Kubernetes in one program, from the modules that its project publishes: each component is a word
// on the command line, with the flags it has as a program of its own; or the program's own name, by a symbolic link. CoreDNS
// serves the cluster's names, and kubectl is for machines that have none.
package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/ready"
	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

var components = map[string]func(){
	"etcd":               func() { etcdmain.Main(os.Args) },
	"apiserver":          func() { run(apiserver.NewAPIServerCommand()) },
	"controller-manager": func() { run(controllermanager.NewControllerManagerCommand()) },
	"scheduler":          func() { run(scheduler.NewSchedulerCommand()) },
	"kubelet":            func() { run(kubelet.NewKubeletCommand(context.Background())) },
	"proxy":              func() { run(proxy.NewProxyCommand()) },
	"kubectl":            func() { run(kubectl.NewDefaultKubectlCommand()) },
	"coredns":            coremain.Run,
}

func main() {
	if start := components[filepath.Base(os.Args[0])]; start != nil {
		start()
		return
	}
	if len(os.Args) < 2 || components[os.Args[1]] == nil {
		fmt.Fprintf(os.Stderr, "usage: kube %s [flags]\n", strings.Join(slices.Sorted(maps.Keys(components)), "|"))
		os.Exit(2)
	}
	start := components[os.Args[1]]
	os.Args = append(os.Args[:1], os.Args[2:]...)
	start()
}

func run(command *cobra.Command) { os.Exit(cli.Run(command)) }
