package agentproto

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

func TestExecs(t *testing.T) {
	for _, e := range []Exec{
		{Argv: []string{"true"}},
		{Argv: []string{"/bin/echo", "", "<&>'\"\\ \n", "é"}, Env: []string{"A=", "B=x=y"}, Dir: "/srv/a b"},
	} {
		b, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := DecodeExec(b); err != nil || !reflect.DeepEqual(got, e) {
			t.Errorf("%+v, %v; want %+v", got, err, e)
		}
	}
	for _, e := range []Exec{
		{},
		{Argv: []string{""}},
		{Argv: []string{"a\x00"}},
		{Argv: []string{"a"}, Env: []string{"x"}},
		{Argv: []string{"a"}, Env: []string{"=x"}},
		{Argv: []string{"a"}, Env: []string{"A=\x00"}},
		{Argv: []string{"a"}, Dir: "srv"},
		{Argv: []string{"a"}, Dir: "/\x00"},
		{Argv: []string{strings.Repeat("a", MaxRequest)}},
	} {
		if b, err := e.Encode(); err == nil {
			t.Errorf("encoded as %.100s", b)
		}
	}
}

func FuzzDecodeExec(f *testing.F) {
	for _, s := range []string{`{"argv":["true"]}`, `{"argv":["a","b"],"env":["A=b"],"dir":"/"}`, `{}`, `[]`, ``, `{"argv":[null]}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := DecodeExec(b)
		if err != nil {
			if !errors.Is(err, errFrame) || !reflect.DeepEqual(e, Exec{}) {
				t.Fatalf("%q: %+v, %v", b, e, err)
			}
			return
		}
		if e.Argv[0] == "" || strings.Contains(strings.Join(append(e.Env, e.Argv...), "")+e.Dir, "\x00") {
			t.Fatalf("%q: %+v", b, e)
		}
	})
}
