package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"time"
)

// contender is a way to get commands run in the container with the stock client.
type contender struct {
	label string
	args  []string // of ssh, before the command
	in    *network // where the client runs; nil for the host's
	via   []string // another client in place of ssh, with all of its arguments but the command for a shell

	cipher string // that its connections have
	peer   string // what the other end calls itself
}

// options of every client: nothing is asked of a person, and later clients do not send keystrokes that nobody typed.
var clientOptions = []string{"-o", "BatchMode=yes", "-o", "IgnoreUnknown=ObscureKeystrokeTiming", "-o", "ObscureKeystrokeTiming=no"}

// command returns the client with more arguments of ssh's and the remote command.
func (c *contender) command(ctx context.Context, more []string, remote string) *exec.Cmd {
	argv := slices.Concat([]string{"ssh"}, clientOptions, more, c.args, []string{remote})
	if c.via != nil {
		argv = append(slices.Clone(c.via), remote)
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = environment()
	return cmd
}

// start starts a command where the contender's client runs.
func (c *contender) start(cmd *exec.Cmd) error { return c.in.within(cmd.Start) }

// run runs a remote command with input and returns its output.
func (c *contender) run(ctx context.Context, input io.Reader, more []string, remote string) (out, errs []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	cmd := c.command(ctx, more, remote)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = input, &stdout, &stderr
	if err := c.start(cmd); err != nil {
		return nil, nil, err
	}
	if err := cmd.Wait(); err != nil {
		return nil, nil, fmt.Errorf("ssh %q: %w: %s", remote, err, &stderr)
	}
	return stdout.Bytes(), stderr.Bytes(), nil
}

// clock runs one client to its end as a shell would, and says how long that took and what CPU time the client itself used.
// Its standard error goes to a file: a pipe would be read to its end, and so wait for the client of a jump as well.
func (c *contender) clock(cmd *exec.Cmd) (took, cpu time.Duration, err error) {
	errs, err := os.CreateTemp("", "berth-bench-stderr-")
	if err != nil {
		return 0, 0, err
	}
	defer os.Remove(errs.Name())
	defer errs.Close()
	cmd.Stderr = errs
	began := time.Now()
	if err = c.start(cmd); err == nil {
		err = cmd.Wait()
	}
	took = time.Since(began)
	if err != nil {
		text, _ := os.ReadFile(errs.Name()) // an explanation, if there is one
		return 0, 0, fmt.Errorf("%s: %w: %s", c.label, err, text)
	}
	return took, cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), nil
}

var (
	cipherLine = regexp.MustCompile(`kex: (?:server->client|client->server) cipher: (\S+)`)
	peerLine   = regexp.MustCompile(`remote software version (.*\S)`)
)

// learn finds out what a connection of the contender's has.
func (c *contender) learn(ctx context.Context) error {
	_, errs, err := c.run(ctx, nil, []string{"-v"}, "true")
	if err != nil {
		return err
	}
	return c.parseDebug(string(errs))
}

// parseDebug reads what ssh -v says. A jump has two connections, and both are named when they differ.
func (c *contender) parseDebug(text string) error {
	var ciphers []string
	for _, m := range cipherLine.FindAllStringSubmatch(text, -1) {
		name, _, _ := strings.Cut(m[1], "@")
		if !slices.Contains(ciphers, name) {
			ciphers = append(ciphers, name)
		}
	}
	peer := peerLine.FindStringSubmatch(text)
	if len(ciphers) == 0 || peer == nil {
		return errors.New("ssh -v does not name the cipher")
	}
	c.cipher, c.peer = strings.Join(ciphers, " + "), peer[1]
	return nil
}

// verify checks that the contender moves data whole in both directions: a fast loss would win.
func (c *contender) verify(ctx context.Context) error {
	const size = 16 << 20
	data := make([]byte, size)
	_, _ = rand.Read(data) // never fails: see crypto/rand
	const file = "/tmp/bench-data"
	out, _, err := c.run(ctx, bytes.NewReader(data), nil, "tee "+file+" | sha256sum")
	if err != nil {
		return err
	}
	sum := sha256.Sum256(data)
	if got, _, _ := strings.Cut(string(out), " "); got != hex.EncodeToString(sum[:]) {
		return fmt.Errorf("an upload of %d bytes arrived with the sum %q", size, got)
	}
	out, _, err = c.run(ctx, nil, nil, "cat "+file+" && rm "+file)
	if err != nil {
		return err
	}
	if !bytes.Equal(out, data) {
		return fmt.Errorf("a download of %d bytes arrived as %d bytes that are not the same", size, len(out))
	}
	return nil
}

// clientVersion is what ssh -V says.
func clientVersion(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "ssh", "-V").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("ssh -V: %w", err)
	}
	version, _, _ := strings.Cut(strings.TrimSpace(string(out)), ",")
	return version, nil
}
