package agent

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func FuzzPasswd(f *testing.F) {
	f.Add("alice:x:4242:4243:Alice:/home/alice:/bin/sh")
	f.Add("a:x:4294967295:0:::")
	f.Add("::::::")
	f.Fuzz(func(t *testing.T, line string) {
		a, ok := parsePasswd(line)
		if !ok {
			return
		}
		if a.name == "" || a.uid == noID || a.gid == noID || strings.Count(line, ":") != 6 {
			t.Errorf("%q reads as %+v", line, a)
		}
		if !strings.HasPrefix(line, a.name+":") || !strings.HasSuffix(line, ":"+a.home+":"+a.shell) {
			t.Errorf("%q reads as %+v", line, a)
		}
	})
}

func FuzzGroup(f *testing.F) {
	f.Add("crew:x:4300:bob,alice", "alice")
	f.Add("crew:x:-1:alice", "alice")
	f.Fuzz(func(t *testing.T, line, user string) {
		gid, ok := parseGroup(line, user)
		if ok && (gid == noID || !strings.Contains(line, user)) {
			t.Errorf("%q: %q is in %d", line, user, gid)
		}
	})
}

func FuzzModes(f *testing.F) {
	f.Add([]byte{53, 0, 0, 0, 0, 3, 0, 0, 0, 8, 0})
	f.Add([]byte{53, 0})
	f.Add([]byte{160, 1, 2})
	f.Fuzz(func(t *testing.T, b []byte) {
		modes, err := parseModes(b)
		if err != nil {
			return
		}
		if len(modes) > maxModes || 5*len(modes) > len(b) {
			t.Errorf("%x reads as %d modes", b, len(modes))
		}
		for _, m := range modes {
			if m.op == opEnd || m.op >= opReserved {
				t.Errorf("%x reads as %+v", b, modes)
			}
		}
	})
}

func FuzzAcceptEnv(f *testing.F) {
	f.Add("LC_*", "LC_ALL", "C")
	f.Add("[", "LANG", "C")
	f.Fuzz(func(t *testing.T, pattern, name, value string) {
		if !(AcceptEnv{pattern}).accepts(name, value) {
			return
		}
		if name == "" || len(name) > maxEnvName || len(value) > maxEnvValue ||
			strings.ContainsAny(name, "=\x00") || strings.Contains(value, "\x00") {
			t.Errorf("%q takes %q=%q", pattern, name, value)
		}
		e := loginEnviron(nil, account{name: "a"}, "", "", "", "", []string{name + "=" + value})
		if !slices.Contains(e, "USER=a") {
			t.Errorf("%q=%q gives %q", name, value, e)
		}
	})
}

func FuzzWords(f *testing.F) {
	f.Add(`a "b \" c" 'd "e' f\ g`)
	f.Add(`"\x`)
	f.Fuzz(func(t *testing.T, line string) {
		words, err := splitWords(line)
		if err != nil {
			return
		}
		total := 0
		for _, w := range words {
			total += len(w)
			again, err := splitWords("'" + strings.ReplaceAll(w, "'", `'\''`) + "'")
			if err != nil || len(again) != 1 || again[0] != strings.ToValidUTF8(w, "�") && again[0] != w {
				t.Errorf("%q, quoted, reads as %q, %v", w, again, err)
			}
		}
		if total > 3*len(line) {
			t.Errorf("%q reads as %q", line, words)
		}
	})
}

func TestWords(t *testing.T) {
	for line, want := range map[string][]string{
		"":                           nil,
		"  a  b\tc\n":                {"a", "b", "c"},
		`a 'b  c' "d \"e\" \f" g\ h`: {"a", "b  c", `d "e" \f`, "g h"},
		`a""b '' ""`:                 {"ab", "", ""},
	} {
		if got, err := splitWords(line); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q reads as %q, %v", line, got, err)
		}
	}
	for _, line := range []string{`a "b`, `a 'b`, `a \`} {
		if got, err := splitWords(line); err == nil {
			t.Errorf("%q reads as %q", line, got)
		}
	}
}

// Whatever a tenant does to the account files, root can log in and nobody gets more than the files say.
func TestAccountsInDamagedFiles(t *testing.T) {
	dir := t.TempDir()
	passwd, group := filepath.Join(dir, "passwd"), filepath.Join(dir, "group")
	long := "many:x:5000:" + strings.Repeat("someone,", 20_000) + "alice\n"
	write := func(name, text string) {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(passwd, "# comment\nbroken\nalice:x:4242:4243::/home/alice:\nbob:x:-1:0:::\nroot:x:0:0::/r:/bin/sh\n")
	write(group, long+"crew:x:4300:alice\n")
	a, err := findAccount(passwd, group, "alice")
	if err != nil || !slices.Equal(a.groups, []uint32{4243, 5000, 4300}) || a.shellPath() != "/bin/sh" {
		t.Errorf("%+v, %v", a, err)
	}
	for _, name := range []string{"bob", "broken", "mallory", "#", "# comment"} {
		if a, err := findAccount(passwd, group, name); err == nil {
			t.Errorf("%q is %+v", name, a)
		}
	}
	if a, err := findAccount(passwd, group, ""); err != nil || a.name != "root" || a.home != "/r" {
		t.Errorf("%+v, %v", a, err)
	}
	write(passwd, "alice:x:4242:4243::/home/alice:\n")
	for _, files := range [][2]string{{dir, dir}, {"/no/such", "/no/such"}, {"/dev/zero", "/dev/zero"}, {passwd, dir}} {
		a, err := findAccount(files[0], files[1], "root")
		if err != nil || a.uid != 0 || !slices.Equal(a.groups, []uint32{0}) {
			t.Errorf("with %s: %+v, %v", files, a, err)
		}
	}
	if a, err := findAccount(passwd, dir, "alice"); err == nil {
		t.Errorf("alice without her groups is %+v", a)
	}
}

// An image names its user as the OCI image specification allows.
func TestImageAccount(t *testing.T) {
	dir := t.TempDir()
	passwd, group := filepath.Join(dir, "passwd"), filepath.Join(dir, "group")
	for file, text := range map[string]string{
		passwd: "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:\n7:x:70:71::/seventy:\n",
		group:  "root:x:0:\napp:x:1001:\ncrew:x:4300:app\nstaff:x:50:\n",
	} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for user, want := range map[string]account{
		"":          {name: "root", home: "/root", groups: []uint32{0}, shell: "/bin/sh"},
		"app":       {name: "app", uid: 1000, gid: 1001, home: "/home/app", groups: []uint32{1001, 4300}},
		"1000":      {name: "app", uid: 1000, gid: 1001, home: "/home/app", groups: []uint32{1001, 4300}},
		"app:staff": {name: "app", uid: 1000, gid: 50, home: "/home/app", groups: []uint32{1001, 4300}},
		"app:9":     {name: "app", uid: 1000, gid: 9, home: "/home/app", groups: []uint32{1001, 4300}},
		"2000":      {uid: 2000, home: "/"},
		"2000:3000": {uid: 2000, gid: 3000, home: "/"},
		"7":         {uid: 7, home: "/"}, // a number, whoever is called so
	} {
		if got, err := imageAccount(passwd, group, user); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q is %+v, %v; want %+v", user, got, err, want)
		}
	}
	for _, user := range []string{"absent", "app:absent", ":", "app:", "-1"} {
		if got, err := imageAccount(passwd, group, user); err == nil {
			t.Errorf("%q is %+v", user, got)
		}
	}
	e := imageEnviron([]string{"HOME=/root", "A=b"}, account{uid: 1000, home: "/home/app"})
	if e.value("HOME") != "/home/app" || e.value("A") != "b" {
		t.Errorf("its environment is %q", e)
	}
	if e := imageEnviron([]string{"HOME=/srv"}, account{uid: 1000, home: "/home/app"}); e.value("HOME") != "/srv" {
		t.Errorf("the image's own home is lost: %q", e)
	}
}
