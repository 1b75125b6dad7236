package httpapi

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	openapi "berth/api"
	"berth/internal/auth"
	"berth/internal/compute"
	"berth/internal/session"
)

// cell is a running container of ada's, with SSH on, in which commands run.
type cell struct {
	*api
	*machine
	id   compute.ContainerID
	path string // of exec
}

func newCell(t *testing.T, edits ...func(*Config)) *cell {
	t.Helper()
	m, edit := withMachine(t)
	a := newAPI(t, func(c *Config) {
		edit(c)
		for _, e := range edits {
			e(c)
		}
	})
	var c container
	key := a.addKey(a.adaToken, "laptop")
	a.do("POST", "/compute/containers", a.adaToken, fmt.Sprintf(`{"name":"x","ssh_key_ids":[%d],"ssh_enabled":true}`, key)).into(t, 201, &c)
	a.await(a.adaToken, c.ID, compute.StatusRunning)
	return &cell{a, m, c.ID, "/compute/containers/" + string(c.ID) + "/exec"}
}

// commandBody is the body that runs argv.
func commandBody(argv ...string) string { return string(encode(map[string]any{"command": argv})) }

// background runs a shell's line, which must write its pid to the file pid, and returns its answer when there is one.
func (c *cell) background(token, line string, more string) (pid int, answer <-chan reply) {
	c.t.Helper()
	fifo := filepath.Join(c.dir, "pid")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		c.t.Fatal(err)
	}
	defer os.Remove(fifo)
	answers := make(chan reply, 1)
	body := fmt.Sprintf(`{"command": ["sh", "-c", %q]%s}`, "echo $$ >"+fifo+"; "+line, more)
	go func() { answers <- c.do("POST", c.path, token, body) }()
	return readPID(c.t, fifo), answers
}

// readPID reads what a command writes to a fifo.
func readPID(t *testing.T, fifo string) (pid int) {
	t.Helper()
	f, err := os.OpenFile(fifo, os.O_RDWR, 0) // does not wait for a writer (fifo(7))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fscanln(f, &pid); err != nil {
		t.Fatalf("no command began: %v", err)
	}
	return pid
}

// ended waits until a process is no more.
func ended(t *testing.T, pid int) {
	t.Helper()
	fd, err := pidfd(pid)
	if err != nil {
		return // it is reaped already
	}
	defer syscall.Close(fd)
	if err := awaitReadable(fd, patience); err != nil {
		t.Fatalf("process %d goes on: %v", pid, err)
	}
}

func TestExec(t *testing.T) {
	c := newCell(t)
	big := strings.Repeat("é", maxOutput)
	for body, want := range map[string]openapi.ExecResult{
		commandBody("sh", "-c", "echo out; echo err >&2; exit 3"): {ExitCode: 3, Stdout: "out\n", Stderr: "err\n"},
		commandBody("printf", "%s,", "a b", "$HOME", "*"):         {Stdout: "a b,$HOME,*,"},
		commandBody("nowhere"):                                    {ExitCode: 127, Stderr: "berth: nowhere: not found\n"},
		commandBody("sh", "-c", "kill -SEGV $$"):                  {ExitCode: 139, Signal: "SEGV"},
		`{"command":["cat"],"stdin":"in\u0000é"}`:                 {Stdout: "in\x00é"},
		`{"command":["cat"],"stdin":null,"env":null,"user":null,"working_directory":null,"timeout_seconds":null}`: {},
		`{"command":["sh","-c","echo $A; pwd"],"env":["A=b=c"],"working_directory":"/usr","user":"root"}`:         {Stdout: "b=c\n/usr\n"},
		commandBody("printf", `a\377b`): {Stdout: "a\ufffdb", StdoutBase64: base64.StdEncoding.EncodeToString([]byte("a\xffb"))},
		commandBody("printf", `\377`):   {Stdout: "\ufffd", StdoutBase64: "/w=="},
		`{"command":["sh","-c","printf x; cat; cat /dev/zero | head -c 3000000 | tr '\\0' y >&2"],"stdin":"` + big[:60_000] + `"}`: {
			Stdout: "x" + big[:60_000], Stderr: strings.Repeat("y", maxOutput), Truncated: true,
		},
		commandBody("sh", "-c", "printf x; yes é | tr -d '\\n' | head -c 1000000"): {Stdout: "x" + big[:maxOutput-2], Truncated: true},
	} {
		var got openapi.ExecResult
		c.do("POST", c.path, c.adaToken, body).into(t, 200, &got)
		if got != want {
			t.Errorf("%.200s: %+.300v, want %+.300v", body, got, want)
		}
	}
}

func TestExecBadInput(t *testing.T) {
	c := newCell(t)
	many := func(n int) string { return strings.TrimSuffix(strings.Repeat(`"A=b",`, n), ",") }
	for body, field := range map[string]string{
		`{}`: "command", `{"command":[]}`: "command", `{"command":[""]}`: "command", `{"command":"ls"}`: "command",
		`{"command":["a\u0000"]}`: "command", `{"command":[1]}`: "command", `{"command":[` + many(maxArguments+1) + `]}`: "command",
		`{"command":["true"],"env":["A"]}`: "env", `{"command":["true"],"env":["=b"]}`: "env", `{"command":["true"],"env":["A=\u0000"]}`: "env",
		`{"command":["true"],"env":[` + many(maxVariables+1) + `]}`: "env", `{"command":["true"],"env":{"A":"b"}}`: "env",
		`{"command":["true"],"user":""}`: "user", `{"command":["true"],"user":"mallory"}`: "user",
		`{"command":["true"],"user":"` + strings.Repeat("a", maxAccountName+1) + `"}`: "user",
		`{"command":["true"],"working_directory":""}`:                                 "working_directory",
		`{"command":["true"],"working_directory":"srv"}`:                              "working_directory",
		`{"command":["true"],"working_directory":"/\u0000"}`:                          "working_directory",
		`{"command":["true"],"timeout_seconds":0}`:                                    "timeout_seconds",
		`{"command":["true"],"timeout_seconds":901}`:                                  "timeout_seconds",
		`{"command":["true"],"timeout_seconds":9223372036854775807}`:                  "timeout_seconds",
		`{"command":["true"],"tty":true}`:                                             "tty",
	} {
		c.do("POST", c.path, c.adaToken, body).isProblem(t, 400, compute.CodeInvalid, field)
	}
	c.do("POST", c.path, c.adaToken, `{"command":["cat"],"stdin":"`+strings.Repeat("x", maxBody)+`"}`).isProblem(t, 413, compute.CodeTooLarge, "")
}

// Nobody runs anything where SSH would not let them in, nor in what is not theirs.
func TestExecIsAWayIn(t *testing.T) {
	c := newCell(t)
	box := "/compute/containers/" + string(c.id)
	c.do("POST", c.path, c.bobToken, commandBody("true")).isProblem(t, 404, compute.CodeNotFound, "")
	for _, scope := range []auth.Scope{auth.ScopeContainersRead, auth.ScopeContainersWrite, auth.ScopeAdmin} {
		token, err := c.tokens.Issue(c.ada, time.Hour, scope)
		if err != nil {
			t.Fatal(err)
		}
		c.do("POST", c.path, token, commandBody("true")).isProblem(t, 403, compute.CodeForbidden, "")
	}
	c.do("PUT", box+"/ssh", c.adaToken, `{"ssh_enabled":false}`).into(t, 200, &openapi.SSHAccess{})
	c.do("POST", c.path, c.adaToken, commandBody("true")).isProblem(t, 409, compute.CodeSSHDisabled, "")
	c.do("PUT", box+"/ssh", c.adaToken, `{"ssh_enabled":true}`).into(t, 200, &openapi.SSHAccess{})
	c.do("POST", box+"/stop", c.adaToken, "").into(t, 200, &container{})
	c.await(c.adaToken, c.id, compute.StatusStopped)
	c.do("POST", c.path, c.adaToken, commandBody("true")).isProblem(t, 409, compute.CodeNotRunning, "")
}

// That a command was let in is written down when it begins, whatever becomes of it; and what it fails with, after that.
func TestExecIsAudited(t *testing.T) {
	c := newCell(t)
	_, answer := c.background(c.adaToken, "exec sleep 1000", "")
	begun := "ada execCommand " + string(c.id) + " allowed"
	c.expectAudit(c.adaToken, "?action=execCommand", begun)
	c.do("PUT", "/compute/containers/"+string(c.id)+"/ssh", c.adaToken, `{"ssh_enabled":false}`).into(t, 200, &openapi.SSHAccess{})
	(<-answer).isProblem(t, 409, compute.CodeSSHDisabled, "")
	c.expectAudit(c.adaToken, "?action=execCommand&after=0", begun, "ada execCommand "+string(c.id)+" denied ssh_disabled")
}

// What takes away the right to be in there ends the command too, and so does the client that leaves.
func TestExecEnds(t *testing.T) {
	for name, tc := range map[string]struct {
		end    func(c *cell, token string)
		status int
		code   compute.Code
	}{
		"SSH off": {func(c *cell, _ string) {
			c.do("PUT", "/compute/containers/"+string(c.id)+"/ssh", c.adaToken, `{"ssh_enabled":false}`)
		}, 409, compute.CodeSSHDisabled},
		"deleted": {func(c *cell, _ string) {
			c.do("DELETE", "/compute/containers/"+string(c.id), c.adaToken, "")
		}, 404, compute.CodeNotFound},
		"stopped": {func(c *cell, _ string) {
			c.do("POST", "/compute/containers/"+string(c.id)+"/stop", c.adaToken, "")
		}, 409, compute.CodeNotRunning},
		"revoked": {func(c *cell, token string) {
			g, err := c.server.verifier.Verify(c.t.Context(), token)
			if err != nil {
				c.t.Fatal(err)
			}
			c.do("DELETE", "/compute/tokens/"+g.TokenID, c.adaToken, "")
		}, 401, compute.CodeUnauthenticated},
		"disabled": {func(c *cell, _ string) {
			if _, err := c.store.SetUserDisabled(c.t.Context(), c.ada.ID, true); err != nil {
				c.t.Fatal(err)
			}
		}, 401, compute.CodeUnauthenticated},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCell(t)
			token, err := c.tokens.Issue(c.ada, time.Hour, auth.ScopeContainersExec)
			if err != nil {
				t.Fatal(err)
			}
			pid, answer := c.background(token, "exec sleep 1000", "")
			tc.end(c, token)
			(<-answer).isProblem(t, tc.status, tc.code, "")
			ended(t, pid)
		})
	}
	t.Run("expired", func(t *testing.T) {
		c := newCell(t, shortLived(2*time.Second))
		pid, answer := c.background(c.adaToken, "exec sleep 1000", "")
		(<-answer).isProblem(t, 401, compute.CodeUnauthenticated, "")
		ended(t, pid)
	})
	t.Run("timed out", func(t *testing.T) {
		c := newCell(t)
		pid, answer := c.background(c.adaToken, "echo began; trap 'echo told; exit 5' TERM; while :; do sleep 0.1; done", `, "timeout_seconds": 1`)
		var got openapi.ExecResult
		(<-answer).into(t, 200, &got)
		got.Stderr = "" // where the shell may tell of sleep's end
		if want := (openapi.ExecResult{ExitCode: 5, Stdout: "began\ntold\n", TimedOut: true}); got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
		ended(t, pid)
	})
}

// shortLived has every token expire some time after each of its uses.
func shortLived(ttl time.Duration) func(*Config) {
	return withMood(func(_ int64, g auth.Grant) (auth.Grant, error) {
		g.Expires = time.Now().Add(ttl)
		return g, nil
	})
}

func TestExecClientLeaves(t *testing.T) {
	for name, leave := range map[string]func(net.Conn){
		"closes": func(c net.Conn) { c.Close() },
		"resets": func(c net.Conn) {
			_ = c.(*net.TCPConn).SetLinger(0)
			c.Close()
		},
		"is heard no more": func(c net.Conn) { _ = c.(*net.TCPConn).CloseWrite() },
		"has sent ahead": func(c net.Conn) {
			_, _ = c.Write([]byte("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"))
			c.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCell(t)
			fifo := filepath.Join(c.dir, "pid")
			if err := syscall.Mkfifo(fifo, 0o600); err != nil {
				t.Fatal(err)
			}
			nc := c.dial()
			body := commandBody("sh", "-c", "echo $$ >"+fifo+"; exec sleep 1000")
			if _, err := fmt.Fprintf(nc, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\n"+
				"Content-Length: %d\r\n\r\n%s", c.path, c.adaToken, len(body), body); err != nil {
				t.Fatal(err)
			}
			pid := readPID(t, fifo)
			leave(nc)
			ended(t, pid)
			c.until("the client left")
		})
	}
}

// A connection that a command was watched on is as good as any other after it, for what was sent ahead too.
func TestExecKeepsTheConnection(t *testing.T) {
	c := newCell(t)
	nc := c.dial()
	body := commandBody("cat")
	one := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		c.path, c.adaToken, len(body), body)
	if _, err := nc.Write([]byte(one + one + "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	answers, err := readReplies(nc, 3)
	if err != nil || answers[0].status != 200 || answers[1].status != 200 || answers[2].body != "ok" {
		t.Errorf("%+v, %v", answers, err)
	}
}

func TestExecIsBounded(t *testing.T) {
	c := newCell(t)
	for range maxRunsPerUser {
		leave, err := c.server.runs.reserve(c.ada.ID)
		if err != nil {
			t.Fatal(err)
		}
		defer leave()
	}
	c.do("POST", c.path, c.adaToken, commandBody("true")).isProblem(t, 429, codeTooMany, "")
	c.do("POST", c.path, c.bobToken, commandBody("true")).isProblem(t, 404, compute.CodeNotFound, "")
}

// What is not cut is left as it is, and what is cut loses no more than a part of a character.
func FuzzText(f *testing.F) {
	for _, s := range []string{"", "a", "é", "\xc3", "a\xc3", "\xf0\x9f\x98", "\xff", "\x80\x80\x80\x80"} {
		f.Add([]byte(s), true)
		f.Add([]byte(s), false)
	}
	f.Fuzz(func(t *testing.T, b []byte, truncated bool) {
		plain, exact := text(session.Output{Bytes: b, Truncated: truncated})
		if exact != "" {
			got, err := base64.StdEncoding.DecodeString(exact)
			if err != nil || string(got) != string(b) {
				t.Fatalf("%q comes as %q", b, got)
			}
		} else if !strings.HasPrefix(string(b), plain) || len(b)-len(plain) > 3 || !truncated && plain != string(b) {
			t.Fatalf("%q comes as %q", b, plain)
		}
		if _, err := json.Marshal(plain); err != nil || strings.ToValidUTF8(plain, "") != plain {
			t.Fatalf("%q comes as %q: %v", b, plain, err)
		}
	})
}
