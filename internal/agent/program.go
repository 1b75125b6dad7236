package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// shellPath is the account's login shell.
func (a account) shellPath() string {
	if a.shell == "" {
		return "/bin/sh" // passwd(5)
	}
	return a.shell
}

var errNoLogin = errors.New("this account is not for logging in")

// mayLogIn is false for an account whose shell turns people away (nologin(8)), also where that program is missing.
func (a account) mayLogIn() bool {
	switch filepath.Base(a.shellPath()) {
	case "nologin", "false":
		return false
	}
	return true
}

// shellLess says whether the account may run programs without the shell that it names, because it names none in
// particular, or is root. Any other shell may be there to keep its user from just that.
func (a account) shellLess() bool {
	return a.uid == 0 || a.shellPath() == "/bin/sh"
}

// program chooses what a line means for the account: its shell as a login shell without a line, else its shell for the
// line; in an image without a shell the line's words are a program and its arguments.
func (a account) program(line string, exec bool, path string) (command, error) {
	shell := a.shellPath()
	switch {
	case isProgram(shell):
	case !a.mayLogIn():
		return command{}, errNoLogin
	case !a.shellLess():
		return command{}, fmt.Errorf("the account's shell %s is not in the container", shell)
	case isProgram("/bin/sh"):
		shell = "/bin/sh"
	case !exec:
		return command{}, fmt.Errorf("there is no shell %s in this container; name a program to run", shell)
	default:
		return bare(line, path)
	}
	base := filepath.Base(shell)
	if exec {
		return command{path: shell, argv: []string{base, "-c", line}}, nil
	}
	return command{path: shell, argv: []string{"-" + base}}, nil
}

// bare is a line for an image without a shell.
func bare(line, path string) (command, error) {
	words, err := splitWords(line)
	if err != nil {
		return command{}, err
	}
	if len(words) == 0 {
		return command{}, errors.New("there is no command to run")
	}
	found, err := lookPath(words[0], path)
	return command{path: found, argv: words}, err
}

// splitWords splits a line as a shell would, with its quotes and backslashes, but expands nothing.
func splitWords(line string) (words []string, err error) {
	var word strings.Builder
	var quote rune
	inWord, escaped := false, false
	for _, r := range line {
		switch {
		case escaped:
			if quote == '"' && !strings.ContainsRune("\"\\$`", r) {
				word.WriteByte('\\')
			}
			word.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			escaped, inWord = true, true
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '\'' || r == '"':
			quote, inWord = r, true
		case r == ' ' || r == '\t' || r == '\n':
			if inWord {
				words = append(words, word.String())
				word.Reset()
				inWord = false
			}
		default:
			word.WriteRune(r)
			inWord = true
		}
	}
	if quote != 0 || escaped {
		return nil, errors.New("the command ends within quotes")
	}
	if inWord {
		words = append(words, word.String())
	}
	return words, nil
}

// isProgram says whether path is a file that can be run.
func isProgram(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
}

// lookPath finds name in the directories of a PATH.
func lookPath(name, dirs string) (string, error) {
	if strings.Contains(name, "/") {
		if isProgram(name) {
			return name, nil
		}
		return "", fmt.Errorf("%s: not found", name)
	}
	for dir := range strings.SplitSeq(dirs, ":") {
		if p := filepath.Join(dir, name); name != "" && isProgram(p) {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s: not found", name)
}
