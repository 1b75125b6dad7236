package app

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"berth/internal/config"
	"berth/internal/version"
)

// Main is the main function of a program that serves until it is told to stop: settings, signals, exit status.
func Main(name, short string, serve func(ctx context.Context, c config.Config, out io.Writer) error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends it at once
	cmd := &cobra.Command{
		Use: name, Short: short, Version: version.String(), Args: cobra.NoArgs, SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := config.Load(cmd.Flags())
			if err != nil {
				return err
			}
			return serve(cmd.Context(), c, os.Stderr)
		},
	}
	config.Flags(cmd.Flags())
	HintAtHelp(cmd)
	if err := cmd.ExecuteContext(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}
