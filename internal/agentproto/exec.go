package agentproto

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// RequestExec asks of a session to run a program as it is named, where RFC 4254's exec has a line for a shell. Its payload is
// an Exec. Agents from before it refuse it.
const RequestExec = "exec@berth"

// Exec is a program to run.
type Exec struct {
	Argv []string `json:"argv"`          // the program, a path or a name to find in PATH, and its arguments
	Env  []string `json:"env,omitempty"` // NAME=value, over what the account has
	Dir  string   `json:"dir,omitempty"` // where it begins: absolute; empty: the account's home
}

// Encode returns e as a payload.
func (e Exec) Encode() ([]byte, error) {
	if err := e.check(); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	j := json.NewEncoder(&b)
	j.SetEscapeHTML(false) // it would be five bytes more for each
	if err := j.Encode(e); err != nil {
		return nil, err
	}
	if b.Len() > MaxRequest {
		return nil, fmt.Errorf("a command of %d bytes is too long", b.Len())
	}
	return b.Bytes(), nil
}

// DecodeExec reads a payload.
func DecodeExec(b []byte) (Exec, error) {
	var e Exec
	if err := json.Unmarshal(b, &e); err != nil {
		return Exec{}, fmt.Errorf("%w: exec: %w", errFrame, err)
	}
	if err := e.check(); err != nil {
		return Exec{}, fmt.Errorf("%w: exec: %w", errFrame, err)
	}
	return e, nil
}

// check refuses what the kernel could not be told.
func (e Exec) check() error {
	if len(e.Argv) == 0 || e.Argv[0] == "" {
		return errors.New("there is no program")
	}
	for _, list := range [][]string{e.Argv, e.Env, {e.Dir}} {
		for _, s := range list {
			if strings.Contains(s, "\x00") {
				return errors.New("there is a NUL")
			}
		}
	}
	for _, setting := range e.Env {
		if strings.IndexByte(setting, '=') < 1 {
			return errors.New("a variable has no name")
		}
	}
	if e.Dir != "" && !strings.HasPrefix(e.Dir, "/") {
		return errors.New("the directory is not absolute")
	}
	return nil
}
