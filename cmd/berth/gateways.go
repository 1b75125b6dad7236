package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"berth/internal/app"
)

func gatewayCommand() *cobra.Command {
	gateway := &cobra.Command{Use: "gateway", Short: "Manage the credentials of gateways in processes of their own"}
	var out string
	add := &cobra.Command{
		Use: "add NAME", Short: "Make a credential for a gateway, in a file to carry there", Args: cobra.ExactArgs(1),
		Example: "  berth gateway add edge-1 --out edge-1.pem",
		RunE: withOperator(func(cmd *cobra.Command, o app.Operator, args []string) error {
			if out == "" {
				out = args[0] + ".pem"
			}
			return addGateway(cmd, o, args[0], out)
		}),
	}
	add.Flags().StringVar(&out, "out", "", "file to make (- for standard output; default: NAME.pem)")
	ls := &cobra.Command{
		Use: "ls", Short: "List credentials", Args: cobra.NoArgs,
		RunE: withOperator(func(cmd *cobra.Command, o app.Operator, _ []string) error {
			list, err := o.Gateways(cmd.Context())
			if err != nil {
				return err
			}
			return printGateways(cmd, list...)
		}),
	}
	revoke := &cobra.Command{
		Use: "revoke NAME", Short: "Cut a gateway off, for ever", Args: cobra.ExactArgs(1),
		RunE: withOperator(func(cmd *cobra.Command, o app.Operator, args []string) error {
			g, err := o.RevokeGateway(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return printGateways(cmd, g)
		}),
	}
	for _, c := range []*cobra.Command{ls, revoke} {
		c.Flags().Bool("json", false, "print JSON")
	}
	gateway.AddCommand(add, ls, revoke)
	return gateway
}

// addGateway makes the file before the credential, so that none is made that nobody has.
func addGateway(cmd *cobra.Command, o app.Operator, name, out string) error {
	if out == "-" {
		text, err := o.AddGateway(cmd.Context(), name)
		if err != nil {
			return err
		}
		_, err = fmt.Fprint(cmd.OutOrStdout(), text)
		return err
	}
	f, err := os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("make the credential's file: %w", err)
	}
	text, err := o.AddGateway(cmd.Context(), name)
	if err == nil {
		_, err = f.WriteString(text)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(out))
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(),
		"%s holds the credential of gateway %s; whoever has it learns who may enter what.\n", out, name)
	return err
}

func printGateways(cmd *cobra.Command, list ...app.GatewayInfo) error {
	if asJSON, _ := cmd.Flags().GetBool("json"); asJSON {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(list)
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tSTATE\tFROM\tACKNOWLEDGED\tSEEN\tSINCE")
	for _, g := range list {
		state, from, acknowledged, seen := "away", "-", "-", "never"
		if g.SeenAt != nil {
			seen = g.SeenAt.Format(time.DateTime)
		}
		switch {
		case g.RevokedAt != nil:
			state = "revoked"
		case g.Connected:
			state, from, acknowledged = "connected", g.Remote, fmt.Sprint(g.Acknowledged)
		}
		since := g.CreatedAt.Format(time.DateOnly)
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", g.Name, state, from, acknowledged, seen, since)
	}
	return w.Flush()
}
