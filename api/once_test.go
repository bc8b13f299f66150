package api_test

import (
	"strings"
	"testing"
	"time"

	"github.com/mubatch/mubatch/api"
)

func (w *world) count(table string) (n int) {
	w.t.Helper()
	if err := w.pool.QueryRow(w.t.Context(), `SELECT count(*) FROM `+table).Scan(&n); err != nil {
		w.t.Fatal(err)
	}
	return n
}

func TestARequestRepeatedIsDoneOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	key := header("Idempotency-Key", "try-1")
	for _, tt := range []struct{ path, body, table string }{
		{"/api/v1/workspaces", `{"key":"initech","name":"Initech"}`, "workspaces"},
		{"/api/v1/keys", `{"name":"ci","scopes":["read"]}`, "api_keys"},
		{"/api/v1/sources", `{"key":"app"}`, "sources"},
		{"/api/v1/sources/acme-shop/write_keys", ``, "write_keys"},
		{"/api/v1/segments", `{"key":"x","name":"X","rule":{"event":"x"}}`, "segments"},
		{"/api/v1/mappings", `{"key":"x","document":{"version":1,"rules":[{"event":{"type":"page","userId":"u"}}]}}`, "mappings"},
		{"/api/v1/computed_traits", `{"key":"x","name":"X","value":{"event":"x","count":{}}}`, "computed_traits"},
	} {
		first := w.as(w.acme, "POST", tt.path, tt.body, key).want(201)
		n := w.count(tt.table)
		second := w.as(w.acme, "POST", tt.path, tt.body, key).want(201)
		if second.Body != first.Body || second.Header.Get("ETag") != first.Header.Get("ETag") {
			t.Errorf("POST %s: %s, then %s", tt.path, first.Body, second.Body)
		}
		if first.Header.Get("Idempotency-Replayed") != "" || second.Header.Get("Idempotency-Replayed") != "true" {
			t.Errorf("POST %s: replayed %q, then %q", tt.path, first.Header.Get("Idempotency-Replayed"), second.Header.Get("Idempotency-Replayed"))
		}
		if got := w.count(tt.table); got != n {
			t.Errorf("POST %s: %d in %s, then %d", tt.path, n, tt.table, got)
		}
	}
	if w.count("segments") != 3 {
		t.Error("the segment was made twice, or not at all")
	}
	w.as(w.acme, "POST", "/api/v1/segments", `{"key":"y","name":"Y","rule":{"event":"y"}}`, key).want(422, "idempotency_key_reused")

	// It is the key's own: another one that asks the same has not asked before.
	other := tenant{Workspace: w.acme.Workspace, secret: w.newKey(w.acme.ID, api.Write)}
	w.as(other, "POST", "/api/v1/segments", `{"key":"x","name":"X","rule":{"event":"x"}}`, key).want(409, "already_exists")

	// What is remembered shows no secret.
	var stored string
	if err := w.pool.QueryRow(t.Context(), `SELECT string_agg(encode(answer, 'escape'), ' ') FROM idempotency_keys`).Scan(&stored); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(stored, "mub_") || strings.Contains(stored, "initech") {
		t.Errorf("an answer is readable in the database: %s", stored)
	}

	// After a day it is forgotten.
	w.exec(`UPDATE idempotency_keys SET created_at = now() - interval '25 hours'`)
	w.as(w.acme, "POST", "/api/v1/segments", `{"key":"x","name":"X","rule":{"event":"x"}}`, key).want(409, "already_exists")
}

func TestAProblemIsRememberedToo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	key := header("Idempotency-Key", "try-1")
	first := w.as(w.acme, "POST", "/api/v1/segments", `{"key":"acme-buyers","name":"X","rule":{"event":"x"}}`, key).want(409, "already_exists")
	w.exec(`UPDATE segments SET key = 'other' WHERE key = 'acme-buyers'`)
	if again := w.as(w.acme, "POST", "/api/v1/segments", `{"key":"acme-buyers","name":"X","rule":{"event":"x"}}`, key).want(409); again.Body != first.Body {
		t.Errorf("%s, then %s", first.Body, again.Body)
	}
	if n := w.count("behaviours"); n != 2 {
		t.Errorf("%d behaviours: what a refused request did was not undone", n)
	}
	for _, bad := range []string{strings.Repeat("k", 256), "a b", "ü", ""} {
		w.as(w.acme, "POST", "/api/v1/segments", `{"key":"z","name":"Z","rule":{"event":"z"}}`, header("Idempotency-Key", bad)).want(400, "bad_parameter")
	}
}

func TestTheSameRequestAtOnceWaitsItsTurn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tx, err := w.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	// Whoever makes a segment waits for this, and holds the turn of its Idempotency-Key meanwhile.
	if _, err := tx.Exec(t.Context(), `SELECT pg_advisory_xact_lock(x'73656773'::int, $1)`, w.acme.ID); err != nil {
		t.Fatal(err)
	}
	ask := func() answer {
		return w.as(w.acme, "POST", "/api/v1/segments", `{"key":"z","name":"Z","rule":{"event":"z"}}`, header("Idempotency-Key", "try-1"))
	}
	first := make(chan answer, 1)
	go func() { first <- ask() }()
	for waiting := false; !waiting; {
		err := w.pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND classid = x'73656773'::int
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))`).Scan(&waiting)
		if err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-first:
			t.Fatalf("the first request did not wait: %d %s", got.Status, got.Body)
		case <-time.After(5 * time.Millisecond):
		}
	}
	if got := ask().want(409, "in_progress"); got.Header.Get("Retry-After") != "1" {
		t.Errorf("Retry-After is %q", got.Header.Get("Retry-After"))
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	made := <-first
	if again := ask().want(201); made.Status != 201 || again.Body != made.Body {
		t.Errorf("%d %s, then %s", made.Status, made.Body, again.Body)
	}
}
