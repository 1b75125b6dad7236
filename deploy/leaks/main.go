// Command leaks says what a run of tests left on the host: `leaks save file` looks before it, `leaks compare file` after it,
// and fails when anything of berth's is there that was not.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"berth/internal/leakcheck"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: leaks save|compare file")
		os.Exit(2)
	}
	left, err := run(os.Args[1], os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, "leaks:", err)
		os.Exit(1)
	}
	for _, thing := range left {
		fmt.Println("left behind:", thing)
	}
	if len(left) > 0 {
		os.Exit(1)
	}
}

func run(verb, file string) ([]leakcheck.Thing, error) {
	switch verb {
	case "save":
		s, err := leakcheck.Take()
		if err != nil {
			return nil, err
		}
		text, err := json.Marshal(s)
		if err != nil {
			return nil, err
		}
		return nil, os.WriteFile(file, text, 0o644)
	case "compare":
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		var before leakcheck.Snapshot
		if err := json.Unmarshal(text, &before); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		return leakcheck.Settled(&before, leakcheck.Patience)
	default:
		return nil, fmt.Errorf("no such verb: %s", verb)
	}
}
