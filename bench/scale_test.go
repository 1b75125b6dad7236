package main

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"berth/internal/compute"
	"berth/internal/store"
)

// A database that is filled is one that berth itself takes for its own, and it holds what its rows are asked for.
func TestFill(t *testing.T) {
	ctx := t.Context()
	p := &population{data: t.TempDir()}
	for _, n := range []int{30, 300} {
		if err := p.grow(ctx, n); err != nil {
			t.Fatal(err)
		}
		if p.containers() != n {
			t.Errorf("%d containers, want %d", p.containers(), n)
		}
	}
	tokens, err := p.tokens(ctx, "zone.test", 7)
	if err != nil || len(tokens) != 7 || tokens[p.first] == "" || tokens[p.last] == "" {
		t.Errorf("tokens of %d accounts, %v", len(tokens), err)
	}
	s, err := store.Open(ctx, p.database(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, user := range []int{p.first, p.last} {
		list, err := s.Containers(ctx, compute.UserID(user))
		if err != nil || len(list) != perUser {
			t.Fatalf("account %d has %+v, %v", user, list, err)
		}
		for i, c := range list {
			if string(c.ID) != containerOf(user, i) || c.Status != compute.StatusStopped || len(c.SSHKeyIDs) != 2 {
				t.Errorf("container %d of account %d is %+v, want %s", i, user, c, containerOf(user, i))
			}
		}
		if holders, err := s.Accounts(ctx, fingerprintOf(user)); err != nil || len(holders) != 1 || int(holders[0].ID) != user {
			t.Errorf("the key of account %d is of %+v, %v", user, holders, err)
		}
	}
	all, err := s.Reconcilable(ctx)
	if err != nil || len(all) != 300 {
		t.Errorf("%d containers, %v", len(all), err)
	}
	db, err := sql.Open("sqlite", p.database())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	rows, err := db.QueryContext(ctx, "PRAGMA foreign_key_check")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	if rows.Next() || rows.Err() != nil {
		t.Errorf("a row refers to none, %v", rows.Err())
	}
}

// A request that waits behind a slow one has waited since it was due.
func TestLoadCountsWaiting(t *testing.T) {
	const stall = 300 * time.Millisecond
	turn := make(chan struct{}, 1)
	first := true
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		turn <- struct{}{}
		defer func() { <-turn }()
		if first {
			first = false
			<-time.After(stall)
		}
		_, _ = w.Write([]byte("good"))
	}))
	defer s.Close()
	job := loadJob{
		Address: strings.TrimPrefix(s.URL, "http://"), Rate: 100, Count: 20,
		Requests: []request{{Method: http.MethodGet, Path: "/", Want: "good"}, {Method: http.MethodGet, Path: "/", Want: "better"}},
	}
	text, err := json.Marshal(job)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := load(json.NewDecoder(bytes.NewReader(text)), &out); err != nil {
		t.Fatal(err)
	}
	var r loadResult
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	if r.Failed != 10 || !strings.Contains(r.Why, "good") {
		t.Errorf("%d failed: %s; half of the answers are not what is wanted", r.Failed, r.Why)
	}
	for i, took := range r.Took[:10] {
		if least := stall - (r.Due[i] - r.Due[0]) - 20*time.Millisecond; took < least {
			t.Errorf("request %d took %v, and was due %v before the stall was over", i, took, least)
		}
	}
}

func TestGrowth(t *testing.T) {
	r := &report{}
	for _, n := range []int{1000, goalContainers, 1_000_000} {
		r.Containers = append(r.Containers, n)
		r.grew("requests", "list", "ms", float64(n)/1e5, 10)
		r.grew("keys", "key", "µs", float64(n)/100, 1000)
	}
	var out bytes.Buffer
	if err := r.print(&out, false); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"1,000    300,000    1,000,000   goal at 300,000", "list  0.01 ms  3.00 ms    10.00 ms    < 10 ms ok",
		"key   10.0 µs  3000.0 µs  10000.0 µs  < 1000 µs MISS",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table has no %q:\n%s", want, &out)
		}
	}
	if err := r.missed(); err == nil || !strings.Contains(err.Error(), "key") || strings.Contains(err.Error(), "list") {
		t.Errorf("missed: %v", err)
	}
}

func TestReadUntil(t *testing.T) {
	said, err := readUntil(strings.NewReader("one\ntwo is ready\nthree\n"), "is ready")
	if err != nil || said != "one\ntwo is ready\n" {
		t.Errorf("%q, %v", said, err)
	}
	if _, err := readUntil(strings.NewReader("one\n"), "is ready"); err == nil {
		t.Error("a program that says nothing is taken for ready")
	}
}

// A helper that is told something wrong says so, and ends.
func TestHelpersRefuse(t *testing.T) {
	for name, help := range helpers {
		if err := help(json.NewDecoder(strings.NewReader("[]")), &bytes.Buffer{}); err == nil {
			t.Errorf("%s takes a list for a job", name)
		}
	}
}
