package api_test

import (
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/go-chi/chi/v5"
	"github.com/jackc/pgx/v5"

	"github.com/mubatch/mubatch/api"
)

// managed lists the routes under /api/v1, as the router has them.
func (w *world) managed() (routes [][2]string) {
	w.t.Helper()
	err := chi.Walk(w.router, func(method, path string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		if strings.HasPrefix(path, "/api/v1/") {
			routes = append(routes, [2]string{method, path})
		}
		return nil
	})
	if err != nil || len(routes) < 30 {
		w.t.Fatalf("%d routes, %v", len(routes), err)
	}
	return routes
}

var parameter = regexp.MustCompile(`\{(\w+)\}`)

// fill puts the things of a tenant into a path.
func (w *world) fill(path string, things map[string]string) string {
	w.t.Helper()
	return parameter.ReplaceAllStringFunc(path, func(p string) string {
		name := strings.Trim(p, "{}")
		if things[name] == "" {
			w.t.Fatalf("nothing to put into %s of %s", p, path)
		}
		return things[name]
	})
}

func body(method string) string {
	if method == "GET" || method == "DELETE" {
		return ""
	}
	return "{}"
}

func TestEveryRouteAdmitsOnlyItsScope(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	needs := operations(t)
	secrets := map[api.Scope]string{}
	for _, scope := range api.Scopes() {
		secrets[scope] = w.newKey(w.acme.ID, scope)
	}
	tried := 0
	unknown := map[string]string{
		"key": "key_999999", "source": "nothing", "write_key": "wk_999999", "webhook_secret": "whs_999999", "segment": "nothing", "profile": "user_id:nobody",
		"message_id": "nothing", "failed_event": "fe_1_999999", "destination": "nothing",
		"computed_trait": "nothing", "subscription": "nothing",
		"erasure": "era_999999", "mapping": "map_999999", "import": "imp_999999", "schema": "sch_999999", "quarantined_event": "qe_2_999999",
	}
	for _, rt := range w.managed() {
		for _, scope := range api.Scopes() {
			got := w.do(rt[0], w.fill(rt[1], unknown), body(rt[0]), header("Authorization", "Bearer "+secrets[scope]))
			if admitted := got.Status != http.StatusForbidden && got.Status != http.StatusUnauthorized; admitted != (scope == needs[rt[0]+" "+rt[1]]) {
				t.Errorf("%s %s with the scope %s: status %d, want it to need %q", rt[0], rt[1], scope, got.Status, needs[rt[0]+" "+rt[1]])
			}
			tried++
		}
		w.do(rt[0], w.fill(rt[1], unknown), body(rt[0])).want(http.StatusUnauthorized, "unauthorized")
		tried++
	}
	t.Logf("%d combinations of route and key", tried)
}

func TestNothingOfAnotherWorkspaceCanBeReached(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	before := w.dump()
	unknown := map[string]string{
		"key": "key_999999", "source": "src_999999", "write_key": "wk_999999", "webhook_secret": "whs_999999", "segment": "seg_999999", "destination": "dst_999999",
		"profile": "p_" + strings.Repeat("0", 32), "message_id": "never-sent", "failed_event": "fe_2_999999",
		"computed_trait": "ct_999999", "subscription": "sub_999999",
		"erasure": "era_999999", "mapping": "map_999999", "import": "imp_999999", "schema": "sch_999999", "quarantined_event": "qe_2_999999",
	}
	valid := map[string]string{
		"PUT /api/v1/segments/{segment}":                `{"name":"mine","rule":{"event":"x"}}`,
		"POST /api/v1/sources/{source}/schemas":         `{"event":"x","schema":{},"action":"flag"}`,
		"PUT /api/v1/sources/{source}/schemas/{schema}": `{"schema":{},"action":"flag"}`,
		"POST /api/v1/profiles/{profile}/unmerge":       `{"identity":"anonymous_id:a1"}`,
		"POST /api/v1/profiles/{profile}/remerge":       `{"identity":"anonymous_id:a1"}`,
	}
	tried := 0
	for _, rt := range w.managed() {
		names := parameter.FindAllStringSubmatch(rt[1], -1)
		if len(names) == 0 {
			continue
		}
		b := body(rt[0])
		if v, ok := valid[rt[0]+" "+rt[1]]; ok {
			b = v
		}
		// Each parameter in turn is another's; with all the others ours.
		for _, name := range names {
			theirs, none := clone(w.acme.things), clone(w.acme.things)
			theirs[name[1]], none[name[1]] = w.globex.things[name[1]], unknown[name[1]]
			got := w.as(w.acme, rt[0], w.fill(rt[1], theirs), b)
			want := w.as(w.acme, rt[0], w.fill(rt[1], none), b)
			if got.Status != want.Status || anonymous(got.Body, theirs) != anonymous(want.Body, none) {
				t.Errorf("%s %s: what is another's is told from what is not:\n%d %s\n%d %s", rt[0], rt[1], got.Status, got.Body, want.Status, want.Body)
			}
			if got.Status != http.StatusNotFound && name[1] != "message_id" {
				t.Errorf("%s %s with another's %s: status %d: %s", rt[0], rt[1], name[1], got.Status, got.Body)
			}
			tried++
		}
	}
	// By names that both could use, everybody gets their own.
	if got := w.as(w.acme, "GET", "/api/v1/profiles/user_id:ada", "").want(200).str("id"); got != w.acme.things["profile"] {
		t.Errorf("user_id:ada is %s, want our own %s", got, w.acme.things["profile"])
	}
	for _, path := range []string{
		"/api/v1/profiles", "/api/v1/segments", "/api/v1/computed_traits", "/api/v1/sources", "/api/v1/mappings", "/api/v1/destinations",
		"/api/v1/failed_events",
		"/api/v1/quarantine",
		"/api/v1/keys", "/api/v1/stats", "/api/v1/audit_log", "/api/v1/privacy/erasures",
	} {
		got := w.as(w.acme, "GET", path, "").want(200)
		for _, thing := range w.globex.things {
			if strings.Contains(got.Body, `"`+thing+`"`) {
				t.Errorf("GET %s shows %s of another workspace: %s", path, thing, got.Body)
			}
		}
		if strings.Contains(got.Body, "globex") {
			t.Errorf("GET %s tells of another workspace: %s", path, got.Body)
		}
	}
	if after := w.dump(); !slices.Equal(before, after) {
		t.Errorf("something of another workspace was changed:\n%v\n%v", before, after)
	}
	t.Logf("%d combinations of route and parameter", tried)
}

// dump returns what the other workspace has that could be changed.
func (w *world) dump() []string {
	w.t.Helper()
	rows, _ := w.pool.Query(w.t.Context(), `
		SELECT s::text FROM segments s WHERE workspace_id = $1
		UNION ALL SELECT s::text FROM computed_traits s WHERE workspace_id = $1
		UNION ALL SELECT s::text FROM sources s WHERE workspace_id = $1
		UNION ALL SELECT s::text FROM mappings s WHERE workspace_id = $1
		UNION ALL SELECT s::text FROM write_keys s WHERE workspace_id = $1
		UNION ALL SELECT s::text FROM webhook_secrets s WHERE workspace_id = $1
		UNION ALL SELECT s::text FROM failed_events s WHERE workspace_id = $1
		UNION ALL SELECT s::text FROM destinations s WHERE workspace_id = $1
		UNION ALL SELECT s::text FROM destination_segments s JOIN destinations d ON d.id = s.destination_id WHERE workspace_id = $1
		UNION ALL SELECT s::text FROM event_subscriptions s JOIN destinations d ON d.id = s.destination_id WHERE workspace_id = $1
		UNION ALL SELECT concat(id, name, revoked_at) FROM api_keys WHERE workspace_id = $1
		ORDER BY 1`, w.globex.ID) // err: below
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		w.t.Fatal(err)
	}
	return lines
}

func clone(m map[string]string) map[string]string {
	c := map[string]string{}
	for k, v := range m {
		c[k] = v
	}
	return c
}

var requestID = regexp.MustCompile(`urn:mubatch:request:[A-Z0-9]+`)

// anonymous takes out of an answer what is different in every answer, and the names that were asked for.
func anonymous(body string, things map[string]string) string {
	body = requestID.ReplaceAllString(body, "")
	for _, thing := range things {
		body = strings.ReplaceAll(body, thing, "")
	}
	return body
}

func TestKeysThatDoNotWork(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, expired, err := api.NewKeyStore(w.pool).Create(t.Context(), w.acme.ID, api.NewKey{Name: "old", ExpiresAt: new(at(0).AddDate(-1, 0, 0))})
	if err != nil {
		t.Fatal(err)
	}
	good := w.acme.secret
	mistyped := good[:10] + string(good[10]^1) + good[11:]
	for name, value := range map[string]string{
		"none at all": "", "another scheme": "Basic " + good, "no scheme": good, "a mistyped one": "Bearer " + mistyped,
		"an expired one": "Bearer " + expired, "a write key": "Bearer mub_wk_0000000000000000000000000000",
		"one too long": "Bearer " + good + good, "one of the right form that nobody has": "Bearer mub_sk_" + strings.Repeat("0", 43) + "2UtW3E",
	} {
		got := w.do("GET", "/api/v1/workspace", "", header("Authorization", value)).want(http.StatusUnauthorized, "unauthorized")
		if got.Header.Get("WWW-Authenticate") == "" {
			t.Errorf("%s: no WWW-Authenticate", name)
		}
	}
	w.do("GET", "/api/v1/workspace", "", header("Authorization", "bearer  "+good)).want(http.StatusOK)
}

func TestARevokedKeyStops(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	made := w.as(w.acme, "POST", "/api/v1/keys", `{"name":"short-lived","scopes":["read"]}`).want(http.StatusCreated)
	bearer := header("Authorization", "Bearer "+made.str("secret"))
	w.do("GET", "/api/v1/workspace", "", bearer).want(http.StatusOK)

	w.as(w.acme, "DELETE", "/api/v1/keys/"+made.str("id"), "").want(http.StatusOK)
	w.until("the key to stop", func() bool {
		return w.do("GET", "/api/v1/workspace", "", bearer).Status == http.StatusUnauthorized
	})
	w.as(w.acme, "DELETE", "/api/v1/keys/"+made.str("id"), "").want(http.StatusOK)
}

func TestKeys(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	admin := tenant{Workspace: w.acme.Workspace, secret: w.newKey(w.acme.ID, api.Admin, api.Read)}

	w.as(admin, "POST", "/api/v1/keys", `{"name":"more","scopes":["read","write"]}`).want(422, "invalid")
	made := w.as(admin, "POST", "/api/v1/keys", `{"name":"ci","scopes":["read"],"expires_at":"2999-01-01T00:00:00+02:00"}`).want(201)
	if got := made.str("expires_at"); got != "2998-12-31T22:00:00.000Z" {
		t.Errorf("expires_at is %s", got)
	}
	list := w.as(admin, "GET", "/api/v1/keys", "").want(200)
	if strings.Contains(list.Body, made.str("secret")) || !strings.Contains(list.Body, made.str("prefix")) {
		t.Errorf("the list shows a secret, or no prefix: %s", list.Body)
	}
	if n := list.len("data"); n != 4 {
		t.Errorf("%d keys, want 4", n)
	}

	var stored string
	err := w.pool.QueryRow(t.Context(), `SELECT string_agg(k::text || encode(k.key_hash, 'escape'), ' ') FROM api_keys k`).Scan(&stored)
	if err != nil || strings.Contains(stored, made.str("secret")) {
		t.Errorf("the secret is in the database, or %v", err)
	}
}

func TestEnsureKeyCanBeRepeated(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	keys := api.NewKeyStore(w.pool)
	_, secret, err := keys.Create(t.Context(), w.globex.ID, api.NewKey{Name: "a form to copy"})
	if err != nil {
		t.Fatal(err)
	}
	w.exec(`DELETE FROM api_keys WHERE name = 'a form to copy'`)
	for range 2 {
		if err := keys.EnsureKey(t.Context(), w.acme.ID, "dev", secret); err != nil {
			t.Fatal(err)
		}
	}
	w.do("GET", "/api/v1/workspaces", "", header("Authorization", "Bearer "+secret)).want(200)
	if err := keys.EnsureKey(t.Context(), w.globex.ID, "dev", secret); err == nil {
		t.Error("a secret was taken over from another workspace")
	}
	if err := keys.EnsureKey(t.Context(), w.acme.ID, "dev", "mub_sk_made-up"); err == nil {
		t.Error("a secret of no form was taken")
	}
}
