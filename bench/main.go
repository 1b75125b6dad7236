// Command bench measures Berth beside OpenSSH's own server, in one run, and prints a table with ratios.
//
// It starts the built berth on a data directory of its own, makes one container from an image that has sshd, and drives both
// with the stock client: Berth as its users do, sshd from inside the container's network, on its loopback, since the
// container's firewall lets nothing else in. Contenders take turns, and medians are compared, so that whatever else the
// machine does meets all of them. Of Berth's insides it knows the command line, the API and the ready file.
//
// Then it fills databases of several sizes, has the built control plane and gateway work on each, and prints how what they do
// grows. For that it knows the schema, too.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/dustin/go-humanize"

	"berth/internal/config"
)

// options are the command line.
type options struct {
	berth, image string
	runs         int
	size         int64
	only         []string
	containers   []int
	json, strict bool

	devcluster string // where it is to be measured on Kubernetes
	pods       int
}

// quick says what --quick stands for.
const (
	quickRuns       = 3
	quickSize       = "256MiB"
	quickContainers = "1000,30000"
	quickPods       = 20
)

func parse(args []string, out io.Writer) (options, error) {
	o := options{}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(out)
	fs.StringVar(&o.berth, "berth", config.Beside("../bin/berth", "berth"), "the `program` to measure")
	fs.StringVar(&o.image, "image", config.Beside("bench-image.tar"), "`archive` of an image that has sshd")
	fs.IntVar(&o.runs, "runs", 7, "how often each contender moves the data; the rest is done in proportion")
	size := fs.String("size", "1GiB", "how much data a transfer moves")
	only := fs.String("only", "", "measure these alone, a list of: "+strings.Join(suiteNames(), ", "))
	containers := fs.String("containers", "1000,30000,300000,1000000", "sizes of the databases whose growth is measured, ascending")
	fs.BoolVar(&o.json, "json", false, "print JSON instead of the table")
	fs.BoolVar(&o.strict, "strict", false, "fail when a goal is missed, not only when a run breaks")
	kubernetes := fs.Bool("kubernetes", false, "measure it on a development cluster, beside kubectl exec")
	fs.IntVar(&o.pods, "pods", 200, "containers that are asked for at once on the cluster")
	quick := fs.Bool("quick", false, fmt.Sprintf("few runs of little data: --runs %d --size %s --containers %s --pods %d", quickRuns, quickSize, quickContainers, quickPods))
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if fs.NArg() > 0 {
		return o, fmt.Errorf("%q is not a flag", fs.Arg(0))
	}
	if *quick {
		set := map[string]bool{}
		fs.Visit(func(f *flag.Flag) { set[f.Name] = true })
		if !set["runs"] {
			o.runs = quickRuns
		}
		if !set["size"] {
			*size = quickSize
		}
		if !set["containers"] {
			*containers = quickContainers
		}
		if !set["pods"] {
			o.pods = quickPods
		}
	}
	n, err := humanize.ParseBytes(*size)
	if err != nil || n < 1<<20 || n > 1<<40 {
		return o, fmt.Errorf("--size %q is not an amount from 1MiB to 1TiB", *size)
	}
	o.size = int64(n)
	if o.runs < 1 || o.runs > 1000 {
		return o, errors.New("--runs is a number from 1 to 1000")
	}
	for text := range strings.SplitSeq(*containers, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1000 || n > 1_000_000 || len(o.containers) > 0 && n <= o.containers[len(o.containers)-1] {
			return o, fmt.Errorf("--containers %q: they are from 1000 to 1000000, each more than the one before", *containers)
		}
		o.containers = append(o.containers, n)
	}
	if *only != "" {
		o.only = strings.Split(*only, ",")
	}
	for _, name := range o.only {
		if !slices.Contains(suiteNames(), name) {
			return o, fmt.Errorf("--only %s: there are %s", name, strings.Join(suiteNames(), ", "))
		}
	}
	if o.pods < 1 || o.pods > 400 {
		return o, errors.New("--pods is a number from 1 to 400")
	}
	if *kubernetes {
		if o.devcluster = config.Beside("devcluster/devcluster", "devcluster"); o.devcluster == "" {
			return o, errors.New("the development cluster's program is not there; `make bench-k8s` makes it")
		}
	}
	if o.berth == "" || o.image == "" {
		return o, errors.New("berth or the image is not there; `make bench` makes both")
	}
	return o, nil
}

func main() {
	if len(os.Args) == 2 && helpers[os.Args[1]] != nil {
		if err := helpers[os.Args[1]](json.NewDecoder(os.Stdin), os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	o, err := parse(os.Args[1:], os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err == nil && os.Geteuid() != 0 {
		err = errors.New("berth needs to be root; run this with sudo")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	r, err := run(ctx, o, os.Stderr)
	if r != nil {
		err = errors.Join(err, r.print(os.Stdout, o.json))
	}
	if err == nil && o.strict {
		err = r.missed()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}
