package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"berth/internal/app"
	"berth/internal/config"
)

func backupCommand() *cobra.Command {
	return &cobra.Command{
		Use: "backup FILE", Short: "Write accounts, containers and host keys into a file, while Berth runs or not", Args: cobra.ExactArgs(1),
		Long: `Write the state of the data directory into a new file, while Berth runs or not: the database as of one moment, and the host
keys. Keep the file as you keep the data directory: whoever has it can pose as this gateway. The containers' volumes are not
in it, nor is the key of the tokens. With - it goes to standard output.`,
		RunE: withConfig(func(cmd *cobra.Command, c config.Config, args []string) error {
			if args[0] != "-" {
				return app.Backup(cmd.Context(), c, args[0], os.Stderr)
			}
			return aside(func(file string) error {
				if err := app.Backup(cmd.Context(), c, file, io.Discard); err != nil {
					return err
				}
				f, err := os.Open(file)
				if err != nil {
					return err
				}
				defer f.Close()
				_, err = io.Copy(cmd.OutOrStdout(), f)
				return err
			})
		}),
	}
}

// aside calls f with the name of a file that is not there yet, and is removed afterwards.
func aside(f func(file string) error) (err error) {
	dir, err := os.MkdirTemp("", "berth-backup-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	return f(filepath.Join(dir, "backup.tar"))
}

func migrateCommand() *cobra.Command {
	var from, to string
	cmd := &cobra.Command{
		Use: "migrate --from sqlite --to postgres", Short: "Move the state into a PostgreSQL database; Berth must not run", Args: cobra.NoArgs,
		Long: `Copy the state of the data directory, accounts, containers, events and all, from its SQLite file into the empty PostgreSQL
database of --database, read it back, and compare. Berth must not run; containers may. The installation stays the same, tokens
go on, and a new epoch begins. The file is kept under another name. What fails changes nothing.`,
		Example: "  berth migrate --from sqlite --to postgres --data-dir /var/lib/berth --database postgres://berth@db.example.com/berth",
		RunE: withConfig(func(cmd *cobra.Command, c config.Config, _ []string) error {
			if from != "sqlite" || to != "postgres" {
				return errors.New("the way is --from sqlite --to postgres; there is no other")
			}
			m, err := app.Migrate(cmd.Context(), c, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			if asJSON, _ := cmd.Flags().GetBool("json"); asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(m)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(),
				"Moved the installation %s; the epoch %d begins. What it was in is %s.\nFrom now on, start Berth with --database.\n",
				m.Installation, m.Epoch, m.Kept)
			return err
		}),
	}
	cmd.Flags().StringVar(&from, "from", "", "where the state is: sqlite")
	cmd.Flags().StringVar(&to, "to", "", "where it goes: postgres")
	cmd.Flags().Bool("json", false, "print JSON")
	return cmd
}

func restoreCommand() *cobra.Command {
	return &cobra.Command{
		Use: "restore [FILE]", Short: "Put the state in a backup in the place of what is there; Berth must not run", Args: cobra.MaximumNArgs(1),
		Long: `Put the state in a backup in the place of the data directory's, which may be empty. Berth must not run; containers may. What it
replaces is moved aside, and no volume is touched: those that the backup does not know are left alone. All tokens end. With - it
comes from standard input.

With --database and without FILE, a PostgreSQL database that pg_restore has put back is made ready to go on.`,
		RunE: withConfig(func(cmd *cobra.Command, c config.Config, args []string) error {
			if len(args) == 0 {
				return app.BeginEpoch(cmd.Context(), c, os.Stderr)
			}
			if args[0] != "-" {
				return app.Restore(cmd.Context(), c, args[0], os.Stderr)
			}
			return aside(func(file string) error {
				f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
				if err != nil {
					return err
				}
				_, err = io.Copy(f, cmd.InOrStdin())
				if err = errors.Join(err, f.Close()); err != nil {
					return err
				}
				return app.Restore(cmd.Context(), c, file, os.Stderr)
			})
		}),
	}
}
