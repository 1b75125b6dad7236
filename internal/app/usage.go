package app

import (
	"fmt"

	"github.com/spf13/cobra"
)

// HintAtHelp has cmd and all below it say, where they were not called as they are to be, what tells how. A command that only
// groups others takes no argument: a word that names none of them is a mistake, and not a call for help.
func HintAtHelp(cmd *cobra.Command) {
	hint := func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; `%s --help` tells how to call it", err, cmd.CommandPath())
	}
	cmd.SetFlagErrorFunc(hint)
	if cmd.HasSubCommands() && !cmd.Runnable() {
		cmd.Args = cobra.NoArgs
		cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	}
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return hint(cmd, err)
			}
			return nil
		}
	}
	for _, c := range cmd.Commands() {
		HintAtHelp(c)
	}
}
