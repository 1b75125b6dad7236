package agent_test

import (
	"strings"
	"testing"

	"berth/internal/agentproto"
)

// program runs a program as a gateway names it, and returns its output, its stderr and how it ended.
func program(t *testing.T, conn *agentproto.Conn, user string, e agentproto.Exec) (out, errs, how string) {
	t.Helper()
	payload, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	s := openAs(t, conn, user)
	if ok, err := s.Request(within(t), agentproto.RequestExec, true, payload); err != nil || !ok {
		t.Fatalf("%v: %v, %v", e.Argv, ok, err)
	}
	if err := s.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	return s.end()
}

// A program gets its arguments as they are, the variables over all others, and its directory.
func TestExecAsNamed(t *testing.T) {
	conn := dial(t)
	for _, tc := range []struct {
		e              agentproto.Exec
		out, errs, how string
	}{
		{agentproto.Exec{Argv: []string{"printf", "%s|", "a b", "", "$HOME", "'\"", "*", "\n"}}, "a b||$HOME|'\"|*|\n|", "", "exit 0"},
		{agentproto.Exec{Argv: []string{"sh", "-c", "echo $USER $A $HOME; pwd"}, Env: []string{"A=x=y", "HOME=/var"}, Dir: "/usr"}, "root x=y /var\n/usr\n", "", "exit 0"},
		{agentproto.Exec{Argv: []string{"env"}, Env: []string{"PATH=/nowhere"}}, "", "berth: env: not found\n", "exit many"},
		{agentproto.Exec{Argv: []string{"./sh", "-c", "exit 4"}, Dir: "/bin"}, "", "", "exit 4"},
		{agentproto.Exec{Argv: []string{"sh", "-c", "kill -KILL $$"}}, "", "", "KILL"},
		{agentproto.Exec{Argv: []string{"nowhere"}}, "", "berth: nowhere: not found\n", "exit many"},
		{agentproto.Exec{Argv: []string{"true"}, Dir: "/nowhere"}, "", "berth: there is no directory /nowhere\n", "exit many"},
		{agentproto.Exec{Argv: []string{"true"}, Dir: "/bin/sh"}, "", "berth: there is no directory /bin/sh\n", "exit many"},
	} {
		if out, errs, how := program(t, conn, "root", tc.e); out != tc.out || errs != tc.errs || how != tc.how {
			t.Errorf("%+v: %q, %q, %s; want %q, %q, %s", tc.e, out, errs, how, tc.out, tc.errs, tc.how)
		}
	}
}

// One session runs one program, and what is malformed none.
func TestExecRefused(t *testing.T) {
	conn := dial(t)
	s := openAs(t, conn, "root")
	for _, payload := range []string{"", "{}", `{"argv":[]}`, `{"argv":["true"],"dir":"x"}`, strings.Repeat("[", 1000)} {
		if ok, err := s.Request(within(t), agentproto.RequestExec, true, []byte(payload)); err != nil || ok {
			t.Errorf("%.20q: %v, %v", payload, ok, err)
		}
	}
	for _, want := range []bool{true, false} {
		if ok, err := s.Request(within(t), agentproto.RequestExec, true, []byte(`{"argv":["cat"]}`)); err != nil || ok != want {
			t.Errorf("%v, %v, want %v", ok, err, want)
		}
	}
}
