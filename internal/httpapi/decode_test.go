package httpapi

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	openapi "berth/api"
	"berth/internal/compute"
)

// FuzzDecode: whatever arrives is read in full or refused as the client's fault, never by a panic.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		`{"name":"x","ssh_key_ids":[1],"memory_mb":512,"storage_gb":5,"ssh_enabled":true,"mount_paths":["/root"],"instance_type":"nano"}`,
		`{"name":"\ud83d\ude00","public_key":"ssh-ed25519 AAAA"}`, `{"ssh_enabled":false}`, `{"port":443,"target_port":8443}`, `{"a":1,"a":2}`, `{}`, `[]`, `null`, ``, `{"":{}}`,
		`{"name":"\ud83d\\ude00"}`, `{"memory_mb":-0}`, `{"memory_mb":1e5}`, ` { "ssh_key_ids" : [ 1 , null ] } `, "{\"name\":\"\xff\"}", `{"mount_paths":[[]]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		before := slices.Clone(text)
		for _, r := range []struct {
			method, route string
			read          func([]byte) (any, error)
		}{
			{"POST", "/compute/containers", readAs[openapi.ContainerRequest]},
			{"POST", "/compute/ssh-keys", readAs[openapi.SSHKeyRequest]},
			{"PUT", "/compute/containers/:id/ssh", readAs[openapi.SSHAccess]},
			{"POST", "/compute/containers/:id/ingress", readAs[openapi.IngressRuleRequest]},
			{"PUT", "/compute/containers/:id/mounts", readAs[openapi.MountPaths]},
			{"POST", "/compute/tokens", readAs[openapi.TokenRequest]},
		} {
			described := describe(r.method, r.route)
			var v any
			err := described.checkBody(text)
			if object, unreadable := decode(text); unreadable == nil {
				if said := theirs(t, r.method+" "+r.route, object); !sameVerdict(err, said) {
					t.Fatalf("%q: %v, kin-openapi: %v", text, err, said)
				}
			}
			if err == nil {
				v, err = r.read(text)
			}
			if err == nil { // and what was read could have been sent
				if err := described.checkBody(encode(v)); err != nil {
					t.Fatalf("%q is read as %s: %v", text, encode(v), err)
				}
				continue
			}
			e := compute.AsError(err)
			if e == nil || e.Code != compute.CodeInvalid {
				t.Fatalf("%q: %v", text, err)
			}
			if encode(newProblem(e)) == nil {
				t.Fatalf("%q: a problem that is not JSON: %+v", text, e)
			}
		}
		if !bytes.Equal(before, text) {
			t.Fatal("the body changed")
		}
	})
}

func readAs[T any](text []byte) (any, error) { return typed[T](text) }

// Bodies of the largest size that are made to cost much, or to be told much of, are refused in few words.
func TestHostileBodies(t *testing.T) {
	repeat := func(before, s, after string) string {
		return before + strings.Repeat(s, (maxBody-len(before)-len(after))/len(s)) + after
	}
	tooDeep := fmt.Sprintf("Values lie over %d deep in one another; nothing here needs that.", maxNesting)
	brackets := func(n int) string { return `{"x":` + strings.Repeat("[", n) + strings.Repeat("]", n) + "}" }
	objects := func(n int) string {
		return strings.Repeat(`{"abcdefgh":`, n) + `{"a":1,"a":2}` + strings.Repeat("}", n)
	}
	for name, tc := range map[string]struct{ body, words string }{
		"as deep as may be": {brackets(maxNesting - 1), `There is no field "x" here; `},
		"too deep":          {brackets(maxNesting), tooDeep},
		"brackets":          {brackets(9999), tooDeep},
		"more brackets":     {brackets(30000), "The body is not valid JSON: invalid character '[' exceeded max depth"},
		"objects":           {objects(4000), tooDeep},
		"a name deep down":  {objects(maxNesting - 1), `The field "abcdefgh.abcdefgh`},
		"huge exponents":    {repeat(`{"ssh_key_ids":[`, "1e999999,", "1]}"), "ssh_key_ids wants whole numbers, "},
		"tiny exponents":    {repeat(`{"ssh_key_ids":[`, "1e-999999,", "1]}"), "ssh_key_ids wants whole numbers, "},
		"many digits":       {repeat(`{"memory_mb":`, "9", "}"), "A number in memory_mb is far out of range."},
		"many zeros":        {repeat(`{"memory_mb":0.`, "0", "1}"), "memory_mb wants whole numbers, "},
		"a name of zeros":   {repeat(`{"`, `\u0000`, `":1}`), `There is no field "\x00\x00`},
		"the same names":    {repeat(`{"a":1`, `,"a":1`, "}"), `The field "a" is there twice.`},
		"nulls":             {repeat(`{"mount_paths":[null`, ",null", "]}"), "mount_paths is an array of strings; number 1 in it is null."},
		"NaN":               {`{"memory_mb":NaN}`, "The body is not valid JSON: "},
		"Infinity":          {`{"memory_mb":-Infinity}`, "The body is not valid JSON: "},
		"half a character":  {`"\ud800"`, `The body has a \u escape`},
	} {
		e := compute.AsError(describe("POST", "/compute/containers").checkBody([]byte(tc.body)))
		if e == nil || e.Code != compute.CodeInvalid || !strings.HasPrefix(e.Message, tc.words) || len(e.Field) > 200 || len(e.Message) > 500 {
			t.Errorf("%s: %+v", name, e)
		}
	}
}
