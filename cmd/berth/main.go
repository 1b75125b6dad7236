// Command berth runs all of Berth in one process, and is the operator's tool beside it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"berth/internal/app"
	"berth/internal/config"
	"berth/internal/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends it at once
	root := &cobra.Command{
		Use:           "berth",
		Short:         "Small Linux machines that answer to ssh",
		Version:       version.String(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	config.Flags(root.PersistentFlags())
	root.SetUsageTemplate(settingsOnce(root.UsageTemplate()))
	root.AddCommand(upCommand(), downCommand(), userCommand(), tokenCommand(), gatewayCommand(), doctorCommand(),
		backupCommand(), restoreCommand(), migrateCommand())
	app.HintAtHelp(root)
	if err := root.ExecuteContext(ctx); err != nil {
		if !errors.Is(err, errReported) {
			fmt.Fprintln(os.Stderr, "berth:", err)
		}
		os.Exit(1)
	}
}

// settingsOnce returns the template of help texts with the settings listed by `berth up --help` alone: every command takes
// them, and they would hide its own flags.
func settingsOnce(template string) string {
	const own, settings = "{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}", "{{.InheritedFlags.FlagUsages | trimTrailingWhitespaces}}"
	const hint = "--data-dir DIR, and the other settings that `berth up --help` lists"
	template = strings.Replace(template, own, `{{if .HasParent}}`+own+`{{else}}  `+hint+`{{end}}`, 1)
	return strings.Replace(template, settings, `{{if eq .Name "up"}}`+settings+`{{else}}  `+hint+`{{end}}`, 1)
}

// errReported is returned where the command has printed what is wrong already.
var errReported = errors.New("reported")

// withConfig runs f with the settings that the command line, the environment and the file make.
func withConfig(f func(cmd *cobra.Command, c config.Config, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := config.Load(cmd.Flags())
		if err != nil {
			return err
		}
		return f(cmd, c, args)
	}
}
