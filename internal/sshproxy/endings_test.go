package sshproxy

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"berth/internal/compute"
)

// TestHangUp ends a client's connection under a running command, which must get SIGHUP.
func TestHangUp(t *testing.T) {
	h := newHarbour(t, Options{})
	mark := filepath.Join(t.TempDir(), "hup")
	if err := syscall.Mkfifo(mark, 0o600); err != nil {
		t.Fatal(err)
	}
	c := h.login(t)
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start("exec 2>/dev/null; trap 'echo hup > " + mark + "; exit' HUP; echo ready; while :; do sleep 0.05; done"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
		t.Fatal(err)
	}
	c.Close()
	within(t, 10*time.Second, "SIGHUP", func() {
		if b, err := os.ReadFile(mark); err != nil || string(b) != "hup\n" { // opens when the command does
			t.Errorf("%q, %v", b, err)
		}
	})
}

func TestLossOfTheContainer(t *testing.T) {
	h := newHarbour(t, Options{})
	e := endOfSession(t, h.login(t), "echo here; sleep 1000", func() { h.machines.stop("aaaaaaaa") })
	e.check(t, "The connection to the container was lost")
	h.machines.start("aaaaaaaa")
	defer h.machines.stop("aaaaaaaa")
	if out, errs, code := h.stock.run("", "aaaaaaaa@"+zone, "echo again"); out != "again\n" || code != 0 {
		t.Errorf("after a restart: %q, %q, %d", out, errs, code)
	}
}

func TestRevocation(t *testing.T) {
	for what, tt := range map[string]struct {
		revoke func(h *harbour) error
		want   string
	}{
		"key":  {func(h *harbour) error { return h.DeleteKey(h.t.Context(), h.alice, h.keyID) }, "opens it no more"},
		"SSH":  {func(h *harbour) error { _, err := h.SetSSH(h.t.Context(), h.alice, "aaaaaaaa", false); return err }, "SSH is off for container aaaaaaaa"},
		"user": {func(h *harbour) error { _, err := h.SetUserDisabled(h.t.Context(), h.alice, true); return err }, "opens it no more"},
		"stop": {
			func(h *harbour) error {
				_, err := h.SetDesired(h.t.Context(), h.alice, "aaaaaaaa", compute.DesiredStopped)
				return err
			}, "stopped by its owner",
		},
		"delete": {
			func(h *harbour) error {
				_, err := h.SetDesired(h.t.Context(), h.alice, "aaaaaaaa", compute.DesiredDeleted)
				return err
			}, "opens it no more",
		},
	} {
		t.Run(what, func(t *testing.T) {
			h := newHarbour(t, Options{})
			var other *gossh.Client
			if what != "key" && what != "user" {
				other = h.dial(t, "bbbbbbbb", h.key)
			}
			c := h.login(t)
			e := endOfSession(t, c, "echo here; sleep 1000", func() {
				if err := tt.revoke(h); err != nil {
					t.Fatal(err)
				}
			})
			e.check(t, tt.want)
			within(t, 2*time.Second, "the connection closes", func() { _ = c.Wait() })
			if other == nil {
				return
			}
			s, err := other.NewSession()
			if err != nil {
				t.Fatal(err)
			}
			if out, err := s.Output("echo $CONTAINER"); err != nil || string(out) != "bbbbbbbb\n" {
				t.Errorf("another container: %q, %v", out, err)
			}
		})
	}
}

// TestChannelsAreAuthorizedAnew takes the key away from a gateway that hears of no changes.
func TestChannelsAreAuthorizedAnew(t *testing.T) {
	w := newWorld(t)
	key := newKey(t)
	alice := w.user("alice")
	id := w.key(alice, key)
	w.container("aaaaaaaa", alice, id)
	g := startGateway(t, Options{Directory: w})
	c := g.dial(t, "aaaaaaaa", key)
	if err := w.DeleteKey(t.Context(), alice, id); err != nil {
		t.Fatal(err)
	}
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var stderr bytes.Buffer
	s.Stderr = &stderr
	var exit *gossh.ExitError
	if err := s.Run("true"); !errors.As(err, &exit) || exit.ExitStatus() != 255 || !strings.Contains(stderr.String(), "opens it no more") {
		t.Errorf("%v, %q", err, &stderr)
	}
}

func TestForwardingIsRefusedWithWords(t *testing.T) {
	h := newHarbour(t, Options{})
	_, errs, _ := h.stock.run("", "-o", "LogLevel=INFO", "-W", "127.0.0.1:80", "aaaaaaaa@"+zone)
	if !strings.Contains(errs, "forwarding into a container (-L, -D, -W) is not offered yet") {
		t.Errorf("-W: %q", errs)
	}
	_, errs, code := h.stock.run("", "-R", "8080:127.0.0.1:80", "aaaaaaaa@"+zone, "true")
	if !strings.Contains(errs, "remote forwarding (-R) is not offered yet") || code != 0 {
		t.Errorf("-R: %q, %d", errs, code)
	}
	c := h.login(t)
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var stderr bytes.Buffer
	s.Stderr = &stderr
	for _, kind := range []string{"auth-agent-req@openssh.com", "x11-req", "winadj@putty.projects.tartarus.org", "x"} {
		if ok, err := s.SendRequest(kind, true, nil); ok || err != nil {
			t.Errorf("%s: %v, %v", kind, ok, err)
		}
	}
	if err := s.Run("sleep 0.3"); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"agent forwarding (-A) is not offered yet", "X11 forwarding (-X) is not offered yet"} {
		if strings.Count(stderr.String(), want) != 1 {
			t.Errorf("stderr is %q, want %q", &stderr, want)
		}
	}
}
