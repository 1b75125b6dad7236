// Command agent is Berth's program inside a container: its first process, and the tools beside it.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"berth/internal/agent"
	"berth/internal/version"
)

const usage = `usage: agent COMMAND

  init [--socket PATH] [--accept-env LIST] [-- COMMAND…]   be the container's first process
  connect [--socket PATH]                                  join standard input and output to the agent
  ssh [--host-key FILE]                                    serve one SSH connection on standard input and output
  sftp                                                     serve SFTP on standard input and output
  install [--hostname NAME] DIR                            put this program where a container will have it
  seed --volume DIR NAME:PATH…                             fill a volume's directories from the image, each once
  usage DIR…                                               measure the container, with what is in directories
  --version
`

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "berth-agent:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	fs := flag.NewFlagSet(args[0], flag.ExitOnError)
	fs.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	socket := fs.String("socket", agent.DefaultSocket, "")
	acceptEnv := fs.String("accept-env", strings.Join(agent.DefaultAcceptEnv(), ","), "")
	hostKey := fs.String("host-key", "", "")
	hostname := fs.String("hostname", "localhost", "")
	volume := fs.String("volume", "", "")
	_ = fs.Parse(args[1:]) // exits on an error
	options := agent.Options{
		Environ: os.Environ(), AcceptEnv: strings.Split(*acceptEnv, ","),
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
	switch args[0] {
	case "init":
		agent.DefaultSignals()
		return agent.Init(options, *socket, fs.Args())
	case "connect":
		return agent.Connect(*socket)
	case "ssh":
		return agent.BreakGlass(options, *hostKey)
	case "sftp":
		return agent.ServeSFTP()
	case "install":
		if fs.NArg() == 1 {
			return agent.Install(fs.Arg(0), *hostname)
		}
	case "seed":
		if *volume != "" {
			return agent.Seed(*volume, fs.Args())
		}
	case "usage":
		u, err := agent.ReadUsage(fs.Args())
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(u)
	case "--version", "-v", "version":
		fmt.Println(version.String())
		return nil
	case "--help", "-h", "help":
		fmt.Print(usage)
		return nil
	}
	fmt.Fprint(os.Stderr, usage)
	os.Exit(2)
	return nil
}
