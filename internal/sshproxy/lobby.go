package sshproxy

import (
	"bytes"
	"io"

	gossh "golang.org/x/crypto/ssh"

	"berth/internal/compute"
	"berth/internal/route"
)

// maxLobbyCommand bounds what is typed in the lobby.
const maxLobbyCommand = 4096

// serveLobby runs one command on the apex.
func (s *sessionChannel) serveLobby(id identity, login route.Login) {
	p, err := s.g.principal(s.ctx, login, id.key)
	if err == nil && s.g.o.Lobby == nil {
		err = compute.Errorf(compute.CodeUnavailable, "There is no lobby here; log in with ssh <id>@%s.", s.g.o.Zone)
	}
	if err != nil {
		s.audit.refused(err)
		s.refuse(err)
		return
	}
	command, ok := s.awaitCommand()
	if !ok {
		return
	}
	s.audit.opened("lobby")
	s.c.wg.Go(s.answerAll)
	status := make(chan int, 1)
	s.c.wg.Go(func() {
		status <- s.g.o.Lobby(s.ctx, LobbySession{
			Principal: p, Login: login.User, Command: command, Terminal: s.pty.Load(), Stdin: s.input,
			Stdout: s.terminalWriter(s.ch), Stderr: s.terminalWriter(stderrWriter{s}),
		})
	})
	select {
	case code := <-status:
		if s.ctx.Err() == nil {
			s.exit(uint32(code))
			return
		}
	case <-s.ctx.Done():
	}
	s.stop() // whatever the command made of it
}

// awaitCommand answers requests until the client asks for a shell (the empty command) or a command.
func (s *sessionChannel) awaitCommand() (command string, ok bool) {
	for {
		r := s.queue.next(s.ctx.Done())
		if r == nil {
			return "", false
		}
		switch r.Type {
		case "pty-req":
			s.pty.Store(true)
			_ = r.Reply(true, nil)
		case "shell":
			_ = r.Reply(true, nil)
			return "", true
		case "exec":
			var exec struct{ Command string }
			if err := gossh.Unmarshal(r.Payload, &exec); err != nil || len(exec.Command) > maxLobbyCommand {
				_ = r.Reply(false, nil)
				continue
			}
			_ = r.Reply(true, nil)
			return exec.Command, true
		case "subsystem":
			// sftp and scp end here. A client whose request failed leaves before it shows what else it was told.
			_ = r.Reply(true, nil)
			s.fail(compute.Errorf(compute.CodeInvalid,
				"The lobby has no files; name a container, as in sftp <id>@%s.", s.g.o.Zone))
			return "", false
		default:
			_ = r.Reply(false, nil)
		}
	}
}

// answerAll refuses what a client asks for while its command runs.
func (s *sessionChannel) answerAll() {
	for {
		r := s.queue.next(s.ctx.Done())
		if r == nil {
			return
		}
		_ = r.Reply(false, nil)
	}
}

// terminalWriter returns w, or w with line ends that a terminal in raw mode needs.
func (s *sessionChannel) terminalWriter(w io.Writer) io.Writer {
	if s.pty.Load() {
		return crlfWriter{w}
	}
	return w
}

// crlfWriter ends lines with CR LF.
type crlfWriter struct{ w io.Writer }

func (c crlfWriter) Write(p []byte) (int, error) {
	if _, err := c.w.Write(bytes.ReplaceAll(p, []byte("\n"), []byte("\r\n"))); err != nil {
		return 0, err
	}
	return len(p), nil
}
