// Command agent is Berth's program inside a container: its first process, and the tools beside it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"berth/internal/agent"
	"berth/internal/version"
)

const usage = `usage: agent COMMAND

  init [--socket PATH] [--accept-env LIST] [--prepared FILE] [--user USER] [-- COMMAND…]
                                                           be the container's first process
  connect [--socket PATH]                                  join standard input and output to the agent
  ssh [--host-key FILE]                                    serve one SSH connection on standard input and output
  sftp                                                     serve SFTP on standard input and output
  install [--hostname NAME] [--stand-by] DIR               put this program where a container will have it
  seed --volume DIR [--mark FILE] [--stand-by] NAME:PATH…  fill a volume's directories from the image, each once
  await [--within DURATION] FILE…                          wait until files are there, and sockets accept connections
  usage DIR…                                               measure the container, with what is in directories
  --version
`

// unprepared is the exit status by which an engine knows that nobody was let in: EX_CONFIG of sysexits(3).
const unprepared = 78

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "berth-agent:", err)
		if errors.Is(err, agent.ErrUnprepared) {
			os.Exit(unprepared)
		}
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
	mark := fs.String("mark", "", "")
	standBy := fs.Bool("stand-by", false, "")
	within := fs.Duration("within", time.Minute, "")
	user := fs.String("user", "", "")
	preparedFile := fs.String("prepared", "", "")
	_ = fs.Parse(args[1:]) // exits on an error
	options := agent.Options{
		Environ: os.Environ(), AcceptEnv: strings.Split(*acceptEnv, ","),
		User: *user, Prepared: *preparedFile, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
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
			return prepare(*standBy, func() error { return agent.Install(fs.Arg(0), *hostname) })
		}
	case "seed":
		if *volume != "" {
			return prepare(*standBy, func() error { return seed(*volume, *mark, fs.Args()) })
		}
	case "await":
		ctx, cancel := context.WithTimeout(context.Background(), *within)
		defer cancel()
		return agent.Await(ctx, fs.Args())
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

// seed leaves a mark, where one is wanted, once all is done.
func seed(volume, mark string, mounts []string) error {
	if err := agent.Seed(volume, mounts); err != nil || mark == "" {
		return err
	}
	return os.WriteFile(mark, nil, 0o644)
}

// prepare does something for a pod's other containers, and then keeps its own from ending.
func prepare(standBy bool, f func() error) error {
	if standBy {
		return agent.StandBy(f)
	}
	return f()
}
