package lobby

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"berth/internal/compute"
	"berth/internal/control"
)

// containerJSON is a container as the REST contract shows it.
type containerJSON struct {
	ID            compute.ContainerID `json:"id"`
	Name          string              `json:"name"`
	Status        compute.Status      `json:"status"`
	StatusMessage string              `json:"status_message,omitempty"`
	Hostname      string              `json:"hostname"`
	SSHCommand    string              `json:"ssh_command,omitempty"`
	MemoryMB      int                 `json:"memory_mb"`
	MemoryUsedMB  int                 `json:"memory_used_mb"`
	StorageGB     int                 `json:"storage_gb"`
	StorageUsedGB float64             `json:"storage_used_gb"`
	InstanceType  string              `json:"instance_type"`
	CreatedAt     time.Time           `json:"created_at"`
	SSHEnabled    bool                `json:"ssh_enabled"`
	HTTPSEnabled  bool                `json:"https_enabled"`
}

func (l *Lobby) containerJSON(v control.ContainerView) containerJSON {
	c := containerJSON{
		ID: v.ID, Name: v.Name, Status: v.Status, StatusMessage: v.StatusMessage, Hostname: l.zone.Hostname(v.ID),
		MemoryMB: v.MemoryMB, MemoryUsedMB: v.Usage.MemoryMB, StorageGB: v.StorageGB,
		StorageUsedGB: math.Round(v.Usage.StorageGB*1000) / 1000, InstanceType: v.InstanceType, // rounded as in REST
		CreatedAt: v.CreatedAt.UTC().Truncate(time.Second), SSHEnabled: v.SSHEnabled, HTTPSEnabled: v.HTTPSEnabled,
	}
	if v.SSHEnabled {
		c.SSHCommand = "ssh root@" + c.Hostname
	}
	return c
}

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
		list := make([]containerJSON, len(views))
		for i, v := range views {
			list[i] = l.containerJSON(v)
		}
		return writeJSON(s, map[string]any{"containers": list})
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
