package agentproto

import (
	"errors"
	"reflect"
	"testing"
)

func FuzzDecodeLogs(f *testing.F) {
	for _, s := range []string{`{}`, `{"tail":0}`, `{"tail":100,"follow":true}`, `{"tail":-1}`, `{"tail":1e99}`, `[]`, ``, `null`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := DecodeLogs(b)
		if err != nil {
			if !errors.Is(err, errFrame) || !reflect.DeepEqual(l, Logs{}) {
				t.Fatalf("%q: %+v, %v", b, l, err)
			}
			return
		}
		if l.Tail != nil && *l.Tail < 0 {
			t.Fatalf("%q: %d lines", b, *l.Tail)
		}
		again, err := l.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if same, err := DecodeLogs(again); err != nil || !reflect.DeepEqual(same, l) {
			t.Fatalf("%q: %+v, %v", b, same, err)
		}
	})
}
