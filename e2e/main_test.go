// Package e2e_test drives the built binaries as users and operators do: testscript files with stock ssh, scp, sftp, rsync,
// git and curl, and Go tests with x/crypto's client where a stock client does not show what is on the wire.
//
// It imports nothing of the product but leakcheck, and knows it by its command line, its files and its two ports alone. The
// binaries are those that make built, in ../bin or $BERTH_BIN_DIR, with the image in ../build or $BERTH_IMAGE.
//
// One instance is shared by all scripts that log in to it, each with an account of its own; a script that restarts or harms
// its instance has one of its own. When all is done nothing may be left of any of them.
package e2e_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(suite{m}, map[string]func(){
		"noise":    func() { must(noise(os.Args[1:])) },
		"throttle": func() { must(throttle(os.Args[1:])) },
		"retry":    func() { must(retry(os.Args[1:])) },
	})
}

// suite is all tests, and the end of the instance that they share.
type suite struct{ *testing.M }

// atOnce is how many scripts run side by side: they mostly wait, for containers and for clients.
const atOnce = "4"

func (s suite) Run() int {
	flag.Parse()
	set := false
	flag.Visit(func(f *flag.Flag) { set = set || f.Name == "test.parallel" })
	if !set {
		must(flag.Set("test.parallel", atOnce))
	}
	code := s.M.Run()
	if err := endShared(); err != nil {
		fmt.Fprintln(os.Stderr, "the shared instance:", err)
		code = max(code, 1)
	}
	return code
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// noise is the command "noise SEED BYTES": bytes that do not compress and that both ends of a copy can make.
func noise(args []string) error {
	seed, n, err := twoNumbers(args)
	if err != nil {
		return fmt.Errorf("usage: noise SEED BYTES: %w", err)
	}
	block, err := aes.NewCipher(fmt.Appendf(nil, "%016d", seed))
	if err != nil {
		return err
	}
	stream := cipher.NewCTR(block, make([]byte, aes.BlockSize))
	out := cipher.StreamWriter{S: stream, W: os.Stdout}
	_, err = io.CopyBuffer(struct{ io.Writer }{out}, io.LimitReader(zeros{}, n), make([]byte, 1<<18))
	return err
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// throttle is the command "throttle BYTES": it copies standard input to standard output at so many bytes a second.
func throttle(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("usage: throttle BYTES-A-SECOND")
	}
	rate, err := strconv.ParseInt(args[0], 10, 64)
	if err != nil {
		return err
	}
	const piece = 16 << 10
	tick := time.NewTicker(time.Second * piece / time.Duration(rate))
	defer tick.Stop()
	for {
		n, err := io.CopyN(os.Stdout, os.Stdin, piece)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("after %d bytes: %w", n, err)
		}
		<-tick.C
	}
}

// retry is the command "retry [!] PROGRAM [ARG…]": it runs a program again and again until it succeeds (fails), for what
// announces itself to nobody. "sh LINE" is a line of bash. The output is the last run's.
func retry(args []string) error {
	fail := len(args) > 0 && args[0] == "!"
	if fail {
		args = args[1:]
	}
	if len(args) == 2 && args[0] == "sh" {
		args = []string{"bash", "-euo", "pipefail", "-c", args[1]}
	}
	if len(args) == 0 {
		return fmt.Errorf("usage: retry [!] PROGRAM [ARG…]")
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(statusLimit); ; <-tick.C {
		var out, errs bytes.Buffer
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Stdout, cmd.Stderr = &out, &errs
		err := cmd.Run()
		done := (err != nil) == fail
		if !done && time.Now().Before(deadline) {
			continue
		}
		_, werr := os.Stdout.Write(out.Bytes())
		_, werr2 := os.Stderr.Write(errs.Bytes())
		if !done {
			werr = fmt.Errorf("after %v still: %v", statusLimit, err)
		}
		return errors.Join(werr, werr2)
	}
}

func twoNumbers(args []string) (a, b int64, err error) {
	if len(args) != 2 {
		return 0, 0, fmt.Errorf("%d arguments", len(args))
	}
	if a, err = strconv.ParseInt(args[0], 10, 64); err != nil {
		return 0, 0, err
	}
	b, err = strconv.ParseInt(args[1], 10, 64)
	return a, b, err
}
