package main

import (
	"context"
	"os/exec"
	"slices"
	"strings"
)

// mirrors are where this machine takes Debian's packages from.
type mirrors struct {
	archive, security []string // URIs
}

// hostMirrors asks apt for the repositories that say of themselves that they are Debian's: other vendors' may use Debian's
// names for their suites too, and have no place in an image. A machine that is not Debian has none.
func hostMirrors(ctx context.Context) mirrors {
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets",
		"--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)", "Identifier: Packages").Output()
	if err != nil {
		return mirrors{}
	}
	return parseTargets(string(out))
}

// parseTargets reads what hostMirrors asked for. A CD is not a mirror that a build can count on.
func parseTargets(out string) mirrors {
	var m mirrors
	for line := range strings.Lines(out) {
		f := strings.Split(strings.TrimSpace(line), "|")
		if len(f) != 3 || f[0] != "Debian" || strings.HasPrefix(f[2], "cdrom:") {
			continue
		}
		source := f[2]
		switch f[1] {
		case "Debian":
			if !slices.Contains(m.archive, source) {
				m.archive = append(m.archive, source)
			}
		case "Debian-Security":
			if !slices.Contains(m.security, source) {
				m.security = append(m.security, source)
			}
		}
	}
	return m
}

// sourcesList is the sources.list to build from: the machine's own mirrors, or Debian's where it has none. Every line names
// the images' suite, whatever release the machine itself runs.
func (m mirrors) sourcesList() string {
	archive, security := m.archive, m.security
	if len(archive) == 0 {
		archive = []string{"http://deb.debian.org/debian"}
	}
	if len(security) == 0 {
		security = []string{"http://deb.debian.org/debian-security"}
	}
	var b strings.Builder
	for _, uri := range archive {
		b.WriteString("deb " + uri + " " + suite + " main\n")
		b.WriteString("deb " + uri + " " + suite + "-updates main\n")
	}
	for _, uri := range security {
		b.WriteString("deb " + uri + " " + suite + "-security main\n")
	}
	return b.String()
}

// hostAcquire returns the settings by which this machine's apt reaches its mirrors (proxies, retries, whether to believe
// the dates), as apt.conf lines.
func hostAcquire(ctx context.Context) []string {
	out, err := exec.CommandContext(ctx, "apt-config", "dump", "--no-empty").Output()
	if err != nil {
		return nil
	}
	return parseAcquire(string(out))
}

func parseAcquire(dump string) []string {
	var lines []string
	for line := range strings.Lines(dump) {
		line = strings.TrimSpace(line)
		name, _, _ := strings.Cut(line, " ")
		name = strings.ToLower(name)
		for _, wanted := range []string{
			"acquire::http::", "acquire::https::", "acquire::ftp::", "acquire::retries", "acquire::check-valid-until",
			"acquire::check-date", "acquire::max-futuretime", "acquire::forceipv4", "acquire::forceipv6",
		} {
			if strings.HasPrefix(name, wanted) {
				lines = append(lines, line)
				break
			}
		}
	}
	return lines
}
