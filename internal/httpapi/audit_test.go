package httpapi

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	openapi "berth/api"
	"berth/internal/auth"
	"berth/internal/compute"
)

// root makes an administrator and returns their token.
func (a *api) root(scopes ...auth.Scope) string {
	a.t.Helper()
	u, err := a.store.CreateUser(a.t.Context(), "root-"+strings.ToLower(time.Now().Format("150405000")), compute.RoleAdmin)
	if err != nil {
		a.t.Fatal(err)
	}
	token, err := a.tokens.Issue(u, time.Hour, scopes...)
	if err != nil {
		a.t.Fatal(err)
	}
	return token
}

func (a *api) audit(token, query string) (list openapi.AuditRecordList) {
	a.t.Helper()
	a.do("GET", "/compute/audit"+query, token, "").into(a.t, 200, &list)
	return list
}

// said is a record in short: what, whose, and what became of it.
func said(r openapi.AuditRecord) string {
	return strings.Join(strings.Fields(fmt.Sprintf("%s %s %s %s %s %s", r.Username, r.Action, r.Container, r.Target, r.Outcome, r.Code)), " ")
}

func (a *api) expectAudit(token, query string, want ...string) []openapi.AuditRecord {
	a.t.Helper()
	list := a.audit(token, query).Records
	var got []string
	for _, r := range list {
		got = append(got, said(r))
	}
	if !slices.Equal(got, want) {
		a.t.Errorf("audit%s:\n got %s\nwant %s", query, strings.Join(got, "\n     "), strings.Join(want, "\n     "))
	}
	return list
}

// Each change leaves one record, whether the store knew of it or not, and so does what was refused; who only looks leaves none.
func TestChangesAreAudited(t *testing.T) {
	a := newAPI(t, nil)
	key := a.addKey(a.adaToken, "laptop")
	c := a.create(a.adaToken, "box", key)
	a.await(a.adaToken, c.ID, compute.StatusRunning)
	path, box := "/compute/containers/"+string(c.ID), string(c.ID)
	for _, call := range []struct {
		method, path, body string
		status             int
	}{
		{"GET", path, "", 200},
		{"PUT", path + "/ssh", `{"ssh_enabled": true}`, 200},
		{"PUT", path + "/ssh", `{"ssh_enabled": true}`, 200}, // changes nothing
		{"POST", path + "/ingress", `{"port": 443}`, 201},
		{"POST", path + "/ingress", `{"port": 443}`, 409},
		{"DELETE", path + "/ingress/443", "", 200},
		{"PUT", path + "/mounts", `{"mount_paths": ["relative"]}`, 400},
		{"POST", path + "/stop", `{`, 200},
		{"POST", "/compute/containers", `{`, 400},
		{"DELETE", "/compute/containers/00000000", "", 404},
		{"GET", "/compute/containers/00000000", "", 404},
		{"DELETE", "/compute/containers/nonsense", "", 404},
		{"DELETE", fmt.Sprintf("/compute/ssh-keys/%d", key), "", 200},
		{"DELETE", fmt.Sprintf("/compute/ssh-keys/%d", key), "", 404},
		{"POST", "/compute/ws-ticket", "", 201},
		{"POST", "/compute/session", "", 200},
	} {
		if r := a.do(call.method, call.path, a.adaToken, call.body); r.status != call.status {
			t.Fatalf("%s %s: %+v", call.method, call.path, r)
		}
	}
	made := a.makeToken(a.adaToken, `{"name":"ci","scopes":["keys:read"]}`)
	a.do("GET", "/compute/containers", made.Token, "").isProblem(t, 403, compute.CodeForbidden, "")
	a.do("DELETE", "/compute/tokens/"+made.ID, a.adaToken, "").into(t, 200, &openapi.Deleted{})
	a.do("DELETE", path, a.adaToken, "").into(t, 200, &openapi.Deleted{})

	k := fmt.Sprintf("ssh_key:%d", key)
	list := a.expectAudit(a.adaToken, "?after=0",
		"ada addSSHKey "+k+" allowed",
		"ada createContainer "+box+" allowed",
		"ada setSSHAccess "+box+" allowed",
		"ada setSSHAccess "+box+" allowed",
		"ada addIngressRule "+box+" ingress_rule:443 allowed",
		"ada addIngressRule "+box+" ingress_rule:443 failed conflict",
		"ada removeIngressRule "+box+" ingress_rule:443 allowed",
		"ada setMountPaths "+box+" failed invalid",
		"ada stopContainer "+box+" allowed",
		"ada createContainer failed invalid",
		"ada deleteContainer 00000000 denied not_found",
		"ada deleteContainer denied not_found",
		"ada deleteSSHKey "+k+" allowed",
		"ada deleteSSHKey "+k+" denied not_found",
		"ada openSession allowed",
		"ada addToken token:"+made.ID+" allowed",
		"ada listContainers denied forbidden",
		"ada revokeToken token:"+made.ID+" allowed",
		"ada deleteContainer "+box+" allowed",
	)
	for i, r := range list {
		at, err := time.Parse(time.RFC3339Nano, r.Time)
		if err != nil || time.Since(at).Abs() > time.Minute || r.Seq != int64(i)+1 {
			t.Errorf("%+v", r)
		}
		if r.User != a.ada.ID || r.Owner != a.ada.ID || r.OwnerName != "ada" || r.Credential != "token" || r.CredentialID == "" ||
			!strings.HasPrefix(r.Source, "127.0.0.1:") || r.Via != "rest" || r.Gateway != "machine-1" || len(r.RequestID) != 26 {
			t.Errorf("%+v", r)
		}
	}
	if list[16].CredentialID != made.ID || list[0].CredentialID == made.ID {
		t.Errorf("the credential of %+v", list[16])
	}
}

// A token that is refused is recorded as nobody's, whatever it says of itself; its text is nowhere.
func TestBadTokensAreAudited(t *testing.T) {
	a := newAPI(t, nil)
	root := a.root()
	made := a.makeToken(a.adaToken, `{"name":"ci","scopes":["all"]}`)
	a.do("DELETE", "/compute/tokens/"+made.ID, a.adaToken, "").into(t, 200, &openapi.Deleted{})
	for _, path := range []string{"/compute/containers", "/compute/whoami", "/compute/ws"} {
		a.send("GET", path, "", func(r *http.Request) {
			r.Header.Set("Authorization", "Bearer "+made.Token)
			r.Header.Set("Connection", "Upgrade")
			r.Header.Set("Upgrade", "websocket")
			r.Header.Set("Sec-WebSocket-Version", "13")
			r.Header.Set("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA==")
		}).isProblem(t, 401, compute.CodeUnauthenticated, "")
	}
	a.do("GET", "/compute/containers", "", "").isProblem(t, 401, compute.CodeUnauthenticated, "") // no attempt
	one := "authenticate denied unauthenticated"
	list := a.expectAudit(root, "?action=authenticate", one, one, one)
	for _, r := range list {
		if r.User != 0 || r.Owner != 0 || r.Credential != "token" || r.CredentialID != "" || !strings.HasPrefix(r.Source, "127.0.0.1:") {
			t.Errorf("%+v", r)
		}
	}
	a.expectAudit(a.adaToken, "?action=authenticate")
	if r := a.do("GET", "/compute/audit", root, ""); strings.Contains(r.body, made.Token) || strings.Contains(r.body, "eyJ") {
		t.Error("a record has a token")
	}
}

// A page that may not use a visitor's session is recorded.
func TestForeignPagesAreAudited(t *testing.T) {
	a := newAPI(t, nil)
	root := a.root()
	a.send("POST", "/compute/containers", "{}", func(r *http.Request) {
		r.Header.Set("Origin", "https://evil.example")
		r.Header.Set("Content-Type", "application/json")
		r.AddCookie(&http.Cookie{Name: "berth", Value: a.adaToken})
	}).isProblem(t, 403, compute.CodeForbidden, "")
	a.expectAudit(root, "", "authenticate denied forbidden")
}

// A user reads what concerns them, an administrator everything, and neither more than the token permits.
func TestWhoReadsTheAuditLog(t *testing.T) {
	a := newAPI(t, nil)
	a.addKey(a.adaToken, "laptop")
	a.addKey(a.bobToken, "laptop")
	ada, bob := "ada addSSHKey ssh_key:1 allowed", "bob addSSHKey ssh_key:2 allowed"
	a.expectAudit(a.adaToken, "", ada)
	a.expectAudit(a.adaToken, "?user=ada", ada)
	a.expectAudit(a.adaToken, fmt.Sprintf("?user=%d", a.ada.ID), ada)
	a.expectAudit(a.bobToken, "", bob)
	foreign := a.do("GET", "/compute/audit?user=bob", a.adaToken, "")
	foreign.isProblem(t, 403, compute.CodeForbidden, "")
	if absent := a.do("GET", "/compute/audit?user=nobody", a.adaToken, ""); absent.body != foreign.body {
		t.Errorf("an absent account says %s, a foreign one %s", absent.body, foreign.body)
	}
	root := a.root(auth.ScopeAuditRead)
	denied := "ada listAuditRecords denied forbidden"
	a.expectAudit(root, "?after=0", ada, bob, denied, denied)
	a.expectAudit(root, "?user=bob", bob)
	a.expectAudit(root, fmt.Sprintf("?user=%d", a.bob.ID), bob)
	if number := a.do("GET", fmt.Sprintf("/compute/audit?user=%d", a.bob.ID), a.adaToken, ""); number.body != foreign.body {
		t.Errorf("a foreign number says %s, a foreign name %s", number.body, foreign.body)
	}
	a.do("GET", "/compute/audit?user=nobody", root, "").isProblem(t, 400, compute.CodeInvalid, "user")

	narrow := a.makeToken(a.adaToken, `{"name":"x","scopes":["keys:read","containers:read","tokens:read"]}`).Token
	a.do("GET", "/compute/audit", narrow, "").isProblem(t, 403, compute.CodeForbidden, "")
	a.do("GET", "/compute/audit", "", "").isProblem(t, 401, compute.CodeUnauthenticated, "")
}

func TestAuditPages(t *testing.T) {
	a := newAPI(t, nil)
	start := time.Now()
	for i := range 25 {
		a.record(compute.AuditRecord{
			At: start.Add(time.Duration(i) * time.Second), Action: compute.ActionLogin, Outcome: compute.OutcomeAllowed,
			User: a.ada.ID, Owner: a.ada.ID, Via: compute.ViaSSH, Container: "a1b2c3d4",
		})
		a.record(compute.AuditRecord{Action: compute.ActionLogin, Outcome: compute.OutcomeDenied, Owner: a.bob.ID, Via: compute.ViaSSH})
	}
	walk := func(first, param string) (seqs []int64) {
		query := first
		for {
			page := a.audit(a.adaToken, query)
			if len(page.Records) > 10 {
				t.Fatalf("%s: %d records", query, len(page.Records))
			}
			for _, r := range page.Records {
				seqs = append(seqs, r.Seq)
			}
			if page.Next == 0 {
				return seqs
			}
			query = fmt.Sprintf("?limit=10&%s=%d", param, page.Next)
		}
	}
	back, onwards := walk("?limit=10", "before"), walk("?limit=10&after=0", "after")
	slices.Reverse(back)
	if len(onwards) != 25 || onwards[0] != 1 || onwards[24] != 49 || !slices.Equal(back, onwards) {
		t.Errorf("back %v, onwards %v", back, onwards)
	}
	if page := a.audit(a.adaToken, "?limit=25"); len(page.Records) != 25 || page.Next != 0 {
		t.Errorf("%d, next %d", len(page.Records), page.Next)
	}
	at := func(i int) string {
		return url.QueryEscape(start.Add(time.Duration(i) * time.Second).Format(time.RFC3339Nano))
	}
	for query, want := range map[string]int{
		"?since=" + at(5) + "&until=" + at(8): 3, "?container=a1b2c3d4&limit=7": 7, "?container=00000000": 0, "?container=x": 0,
		"?action=login": 25, "?action=createContainer": 0, "?action=loseAuditRecords": 0, "?outcome=denied": 0, "?before=1": 0, "?before=0": 0, "?after=48": 1, "?after=99": 0,
		"?after=9223372036854775807": 0, "?limit=1000": 25,
	} {
		if page := a.audit(a.adaToken, query); len(page.Records) != want {
			t.Errorf("%s: %d records, want %d", query, len(page.Records), want)
		}
	}
	for query, field := range map[string]string{
		"?limit=0": "limit", "?limit=1001": "limit", "?limit=-1": "limit", "?limit=x": "limit", "?limit=": "limit",
		"?limit=99999999999999999999": "limit", "?after=-1": "after", "?before=-1": "before", "?after=1.5": "after",
		"?since=yesterday": "since", "?until=2026-01-15": "until", "?since=": "since", "?since=0000-01-01T00:00:00Z": "since",
		"?outcome=maybe": "outcome", "?action=": "action", "?container=": "container", "?owner=1": "owner", "?limit=1&limit=2": "limit",
		"?action=%ff": "action", "?action=Login": "action", "?action=createcontainer": "action", "?action=disableUser": "action",
	} {
		a.do("GET", "/compute/audit"+query, a.adaToken, "").isProblem(t, 400, compute.CodeInvalid, field)
	}
	said := a.do("GET", "/compute/audit?action=x", a.adaToken, "").isProblem(t, 400, compute.CodeInvalid, "action")
	if !strings.Contains(said, "such as createContainer, or one of login, openSSHSession,") {
		t.Errorf("it says %q", said)
	}
	said = a.do("GET", "/compute/audit?limit=1001", a.adaToken, "").isProblem(t, 400, compute.CodeInvalid, "limit")
	if said != "limit is how many a page has at most: send a whole number from 1 to 1000." {
		t.Errorf("it says %q", said)
	}
}

// A record of every kind is as the document says: the answers are held against it.
func TestWholeAuditRecord(t *testing.T) {
	a := newAPI(t, nil)
	a.record(compute.AuditRecord{
		At: time.Date(2026, 1, 15, 10, 30, 0, 125_000_000, time.UTC), Action: compute.ActionSessionEnd,
		Outcome: compute.OutcomeFailed, Code: compute.CodeUnavailable, User: a.ada.ID, Owner: a.ada.ID, Credential: "ssh_key",
		CredentialID: "SHA256:x", Source: "192.0.2.7:50123", Via: compute.ViaSSH, Gateway: "machine-1", Request: "R",
		Container: "a1b2c3d4", Target: "lobby", Session: "S", SessionKind: "exec", Duration: 1500 * time.Millisecond, Count: 3,
		Until: time.Date(2026, 1, 15, 10, 31, 0, 0, time.UTC),
	})
	r := a.do("GET", "/compute/audit", a.adaToken, "")
	want := fmt.Sprintf(`{"records":[{"seq":1,"time":"2026-01-15T10:30:00.125Z","action":"endSSHSession","outcome":"failed",`+
		`"code":"unavailable","user":%d,"username":"ada","owner":%[1]d,"owner_name":"ada","credential":"ssh_key",`+
		`"credential_id":"SHA256:x","source":"192.0.2.7:50123","via":"ssh","gateway":"machine-1","request_id":"R",`+
		`"container":"a1b2c3d4","target":"lobby","session":"S","session_kind":"exec","duration_ms":1500,"count":3,`+
		`"until":"2026-01-15T10:31:00.000Z"}]}`+"\n", a.ada.ID)
	if r.body != want {
		t.Errorf("got  %s\nwant %s", r.body, want)
	}
}
