package pack

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// readProgram returns a program that runs in an image which has nothing else.
func readProgram(path, arch string) ([]byte, error) {
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w; `make images` builds it", err)
	}
	if err != nil {
		return nil, err
	}
	if err := checkProgram(content, arch); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return content, nil
}

var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

// checkProgram refuses what would not start in an image of its own.
func checkProgram(content []byte, arch string) error {
	want, known := machines[arch]
	if !known {
		return fmt.Errorf("no images are made for %q: choose amd64 or arm64", arch)
	}
	f, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return fmt.Errorf("this is no program for Linux: %w", err)
	}
	defer f.Close()
	if f.Machine != want {
		return fmt.Errorf("this is a program for %s, not for %s", f.Machine, arch)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("this program is not static: build it with CGO_ENABLED=0")
		}
	}
	return nil
}
