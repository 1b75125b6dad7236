package app

import (
	"io"
	"testing"

	"github.com/spf13/cobra"
)

func TestHintAtHelp(t *testing.T) {
	run := func(args ...string) error {
		root := &cobra.Command{Use: "berth", SilenceErrors: true, SilenceUsage: true}
		user := &cobra.Command{Use: "user"}
		add := &cobra.Command{Use: "add NAME", Args: cobra.ExactArgs(1), RunE: func(*cobra.Command, []string) error { return io.EOF }}
		add.Flags().Bool("admin", false, "")
		user.AddCommand(add)
		root.AddCommand(user)
		HintAtHelp(root)
		root.SetOut(io.Discard)
		root.SetArgs(args)
		return root.Execute()
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"usr"}, "unknown command \"usr\" for \"berth\"; `berth --help` tells how to call it"},
		{[]string{"user", "ad"}, "unknown command \"ad\" for \"berth user\"; `berth user --help` tells how to call it"},
		{[]string{"user", "add"}, "accepts 1 arg(s), received 0; `berth user add --help` tells how to call it"},
		{[]string{"user", "add", "ada", "--amdin"}, "unknown flag: --amdin; `berth user add --help` tells how to call it"},
		{[]string{"user", "add", "ada", "--admin=perhaps"}, `invalid argument "perhaps" for "--admin" flag: ` +
			"strconv.ParseBool: parsing \"perhaps\": invalid syntax; `berth user add --help` tells how to call it"},
		{[]string{"user", "add", "ada"}, "EOF"}, // which has nothing to do with how it was called
	} {
		if err := run(c.args...); err == nil || err.Error() != c.want {
			t.Errorf("%v: %v", c.args, err)
		}
	}
	for _, args := range [][]string{{}, {"user"}, {"--help"}, {"user", "add", "--help"}, {"help", "user"}} {
		if err := run(args...); err != nil {
			t.Errorf("%v: %v", args, err)
		}
	}
}
