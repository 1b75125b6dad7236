package lobby

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
	"unicode"

	"berth/api"
	"berth/internal/compute"
)

func (l *Lobby) ls(ctx context.Context, s Session, args []string) error {
	asJSON, err := flagJSON("ls", args)
	if err != nil {
		return err
	}
	views, err := l.service.ListContainers(ctx, s.Principal)
	if err != nil {
		return err
	}
	if asJSON {
		list := api.ContainerList{Containers: make([]api.Container, len(views))}
		for i, v := range views {
			list.Containers[i] = api.NewContainer(v.Container, v.Usage, l.zone.Hostname(v.ID))
		}
		return writeJSON(s, list)
	}
	if len(views) == 0 {
		_, err := fmt.Fprintln(s.Stdout, "You have no containers; POST /compute/containers makes one.")
		return err
	}
	w := tabwriter.NewWriter(s.Stdout, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "ID\tNAME\tSTATUS\tTYPE\tMEMORY\tSTORAGE\tLOG IN WITH")
	for _, v := range views {
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d/%d MB\t%.1f/%d GB\t%s\n", v.ID, printable(v.Name), v.Status, v.InstanceType,
			v.Usage.MemoryMB, v.MemoryMB, v.Usage.StorageGB, v.StorageGB, l.howTo(v.Container))
	}
	return w.Flush()
}

// howTo is what a person does to get in, or why they cannot now.
func (l *Lobby) howTo(c compute.Container) string {
	switch {
	case c.StatusMessage != "":
		return "- (" + printable(c.StatusMessage) + ")"
	case !c.SSHEnabled:
		return "- (SSH is off)"
	}
	return fmt.Sprintf("ssh %s@%s", c.ID, l.zone)
}

// printable keeps text that others wrote from acting on a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

func (l *Lobby) whoami(_ context.Context, s Session, args []string) error {
	asJSON, err := flagJSON("whoami", args)
	if err != nil {
		return err
	}
	if asJSON {
		return writeJSON(s, map[string]any{
			"user_id": s.Principal.User, "username": s.Principal.Username, "role": s.Principal.Role,
		})
	}
	_, err = fmt.Fprintln(s.Stdout, s.Principal.Username)
	return err
}

func writeJSON(s Session, v any) error {
	e := json.NewEncoder(s.Stdout)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
