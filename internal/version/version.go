// Package version says which build of berth this is. It imports nothing of ours, so that every program can.
package version

import "runtime/debug"

// Version is set by the linker (-X berth/internal/version.Version=…), which the Makefile does from git.
var Version string

// String is the version to show: the stamped one, or what the Go toolchain recorded of the source it built.
func String() string {
	if Version != "" {
		return Version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	return fromBuildInfo(info)
}

func fromBuildInfo(info *debug.BuildInfo) string {
	var revision, dirty string
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			revision = s.Value[:min(len(s.Value), 12)]
		case "vcs.modified":
			if s.Value == "true" {
				dirty = "-dirty"
			}
		}
	}
	switch {
	case revision != "":
		return revision + dirty
	case info.Main.Version != "":
		return info.Main.Version
	default:
		return "(devel)"
	}
}
