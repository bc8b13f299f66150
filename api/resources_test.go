package api_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/profiles"
)

func TestWorkspaces(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if got := w.as(w.acme, "GET", "/api/v1/workspace", "").want(200).str("key"); got != "acme" {
		t.Errorf("the workspace is %q", got)
	}
	got := w.as(w.acme, "PATCH", "/api/v1/workspace", `{"name":"Acme & Söhne"}`, header("Content-Type", "application/merge-patch+json")).want(200)
	if got.str("name") != "Acme & Söhne" {
		t.Errorf("renamed to %s", got.Body)
	}
	w.as(w.acme, "PATCH", "/api/v1/workspace", `{}`).want(200)

	made := w.as(w.acme, "POST", "/api/v1/workspaces", `{"key":"initech","name":"Initech"}`).want(201)
	first := header("Authorization", "Bearer "+made.str("key", "secret"))
	if got := w.do("GET", "/api/v1/workspace", "", first).want(200).str("id"); got != made.str("workspace", "id") {
		t.Errorf("the first key opens %s", got)
	}
	w.do("GET", "/api/v1/workspaces", "", first).want(403, "missing_scope")
	w.do("GET", "/api/v1/keys", "", first).want(200)
	w.as(w.acme, "POST", "/api/v1/workspaces", `{"key":"initech","name":"Initech"}`).want(409, "already_exists")

	page := w.as(w.acme, "GET", "/api/v1/workspaces?limit=2", "").want(200)
	if page.len("data") != 2 || string(page.at("has_more")) != "true" {
		t.Errorf("first page: %s", page.Body)
	}
	page = w.as(w.acme, "GET", "/api/v1/workspaces?limit=2&cursor="+page.str("next_cursor"), "").want(200)
	if page.len("data") != 1 || string(page.at("has_more")) != "false" || string(page.at("next_cursor")) != "null" {
		t.Errorf("last page: %s", page.Body)
	}
}

func TestSources(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	made := w.as(w.acme, "POST", "/api/v1/sources", `{"key":"app","name":"The app","settings":{"merge_on":["email"]}}`).want(201)
	if made.str("write_key", "source_id") != made.str("id") || string(made.at("settings", "collect_ip")) != "true" {
		t.Errorf("made %s", made.Body)
	}
	w.as(w.acme, "POST", "/api/v1/sources", `{"key":"app"}`).want(409, "already_exists")
	w.as(w.globex, "POST", "/api/v1/sources", `{"key":"app"}`).want(201) // keys are a workspace's own
	w.as(w.acme, "POST", "/api/v1/sources", `{"key":"src_1"}`).want(422, "invalid")
	w.as(w.acme, "POST", "/api/v1/sources", `{"key":"x","settings":{"merge_on":["email","email"]}}`).want(422, "invalid")
	w.as(w.acme, "POST", "/api/v1/sources", `{"key":"x","settings":{"dialects":["klingon"]}}`).want(422, "invalid")
	w.as(w.acme, "POST", "/api/v1/sources", `{"key":"x","settings":{"dialects":[]}}`).want(422, "invalid")

	got := w.as(w.acme, "PATCH", "/api/v1/sources/app", `{"settings":{"collect_ip":false},"enabled":false}`).want(200)
	if string(got.at("settings")) != `{"merge_on":["email"],"collect_ip":false,"dialects":["segment","rudderstack"],"unplanned":"ignore","bots":"flag","tell_users":false}` || string(got.at("enabled")) != "false" {
		t.Errorf("changed to %s", got.Body)
	}
	if got := w.as(w.acme, "PATCH", "/api/v1/sources/app", `{"settings":{"tell_users":true}}`).want(200); string(got.at("settings", "tell_users")) != "true" {
		t.Errorf("changed to %s", got.Body)
	}
	w.as(w.acme, "PATCH", "/api/v1/sources/app", `{"key":"other"}`).want(400, "unknown_member")

	second := w.as(w.acme, "POST", "/api/v1/sources/"+made.str("id")+"/write_keys", "").want(201)
	keys := w.as(w.acme, "GET", "/api/v1/sources/app/write_keys?limit=1", "").want(200)
	if keys.str("data", 0, "id") != second.str("id") || keys.str("next_cursor") == "" {
		t.Errorf("the newest is not first: %s", keys.Body)
	}
	w.as(w.acme, "DELETE", "/api/v1/sources/acme-shop/write_keys/"+second.str("id"), "").want(404)
	revoked := w.as(w.acme, "DELETE", "/api/v1/sources/app/write_keys/"+second.str("id"), "").want(200)
	if revoked.str("revoked_at") == "" {
		t.Errorf("not revoked: %s", revoked.Body)
	}
	if n := w.as(w.acme, "GET", "/api/v1/sources", "").want(200).len("data"); n != 3 {
		t.Errorf("%d sources, want 3", n)
	}
	w.as(w.acme, "DELETE", "/api/v1/sources/app", "").want(204)
	w.as(w.acme, "GET", "/api/v1/sources/app", "").want(404, "not_found")
}

func TestProfiles(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, ref := range []string{
		w.acme.things["profile"], "user_id:ada", "anonymous_id:a1", "email:ada@example.com", "email:%20ADA%40example.com",
		w.acme.Secret.Key(profiles.Identifier{Kind: profiles.AnonymousID, Value: "a1"}).String(),
	} {
		got := w.as(w.acme, "GET", "/api/v1/profiles/"+ref, "").want(200)
		if got.str("id") != w.acme.things["profile"] {
			t.Errorf("%s is %s", ref, got.Body)
		}
	}
	got := w.as(w.acme, "GET", "/api/v1/profiles/user_id:ada", "")
	want := `[{"kind":"user_id","value":"ada"},{"kind":"anonymous_id","value":"a1"},{"kind":"email","value":"ada@example.com"}]`
	if diff := cmp.Diff(want, string(got.at("identifiers"))); diff != "" {
		t.Errorf("identifiers (-want +got):\n%s", diff)
	}
	if ltv := string(got.at("traits", "ltv")); ltv != "12345678901234567890.5" {
		t.Errorf("a number came out as %s", ltv)
	}
	if m := got.at("memberships", 0); !strings.Contains(string(m), `"segment_key":"acme-buyers"`) {
		t.Errorf("memberships: %s", got.at("memberships"))
	}
	if got.str("as_of") != "2026-11-01T12:00:00.000Z" || got.str("last_seen_at") != "2026-11-01T10:00:00.000Z" || got.str("first_seen_at") != "2026-11-01T09:00:00.000Z" {
		t.Errorf("times: %s", got.Body)
	}
	for _, ref := range []string{"user_id:nobody", "user_id:ADA", "email:nobody@example.com", "kundennummer:1", "nonsense"} {
		w.as(w.acme, "GET", "/api/v1/profiles/"+ref, "").want(404, "not_found")
	}
}

func TestTheOneSeenLastAnswersForASharedAddress(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.person(w.acme, person{user: "older", email: "info@example.com", lastSeen: at(5), traits: map[string]string{"email": `"info@example.com"`}})
	newer := w.person(w.acme, person{user: "newer", email: "info@example.com", lastSeen: at(6), traits: map[string]string{"email": `"info@example.com"`}})
	w.person(w.acme, person{user: "oldest", email: "info@example.com", lastSeen: at(4), traits: map[string]string{"email": `"info@example.com"`}})
	if got := w.as(w.acme, "GET", "/api/v1/profiles/email:info@example.com", "").want(200).str("id"); got != newer.String() {
		t.Errorf("got %s, want %s", got, newer)
	}
}

// all pages through a list, so many at a time, and returns what show finds in each item.
func (w *world) all(path string, limit int, show func(answer, int) string) (found []string) {
	w.t.Helper()
	cursor := ""
	for range 100 {
		page := w.as(w.acme, "GET", fmt.Sprintf("%s?limit=%d%s", path, limit, cursor), "").want(200)
		for i := range page.len("data") {
			found = append(found, show(page, i))
		}
		if string(page.at("has_more")) == "false" {
			return found
		}
		cursor = "&cursor=" + page.str("next_cursor")
	}
	w.t.Fatalf("%s does not end", path)
	return nil
}

// However small the pages, they hold everything once.
func TestListsGoThroughAllLanes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	segment := w.acme.things["segment"]
	var id int64
	fmt.Sscanf(segment, "seg_%d", &id)
	everybody := map[string]bool{w.acme.things["profile"]: true}
	var source int32
	fmt.Sscanf(w.acme.things["source"], "src_%d", &source)
	for i := range 40 {
		p := w.person(w.acme, person{user: fmt.Sprint("u", i), lastSeen: at(i), member: id})
		w.transition(w.acme, p, id, true, source, fmt.Sprint("m", i), at(i/6))
		everybody[p.String()] = true
	}
	for _, path := range []string{"/api/v1/profiles", "/api/v1/segments/" + segment + "/members"} {
		member := "id"
		if strings.HasSuffix(path, "members") {
			member = "profile_id"
		}
		for _, limit := range []int{1, 3, 41, 1000} {
			found := w.all(path, limit, func(a answer, i int) string { return a.str("data", i, member) })
			once := map[string]bool{}
			for _, id := range found {
				once[id] = true
			}
			if len(found) != len(once) {
				t.Errorf("%s by %d: %d, of which %d are different", path, limit, len(found), len(once))
			}
			if diff := cmp.Diff(everybody, once); diff != "" {
				t.Errorf("%s by %d (-want +got):\n%s", path, limit, diff)
			}
		}
	}
	whole := w.all("/api/v1/segments/"+segment+"/transitions", 1000, func(a answer, i int) string { return a.str("data", i, "at") + a.str("data", i, "profile_id") })
	for _, limit := range []int{1, 7} {
		found := w.all("/api/v1/segments/"+segment+"/transitions", limit, func(a answer, i int) string { return a.str("data", i, "at") + a.str("data", i, "profile_id") })
		if diff := cmp.Diff(whole, found); diff != "" {
			t.Errorf("transitions by %d (-want +got):\n%s", limit, diff)
		}
	}
	for i := 1; i < len(whole); i++ {
		if whole[i][:24] > whole[i-1][:24] {
			t.Errorf("transition %d is newer than the one before: %s, %s", i, whole[i-1], whole[i])
		}
	}
	if len(whole) != 41 {
		t.Errorf("%d transitions, want 41", len(whole))
	}
	if got := string(w.as(w.acme, "GET", "/api/v1/segments/"+segment, "").at("members")); got != "41" {
		t.Errorf("%s members, want 41", got)
	}
}

func TestEventsOfAllIdentifiersAreListedTogether(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var source int32
	fmt.Sscanf(w.acme.things["source"], "src_%d", &source)
	keys := []profiles.Key{
		w.acme.Secret.Key(profiles.Identifier{Kind: profiles.UserID, Value: "ada"}),
		w.acme.Secret.Key(profiles.Identifier{Kind: profiles.AnonymousID, Value: "a1"}),
	}
	for i := 1; i < 10; i++ {
		w.event(w.acme, keys[i%2], source, fmt.Sprint("e", i), at(i/2))
	}
	whole := w.all("/api/v1/profiles/anonymous_id:a1/events", 1000, func(a answer, i int) string { return a.str("data", i, "message_id") })
	if len(whole) != 10 || whole[9] != "e1" && whole[9] != "acme-m1" {
		t.Errorf("events: %v", whole)
	}
	for _, limit := range []int{1, 3} {
		found := w.all("/api/v1/profiles/user_id:ada/events", limit, func(a answer, i int) string { return a.str("data", i, "message_id") })
		if diff := cmp.Diff(whole, found); diff != "" {
			t.Errorf("by %d (-want +got):\n%s", limit, diff)
		}
	}
	first := w.as(w.acme, "GET", "/api/v1/profiles/user_id:ada/events?limit=1", "").want(200)
	if n := string(first.at("data", 0, "payload", "properties", "revenue")); n != "9007199254740993" {
		t.Errorf("a number came out as %s", n)
	}
	moves := w.as(w.acme, "GET", "/api/v1/profiles/anonymous_id:a1/transitions", "").want(200)
	want := `{"kind":"event","message_id":"acme-m1","source_id":"` + w.acme.things["source"] + `"}`
	if moves.len("data") != 1 || moves.str("data", 0, "change") != "entered" || string(moves.at("data", 0, "cause")) != want {
		t.Errorf("transitions: %s", moves.Body)
	}
}

func TestTraces(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	got := w.as(w.acme, "GET", "/api/v1/traces/acme-m1", "").want(200)
	if got.str("status") != "applied" || got.str("events", 0, "profile_id") != w.acme.things["profile"] || got.len("events", 0, "transitions") != 1 {
		t.Errorf("an applied one: %s", got.Body)
	}
	if got.str("events", 0, "received_at") != "2026-11-01T10:00:00.000Z" || got.str("events", 0, "applied_at") != "2026-11-01T10:00:01.000Z" {
		t.Errorf("times: %s", got.Body)
	}
	got = w.as(w.acme, "GET", "/api/v1/traces/acme-bad", "").want(200)
	if got.str("status") != "failed" || got.str("events", 0, "failed_event_id") != w.acme.things["failed_event"] || got.str("events", 0, "reason") == "" {
		t.Errorf("a failed one: %s", got.Body)
	}
	got = w.as(w.acme, "GET", "/api/v1/traces/never%2Fsent%20%25", "").want(200)
	if got.str("status") != "unknown" || got.len("events") != 0 || got.str("message_id") != "never/sent %" || got.str("as_of") == "" {
		t.Errorf("an unknown one: %s", got.Body)
	}
}

func TestFailedEvents(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var source int32
	fmt.Sscanf(w.acme.things["source"], "src_%d", &source)
	raw := w.failed(w.acme, source, "raw", "frame", []byte{0xff, 0x00})
	for i := range 5 {
		w.failed(w.acme, source, fmt.Sprint("f", i), "fold", []byte("x"))
	}
	list := w.as(w.acme, "GET", "/api/v1/failed_events", "").want(200)
	if list.len("data") != 7 || strings.Contains(list.Body, "ada") {
		t.Errorf("the list: %s", list.Body)
	}
	if n := len(w.all("/api/v1/failed_events", 2, func(a answer, i int) string { return a.str("data", i, "id") })); n != 7 {
		t.Errorf("%d in pages of two, want 7", n)
	}
	if n := w.as(w.acme, "GET", "/api/v1/failed_events?stage=fold&replayed=false", "").want(200).len("data"); n != 5 {
		t.Errorf("%d at fold, want 5", n)
	}
	one := w.as(w.acme, "GET", "/api/v1/failed_events/"+w.acme.things["failed_event"], "").want(200)
	if one.str("payload", "userId") != "ada" {
		t.Errorf("its payload: %s", one.Body)
	}
	if got := w.as(w.acme, "GET", "/api/v1/failed_events/"+raw, "").want(200).str("payload_base64"); got != "/wA=" {
		t.Errorf("unreadable bytes: %q", got)
	}

	replayed := w.as(w.acme, "POST", "/api/v1/failed_events/"+w.acme.things["failed_event"]+"/replay", "").want(202)
	if replayed.str("replayed_at") == "" {
		t.Errorf("not replayed: %s", replayed.Body)
	}
	w.as(w.acme, "POST", "/api/v1/failed_events/replay", `{"source":"nothing"}`).want(422, "invalid")
	for _, want := range []string{"5", "0"} {
		got := w.as(w.acme, "POST", "/api/v1/failed_events/replay", `{"stage":"fold","source":"acme-shop","failed_after":"2026-01-01T00:00:00Z"}`).want(202)
		if string(got.at("replayed")) != want {
			t.Errorf("replayed %s, want %s", got.Body, want)
		}
	}
	if n := w.as(w.acme, "GET", "/api/v1/failed_events?replayed=false", "").want(200).len("data"); n != 1 {
		t.Errorf("%d left, want 1", n)
	}
}

func TestStats(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	got := w.as(w.acme, "GET", "/api/v1/stats", "").want(200)
	want := `{"accepted":7,"applied":5,"duplicate":1,"failed":1,"suppressed":0,"quarantined":0,"adds_up":true}`
	if string(got.at("events")) != want || string(got.at("sources", 0, "events")) != want || got.str("sources", 0, "source_key") != "acme-shop" {
		t.Errorf("events: %s", got.Body)
	}
	if got.len("days") != 2 || string(got.at("profiles")) != "1" || string(got.at("segments")) != "1" {
		t.Errorf("counts: %s", got.Body)
	}
	if n := w.as(w.acme, "GET", "/api/v1/stats?days=1", "").want(200).len("days"); n != 1 {
		t.Errorf("%d days, want 1", n)
	}
	w.exec(`UPDATE counters SET applied = applied - 1 WHERE lane = 1 AND workspace_id = $1`, w.acme.ID)
	if got := w.as(w.acme, "GET", "/api/v1/stats", ""); string(got.at("events", "adds_up")) != "false" {
		t.Errorf("a lost event is not noticed: %s", got.Body)
	}
	w.exec(`DELETE FROM lanes WHERE lane = 3`)
	if got := w.as(w.acme, "GET", "/api/v1/stats", "").want(200); string(got.at("as_of")) != "null" || string(got.at("lag_seconds")) != "null" {
		t.Errorf("fresh although a lane is missing: %s", got.Body)
	}
}

func TestHealthAndContractNeedNoKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.do("GET", "/livez", "").want(200)
	if got := w.do("GET", "/readyz", "").want(200); got.str("status") != "ready" || got.str("checks", 0, "name") != "postgres" {
		t.Errorf("readyz: %s", got.Body)
	}
	w.do("GET", "/healthz", "").want(200)
	w.do("GET", "/metrics", "").want(200)
	if got := w.do("GET", "/openapi.yaml", "").want(200); !strings.HasPrefix(got.Body, "openapi: 3.1") {
		t.Errorf("openapi.yaml: %.40s", got.Body)
	}
	if got := w.do("GET", "/openapi.json", "").want(200); got.str("openapi") != "3.1.0" {
		t.Errorf("openapi.json: %.40s", got.Body)
	}
}

func TestManyWhoMakeTheSameGetOne(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	statuses := make(chan int, 8)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			r, err := http.NewRequestWithContext(t.Context(), "POST", w.url+"/api/v1/segments", strings.NewReader(`{"key":"same","name":"Same","rule":{"event":"x"}}`))
			if err != nil {
				t.Error(err)
				return
			}
			r.Header.Set("Authorization", "Bearer "+w.acme.secret)
			r.Header.Set("Content-Type", "application/json")
			resp, err := w.client.Do(r)
			if err != nil {
				t.Error(err)
				return
			}
			resp.Body.Close()
			statuses <- resp.StatusCode
		})
	}
	wg.Wait()
	close(statuses)
	count := map[int]int{}
	for s := range statuses {
		count[s]++
	}
	if diff := cmp.Diff(map[int]int{201: 1, 409: 7}, count); diff != "" {
		t.Errorf("statuses (-want +got):\n%s", diff)
	}
}
