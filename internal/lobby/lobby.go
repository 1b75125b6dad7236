// Package lobby is the SSH command interface on the apex: what "ssh <zone> ls --json" runs.
//
// It works over any readers and writers and a small part of the control service; it knows no SSH. Who calls it has
// proven the principal already. Exit codes are for scripts: 0, 1 for a failure, 2 for wrong usage, 127 for a command
// that is not there, 255 for a client that meant a container and did not get there.
package lobby

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"berth/internal/compute"
	"berth/internal/control"
	"berth/internal/route"
)

// Service is what the lobby needs of the control plane.
type Service interface {
	ListContainers(ctx context.Context, p compute.Principal) ([]control.ContainerView, error)
}

// Session is one client in the lobby.
type Session struct {
	Principal compute.Principal
	Login     string // what the client typed before the @
	Command   string // as the client sent it; empty asks for an interactive session
	Terminal  bool   // the client has a terminal
	Stdin     io.Reader
	Stdout    io.Writer
	Stderr    io.Writer
}

// Exit codes of the lobby's commands.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
	exitUnknown = 127
	exitAstray  = 255 // as of every login that the gateway refuses
)

// Lobby runs commands for principals.
type Lobby struct {
	zone    route.Zone
	service Service
	log     *slog.Logger
}

// New returns a Lobby of the zone. It does no I/O.
func New(zone route.Zone, service Service, log *slog.Logger) *Lobby {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Lobby{zone: zone, service: service, log: log}
}

// command is one that the lobby knows.
type command struct {
	name, args, what string
	run              func(l *Lobby, ctx context.Context, s Session, args []string) error
}

// commands are in the order in which help lists them.
func commands() []command {
	return []command{
		{"help", "", "show this", (*Lobby).help},
		{"ls", "[--json]", "list your containers", (*Lobby).ls},
		{"whoami", "[--json]", "say whose account this key opens", (*Lobby).whoami},
	}
}

// usageError is a mistake in how a command was called.
type usageError string

func (e usageError) Error() string { return string(e) }

// Run runs the session's command and returns its exit code. Errors are told on the session's stderr, in one line each.
func (l *Lobby) Run(ctx context.Context, s Session) int {
	if astray, err := l.astray(ctx, s); err != nil || astray {
		if err != nil {
			return l.finish(s, err)
		}
		return exitAstray
	}
	words := strings.Fields(s.Command)
	if len(words) == 0 {
		return l.finish(s, l.greet(ctx, s))
	}
	for _, c := range commands() {
		if c.name == words[0] {
			return l.finish(s, c.run(l, ctx, s, words[1:]))
		}
	}
	_, _ = fmt.Fprintf(s.Stderr, "There is no command %.40q here; \"ssh %s help\" lists what there is.\n",
		words[0], l.zone)
	return exitUnknown
}

// astray says whether the client typed the name of a container where its id belongs, or the id in capitals, and if so tells
// it the id. The command was meant for the container, so the lobby does not run it.
func (l *Lobby) astray(ctx context.Context, s Session) (bool, error) {
	if s.Login == "" || s.Login == s.Principal.Username {
		return false, nil
	}
	views, err := l.service.ListContainers(ctx, s.Principal)
	if err != nil {
		return false, err
	}
	user, name, as := "", s.Login, strings.LastIndexByte(s.Login, '+')
	if as >= 0 {
		user, name = s.Login[:as+1], s.Login[as+1:]
	}
	named := false
	for _, v := range views {
		if v.Name == name || strings.EqualFold(string(v.ID), name) {
			named = true
			_, _ = fmt.Fprintf(s.Stderr, "berth: A container is reached by its id: %.80q is ssh %.80s%s@%s\n", name, printable(user), v.ID, l.zone)
		}
	}
	return named, nil
}

// finish turns a command's error into words and an exit code.
func (l *Lobby) finish(s Session, err error) int {
	if err == nil {
		return exitOK
	}
	if usage, ok := err.(usageError); ok {
		_, _ = fmt.Fprintln(s.Stderr, usage)
		return exitUsage
	}
	if compute.CodeOf(err) == compute.CodeInternal {
		l.log.Error("lobby", "user", s.Principal.User, "command", s.Command, "err", err)
	}
	_, _ = fmt.Fprintln(s.Stderr, compute.UserMessage(err))
	return exitFailure
}

// greet is an interactive session without a command.
func (l *Lobby) greet(ctx context.Context, s Session) error {
	if _, err := fmt.Fprintf(s.Stdout, "Hello %s: this is the lobby of %s. Run its commands as \"ssh %s <command>\".\n\n",
		s.Principal.Username, l.zone, l.zone); err != nil {
		return err
	}
	return l.help(ctx, s, nil)
}

func (l *Lobby) help(_ context.Context, s Session, _ []string) error {
	var b strings.Builder
	b.WriteString("Commands:\n")
	for _, c := range commands() {
		fmt.Fprintf(&b, "  %-20s %s\n", strings.TrimSpace(c.name+" "+c.args), c.what)
	}
	fmt.Fprintf(&b, `
A container's shell:
  ssh <id>@%[1]s                root of the container
  ssh <user>+<id>@%[1]s         another of its users
  ssh -J %[1]s root@<id>.%[1]s
`, l.zone)
	_, err := io.WriteString(s.Stdout, b.String())
	return err
}

// flagJSON reads the one flag that every listing has.
func flagJSON(name string, args []string) (bool, error) {
	asJSON := false
	for _, a := range args {
		if a != "--json" {
			return false, usageError(fmt.Sprintf("%s does not take %.40q; usage: %s [--json]", name, a, name))
		}
		asJSON = true
	}
	return asJSON, nil
}
