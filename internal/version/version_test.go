package version

import (
	"runtime/debug"
	"testing"
)

func TestString(t *testing.T) {
	if String() == "" {
		t.Error("a build without a stamp has no version at all")
	}
	Version = "v1.2.3"
	t.Cleanup(func() { Version = "" })
	if got := String(); got != "v1.2.3" {
		t.Errorf("stamped v1.2.3, and says %s", got)
	}
}

func TestFromBuildInfo(t *testing.T) {
	commit := debug.BuildSetting{Key: "vcs.revision", Value: "0123456789abcdef0123"}
	for want, info := range map[string]*debug.BuildInfo{
		"(devel)":            {},
		"v0.9.0":             {Main: debug.Module{Version: "v0.9.0"}},
		"0123456789ab":       {Settings: []debug.BuildSetting{commit}},
		"0123456789ab-dirty": {Settings: []debug.BuildSetting{commit, {Key: "vcs.modified", Value: "true"}}},
	} {
		if got := fromBuildInfo(info); got != want {
			t.Errorf("%+v: %s, want %s", info, got, want)
		}
	}
}
