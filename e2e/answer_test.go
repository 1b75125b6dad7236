package e2e_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// [!] json PATH [VALUE | > NUMBER | < NUMBER] compares a field of the last answer, or says that it is there; json -env NAME PATH
// keeps it. A path is names and indices with dots between them; len is an array's length.
func cmdJSON(s *script, ts *testscript.TestScript, neg bool, args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	keep := ""
	if args[0] == "-env" && len(args) == 3 {
		keep, args = args[1], args[2:]
	}
	value, there, err := lookup(s.answer, args[0])
	if err != nil {
		return err
	}
	if keep != "" && there {
		ts.Setenv(keep, value)
		return nil
	}
	ok := there
	switch {
	case len(args) == 2:
		ok = there && value == args[1]
	case len(args) == 3:
		got, err1 := strconv.ParseFloat(value, 64)
		limit, err2 := strconv.ParseFloat(args[2], 64)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		ok = args[1] == ">" && got > limit || args[1] == "<" && got < limit
	}
	if ok == neg {
		return fmt.Errorf("%s is %q in %s", args[0], value, s.answer)
	}
	return nil
}

// lookup finds a value in JSON; strings come as they are, everything else as JSON.
func lookup(text []byte, path string) (value string, there bool, err error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return "", false, fmt.Errorf("%w in %q", err, text)
	}
	for name := range strings.SplitSeq(path, ".") {
		switch at := v.(type) {
		case map[string]any:
			if v, there = at[name]; !there {
				return "", false, nil
			}
		case []any:
			n, err := strconv.Atoi(name)
			switch {
			case name == "len":
				v = json.Number(strconv.Itoa(len(at)))
			case err != nil || n < 0 || n >= len(at):
				return "", false, nil
			default:
				v = at[n]
			}
		default:
			return "", false, nil
		}
	}
	if s, ok := v.(string); ok {
		return s, true, nil
	}
	b, err := json.Marshal(v)
	return string(b), true, err
}

// problem CODE [FIELD] checks the last answer as an error of RFC 9457 with that code, and a sentence.
func cmdProblem(s *script, _ *testscript.TestScript, neg bool, args []string) error {
	if neg || len(args) < 1 || len(args) > 2 {
		return errUsage
	}
	var p struct {
		Type, Title, Detail, Code, Field string
		Status                           int
	}
	if err := json.Unmarshal(s.answer, &p); err != nil {
		return fmt.Errorf("%w in %q", err, s.answer)
	}
	if p.Code != args[0] || len(args) == 2 && p.Field != args[1] {
		return fmt.Errorf("code %q, field %q; want %q", p.Code, p.Field, args)
	}
	if p.Type == "" || p.Title == "" || p.Status < 400 || !strings.HasSuffix(p.Detail, ".") {
		return fmt.Errorf("not a problem with a sentence: %s", s.answer)
	}
	return nil
}
