package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"berth/internal/agentproto"
)

// exec runs a program as the gateway names it: no shell reads it, and the account's own need not allow it, since this comes
// from the container's owner by way of the API and from no client of SSH. Variables win over all others.
func (s *session) exec(payload []byte) error {
	m, err := agentproto.DecodeExec(payload)
	if err != nil {
		return err
	}
	env := environ(s.environ())
	for _, setting := range m.Env {
		name, value, _ := strings.Cut(setting, "=")
		env.set(name, value)
	}
	if m.Dir != "" {
		if st, err := os.Stat(m.Dir); err != nil || !st.IsDir() {
			return s.fail(fmt.Errorf("there is no directory %s", m.Dir))
		}
	}
	name := m.Argv[0]
	if strings.Contains(name, "/") && !filepath.IsAbs(name) { // from where it will run, not from where the agent does
		dir := m.Dir
		if dir == "" {
			dir = s.client.home
		}
		name = filepath.Join("/", dir, name)
	}
	path, err := lookPath(name, env.value("PATH"))
	if err != nil {
		return s.fail(fmt.Errorf("%s: not found", m.Argv[0]))
	}
	return s.launch(command{path: path, argv: m.Argv, env: env, dir: m.Dir})
}
