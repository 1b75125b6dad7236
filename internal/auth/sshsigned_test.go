package auth

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"

	"berth/internal/compute"
)

func (w *world) sshSigned() *SSHSigned {
	s := NewSSHSigned(zone, w.store)
	s.now = w.clock.now
	return s
}

// signedClaims is the text of claims that verify.
func (w *world) signedClaims() string {
	return fmt.Sprintf(`{"aud":%q,"exp":%d,"jti":"0123456789abcdef","scope":"containers:read keys:read"}`, zone, w.clock.in(time.Hour))
}

func TestSSHSigned(t *testing.T) {
	w := newWorld(t)
	s := w.sshSigned()
	for name, key := range map[string]any{
		"ed25519": newKey(t), "ecdsa 256": ecKey(t, elliptic.P256()), "ecdsa 384": ecKey(t, elliptic.P384()),
		"ecdsa 521": ecKey(t, elliptic.P521()), "rsa": rsaKey(t, 2048),
	} {
		k := signer(t, key)
		token := sshSign(t, k, SSHNamespace, w.signedClaims())
		if said := wantRefused(t, s, token); said != refuse(nil).Message {
			t.Errorf("%s, a key that nobody has: it says %q", name, said)
		}
		id := w.register(w.bob, k.PublicKey())
		g := wantGrant(t, s, token, principal(w.bob))
		if g.Kind != KindSSH || g.KeyID != id || g.TokenID != "0123456789abcdef" || g.Expires.Unix() != w.clock.in(time.Hour) ||
			join(g.Scopes, " ") != "containers:read keys:read" {
			t.Errorf("%s: %+v", name, g)
		}
		wantGrant(t, s, token, principal(w.bob)) // it is a bearer token: it works as often as it is sent
		if err := w.store.DeleteKey(t.Context(), w.bob.ID, id); err != nil {
			t.Fatal(err)
		}
		wantRefused(t, s, token)
	}
}

// What the stock program signs is taken, by each kind of key.
func TestStockSSHKeygen(t *testing.T) {
	w := newWorld(t)
	w.clock.set(time.Now())
	s := w.sshSigned()
	dir := t.TempDir()
	for _, kind := range []string{"ed25519", "ecdsa", "rsa"} {
		path := filepath.Join(dir, kind)
		if out, err := exec.CommandContext(t.Context(), "ssh-keygen", "-q", "-t", kind, "-N", "", "-f", path).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		line, err := os.ReadFile(path + ".pub")
		if err != nil {
			t.Fatal(err)
		}
		public, _, _, _, err := ssh.ParseAuthorizedKey(line)
		if err != nil {
			t.Fatal(err)
		}
		w.register(w.bob, public)
		for _, hash := range []string{"sha512", "sha256"} {
			cmd := exec.CommandContext(t.Context(), "ssh-keygen", "-q", "-Y", "sign", "-f", path, "-n", SSHNamespace, "-O", "hashalg="+hash)
			cmd.Stdin = strings.NewReader(w.signedClaims())
			armored, err := cmd.Output()
			if err != nil {
				t.Fatalf("%s, %s: %v", kind, hash, err)
			}
			sig, err := sshsig.Unarmor(armored)
			if err != nil {
				t.Fatal(err)
			}
			token := sshPrefix + encode(t, w.signedClaims()) + "." + base64.RawURLEncoding.EncodeToString(sig.Marshal())
			wantGrant(t, s, token, principal(w.bob))
		}
	}
}

func TestSSHSignedClaims(t *testing.T) {
	w := newWorld(t)
	s := w.sshSigned()
	k := signer(t, newKey(t))
	w.register(w.bob, k.PublicKey())
	exp := w.clock.in(time.Hour)
	claims := func(format string, args ...any) string { return fmt.Sprintf(format, args...) }
	for name, tc := range map[string]struct{ claims, says string }{
		"no JSON":            {"hello", "JSON"},
		"a list":             {"[]", "JSON"},
		"null":               {"null", "JSON"},
		"two objects":        {w.signedClaims() + "{}", "JSON"},
		"not UTF-8":          {strings.Replace(w.signedClaims(), "0123", "\xff123", 1), "JSON"},
		"a claim twice":      {claims(`{"aud":%q,"exp":%d,"jti":"01234567","scope":"keys:read","scope":"all"}`, zone, exp), "once"},
		"twice, escaped":     {claims(`{"aud":%q,"exp":%d,"jti":"01234567","scope":"keys:read","\u0073cope":"all"}`, zone, exp), "once"},
		"an unknown claim":   {claims(`{"aud":%q,"exp":%d,"jti":"01234567","scope":"keys:read","nbf":1}`, zone, exp), `"nbf"`},
		"scopes for scope":   {claims(`{"aud":%q,"exp":%d,"jti":"01234567","scopes":"keys:read"}`, zone, exp), `"scopes"`},
		"no aud":             {claims(`{"exp":%d,"jti":"01234567","scope":"keys:read"}`, exp), zone},
		"another zone":       {claims(`{"aud":"other.example.com","exp":%d,"jti":"01234567","scope":"keys:read"}`, exp), zone},
		"aud a list":         {claims(`{"aud":[%q],"exp":%d,"jti":"01234567","scope":"keys:read"}`, zone, exp), zone},
		"no jti":             {claims(`{"aud":%q,"exp":%d,"scope":"keys:read"}`, zone, exp), "jti"},
		"short jti":          {claims(`{"aud":%q,"exp":%d,"jti":"0123456","scope":"keys:read"}`, zone, exp), "jti"},
		"odd jti":            {claims(`{"aud":%q,"exp":%d,"jti":"0123456 7","scope":"keys:read"}`, zone, exp), "jti"},
		"jti a number":       {claims(`{"aud":%q,"exp":%d,"jti":123456789,"scope":"keys:read"}`, zone, exp), "jti"},
		"no exp":             {claims(`{"aud":%q,"jti":"01234567","scope":"keys:read"}`, zone), "exp"},
		"exp text":           {claims(`{"aud":%q,"exp":"%d","jti":"01234567","scope":"keys:read"}`, zone, exp), "exp"},
		"expired":            {claims(`{"aud":%q,"exp":%d,"jti":"01234567","scope":"keys:read"}`, zone, w.clock.in(0)), "expired"},
		"too long":           {claims(`{"aud":%q,"exp":%d,"jti":"01234567","scope":"keys:read"}`, zone, w.clock.in(25*time.Hour)), "24 hours"},
		"no scope":           {claims(`{"aud":%q,"exp":%d,"jti":"01234567"}`, zone, exp), "scope"},
		"scope empty":        {claims(`{"aud":%q,"exp":%d,"jti":"01234567","scope":" "}`, zone, exp), "scope"},
		"scope null":         {claims(`{"aud":%q,"exp":%d,"jti":"01234567","scope":null}`, zone, exp), "scope"},
		"scope unknown":      {claims(`{"aud":%q,"exp":%d,"jti":"01234567","scope":"keys:read root"}`, zone, exp), "scope"},
		"account empty":      {claims(`{"account":"","aud":%q,"exp":%d,"jti":"01234567","scope":"keys:read"}`, zone, exp), "account"},
		"account a number":   {claims(`{"account":2,"aud":%q,"exp":%d,"jti":"01234567","scope":"keys:read"}`, zone, exp), "account"},
		"another's account":  {claims(`{"account":"ada","aud":%q,"exp":%d,"jti":"01234567","scope":"keys:read"}`, zone, exp), "not valid"},
		"an absent account":  {claims(`{"account":"zoe","aud":%q,"exp":%d,"jti":"01234567","scope":"keys:read"}`, zone, exp), "not valid"},
		"a disabled account": {claims(`{"account":"eve","aud":%q,"exp":%d,"jti":"01234567","scope":"keys:read"}`, zone, exp), "not valid"},
	} {
		t.Run(name, func(t *testing.T) {
			if said := wantRefused(t, s, sshSign(t, k, SSHNamespace, tc.claims)); !strings.Contains(said, tc.says) {
				t.Errorf("it says %q, not of %q", said, tc.says)
			}
		})
	}
	for _, good := range []string{
		claims(`{"account":"bob","aud":%q,"exp":%d,"jti":"01234567","scope":"all"}`, zone, exp),
		claims("\n{ \"aud\" : %q,\n\"exp\": %d, \"jti\": \"a.b_c-d.e\",\t\"scope\": \"keys:read  tokens:write\" }\n", zone, exp),
		claims(`{"aud":%q,"exp":%d,"jti":"01234567","scope":"keys:read"}`, zone, w.clock.in(24*time.Hour)),
	} {
		wantGrant(t, s, sshSign(t, k, SSHNamespace, good), principal(w.bob))
	}
}

// A key that several accounts have names none of them; the claims do.
func TestSSHSignedChoosesTheAccount(t *testing.T) {
	w := newWorld(t)
	s := w.sshSigned()
	k := signer(t, newKey(t))
	w.register(w.ada, k.PublicKey())
	mine := w.register(w.bob, k.PublicKey())
	w.clock.add(time.Second)
	token := sshSign(t, k, SSHNamespace, w.signedClaims())
	if said := wantRefused(t, s, token); !strings.Contains(said, "account") {
		t.Errorf("it says %q", said)
	}
	as := func(name string) string {
		return sshSign(t, k, SSHNamespace, strings.Replace(w.signedClaims(), "{", fmt.Sprintf("{%q:%q,", "account", name), 1))
	}
	wantGrant(t, s, as("ada"), principal(w.ada))
	g := wantGrant(t, s, as("bob"), principal(w.bob))
	if g.KeyID != mine {
		t.Errorf("%+v", g)
	}
	wantRefused(t, s, as("eve"))
	if _, err := w.store.CreateUser(t.Context(), "other-admin", compute.RoleAdmin); err != nil { // the last one is not disabled
		t.Fatal(err)
	}
	if _, err := w.store.SetUserDisabled(t.Context(), w.ada.ID, true); err != nil {
		t.Fatal(err)
	}
	wantGrant(t, s, token, principal(w.bob))
	wantRefused(t, s, as("ada"))
}

// What is not exactly a signature by the key, over these claims, for this purpose, is refused in the same words.
func TestSSHSignedForged(t *testing.T) {
	w := newWorld(t)
	s := w.sshSigned()
	private := newKey(t)
	k := signer(t, private)
	w.register(w.bob, k.PublicKey())
	text := w.signedClaims()
	good := sshSign(t, k, SSHNamespace, text)
	wantGrant(t, s, good, principal(w.bob))
	claims, sig, _ := strings.Cut(strings.TrimPrefix(good, sshPrefix), ".")
	blob, err := base64.RawURLEncoding.DecodeString(sig)
	if err != nil {
		t.Fatal(err)
	}
	patched := func(old, fresh string) string {
		return sshPrefix + claims + "." + base64.RawURLEncoding.EncodeToString(bytes.Replace(blob, []byte(old), []byte(fresh), 1))
	}
	other := signer(t, newKey(t))
	othersBlob := strings.SplitN(sshSign(t, other, SSHNamespace, text), ".", 2)[1]
	cert := &ssh.Certificate{Key: k.PublicKey(), CertType: ssh.UserCert, ValidBefore: ssh.CertTimeInfinity}
	if err := cert.SignCert(rand.Reader, k); err != nil {
		t.Fatal(err)
	}
	certified, err := ssh.NewCertSigner(cert, k)
	if err != nil {
		t.Fatal(err)
	}
	for name, token := range map[string]string{
		"prefix alone":        sshPrefix,
		"no signature":        sshPrefix + claims,
		"empty signature":     sshPrefix + claims + ".",
		"empty claims":        sshPrefix + "." + sig,
		"three parts":         good + ".AAAA",
		"padded":              good + "=",
		"newline":             good + "\n",
		"standard base64":     sshPrefix + claims + "." + strings.NewReplacer("-", "+", "_", "/").Replace(sig) + "+",
		"unused bits":         sshPrefix + claims + "." + sig[:len(sig)-1] + string(sig[len(sig)-1]+1),
		"another namespace":   sshSign(t, k, "file", text),
		"git's namespace":     sshSign(t, k, "git", text),
		"a later version":     sshSign(t, k, "berth-token@v2", text),
		"namespace patched":   patched("berth-token@v1", "berth-token@v2"),
		"file's, patched":     sshPrefix + claims + "." + base64.RawURLEncoding.EncodeToString(patchNamespace(t, k, text)),
		"other claims":        sshPrefix + encode(t, strings.Replace(text, "keys:read", "all", 1)) + "." + sig,
		"another's signature": sshPrefix + claims + "." + othersBlob,
		"hash patched":        patched("sha512", "sha256"),
		"hash unknown":        patched("sha512", "sha999"),
		"version patched":     patched("SSHSIG\x00\x00\x00\x01", "SSHSIG\x00\x00\x00\x02"),
		"magic patched":       patched("SSHSIG", "SSHSIX"),
		"cut short":           sshPrefix + claims + "." + base64.RawURLEncoding.EncodeToString(blob[:len(blob)-1]),
		"trailing bytes":      sshPrefix + claims + "." + base64.RawURLEncoding.EncodeToString(append(bytes.Clone(blob), 0)),
		"a certificate":       sshSign(t, certified, SSHNamespace, text),
		"login's signature":   loginSignature(t, private, claims),
		"huge claims":         sshSign(t, k, SSHNamespace, text+strings.Repeat(" ", maxSSHClaims)),
		"huge":                good + strings.Repeat("A", maxSSHToken),
		"as a JWT":            encode(t, map[string]string{"alg": "EdDSA", "typ": "JWT"}) + "." + claims + "." + sig,
		"prefix twice":        sshPrefix + good,
	} {
		t.Run(name, func(t *testing.T) {
			if said := wantRefused(t, s, token); said != refuse(nil).Message {
				t.Errorf("it says %q", said)
			}
		})
	}
}

// patchNamespace signs for file, and writes our namespace over it in the blob.
func patchNamespace(t *testing.T, k ssh.Signer, text string) []byte {
	t.Helper()
	sig, err := sshsig.Sign(strings.NewReader(text), k, sshsig.HashSHA512, "file")
	if err != nil {
		t.Fatal(err)
	}
	sig.Namespace = SSHNamespace
	return sig.Marshal()
}

// loginSignature wraps a signature over the claims alone, as a server may have made a client sign them at a login.
func loginSignature(t *testing.T, key ed25519.PrivateKey, claims string) string {
	t.Helper()
	text, err := base64.RawURLEncoding.DecodeString(claims)
	if err != nil {
		t.Fatal(err)
	}
	sig := sshsig.Signature{
		Version: 1, PublicKey: signer(t, key).PublicKey(), Namespace: SSHNamespace, HashAlgorithm: sshsig.HashSHA512,
		Signature: &ssh.Signature{Format: ssh.KeyAlgoED25519, Blob: ed25519.Sign(key, text)},
	}
	return sshPrefix + claims + "." + base64.RawURLEncoding.EncodeToString(sig.Marshal())
}

// A signature of an RSA key over SHA-1 is none (PROTOCOL.sshsig); over SHA-2 the same bytes are taken.
func TestSSHSignedWithoutSHA1(t *testing.T) {
	w := newWorld(t)
	k := signer(t, rsaKey(t, 2048))
	w.register(w.bob, k.PublicKey())
	sum := sha512.Sum512([]byte(w.signedClaims()))
	data := append([]byte("SSHSIG"), ssh.Marshal(struct{ Namespace, Reserved, Hash, Sum string }{SSHNamespace, "", "sha512", string(sum[:])})...)
	for _, algorithm := range []string{ssh.KeyAlgoRSA, ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSASHA512} {
		signature, err := k.(ssh.AlgorithmSigner).SignWithAlgorithm(rand.Reader, data, algorithm)
		if err != nil {
			t.Fatal(err)
		}
		sig := sshsig.Signature{
			Version: 1, PublicKey: k.PublicKey(), Namespace: SSHNamespace, HashAlgorithm: sshsig.HashSHA512, Signature: signature,
		}
		token := sshPrefix + encode(t, w.signedClaims()) + "." + base64.RawURLEncoding.EncodeToString(sig.Marshal())
		if algorithm == ssh.KeyAlgoRSA {
			wantRefused(t, w.sshSigned(), token)
		} else {
			wantGrant(t, w.sshSigned(), token, principal(w.bob))
		}
	}
}

func TestSSHSignedLookupFails(t *testing.T) {
	w := newWorld(t)
	k := signer(t, newKey(t))
	w.register(w.bob, k.PublicKey())
	token := sshSign(t, k, SSHNamespace, w.signedClaims())
	if err := w.store.Close(); err != nil {
		t.Fatal(err)
	}
	if g, err := w.sshSigned().Verify(context.Background(), token); compute.CodeOf(err) != compute.CodeUnavailable || g.User != 0 {
		t.Errorf("%+v, %v", g, err)
	}
}

// anybody is a directory in which bob has every key.
type anybody struct{}

func (anybody) KeyAccounts(context.Context, string) ([]compute.KeyAccount, error) {
	return []compute.KeyAccount{{User: compute.User{ID: 2, Username: "bob"}, Key: 1}}, nil
}

// Whatever the bytes, an answer is a refusal or a grant within the claims that were signed.
func FuzzSSHSigned(f *testing.F) {
	w := newWorld(f)
	s := NewSSHSigned(zone, anybody{})
	s.now = w.clock.now
	k := signer(f, w.key)
	for _, text := range []string{w.signedClaims(), "{}", ""} {
		claims, sig, _ := strings.Cut(strings.TrimPrefix(sshSign(f, k, SSHNamespace, text), sshPrefix), ".")
		a, _ := base64.RawURLEncoding.DecodeString(claims)
		b, _ := base64.RawURLEncoding.DecodeString(sig)
		f.Add(a, b)
	}
	f.Fuzz(func(t *testing.T, claims, blob []byte) {
		token := sshPrefix + encode(t, string(claims)) + "." + encode(t, string(blob))
		g, err := s.Verify(t.Context(), token)
		if err != nil {
			if compute.CodeOf(err) != compute.CodeUnauthenticated || g.User != 0 {
				t.Fatalf("%+v, %v", g, err)
			}
			return
		}
		sig, err := sshsig.ParseSignature(blob)
		if err != nil {
			t.Fatalf("granted by what is no signature: %v", err)
		}
		if err := sshsig.Verify(bytes.NewReader(claims), sig, sig.PublicKey, sig.HashAlgorithm, SSHNamespace); err != nil {
			t.Fatalf("granted by a wrong signature: %v", err)
		}
		if g.Expires.After(s.now().Add(MaxSSHTTL+leeway)) || len(g.Scopes) == 0 || len(g.TokenID) < 8 {
			t.Fatalf("%+v", g)
		}
	})
}

// The claims alone, as they come out of a signature that is good.
func FuzzSSHClaims(f *testing.F) {
	w := newWorld(f)
	s := w.sshSigned()
	f.Add([]byte(w.signedClaims()))
	f.Add([]byte(`{"aud":"compute.example.com","exp":1e9,"jti":"aaaaaaaa","scope":"all","account":"bob"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := s.readClaims(text)
		if err != nil {
			if compute.CodeOf(err) != compute.CodeUnauthenticated {
				t.Fatal(err)
			}
			return
		}
		if !c.expires.After(s.now()) || c.expires.After(s.now().Add(MaxSSHTTL+leeway)) || len(c.scopes) == 0 || !isID(c.id) {
			t.Fatalf("%q: %+v", text, c)
		}
	})
}
