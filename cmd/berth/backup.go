package main

import (
	"os"

	"github.com/spf13/cobra"

	"berth/internal/app"
	"berth/internal/config"
)

func backupCommand() *cobra.Command {
	return &cobra.Command{
		Use: "backup FILE", Short: "Write accounts, containers and host keys into a file, while Berth runs or not", Args: cobra.ExactArgs(1),
		Long: `Write the state of the data directory into a new file, while Berth runs or not: the database as of one moment, and the host
keys. Keep the file as you keep the data directory: whoever has it can pose as this gateway. The containers' volumes are not
in it, nor is the key of the tokens.`,
		RunE: withConfig(func(cmd *cobra.Command, c config.Config, args []string) error {
			return app.Backup(cmd.Context(), c, args[0], os.Stderr)
		}),
	}
}

func restoreCommand() *cobra.Command {
	return &cobra.Command{
		Use: "restore FILE", Short: "Put the state in a backup in the place of what is there; Berth must not run", Args: cobra.ExactArgs(1),
		Long: `Put the state in a backup in the place of the data directory's, which may be empty. Berth must not run; containers may. What it
replaces is moved aside, and no volume is touched: those that the backup does not know are left alone. All tokens end.`,
		RunE: withConfig(func(cmd *cobra.Command, c config.Config, args []string) error {
			return app.Restore(cmd.Context(), c, args[0], os.Stderr)
		}),
	}
}
