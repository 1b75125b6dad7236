package agent

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

	"berth/internal/version"
)

const usage = `usage: agent COMMAND

  init [--socket PATH] [--accept-env LIST] [--prepared FILE] [--user USER] [-- COMMAND…]
                                                           be the container's first process
  connect [--socket PATH]                                  join standard input and output to the agent
  pair [--socket PATH] KEY                                 let the holder of a key connect to the container's address
  ssh [--host-key FILE]                                    serve one SSH connection on standard input and output
  sftp                                                     serve SFTP on standard input and output
  install [--hostname NAME] [--stand-by] DIR               put this program where a container will have it
  seed --volume DIR [--mark FILE] [--stand-by] NAME:PATH…  fill a volume's directories from the image, each once
  await [--within DURATION] FILE…                          wait until files are there, and sockets accept connections
  usage DIR…                                               measure the container, with what is in directories
  probe listen|reached|missed|processes …                  look at what surrounds a pod
  --version
`

// unprepared is the exit status by which an engine knows that nobody was let in: EX_CONFIG of sysexits(3).
const unprepared = 78

// Run does what the agent's command line says, and returns the status to exit with.
func Run(args []string) int {
	if len(args) > 0 {
		known, err := runCommand(args[0], args[1:])
		if err != nil {
			fmt.Fprintln(os.Stderr, "berth-agent:", err)
			if errors.Is(err, errUnprepared) {
				return unprepared
			}
			return 1
		}
		if known {
			return 0
		}
	}
	fmt.Fprint(os.Stderr, usage)
	return 2
}

// runCommand does one of the commands; false when there is none like that.
func runCommand(name string, args []string) (known bool, err error) {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.Usage = func() {} // Run says it
	socket := fs.String("socket", DefaultSocket, "")
	acceptEnv := fs.String("accept-env", strings.Join(DefaultAcceptEnv(), ","), "")
	hostKey := fs.String("host-key", "", "")
	hostname := fs.String("hostname", "localhost", "")
	volume := fs.String("volume", "", "")
	mark := fs.String("mark", "", "")
	standBy := fs.Bool("stand-by", false, "")
	within := fs.Duration("within", time.Minute, "")
	user := fs.String("user", "", "")
	preparedFile := fs.String("prepared", "", "")
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		name = "help"
	case err != nil:
		return false, nil // it has said why
	}
	options := Options{
		Environ: os.Environ(), AcceptEnv: strings.Split(*acceptEnv, ","),
		User: *user, Prepared: *preparedFile, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
	switch {
	case name == "init":
		DefaultSignals()
		return true, Init(options, *socket, fs.Args())
	case name == "connect":
		return true, Connect(*socket)
	case name == "pair" && fs.NArg() == 1:
		return true, Pair(*socket, fs.Arg(0), os.Stdout)
	case name == "ssh":
		return true, BreakGlass(options, *hostKey)
	case name == "sftp":
		return true, ServeSFTP()
	case name == "install" && fs.NArg() == 1:
		return true, prepare(*standBy, func() error { return Install(fs.Arg(0), *hostname) })
	case name == "seed" && *volume != "":
		return true, prepare(*standBy, func() error { return seedAndMark(*volume, *mark, fs.Args()) })
	case name == "await":
		ctx, cancel := context.WithTimeout(context.Background(), *within)
		defer cancel()
		return true, Await(ctx, fs.Args())
	case name == "usage":
		u, err := ReadUsage(fs.Args())
		if err != nil {
			return true, err
		}
		return true, json.NewEncoder(os.Stdout).Encode(u)
	case name == "probe":
		return true, Probe(os.Stdout, fs.Args())
	case name == "--version", name == "-v", name == "version":
		fmt.Println(version.String())
		return true, nil
	case name == "--help", name == "-h", name == "help":
		fmt.Print(usage)
		return true, nil
	}
	return false, nil
}

// seedAndMark leaves a mark, where one is wanted, once all is done.
func seedAndMark(volume, mark string, mounts []string) error {
	if err := Seed(volume, mounts); err != nil || mark == "" {
		return err
	}
	return os.WriteFile(mark, nil, 0o644)
}

// prepare does something for a pod's other containers, and then keeps its own from ending.
func prepare(standBy bool, f func() error) error {
	if standBy {
		return StandBy(f)
	}
	return f()
}
