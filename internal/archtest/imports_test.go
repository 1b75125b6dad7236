package archtest

import (
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "berth/"

// mayImport is the layout: what each package may import of ours. A row covers the packages below it too, unless they have
// one of their own, and those may import each other. Everything may import internal/version.
var mayImport = map[string][]string{
	"cmd/agent":   {"internal/agent"},
	"cmd/api":     {"internal/app", "internal/config"},
	"cmd/berth":   {"internal/app", "internal/config"},
	"cmd/gateway": {"internal/app", "internal/config"},

	"internal/app": {anything},

	"internal/edge": {"internal/compute", "internal/session", "internal/route"},
	"internal/httpapi": {
		"internal/compute", "internal/control", "internal/session", "internal/auth", "internal/event", "api", "web",
	},
	"internal/lobby":    {"internal/compute", "internal/control", "internal/route", "api"}, // route.Zone spells the hostnames
	"internal/sshproxy": {"internal/compute", "internal/session", "internal/route", "internal/auth", "internal/control"},

	"api":              {"internal/compute"},        // in words of ours: see api/overlay.yaml
	"internal/audit":   {"internal/compute", "api"}, // JSON lines are as the API says
	"internal/auth":    {"internal/compute"},
	"internal/control": {"internal/compute", "internal/event"},
	"internal/dnsd":    {"internal/compute", "internal/route"},
	"internal/event":   {"internal/compute"},
	"internal/link":    {"internal/compute"},
	"internal/route":   {"internal/compute"},
	"internal/monitor": {"internal/compute"},
	"internal/session": {"internal/compute", "internal/agentproto"},

	"internal/containerd": {"internal/compute"},
	"internal/k8s":        {"internal/compute", "internal/pinned"},
	"internal/store":      {"internal/compute"},

	"internal/agent":      {"internal/agentproto", "internal/pinned"},
	"internal/agentproto": {},
	"internal/compute":    {},
	"internal/config":     {"internal/compute"},
	"internal/pinned":     {},
	"internal/version":    {},

	"internal/archtest":   {},
	"internal/enginetest": {"internal/compute", "internal/control", "internal/store", "internal/session", "internal/agentproto"},
	"internal/leakcheck":  {},
	"internal/pgtest":     {},

	"bench":             {anything},
	"deploy/devcluster": {"internal/leakcheck"},
	"deploy/helm":       {},
	"deploy/images":     {},
	"deploy/ship":       {"internal/app", "deploy/images", "deploy/devcluster", "internal/leakcheck", "internal/pgtest"},
	"deploy/leaks":      {"internal/leakcheck"},
	"docs/img":          {},
	"e2e":               {"internal/leakcheck", "internal/pgtest"},
	"web":               {},
}

const anything = "*"

// forTests are imported by tests, the tools around them and each other, never by the product.
var forTests = []string{"internal/archtest", "internal/enginetest", "internal/leakcheck", "internal/pgtest", "e2e", "bench", "deploy"}

// onlyUser names, for a module, the one package of ours that imports it directly, tests aside.
var onlyUser = map[string]string{
	"github.com/containerd/go-cni":     "internal/containerd",
	"github.com/containerd/containerd": "internal/containerd",
	"github.com/gofiber":               "internal/httpapi",
	"github.com/fasthttp":              "internal/httpapi",
	"github.com/charmbracelet/wish":    "internal/sshproxy",
	"k8s.io/client-go":                 "internal/k8s",
	"modernc.org/sqlite":               "internal/store",
	"github.com/jackc/pgx":             "internal/store",
	"github.com/VictoriaMetrics":       "internal/monitor",
}

// neverIn names modules that a program must not hold, however far below: the agent runs in every container, and what reads
// OpenAPI for tests and for the generator would cost every build of the others.
var neverIn = map[string][]string{
	"cmd/berth":   {"github.com/getkin", "github.com/oapi-codegen", "github.com/santhosh-tekuri"},
	"cmd/api":     {"github.com/getkin", "github.com/oapi-codegen", "github.com/santhosh-tekuri"},
	"cmd/gateway": {"github.com/getkin", "github.com/oapi-codegen", "github.com/santhosh-tekuri"},
	"cmd/agent": {
		"k8s.io/", "modernc.org/", "github.com/gofiber", "github.com/valyala", "github.com/containerd", "github.com/getkin",
		"github.com/charmbracelet", "github.com/google/nftables", "github.com/vishvananda", "google.golang.org/grpc", "database/sql",
	},
}

type listed struct {
	ImportPath    string
	Imports, Deps []string
}

// list asks the go command for our packages, by their paths in the module.
func list(t *testing.T) map[string]listed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports,Deps", "./...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		t.Fatalf("go list: %v: %s", err, exit.Stderr)
	} else if err != nil {
		t.Fatal(err)
	}
	packages := map[string]listed{}
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages[strings.TrimPrefix(p.ImportPath, module)] = p
	}
}

// row finds the layout's row for a package: its own, or the nearest above it.
func row(pkg string) (string, bool) {
	for at := pkg; ; {
		if _, ok := mayImport[at]; ok {
			return at, true
		}
		slash := strings.LastIndexByte(at, '/')
		if slash < 0 {
			return "", false
		}
		at = at[:slash]
	}
}

func below(pkg, tree string) bool { return pkg == tree || strings.HasPrefix(pkg, tree+"/") }

// wrongImports says what is wrong with a package's own imports.
func wrongImports(pkg string, imports []string) []string {
	here, ok := row(pkg)
	if !ok {
		return []string{pkg + " is not in the layout: give it a row in mayImport, and one in ARCHITECTURE.md"}
	}
	var wrong []string
	for _, imported := range imports {
		for prefix, user := range onlyUser {
			if strings.HasPrefix(imported, prefix) && !below(pkg, user) && !slices.ContainsFunc(forTests, func(f string) bool { return below(pkg, f) }) {
				wrong = append(wrong, pkg+" imports "+imported+", which is "+user+"'s alone")
			}
		}
		imported, ours := strings.CutPrefix(imported, module)
		if !ours || imported == "internal/version" {
			continue
		}
		there, ok := row(imported)
		if !ok || there == here {
			continue // reported for itself; of one tree
		}
		isTest := func(p string) bool { return slices.ContainsFunc(forTests, func(f string) bool { return below(p, f) }) }
		switch {
		case isTest(there) && !isTest(here):
			wrong = append(wrong, pkg+" imports "+imported+", which is for tests")
		case !slices.Contains(mayImport[here], there) && !slices.Contains(mayImport[here], anything):
			wrong = append(wrong, pkg+" imports "+imported+"; it may import "+strings.Join(mayImport[here], ", "))
		}
	}
	return wrong
}

// wrongDeps says what a program holds that it must not.
func wrongDeps(pkg string, deps []string) []string {
	var wrong []string
	for _, dep := range deps {
		for _, prefix := range neverIn[pkg] {
			if strings.HasPrefix(dep, prefix) {
				wrong = append(wrong, pkg+" holds "+dep+" (go mod why "+dep+")")
			}
		}
	}
	return wrong
}

func TestImportsFollowTheLayout(t *testing.T) {
	packages := list(t)
	for _, pkg := range slices.Sorted(maps.Keys(packages)) {
		for _, wrong := range append(wrongImports(pkg, packages[pkg].Imports), wrongDeps(pkg, packages[pkg].Deps)...) {
			t.Error(wrong)
		}
	}
	for program := range neverIn {
		if _, ok := packages[program]; !ok {
			t.Errorf("there is no %s to look into", program)
		}
	}
}

// TestWrongArrowsAreSeen keeps the test above from passing because it looks at nothing.
func TestWrongArrowsAreSeen(t *testing.T) {
	for _, c := range []struct {
		pkg, imported, complaint string
	}{
		{"internal/compute", module + "internal/control", "it may import"},
		{"internal/containerd/hostnet", module + "internal/control", "it may import"},
		{"internal/store", module + "internal/leakcheck", "for tests"},
		{"internal/control", "modernc.org/sqlite", "internal/store's alone"},
		{"internal/novelty", "fmt", "not in the layout"},
		{"internal/containerd/hostnet", module + "internal/containerd", ""},
		{"internal/containerd", "github.com/containerd/containerd/v2/client", ""},
		{"internal/agent", module + "internal/version", ""},
		{"internal/app", module + "internal/store", ""},
	} {
		got := strings.Join(wrongImports(c.pkg, []string{c.imported}), "; ")
		if (c.complaint == "") != (got == "") || !strings.Contains(got, c.complaint) {
			t.Errorf("%s importing %s: %q, want %q", c.pkg, c.imported, got, c.complaint)
		}
	}
	if len(wrongDeps("cmd/agent", []string{"fmt", "modernc.org/sqlite/lib"})) != 1 {
		t.Error("an agent with SQLite passes")
	}
}
