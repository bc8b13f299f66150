package api_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/profiles"
)

// shop is a workspace whose source takes events in.
type shop struct {
	*world
	intake    *collector.Intake
	directory *collector.Directory
	http.Handler
	key string
}

func newShop(t *testing.T) *shop {
	t.Helper()
	s := &shop{world: newWorld(t)}
	s.exec(`TRUNCATE quarantined_events`)
	s.flush()
	log := slog.New(slog.DiscardHandler)
	s.intake = collector.NewIntake(s.cfg, s.committer, prometheus.NewRegistry())
	s.directory = collector.NewDirectory(s.cfg, s.pool, prometheus.NewRegistry(), log)
	run(t, s.directory.Run)
	run(t, collector.NewHealthWriter(s.intake, s.pool, log).Run)
	r := chi.NewRouter()
	collector.NewHandler(s.cfg, s.directory, s.intake, prometheus.NewRegistry(), log).Routes(r)
	s.Handler = r
	s.key = s.as(s.acme, "GET", "/api/v1/sources/acme-shop/write_keys", "").want(200).str("data", 0, "key")
	return s
}

// track sends an event and returns what the answer says.
func (s *shop) track(status int, event string, headers ...string) string {
	s.t.Helper()
	r := httptest.NewRequest("POST", "/v1/track", strings.NewReader(event))
	r.SetBasicAuth(s.key, "")
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	if w.Code != status {
		s.t.Fatalf("%s: status %d, want %d: %s", event, w.Code, status, w.Body)
	}
	return w.Body.String()
}

// become waits until a trace has a status.
func (s *shop) become(messageID, status string) answer {
	s.t.Helper()
	var got answer
	s.wait(func() bool {
		got = s.as(s.acme, "GET", "/api/v1/traces/"+url.PathEscape(messageID), "").want(200)
		return got.str("status") == status
	}, func() string { return messageID + " is to be " + status + ": " + got.Body })
	return got
}

func (s *shop) wait(until func() bool, what func() string) {
	s.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !until(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatal("waited in vain: " + what())
		}
	}
}

// follow waits until collectors go by what was changed.
func (s *shop) follow() {
	s.t.Helper()
	began := time.Now()
	s.wait(func() bool { return s.directory.AsOf().After(began) }, func() string { return "the directory is not read" })
}

const revenue = `{"properties":{"properties":{"required":["revenue"],"properties":{"revenue":{"type":"number","minimum":0}}}}}`

func order(id, properties string) string {
	return fmt.Sprintf(`{"event":"Order Completed","messageId":%q,"userId":"ada","timestamp":"2026-11-01T09:00:00Z","properties":%s}`, id, properties)
}

func TestAnEventThatViolatesThePlanIsQuarantinedFixedAndReplayed(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	w := s.world
	for body, pointer := range map[string]string{
		`{"event":"x","action":"flag","schema":{"type":"text"}}`:                            "#/schema/type",
		`{"event":"x","action":"flag","schema":{"$ref":"https://example.com/schema"}}`:      "#/schema/$ref",
		`{"event":"x","action":"flag","schema":{"properties":{"a":{"pattern":"(?<=a)b"}}}}`: "#/schema/properties/a/pattern",
		`{"event":"x","action":"flag","schema":[]}`:                                         "#/schema",
		`{"event":"x","action":"drop","schema":{}}`:                                         "#/action",
		`{"type":"identify","event":"x","action":"flag","schema":{}}`:                       "#/event",
		`{"action":"flag","schema":{}}`:                                                     "#/event",
		`{"event":"x","schema":{}}`:                                                         "#/action",
		`{"event":"x","action":"flag"}`:                                                     "#/schema",
	} {
		r := s.do("POST", "/api/v1/sources/acme-shop/schemas", body, header("Authorization", "Bearer "+w.acme.secret)).want(422, "invalid")
		if got := r.str("errors", 0, "pointer"); got != pointer {
			t.Errorf("%s: at %s, want %s", body, got, pointer)
		}
	}
	made := w.as(w.acme, "POST", "/api/v1/sources/acme-shop/schemas", `{"event":"Order Completed","action":"quarantine","schema":`+revenue+`}`).want(201)
	w.as(w.acme, "POST", "/api/v1/sources/acme-shop/schemas", `{"event":"Order Completed","action":"flag","schema":{}}`).want(409, "already_exists")
	s.follow()

	s.track(200, order("good", `{"revenue":19.9}`))
	for _, id := range []string{"text", "text", "none"} { // a client may send it again
		properties := `{"revenue":"19.90"}`
		if id == "none" {
			properties = `{}`
		}
		s.track(200, order(id, properties))
	}
	s.track(200, `{"event":"Another","messageId":"other","userId":"ada"}`)
	s.become("good", "applied")
	s.become("other", "applied")
	if got := s.become("text", "quarantined"); got.str("events", 0, "reason") != "type" || got.str("events", 0, "name") != "Order Completed" {
		t.Errorf("traced %s", got.Body)
	}
	s.become("none", "quarantined")
	list := w.as(w.acme, "GET", "/api/v1/quarantine?source=acme-shop&event=Order+Completed&reason=type&from=2026-01-01T00:00:00Z", "").want(200)
	if list.len("data") != 1 || list.str("data", 0, "message_id") != "text" {
		t.Fatalf("in quarantine: %s", list.Body)
	}
	if none := w.as(w.globex, "GET", "/api/v1/quarantine", "").want(200); none.len("data") != 0 {
		t.Errorf("another workspace sees %s", none.Body)
	}
	id := list.str("data", 0, "id")
	one := w.as(w.acme, "GET", "/api/v1/quarantine/"+id, "").want(200)
	if one.str("payload", "properties", "revenue") != "19.90" || string(one.at("violations")) != `[{"code":"type","pointer":"#/properties/revenue","detail":"must be number"}]` {
		t.Errorf("it is %s", one.Body)
	}

	// As they are they still violate the plan.
	again := w.as(w.acme, "POST", "/api/v1/quarantine/replay", `{"filter":{}}`).want(202)
	if string(again.at("replayed")) != "0" || string(again.at("kept")) != "2" || again.len("events", 0, "violations") != 1 {
		t.Errorf("replayed %s", again.Body)
	}
	// A mapping that mends one of them.
	const mend = `{"version":1,"rules":[{"event":{"type":"track","event":"$.event","messageId":"$.messageId","userId":"$.userId","timestamp":"$.timestamp","properties":{"revenue":"$.properties.revenue | number"}}}]}`
	dry := w.as(w.acme, "POST", "/api/v1/quarantine/replay", `{"filter":{"ids":["`+id+`"]},"dry_run":true,"mapping":`+mend+`}`).want(200)
	if string(dry.at("replayed")) != "1" || string(dry.at("events", 0, "events", 0, "properties", "revenue")) != "19.90" {
		t.Fatalf("a dry run says %s", dry.Body)
	}
	s.become("text", "quarantined")
	for range 2 {
		w.as(w.acme, "POST", "/api/v1/quarantine/replay", `{"filter":{"ids":["`+id+`"]},"mapping":`+mend+`}`).want(202)
	}
	if got := s.become("text", "applied"); got.str("events", 0, "event_at") != "2026-11-01T09:00:00.000Z" {
		t.Errorf("traced %s", got.Body)
	}
	w.as(w.acme, "POST", "/api/v1/quarantine/replay", `{"filter":{},"mapping":{"rules":[]}}`).want(422, "invalid")

	// Another plan that takes the other one, with a flag.
	path := "/api/v1/sources/acme-shop/schemas/" + made.str("id")
	changed := w.as(w.acme, "PUT", path, `{"action":"flag","schema":`+revenue+`}`).want(200)
	if string(changed.at("version")) != "2" {
		t.Errorf("changed to %s", changed.Body)
	}
	if versions := w.as(w.acme, "GET", path+"/versions", "").want(200); versions.len("data") != 2 || versions.str("data", 1, "action") != "quarantine" {
		t.Errorf("versions: %s", versions.Body)
	}
	w.as(w.acme, "POST", "/api/v1/quarantine/replay", `{"filter":{"source":"acme-shop"}}`).want(202)
	s.become("none", "applied")
	var flagged string
	if err := w.pool.QueryRow(t.Context(), `SELECT convert_from(payload, 'UTF8')::jsonb ->> '_violations' FROM events WHERE message_key = $1`,
		profiles.MessageKey("none")).Scan(&flagged); err != nil || !strings.Contains(flagged, `"#/properties/revenue"`) {
		t.Errorf("flagged with %s, %v", flagged, err)
	}
	if rest := w.as(w.acme, "GET", "/api/v1/quarantine", "").want(200); rest.len("data") != 0 {
		t.Errorf("still in quarantine: %s", rest.Body)
	}
	events := w.as(w.acme, "GET", "/api/v1/stats", "").want(200)
	if string(events.at("events")) != `{"accepted":7,"applied":4,"duplicate":1,"failed":0,"suppressed":0,"quarantined":2,"adds_up":true}` {
		t.Errorf("counted %s", events.at("events"))
	}

	// It is counted.
	var quality answer
	s.wait(func() bool {
		quality = w.as(w.acme, "GET", "/api/v1/sources/acme-shop/quality?granularity=day", "").want(200)
		return quality.len("data") >= 2
	}, func() string { return quality.Body })
	if quality.str("data", 0, "outcome") != "quarantined" || quality.str("data", 0, "reason") != "type" || string(quality.at("data", 0, "events")) != "2" {
		t.Errorf("counted %s", quality.Body)
	}
	w.as(w.acme, "GET", "/api/v1/sources/acme-shop/quality?granularity=week", "").want(400)
	w.as(w.acme, "GET", "/api/v1/sources/acme-shop/quality?from=2020-01-01T00:00:00Z", "").want(400)
	w.as(w.acme, "DELETE", path, "").want(204)
	w.as(w.acme, "GET", path, "").want(404)
}

func TestAnUnplannedEventIsWhatTheSourceSays(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	w := s.world
	w.as(w.acme, "PATCH", "/api/v1/sources/acme-shop", `{"settings":{"unplanned":"quarantine","bots":"quarantine"}}`).want(200)
	w.as(w.acme, "POST", "/api/v1/sources/acme-shop/schemas", `{"type":"identify","action":"quarantine","schema":{"required":["traits"]}}`).want(201)
	s.follow()
	s.track(200, `{"event":"Signed Up","messageId":"planned","userId":"ada"}`)
	s.track(200, `{"event":"Suprise","messageId":"typo","userId":"ada"}`)
	s.track(200, `{"event":"Signed Up","messageId":"bot","userId":"ada"}`, "Origin", "https://example.com", "User-Agent", "Mozilla/5.0 (compatible; Googlebot/2.1)")
	s.become("planned", "applied")
	if got := s.become("typo", "quarantined"); got.str("events", 0, "reason") != "unplanned" {
		t.Errorf("traced %s", got.Body)
	}
	if got := s.become("bot", "quarantined"); got.str("events", 0, "reason") != "bot" {
		t.Errorf("traced %s", got.Body)
	}
	kept := w.as(w.acme, "POST", "/api/v1/quarantine/replay", `{"filter":{"reason":"bot"}}`).want(202)
	if string(kept.at("kept")) != "1" {
		t.Errorf("what a bot has sent was replayed, though bots are quarantined: %s", kept.Body)
	}
	gone := w.as(w.acme, "POST", "/api/v1/quarantine/discard", `{"filter":{"event":"Suprise"}}`).want(200)
	if string(gone.at("discarded")) != "1" {
		t.Errorf("discarded %s", gone.Body)
	}
	s.become("typo", "unknown")
	held := w.as(w.acme, "GET", "/api/v1/quarantine", "").want(200)
	w.as(w.acme, "DELETE", "/api/v1/quarantine/"+held.str("data", 0, "id"), "").want(204)
	w.as(w.acme, "DELETE", "/api/v1/quarantine/"+held.str("data", 0, "id"), "").want(404)
	audited := w.as(w.acme, "GET", "/api/v1/audit_log?action=quarantine.discard", "").want(200)
	if audited.len("data") != 1 {
		t.Errorf("audited %s", audited.Body)
	}
}

func TestABodyThatWasNeverAnEventIsReplayedThroughAMapping(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	w := s.world
	grant, err := s.directory.Lookup(t.Context(), s.key)
	if err != nil {
		t.Fatal(err)
	}
	body := []byte(`{"id":"evt_1","customer":"bob","total":12345678901234567890.5}`)
	why := profiles.Violation{Code: "mapping_failed", Detail: "line 3: rules[0].event.userId: is missing"}
	for range 2 {
		if err := s.intake.Quarantine(t.Context(), grant, at(0), "evt_1", body, why); err != nil {
			t.Fatal(err)
		}
	}
	s.become("evt_1", "quarantined")
	list := w.as(w.acme, "GET", "/api/v1/quarantine?reason=mapping_failed", "").want(200)
	if list.len("data") != 1 || string(list.at("data", 0, "type")) != "null" {
		t.Fatalf("in quarantine: %s", list.Body)
	}
	kept := w.as(w.acme, "POST", "/api/v1/quarantine/replay", `{"filter":{}}`).want(202)
	if kept.str("events", 0, "violations", 0, "code") != "not_an_event" {
		t.Errorf("replayed as it is: %s", kept.Body)
	}
	const by = `"version: 1\nrules:\n  - event:\n      type: track\n      event: Order Completed\n      userId: $.customer\n      properties:\n        total: $.total\n"`
	done := w.as(w.acme, "POST", "/api/v1/quarantine/replay", `{"filter":{},"mapping":`+by+`}`).want(202)
	if string(done.at("replayed")) != "1" {
		t.Fatalf("replayed %s", done.Body)
	}
	got := s.become("evt_1", "applied")
	if got.str("events", 0, "received_at") != "2026-11-01T10:00:00.000Z" {
		t.Errorf("traced %s", got.Body)
	}
	events := w.as(w.acme, "GET", "/api/v1/profiles/user_id:bob/events", "").want(200)
	if events.len("data") != 1 || !strings.Contains(events.Body, "12345678901234567890.5") {
		t.Errorf("bob has %s", events.Body)
	}
}

// sum adds up what the elements of a list have at a path.
func (a answer) sum(list string, path ...any) (sum int) {
	a.t.Helper()
	for i := range a.len(list) {
		n, err := strconv.Atoi(string(a.at(append([]any{list, i}, path...)...)))
		if err != nil {
			a.t.Fatalf("%s: no number at %v: %s", a.asked, path, a.Body)
		}
		sum += n
	}
	return sum
}

func TestTheHealthOfASource(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	w := s.world
	if none := w.as(w.acme, "GET", "/api/v1/sources/acme-shop/health", "").want(200); string(none.at("last_seen_at")) != "null" {
		t.Errorf("before anything came: %s", none.Body)
	}
	late := time.Now().Add(-10 * time.Second).UTC().Format(time.RFC3339Nano)
	for i := range 4 {
		s.track(200, fmt.Sprintf(`{"event":"Viewed","messageId":"m%d","userId":"ada","sentAt":%q}`, i/2, late))
	}
	s.track(200, `{"event":"Viewed","messageId":"bot","userId":"ada","context":{"userAgent":"curl/8.9"}}`)
	s.track(200, `{"event":"Viewed","messageId":"pre","userId":"ada"}`, "Sec-Purpose", "prefetch;prerender")
	s.track(400, `{"event":"Viewed","messageId":"nobody"}`)
	s.track(400, `{"event":"Viewed","userId":"ada","properties":{"ada@example.com":1e999}}`)
	s.become("m1", "applied")
	var h answer
	s.wait(func() bool {
		h = w.as(w.acme, "GET", "/api/v1/sources/acme-shop/health", "").want(200)
		return h.sum("hours", "rejected") == 2 && h.sum("minutes", "rejected") == 2 && h.sum("days", "events", "applied") == 4
	}, func() string { return h.Body })
	if got := fmt.Sprint(h.sum("hours", "accepted"), h.sum("hours", "bots"), h.sum("minutes", "rejected"), h.sum("days", "events", "duplicate")); got != "6 2 2 2" {
		t.Errorf("accepted, bots, rejected, duplicate are %s, want 6 2 2 2: %s", got, h.Body)
	}
	var median int
	fmt.Sscan(string(h.at("clock_skew", "median_ms")), &median)
	if string(h.at("clock_skew", "events")) != "4" || median < 6000 || median > 100_000 {
		t.Errorf("clocks: %s", h.at("clock_skew"))
	}
	if h.len("rejected") != 2 || strings.Contains(h.Body, "example.com") || h.str("rejected", 0, "pointer") != "/properties/…" {
		t.Errorf("rejected %s", h.at("rejected"))
	}
	var bot string
	if err := w.pool.QueryRow(context.WithoutCancel(t.Context()), `SELECT convert_from(payload, 'UTF8')::jsonb #>> '{_bot,name}' FROM events WHERE message_key = $1`,
		profiles.MessageKey("bot")).Scan(&bot); err != nil || bot != "curl" {
		t.Errorf("flagged as %q, %v", bot, err)
	}
}
