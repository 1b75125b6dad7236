package config_test

import (
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"berth/internal/config"
)

const page = "../../docs/operator/settings.md"

var settingRow = regexp.MustCompile("(?m)^\\| `([a-z0-9-]+)` \\| (?:`([^`]*)`)? ?\\| `(BERTH_[A-Z0-9_]+)` \\| \\S.* \\|$")

// TestEverySettingIsDocumented holds the page for operators to the settings that there are: names, defaults, environment.
func TestEverySettingIsDocumented(t *testing.T) {
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	type row struct{ value, env string }
	rows := map[string]row{}
	for _, m := range settingRow.FindAllStringSubmatch(string(text), -1) {
		rows[m[1]] = row{m[2], m[3]}
	}
	d := reflect.ValueOf(config.Default())
	for i := range d.NumField() {
		name := d.Type().Field(i).Tag.Get("koanf")
		want := row{fmt.Sprint(d.Field(i).Interface()), "BERTH_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))}
		if list, ok := d.Field(i).Interface().([]string); ok {
			want.value = strings.Join(list, ",")
		}
		got, ok := rows[name]
		if !ok {
			t.Errorf("%s does not list the setting %s as | `%s` | `%s` | `%s` | what it does |", page, name, name, want.value, want.env)
		} else if got != want {
			t.Errorf("%s says %+v of %s; it is %+v", page, got, name, want)
		}
		delete(rows, name)
	}
	for name := range rows {
		t.Errorf("%s lists %s, which is no setting", page, name)
	}
}

// TestDocumentedFileLoads tries the page's example, which is indented by four.
func TestDocumentedFileLoads(t *testing.T) {
	cleared(t)
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	_, example, ok := strings.Cut(string(text), "A file has the same names:\n\n")
	example, _, end := strings.Cut(example, "\n\n")
	if !ok || !end {
		t.Fatalf("%s has no example of a file", page)
	}
	c, err := load(t, strings.ReplaceAll("\n"+example+"\n", "\n    ", "\n"))
	if err != nil || c.Zone != "compute.example.com" || len(c.AcceptEnv) != 5 {
		t.Errorf("the example makes %+v, %v", c, err)
	}
}
