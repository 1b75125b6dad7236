package auth

import "testing"

// What each kind of token costs a request, with the database.
func BenchmarkVerify(b *testing.B) {
	w, i := newWorld(b), newIssuer(b)
	own, _ := w.issue(ScopeAll)
	key := rsaKey(b, 2048)
	i.publish(named(key))
	k := signer(b, newKey(b))
	w.register(w.bob, k.PublicKey())
	all, err := NewVerifiers(w.own, w.sshSigned(), w.shared(nil), w.provider(i, nil))
	if err != nil {
		b.Fatal(err)
	}
	for kind, token := range map[Kind]string{
		KindToken: own, KindShared: w.session(nil), KindOIDC: i.token(w, key, "k1", nil), KindSSH: sshSign(b, k, SSHNamespace, w.signedClaims()),
	} {
		b.Run(string(kind), func(b *testing.B) {
			for b.Loop() {
				if _, err := all.Verify(b.Context(), token); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
