package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"berth/internal/app"
	"berth/internal/config"
)

func upCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "up",
		Short: "Run Berth in the foreground on this machine",
		Long: `Run Berth in the foreground on this machine: REST API, SSH gateway, and containers on a containerd of its own.

The first start makes an admin from your ~/.ssh/*.pub keys, or a demo key where you have none. While it runs, the data
directory holds ssh_config, token and ready.json for you and your scripts. SIGINT and SIGTERM stop it; containers go on
running, and the next start takes them over. berth down stops them.`,
		Args: cobra.NoArgs,
		RunE: withConfig(func(cmd *cobra.Command, c config.Config, _ []string) error {
			return app.Up(cmd.Context(), c, os.Stderr)
		}),
	}
}

func downCommand() *cobra.Command {
	var destroy bool
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Stop Berth and its containers; with --delete, remove all it has",
		Long: `Stop the Berth of this data directory, if it runs, and its containers. Their storage and the database stay, and the next
berth up starts the containers that were running. With --delete, everything goes, storage and database too;
a state in PostgreSQL is refused, since that database would go on to know the containers.`,
		Args: cobra.NoArgs,
		RunE: withConfig(func(cmd *cobra.Command, c config.Config, _ []string) error {
			return app.Down(cmd.Context(), c, destroy, os.Stderr)
		}),
	}
	cmd.Flags().BoolVar(&destroy, "delete", false, "also delete all containers, their storage and the database")
	return cmd
}

// withOperator runs f with the operator's use cases of the data directory, whether Berth runs or not.
func withOperator(f func(cmd *cobra.Command, o app.Operator, args []string) error) func(*cobra.Command, []string) error {
	return withConfig(func(cmd *cobra.Command, c config.Config, args []string) (err error) {
		o, err := app.OpenOperator(cmd.Context(), c)
		if err != nil {
			return err
		}
		defer func() {
			if cerr := o.Close(); err == nil {
				err = cerr
			}
		}()
		return f(cmd, o, args)
	})
}

func userCommand() *cobra.Command {
	user := &cobra.Command{Use: "user", Short: "Manage accounts"}
	var admin bool
	var keyFiles []string
	add := &cobra.Command{
		Use: "add NAME", Short: "Add an account", Args: cobra.ExactArgs(1),
		Example: "  berth user add alice --key ~alice/.ssh/id_ed25519.pub",
		RunE: withOperator(func(cmd *cobra.Command, o app.Operator, args []string) error {
			keys, err := readKeys(keyFiles, cmd.InOrStdin())
			if err != nil {
				return err
			}
			u, err := o.AddUser(cmd.Context(), args[0], admin, keys)
			if err != nil {
				return err
			}
			return printUsers(cmd, u)
		}),
	}
	add.Flags().BoolVar(&admin, "admin", false, "make the account an administrator")
	add.Flags().StringArrayVar(&keyFiles, "key", nil, "file of public keys, one a line (- for standard input); may be repeated")
	ls := &cobra.Command{
		Use: "ls", Short: "List accounts", Args: cobra.NoArgs,
		RunE: withOperator(func(cmd *cobra.Command, o app.Operator, _ []string) error {
			list, err := o.Users(cmd.Context())
			if err != nil {
				return err
			}
			return printUsers(cmd, list...)
		}),
	}
	user.AddCommand(add, ls,
		disableCommand("disable", "Bar an account from everything; its containers go on", true),
		disableCommand("enable", "Let a disabled account in again", false))
	for _, c := range user.Commands() {
		c.Flags().Bool("json", false, "print JSON")
	}
	return user
}

func disableCommand(use, short string, disabled bool) *cobra.Command {
	return &cobra.Command{
		Use: use + " NAME", Short: short, Args: cobra.ExactArgs(1),
		RunE: withOperator(func(cmd *cobra.Command, o app.Operator, args []string) error {
			u, err := o.SetUserDisabled(cmd.Context(), args[0], disabled)
			if err != nil {
				return err
			}
			if len(u.Unacknowledged) > 0 {
				fmt.Fprintln(cmd.ErrOrStderr(), "Not yet known to these gateways:", strings.Join(u.Unacknowledged, ", "))
			}
			return printUsers(cmd, u)
		}),
	}
}

// readKeys returns the lines of the files that are neither empty nor comments.
func readKeys(files []string, stdin io.Reader) ([]string, error) {
	var keys []string
	for _, name := range files {
		text, err := readFile(name, stdin)
		if err != nil {
			return nil, fmt.Errorf("read the key: %w", err)
		}
		for line := range strings.Lines(string(text)) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
				keys = append(keys, line)
			}
		}
	}
	return keys, nil
}

func readFile(name string, stdin io.Reader) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(stdin)
	}
	return os.ReadFile(name)
}

func printUsers(cmd *cobra.Command, users ...app.User) error {
	if asJSON, _ := cmd.Flags().GetBool("json"); asJSON {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(users)
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tNAME\tROLE\tSTATE\tSINCE")
	for _, u := range users {
		state := "enabled"
		if u.Disabled {
			state = "disabled"
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\n", u.ID, u.Username, u.Role, state, u.CreatedAt.Format(time.DateOnly))
	}
	return w.Flush()
}

func doctorCommand() *cobra.Command {
	var isolation bool
	cmd := &cobra.Command{
		Use: "doctor", Short: "Check that this machine or cluster can run Berth, and say what to do where it cannot", Args: cobra.NoArgs,
		Long: `Check that this machine, or with --engine kubernetes the cluster, can run Berth, and say what to do where it cannot. On a machine
it changes nothing. On a cluster it looks with the rights of --kubeconfig, and runs a pod of the agent's image for some moments.`,
		Example: "  berth doctor\n  berth doctor --engine kubernetes --kubeconfig ~/.kube/config --image … --agent … --isolation",
		RunE: withConfig(func(cmd *cobra.Command, c config.Config, _ []string) error {
			if isolation && !c.OnKubernetes() {
				return errors.New("--isolation is about a cluster's network; add --engine kubernetes")
			}
			checks := app.Doctor(cmd.Context(), c, isolation)
			if err := printChecks(cmd, checks); err != nil {
				return err
			}
			for _, k := range checks {
				if !k.OK && k.Needed {
					return errReported
				}
			}
			return nil
		}),
	}
	cmd.Flags().BoolVar(&isolation, "isolation", false, "on a cluster: try every way out of a container, from two pods, which takes a minute")
	cmd.Flags().Bool("json", false, "print JSON")
	return cmd
}

func printChecks(cmd *cobra.Command, checks []app.Check) error {
	if asJSON, _ := cmd.Flags().GetBool("json"); asJSON {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(checks)
	}
	for _, k := range checks {
		mark := "ok  "
		switch {
		case !k.OK && k.Needed:
			mark = "FAIL"
		case !k.OK:
			mark = "warn"
		}
		if k.Detail != "" {
			k.Name += ": "
		}
		if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s  %s%s\n", mark, k.Name, k.Detail); err != nil {
			return err
		}
	}
	return nil
}
