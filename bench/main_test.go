package main

import (
	"io"
	"strings"
	"testing"
)

func TestFlags(t *testing.T) {
	files := []string{"--berth", "berth", "--image", "image"}
	with := func(args ...string) (options, error) { return parse(append(args, files...), io.Discard) }
	o, err := with()
	if err != nil || o.runs != 7 || o.size != 1<<30 || o.strict || o.json {
		t.Errorf("%+v, %v", o, err)
	}
	if o, err = with("--quick"); err != nil || o.runs != quickRuns || o.size != 256<<20 {
		t.Errorf("%+v, %v", o, err)
	}
	if o, err = with("--quick", "--runs", "9", "--size", "2MiB"); err != nil || o.runs != 9 || o.size != 2<<20 {
		t.Errorf("what is said counts before --quick: %+v, %v", o, err)
	}
	if o, err = with("--only", "echo,create", "--strict", "--json"); err != nil || len(o.only) != 2 || !o.strict || !o.json {
		t.Errorf("%+v, %v", o, err)
	}
	if o, err = with("--only", "keys,feed", "--containers", "1000,2000"); err != nil || len(o.containers) != 2 || o.chosen("echo") || !o.chosen("feed") {
		t.Errorf("%+v, %v", o, err)
	}
	for _, bad := range [][]string{
		{"--only", "speed"},
		{"--size", "fast"},
		{"--size", "1KiB"},
		{"--runs", "0"},
		{"--berth", ""},
		{"--image", ""},
		{"--loud"},
		{"--containers", ""},
		{"--containers", "10"},
		{"--containers", "2000,1000"},
		{"--containers", "1000,many"},
	} {
		if _, err := parse(append(files, bad...), io.Discard); err == nil {
			t.Errorf("%s passes", strings.Join(bad, " "))
		}
	}
	if _, err := parse(append(files, "fast"), io.Discard); err == nil {
		t.Error("a word that is no flag passes")
	}
}
