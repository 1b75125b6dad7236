package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"berth/internal/app"
)

func tokenCommand() *cobra.Command {
	var r app.TokenRequest
	cmd := &cobra.Command{
		Use: "token", Short: "Print a bearer token for the REST API; list and revoke those there are", Args: cobra.NoArgs,
		Example: `  curl -H "Authorization: Bearer $(berth token)" http://127.0.0.1:7080/compute/containers
  berth token --user alice --name ci --scope containers:read --scope containers:write --ttl 720h`,
		RunE: withOperator(func(cmd *cobra.Command, o app.Operator, _ []string) error {
			token, err := o.Token(cmd.Context(), r)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), token)
			return err
		}),
	}
	cmd.Flags().StringVar(&r.Username, "user", "", "account the token is for (default: the first administrator)")
	cmd.Flags().StringVar(&r.Name, "name", "berth token", "name that the token is listed under")
	cmd.Flags().StringSliceVar(&r.Scopes, "scope", nil,
		"what the token permits, such as containers:read; may be repeated (default: all)")
	cmd.Flags().DurationVar(&r.TTL, "ttl", time.Hour, "how long the token is valid")
	cmd.AddCommand(tokenListCommand(), tokenRevokeCommand())
	return cmd
}

func tokenListCommand() *cobra.Command {
	var username string
	cmd := &cobra.Command{
		Use: "ls", Short: "List tokens that are valid", Args: cobra.NoArgs,
		RunE: withOperator(func(cmd *cobra.Command, o app.Operator, _ []string) error {
			list, err := o.Tokens(cmd.Context(), username)
			if err != nil {
				return err
			}
			return printTokens(cmd, list)
		}),
	}
	cmd.Flags().StringVar(&username, "user", "", "account whose tokens to list (default: all)")
	cmd.Flags().Bool("json", false, "print JSON")
	return cmd
}

func tokenRevokeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "revoke ID…", Short: "End tokens at once", Args: cobra.MinimumNArgs(1),
		RunE: withOperator(func(cmd *cobra.Command, o app.Operator, args []string) error {
			for _, id := range args {
				if err := o.RevokeToken(cmd.Context(), id); err != nil {
					return fmt.Errorf("%s: %w", id, err)
				}
			}
			return nil
		}),
	}
}

func printTokens(cmd *cobra.Command, list []app.Token) error {
	if asJSON, _ := cmd.Flags().GetBool("json"); asJSON {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(list)
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tUSER\tNAME\tSCOPES\tEXPIRES\tLAST USED")
	for _, t := range list {
		used := "never"
		if !t.LastUsedAt.IsZero() {
			used = minute(t.LastUsedAt)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n",
			t.ID, t.Username, t.Name, strings.Join(t.Scopes, ","), minute(t.ExpiresAt), used)
	}
	return w.Flush()
}

func minute(t time.Time) string { return t.UTC().Format("2006-01-02 15:04Z") }
