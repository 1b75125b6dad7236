package httpapi

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"berth/internal/compute"
)

// Whatever is wrong with a container's request has its status, code and field, and changes nothing.
func TestCreateRefuses(t *testing.T) {
	a := newAPI(t, nil)
	mine, hers := a.addKey(a.adaToken, "laptop"), a.addKey(a.bobToken, "hers")
	many := make([]string, 11)
	for i := range many {
		many[i] = fmt.Sprint(1000 + i)
	}
	// with returns a good request, changed in one field.
	with := func(field, value string) string {
		fields := map[string]string{"name": `"box"`, "ssh_key_ids": fmt.Sprintf("[%d]", mine)}
		fields[field] = value
		var parts []string
		for k, v := range fields {
			parts = append(parts, fmt.Sprintf("%q: %s", k, v))
		}
		return "{" + strings.Join(parts, ", ") + "}"
	}
	paths := func(p ...string) string { return with("mount_paths", `["`+strings.Join(p, `", "`)+`"]`) }
	good := with("name", `"box"`)
	for name, tc := range map[string]struct{ body, field string }{
		"empty body":       {" ", ""},
		"not JSON":         {"name=box", ""},
		"cut short":        {good[:len(good)-1], ""},
		"trailing garbage": {good + "x", ""},
		"two objects":      {good + good, ""},
		"trailing comma":   {strings.TrimSuffix(good, "}") + ",}", ""},
		"comment":          {"/* x */" + good, ""},
		"single quotes":    {"{'name':'box'}", ""},
		"an array":         {"[" + good + "]", ""},
		"a string":         {`"box"`, ""},
		"a number":         {"1", ""},
		"null":             {"null", ""},
		"a mark in front":  {"\ufeff" + good, ""},
		"not UTF-8":        {with("name", "\"b\xffx\""), ""},
		"raw control":      {with("name", "\"b\nx\""), ""},
		"very deep":        {with("x", strings.Repeat("[", 20000)+strings.Repeat("]", 20000)), ""},

		"a field twice":           {`{"name":"a","name":"b","ssh_key_ids":[1]}`, "name"},
		"a field twice, escaped":  {`{"name":"a","n\u0061me":"b","ssh_key_ids":[1]}`, "name"},
		"unknown field":           {with("nmae", `"x"`), "nmae"},
		"unknown field, a number": {with("image", "5"), "image"},
		"unknown field, null":     {with("image", "null"), "image"},
		"field in capitals":       {with("Name", `"x"`), "Name"},
		"field without a name":    {with("", `"x"`), ""},
		"long field":              {with(strings.Repeat("x", 5000), "1"), strings.Repeat("x", 64) + "…"},
		"long field, not ASCII":   {with("x"+strings.Repeat("é", 5000), "1"), "x" + strings.Repeat("é", 31) + "…"},

		"no name":            {fmt.Sprintf(`{"ssh_key_ids":[%d]}`, mine), "name"},
		"name null":          {with("name", "null"), "name"},
		"name empty":         {with("name", `""`), "name"},
		"name blank":         {with("name", `" \t "`), "name"},
		"name a number":      {with("name", "5"), "name"},
		"name an object":     {with("name", "{}"), "name"},
		"name an array":      {with("name", `["box"]`), "name"},
		"name true":          {with("name", "true"), "name"},
		"name of 65":         {with("name", `"`+strings.Repeat("é", 65)+`"`), "name"},
		"name, control":      {with("name", `"a\u0007b"`), "name"},
		"name, NUL":          {with("name", `"a\u0000b"`), "name"},
		"name, newline":      {with("name", `"a\nb"`), "name"},
		"name, escape":       {with("name", `"\u001b[31m"`), "name"},
		"name, bidi":         {with("name", `"a\u202eb"`), "name"},
		"name, half a pair":  {with("name", `"\ud83d"`), "name"},
		"name, other half":   {with("name", `"\ude00"`), "name"},
		"name, halves apart": {with("name", `"\ud83dx\ude00"`), "name"},

		"type unknown":      {with("instance_type", `"huge"`), "instance_type"},
		"type in capitals":  {with("instance_type", `"Nano"`), "instance_type"},
		"type a number":     {with("instance_type", "1"), "instance_type"},
		"memory too small":  {with("memory_mb", "63"), "memory_mb"},
		"memory zero":       {with("memory_mb", "0"), "memory_mb"},
		"memory negative":   {with("memory_mb", "-512"), "memory_mb"},
		"memory too large":  {with("memory_mb", "16385"), "memory_mb"},
		"memory over int64": {with("memory_mb", "9223372036854775808"), "memory_mb"},
		"memory huge":       {with("memory_mb", strings.Repeat("9", 5000)), "memory_mb"},
		"memory 1e999":      {with("memory_mb", "1e999"), "memory_mb"},
		"memory 512.0":      {with("memory_mb", "512.0"), "memory_mb"},
		"memory a half":     {with("memory_mb", "512.5"), "memory_mb"},
		"memory a string":   {with("memory_mb", `"512"`), "memory_mb"},
		"memory true":       {with("memory_mb", "true"), "memory_mb"},
		"storage zero":      {with("storage_gb", "0"), "storage_gb"},
		"storage negative":  {with("storage_gb", "-1"), "storage_gb"},
		"storage too large": {with("storage_gb", "101"), "storage_gb"},
		"storage a string":  {with("storage_gb", `"5"`), "storage_gb"},
		"ssh a string":      {with("ssh_enabled", `"true"`), "ssh_enabled"},
		"ssh a number":      {with("ssh_enabled", "1"), "ssh_enabled"},

		"no keys field":     {`{"name":"box"}`, "ssh_key_ids"},
		"keys null":         {with("ssh_key_ids", "null"), "ssh_key_ids"},
		"no keys":           {with("ssh_key_ids", "[]"), "ssh_key_ids"},
		"keys a number":     {with("ssh_key_ids", fmt.Sprint(mine)), "ssh_key_ids"},
		"keys an object":    {with("ssh_key_ids", "{}"), "ssh_key_ids"},
		"a key of text":     {with("ssh_key_ids", fmt.Sprintf(`["%d"]`, mine)), "ssh_key_ids"},
		"a key null":        {with("ssh_key_ids", "[null]"), "ssh_key_ids"},
		"a key in a list":   {with("ssh_key_ids", fmt.Sprintf("[[%d]]", mine)), "ssh_key_ids"},
		"a key of 1.5":      {with("ssh_key_ids", "[1.5]"), "ssh_key_ids"},
		"a key over int64":  {with("ssh_key_ids", "[9223372036854775808]"), "ssh_key_ids"},
		"key that wraps":    {with("ssh_key_ids", fmt.Sprintf("[%s]", new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), 64), big.NewInt(mine)))), "ssh_key_ids"},
		"unknown key":       {with("ssh_key_ids", "[424242]"), "ssh_key_ids"},
		"key negative":      {with("ssh_key_ids", "[-1]"), "ssh_key_ids"},
		"somebody's key":    {with("ssh_key_ids", fmt.Sprintf("[%d]", hers)), "ssh_key_ids"},
		"mine and hers":     {with("ssh_key_ids", fmt.Sprintf("[%d,%d]", mine, hers)), "ssh_key_ids"},
		"too many keys":     {with("ssh_key_ids", "["+strings.Join(many, ",")+"]"), "ssh_key_ids"},
		"paths a string":    {with("mount_paths", `"/data"`), "mount_paths"},
		"a path a number":   {with("mount_paths", "[5]"), "mount_paths"},
		"a path null":       {with("mount_paths", "[null]"), "mount_paths"},
		"path empty":        {paths(""), "mount_paths"},
		"path relative":     {paths("data"), "mount_paths"},
		"path of home":      {paths("~/data"), "mount_paths"},
		"path is root":      {paths("/"), "mount_paths"},
		"path is root, odd": {paths("//./"), "mount_paths"},
		"path /proc":        {paths("/proc"), "mount_paths"},
		"path below /proc":  {paths("/proc/sys"), "mount_paths"},
		"path /sys":         {paths("/sys/"), "mount_paths"},
		"path /dev":         {paths("//dev//shm"), "mount_paths"},
		"path /.berth":      {paths("/.berth"), "mount_paths"},
		"below /.berth":     {paths("/.berth/run"), "mount_paths"},
		"path with ..":      {paths("/data/../etc"), "mount_paths"},
		"path, NUL":         {paths(`/data\u0000`), "mount_paths"},
		"path, newline":     {paths(`/da\nta`), "mount_paths"},
		"path too long":     {paths("/" + strings.Repeat("x", 255)), "mount_paths"},
		"path twice":        {paths("/data", "/data/"), "mount_paths"},
		"path in a path":    {paths("/data", "/data/db"), "mount_paths"},
		"path around":       {paths("/data/db", "/data"), "mount_paths"},
		"too many paths":    {paths(strings.Split("/a,/b,/c,/d,/e,/f,/g,/h,/i,/j,/k,/l,/m,/n,/o,/p,/q", ",")...), "mount_paths"},
	} {
		t.Run(name, func(t *testing.T) {
			a.do("POST", "/compute/containers", a.adaToken, tc.body).isProblem(t, 400, compute.CodeInvalid, tc.field)
		})
	}
	a.unchanged(t, 0, 1)

	var c container
	a.do("POST", "/compute/containers", a.adaToken, "\n "+with("name", `"é ☃ \ud83d\ude00 \\ud83d"`)+" \r\n").into(t, 201, &c)
	if c.Name != `é ☃ 😀 \ud83d` {
		t.Errorf("name %q", c.Name)
	}
	a.create(a.adaToken, strings.Repeat("é", 64), mine)
	a.create(a.adaToken, "three", mine)
	a.do("POST", "/compute/containers", a.adaToken, good).isProblem(t, 409, compute.CodeLimit, "")
	a.unchanged(t, 3, 1)
}

// unchanged checks what ada has.
func (a *api) unchanged(t *testing.T, containers, keys int) {
	t.Helper()
	list, err := a.store.Containers(t.Context(), a.ada.ID)
	if err != nil || len(list) != containers {
		t.Errorf("%d containers (%v), want %d", len(list), err, containers)
	}
	have, err := a.store.Keys(t.Context(), a.ada.ID)
	if err != nil || len(have) != keys {
		t.Errorf("%d keys (%v), want %d", len(have), err, keys)
	}
}

// What the engine does not admit is told, and nothing is stored.
func TestCreateNotAdmitted(t *testing.T) {
	a := newAPI(t, nil)
	body := fmt.Sprintf(`{"name":"box","ssh_key_ids":[%d]}`, a.addKey(a.adaToken, "laptop"))
	for _, tc := range []struct {
		err    error
		status int
		field  string
	}{
		{compute.Errorf(compute.CodeCapacity, "There is no room; delete something."), 503, ""},
		{compute.Invalid("mount_paths", "It is below /proc through a symlink."), 400, "mount_paths"},
	} {
		a.engine.mu.Lock()
		a.engine.admit = tc.err
		a.engine.mu.Unlock()
		r := a.do("POST", "/compute/containers", a.adaToken, body)
		r.isProblem(t, tc.status, compute.CodeOf(tc.err), tc.field)
		if got := r.header.Get("Retry-After"); (got != "") != (tc.status == 503) {
			t.Errorf("Retry-After %q", got)
		}
		a.unchanged(t, 0, 1)
	}
}

func TestAddKeyRefuses(t *testing.T) {
	a := newAPI(t, nil)
	rsaKey := func(bits int) string {
		k, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		return publicLine(t, &k.PublicKey)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(ecKey, "")
	if err != nil {
		t.Fatal(err)
	}
	private := string(pem.EncodeToMemory(block))
	good := newKey(t, "comment")
	certificate := "ssh-ed25519-cert-v01@openssh.com AAAAIHNzaC1lZDI1NTE5LWNlcnQtdjAxQG9wZW5zc2guY29t"
	for name, line := range map[string]string{
		"empty":            "",
		"blank":            " \n",
		"garbage":          "hello",
		"type alone":       "ssh-ed25519",
		"broken base64":    "ssh-ed25519 !!!!",
		"cut short":        strings.Fields(good)[0] + " " + strings.Fields(good)[1][:30],
		"another type":     "ssh-rsa " + strings.Fields(good)[1],
		"private":          private,
		"private, no ends": "-----BEGIN OPENSSH PRIVATE KEY-----",
		"two lines":        good + "\n" + newKey(t, ""),
		"options":          `command="rm -rf /" ` + good,
		"NUL":              good + "\x00",
		"ssh-dss":          dsaLine(t),
		"short RSA":        shortRSA(t),
		"certificate":      certificate,
		"too long":         good + strings.Repeat("x", 9000),
		"a path":           "/root/.ssh/id_ed25519.pub",
		"HTML":             "<script>alert(1)</script>",
	} {
		t.Run(name, func(t *testing.T) {
			a.do("POST", "/compute/ssh-keys", a.adaToken, keyBody(t, "laptop", line)).isProblem(t, 400, compute.CodeInvalid, "public_key")
		})
	}
	for name, tc := range map[string]struct{ body, field string }{
		"no key":        {`{"name":"laptop"}`, "public_key"},
		"key null":      {`{"name":"laptop","public_key":null}`, "public_key"},
		"key a number":  {`{"name":"laptop","public_key":5}`, "public_key"},
		"key a list":    {fmt.Sprintf(`{"name":"laptop","public_key":[%q]}`, good), "public_key"},
		"unknown field": {fmt.Sprintf(`{"name":"laptop","public_key":%q,"key":"x"}`, good), "key"},
		"name empty":    {keyBody(t, "", good), "name"},
		"name blank":    {keyBody(t, "  ", good), "name"},
		"name of 65":    {keyBody(t, strings.Repeat("x", 65), good), "name"},
		"name, control": {keyBody(t, "a\x1bb", good), "name"},
		"name a number": {fmt.Sprintf(`{"name":5,"public_key":%q}`, good), "name"},
		"no name":       {fmt.Sprintf(`{"public_key":%q}`, newKey(t, "")), "name"},
		"a container":   {`{"name":"box","ssh_key_ids":[1]}`, "ssh_key_ids"},
	} {
		t.Run(name, func(t *testing.T) {
			a.do("POST", "/compute/ssh-keys", a.adaToken, tc.body).isProblem(t, 400, compute.CodeInvalid, tc.field)
		})
	}
	a.unchanged(t, 0, 0)

	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		k, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		a.do("POST", "/compute/ssh-keys", a.adaToken, keyBody(t, "ec", publicLine(t, &k.PublicKey))).into(t, 201, &sshKey{})
	}
	for _, line := range []string{good, rsaKey(2048), " " + newKey(t, "spaces around") + " \r\n"} {
		a.do("POST", "/compute/ssh-keys", a.adaToken, keyBody(t, "good", line)).into(t, 201, &sshKey{})
	}
	a.unchanged(t, 0, 6)
}

func keyBody(t *testing.T, name, publicKey string) string {
	t.Helper()
	return string(encode(map[string]string{"name": name, "public_key": publicKey}))
}

func publicLine(t *testing.T, public any) string {
	t.Helper()
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return string(bytes.TrimSpace(ssh.MarshalAuthorizedKey(key)))
}

// dsaLine is a key of type ssh-dss, put together by hand (RFC 4253, section 6.6).
func dsaLine(t *testing.T) string {
	t.Helper()
	p := new(big.Int).Lsh(big.NewInt(1), 1023)
	q := new(big.Int).Lsh(big.NewInt(1), 159)
	wire := ssh.Marshal(struct {
		Name       string
		P, Q, G, Y *big.Int
	}{"ssh-dss", p, q, big.NewInt(2), big.NewInt(3)})
	return "ssh-dss " + base64.StdEncoding.EncodeToString(wire)
}

// shortRSA is a key of 1024 bits, put together by hand: crypto/rsa makes none.
func shortRSA(t *testing.T) string {
	t.Helper()
	n := new(big.Int).Lsh(big.NewInt(1), 1023)
	n.Add(n, big.NewInt(1))
	return publicLine(t, &rsa.PublicKey{N: n, E: 65537})
}

func TestPutSSHRefuses(t *testing.T) {
	a := newAPI(t, nil)
	c := a.create(a.adaToken, "box", a.addKey(a.adaToken, "laptop"))
	path := "/compute/containers/" + string(c.ID) + "/ssh"
	for body, field := range map[string]string{
		`{}`: "ssh_enabled", `{"ssh_enabled":null}`: "ssh_enabled", `{"ssh_enabled":"true"}`: "ssh_enabled", `{"ssh_enabled":1}`: "ssh_enabled",
		`{"enabled":true}`: "enabled", `{"ssh_enabled":true,"ssh_enabled":false}`: "ssh_enabled", `true`: "", `{"ssh_enabled":true`: "",
		`{"ssh_enabled":TRUE}`: "",
	} {
		a.do("PUT", path, a.adaToken, body).isProblem(t, 400, compute.CodeInvalid, field)
	}
	if r := a.do("GET", path, a.adaToken, ""); r.body != `{"ssh_enabled":false}`+"\n" {
		t.Errorf("it changed to %s", r.body)
	}
	for range 2 {
		if r := a.do("PUT", path, a.adaToken, `{"ssh_enabled":true}`); r.status != 200 || r.body != `{"ssh_enabled":true}`+"\n" {
			t.Errorf("%+v", r)
		}
	}
}

func TestContentTypes(t *testing.T) {
	a := newAPI(t, nil)
	key := a.addKey(a.adaToken, "laptop")
	body := fmt.Sprintf(`{"name":"box","ssh_key_ids":[%d]}`, key)
	post := func(contentTypes []string, encoding string) reply {
		return a.send("POST", "/compute/containers", body, func(r *http.Request) {
			r.Header.Set("Authorization", "Bearer "+a.adaToken)
			r.Header["Content-Type"] = contentTypes
			if encoding != "" {
				r.Header.Set("Content-Encoding", encoding)
			}
		})
	}
	for _, ct := range []string{
		"", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/xml", "text/json",
		"application/jsonx", "application/json-patch+json", "application/problem+json", "json", "application/json; charset=latin1",
		"application/json; charset=utf-16", "application/json;;", "application/json, text/plain", "*/*", "application/*",
	} {
		types := []string{ct}
		if ct == "" {
			types = nil
		}
		post(types, "").isProblem(t, 415, compute.CodeUnsupportedMedia, "")
	}
	for _, encoding := range []string{"gzip", "br", "deflate", "gzip, gzip", "x"} {
		post([]string{"application/json"}, encoding).isProblem(t, 415, compute.CodeUnsupportedMedia, "")
	}
	a.unchanged(t, 0, 1)
	for _, ct := range []string{"application/json; charset=utf-8", "Application/JSON;charset=UTF-8", `application/json; charset="utf-8"`} {
		post([]string{ct}, "identity").into(t, 201, &container{})
	}
	// Where there is nothing to read, whatever is sent does not matter.
	var list struct{ Containers []container }
	a.do("GET", "/compute/containers", a.adaToken, "").into(t, 200, &list)
	path := "/compute/containers/" + string(list.Containers[0].ID) + "/stop"
	for _, ct := range []string{"", "application/x-www-form-urlencoded", "application/json"} {
		a.send("POST", path, "", func(r *http.Request) {
			r.Header.Set("Authorization", "Bearer "+a.adaToken)
			r.Header.Set("Content-Type", ct)
		}).into(t, 200, &container{})
	}
}

func TestBodyLimit(t *testing.T) {
	a := newAPI(t, nil)
	key := a.addKey(a.adaToken, "laptop")
	good := fmt.Sprintf(`{"name":"box","ssh_key_ids":[%d]}`, key)
	sized := func(n int) string { return good + strings.Repeat(" ", n-len(good)) }
	a.do("POST", "/compute/containers", a.adaToken, sized(maxBody)).into(t, 201, &container{})
	for _, n := range []int{maxBody + 1, 1 << 20, 3 << 20} {
		for range 3 {
			a.do("POST", "/compute/containers", a.adaToken, sized(n)).isProblem(t, 413, compute.CodeTooLarge, "")
		}
	}
	// The same without a length, in chunks.
	chunked := func(n int) reply {
		return a.send("POST", "/compute/containers", sized(n), func(r *http.Request) {
			r.Header.Set("Authorization", "Bearer "+a.adaToken)
			r.Header.Set("Content-Type", "application/json")
			r.ContentLength, r.TransferEncoding = -1, []string{"chunked"}
		})
	}
	chunked(maxBody).into(t, 201, &container{})
	chunked(1<<20).isProblem(t, 413, compute.CodeTooLarge, "")
	a.unchanged(t, 2, 1)
	// Announced, and never sent.
	for _, length := range []string{"65537", "9223372036854775807"} {
		r, err := raw(a.addr, "POST /compute/containers HTTP/1.1\r\nHost: x\r\nContent-Length: "+length+"\r\n\r\n")
		if err != nil {
			t.Fatal(err)
		}
		r.isProblem(t, 413, compute.CodeTooLarge, "")
	}
}

func TestUnreadableRequests(t *testing.T) {
	a := newAPI(t, nil)
	secret := "Authorization: Bearer SECRET-TOKEN\r\n"
	for name, tc := range map[string]struct {
		text   string
		status int
		code   compute.Code
	}{
		"garbage":         {"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400, codeBadRequest},
		"no version":      {"GET /healthz\r\n" + secret + "\r\n", 400, codeBadRequest},
		"HTTP/2":          {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 501, codeUnknownMethod},
		"odd version":     {"GET /healthz HTTP/x.y\r\n" + secret + "\r\n", 400, codeBadRequest},
		"spaced header":   {"GET /healthz HTTP/1.1\r\n" + secret + "Host : x\r\n\r\n", 400, codeBadRequest},
		"two lengths":     {"POST /compute/containers HTTP/1.1\r\n" + secret + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx", 400, codeBadRequest},
		"odd length":      {"POST /compute/containers HTTP/1.1\r\n" + secret + "Content-Length: +5\r\n\r\nxxxxx", 400, codeBadRequest},
		"negative length": {"POST /compute/containers HTTP/1.1\r\n" + secret + "Content-Length: -5\r\n\r\n", 400, codeBadRequest},
		"length and chunks": {
			"POST /compute/containers HTTP/1.1\r\n" + secret + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, codeBadRequest,
		},
		"chunks and length": {
			"POST /compute/containers HTTP/1.1\r\n" + secret + "Transfer-Encoding: chunked\r\ncontent-LENGTH: 3\r\n\r\n0\r\n\r\n", 400, codeBadRequest,
		},
		"odd encoding": {"POST /compute/containers HTTP/1.1\r\n" + secret + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400, codeBadRequest},
		"odd chunk":    {"POST /compute/containers HTTP/1.1\r\n" + secret + "Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n", 400, codeBadRequest},
		"long header":  {"GET /healthz HTTP/1.1\r\nX: " + strings.Repeat("x", maxHeader) + "\r\n\r\n", 431, codeHeaderTooLong},
		"many headers": {"GET /healthz HTTP/1.1\r\n" + strings.Repeat("X: y\r\n", 5000) + "\r\n", 431, codeHeaderTooLong},
		"long path":    {"GET /" + strings.Repeat("x", maxHeader) + " HTTP/1.1\r\n\r\n", 431, codeHeaderTooLong},
		"unknown verb": {"BREW /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 501, codeUnknownMethod},
		"long verb":    {strings.Repeat("B", 4000) + " /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 501, codeUnknownMethod},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := raw(a.addr, tc.text)
			if err != nil {
				t.Fatal(err)
			}
			r.isProblem(t, tc.status, tc.code, "")
			if strings.Contains(r.body, "SECRET") || r.header.Get("X-Request-Id") == "" {
				t.Errorf("%+v", r)
			}
		})
	}
	if strings.Contains(a.log.String(), "SECRET") {
		t.Error("a token is in the log")
	}
	if r := a.do("GET", "/healthz", "", ""); r.status != 200 {
		t.Errorf("after all that: %+v", r)
	}
}
