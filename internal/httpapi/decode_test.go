package httpapi

import (
	"bytes"
	"slices"
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
