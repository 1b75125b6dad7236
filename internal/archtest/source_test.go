package archtest

import (
	"bufio"
	"bytes"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const root = "../.."

// pins are versions that must not drift; each says why.
var pins = []struct {
	module string
	want   *regexp.Regexp
	why    string
	absent bool // fine when it is not required at all
}{
	{"k8s.io/client-go", regexp.MustCompile(`^v0\.34\.`), "later ones drop API versions that supported clusters serve", true},
	{"k8s.io/api", regexp.MustCompile(`^v0\.34\.`), "goes with client-go", true},
	{"k8s.io/apimachinery", regexp.MustCompile(`^v0\.34\.`), "goes with client-go", true},
	{"github.com/containerd/containerd/v2", regexp.MustCompile(`^v2\.2\.9$`), "2.4 drags client-go to 0.37", false},
	{"github.com/charmbracelet/wish", regexp.MustCompile(`^v1\.4\.7$`), "its handlers were read and measured at this version", false},
	{
		"golang.org/x/crypto", regexp.MustCompile(`^v0\.(5[6-9]|[6-9]\d|\d{3,})\.|^v[1-9]`),
		"0.52 spins in SendRequest (golang/go#79658), and earlier ones have known holes", false,
	},
}

func TestVersionPins(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	required := map[string]string{}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		fields := strings.Fields(strings.TrimPrefix(strings.TrimSpace(lines.Text()), "require "))
		if len(fields) >= 2 && strings.HasPrefix(fields[1], "v") {
			required[fields[0]] = fields[1]
		}
	}
	for _, pin := range pins {
		version, ok := required[pin.module]
		switch {
		case !ok && !pin.absent:
			t.Errorf("go.mod does not require %s", pin.module)
		case ok && !pin.want.MatchString(version):
			t.Errorf("go.mod requires %s %s, not %s: %s", pin.module, version, pin.want, pin.why)
		}
	}
	if strings.Contains(string(text), "\nreplace ") {
		t.Error("go.mod replaces a module: a fork of one is a dependency under its own name")
	}
}

// longFiles may have more than maxLines, for the reason given.
var longFiles = map[string]string{
	"deploy/devcluster/kube/go.sum": "go mod tidy writes it",
}

const maxLines = 500

var generated = regexp.MustCompile(`(?m)^// Code generated .* DO NOT EDIT\.$`)

// sources are the files that git knows or would add.
func sources(t *testing.T, patterns ...string) []string {
	t.Helper()
	args := append([]string{"-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--"}, patterns...)
	cmd := exec.CommandContext(t.Context(), "git", args...)
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("git ls-files: %v", err)
	}
	files := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
	if len(files) < 10 {
		t.Fatalf("git lists only %d files", len(files))
	}
	return files
}

// read returns a source's text, or nothing where it was deleted and not yet committed.
func read(t *testing.T, file string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, file))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return text
}

func TestFilesAreOfOneSubject(t *testing.T) {
	for _, file := range sources(t, "*.go", "*.ts", "*.sh", ".ci/*", "deploy/*", "Makefile") {
		text := read(t, file)
		if lines := bytes.Count(text, []byte("\n")); lines > maxLines && longFiles[file] == "" && !generated.Match(text) {
			t.Errorf("%s has %d lines: split it by subject, or give a reason in longFiles", file, lines)
		}
	}
	for file := range longFiles {
		if bytes.Count(read(t, file), []byte("\n")) <= maxLines {
			t.Errorf("%s is no longer long: take it out of longFiles", file)
		}
	}
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	documented := map[string]bool{}
	for _, file := range sources(t, "*.go") {
		text := read(t, file)
		if len(text) == 0 {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, text, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			t.Error(err)
			continue
		}
		dir := path.Dir(file)
		documented[dir] = documented[dir] || describes(f)
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("%s: no file has a package comment", dir)
		}
	}
}

// describes says whether a file's package comment is there and begins as godoc wants it.
func describes(f *ast.File) bool {
	name := strings.TrimSuffix(f.Name.Name, "_test")
	doc := f.Doc.Text()
	return strings.HasPrefix(doc, "Package "+name) || name == "main" && strings.HasPrefix(doc, "Command ")
}

// forbidden are calls that a reviewer would send back; allowed names the files with a good reason.
var forbidden = []struct {
	call    *regexp.Regexp
	why     string
	allowed map[string]string
}{
	{
		regexp.MustCompile(`\btime\.Sleep\(`), "wait for the event, with a deadline",
		map[string]string{
			"e2e/killing_test.go":  "it kills at instants spread over a create or a delete: the time is the subject",
			"e2e/replicas_test.go": "so does it",
		},
	},
	{
		regexp.MustCompile(`\bt\.Skip(Now|f)?\(`), "a test that does not run proves nothing: make what it needs",
		map[string]string{"internal/store/model_test.go": "rapid's Skip: this step does not apply, it draws another"},
	},
	{
		regexp.MustCompile(`InsecureIgnoreHostKey|InsecureSkipVerify`), "check who is at the other end",
		map[string]string{},
	},
	{
		regexp.MustCompile(`\b(TODO|FIXME|XXX)\b`), "finish it, or file an issue",
		map[string]string{},
	},
}

func TestNothingThatAReviewWouldSendBack(t *testing.T) {
	for _, file := range sources(t, "*.go") {
		if strings.HasPrefix(file, "internal/archtest/") {
			continue
		}
		lines := strings.Split(string(read(t, file)), "\n")
		for _, rule := range forbidden {
			if i := slices.IndexFunc(lines, rule.call.MatchString); i >= 0 && rule.allowed[file] == "" {
				t.Errorf("%s:%d: %s: %s", file, i+1, strings.TrimSpace(lines[i]), rule.why)
			}
		}
	}
}
