package agent

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"berth/internal/version"
)

const usage = `usage: agent COMMAND

  init [--socket PATH] [--accept-env LIST] [-- COMMAND…]   be the container's first process
  connect [--socket PATH]                                  join standard input and output to the agent
  pair [--socket PATH] KEY                                 let the holder of a key connect to the container's address
  ssh [--host-key FILE]                                    serve one SSH connection on standard input and output
  sftp                                                     serve SFTP on standard input and output
  install [--hostname NAME] DIR                            put this program where a container will have it
  seed --volume DIR NAME:PATH…                             fill a volume's directories from the image, each once
  usage DIR…                                               measure the container, with what is in directories
  probe listen|reached|missed|processes …                  look at what surrounds a pod
  --version
`

// Run does what the agent's command line says, and returns the status to exit with.
func Run(args []string) int {
	if len(args) > 0 {
		known, err := runCommand(args[0], args[1:])
		if err != nil {
			fmt.Fprintln(os.Stderr, "berth-agent:", err)
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
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		name = "help"
	case err != nil:
		return false, nil // it has said why
	}
	options := Options{
		Environ: os.Environ(), AcceptEnv: strings.Split(*acceptEnv, ","),
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
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
		return true, Install(fs.Arg(0), *hostname)
	case name == "seed" && *volume != "":
		return true, Seed(*volume, fs.Args())
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
