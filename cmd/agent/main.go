// Command agent is Berth's program inside a container: its first process, and the tools beside it.
package main

import (
	"os"

	"berth/internal/agent"
)

func main() { os.Exit(agent.Run(os.Args[1:])) }
