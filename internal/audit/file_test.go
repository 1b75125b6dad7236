package audit

import (
	"bufio"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth/internal/compute"
)

// lines reads a file's records.
func lines(t *testing.T, path string) (list []map[string]any) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for scan := bufio.NewScanner(f); scan.Scan(); {
		var m map[string]any
		if err := json.Unmarshal(scan.Bytes(), &m); err != nil {
			t.Fatalf("%v: %s", err, scan.Text())
		}
		list = append(list, m)
	}
	return list
}

func numbered(from, to int64) (list []compute.AuditRecord) {
	for n := from; n <= to; n++ {
		r := login("192.0.2.1:1")
		r.Seq, r.At = n, time.Date(2026, 1, 15, 10, 30, 0, 0, time.UTC)
		list = append(list, r)
	}
	return list
}

func open(t *testing.T, path string, size int64) *File {
	t.Helper()
	f, err := openFile(path, size, 2)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// Files are bounded in size and number, root's alone, and whole lines, also after a crash in the middle of one.
func TestFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	f := open(t, path, 1000)
	if err := f.AppendAudit(t.Context(), numbered(1, 50)); err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob(path + "*")
	if err != nil || len(names) != 3 {
		t.Fatalf("%v %v", names, err)
	}
	next := int64(0)
	for _, name := range []string{path + ".2", path + ".1", path} {
		info, err := os.Stat(name)
		if err != nil || info.Mode() != 0o600 || info.Size() > 1000 {
			t.Errorf("%s: %v %v", name, info, err)
		}
		for _, r := range lines(t, name) {
			n := int64(r["seq"].(float64))
			if next != 0 && n != next {
				t.Errorf("%s: %d follows %d", name, n, next-1)
			}
			next = n + 1
		}
	}
	if next != 51 || f.Last() != 50 {
		t.Errorf("the last is %d, %d", next-1, f.Last())
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}

	whole := len(lines(t, path))
	half, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := half.WriteString(`{"seq":51,"time":"20`); err != nil {
		t.Fatal(err)
	}
	if err := half.Close(); err != nil {
		t.Fatal(err)
	}
	f = open(t, path, 1<<20)
	if f.Last() != 50 {
		t.Errorf("the last is %d", f.Last())
	}
	if err := f.AppendAudit(t.Context(), numbered(51, 51)); err != nil {
		t.Fatal(err)
	}
	if list := lines(t, path); len(list) != whole+1 || list[whole]["seq"] != 51.0 {
		t.Errorf("%v", list)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}

	// It was put aside, and the process ended.
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if f = open(t, path, 1<<20); f.Last() != 51 {
		t.Errorf("the last is %d", f.Last())
	}
}

func TestFileIsNoLink(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "victim"), []byte("text\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("victim", filepath.Join(dir, "audit.jsonl")); err != nil {
		t.Fatal(err)
	}
	if f, err := OpenFile(filepath.Join(dir, "audit.jsonl")); err == nil {
		t.Errorf("it follows a link: %v", f.Close())
	}
}

// Whatever is in the file, it is opened or refused, and a line that is written is whole.
func FuzzFile(f *testing.F) {
	f.Add([]byte(""))
	f.Add([]byte("{\"seq\":7}\n"))
	f.Add([]byte("{\"seq\":7}\n{\"seq\":8"))
	f.Add([]byte("\n\n"))
	f.Add([]byte("[]\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		path := filepath.Join(t.TempDir(), "audit.jsonl")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := openFile(path, 1<<20, 1)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if err := file.AppendAudit(t.Context(), numbered(9, 9)); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		all := strings.Split(strings.TrimSuffix(string(got), "\n"), "\n")
		var r struct{ Seq int64 }
		if err := json.Unmarshal([]byte(all[len(all)-1]), &r); err != nil || r.Seq != 9 || !strings.HasSuffix(string(got), "\n") {
			t.Fatalf("%q after %q: %v", got, text, err)
		}
	})
}
