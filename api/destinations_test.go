package api_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/profiles"
)

func TestDestinations(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	made := w.as(w.acme, "POST", "/api/v1/destinations", `{"key":"hook","type":"webhook","config":{"url":"https://example.com/in"},"segments":["acme-buyers"]}`, header("Idempotency-Key", "once")).want(201)
	secret := made.str("secrets", "secret")
	if !strings.HasPrefix(secret, "whsec_") || strings.Contains(secret, "…") || made.str("segments", 0, "segment_key") != "acme-buyers" || made.str("name") != "hook" {
		t.Errorf("made %s", made.Body)
	}
	if again := w.as(w.acme, "POST", "/api/v1/destinations", `{"key":"hook","type":"webhook","config":{"url":"https://example.com/in"},"segments":["acme-buyers"]}`, header("Idempotency-Key", "once")).want(201); again.Body != made.Body {
		t.Errorf("again %s", again.Body)
	}
	got := w.as(w.acme, "GET", "/api/v1/destinations/hook", "").want(200)
	if strings.Contains(got.Body, secret) || !strings.HasSuffix(got.str("secrets", "secret"), secret[len(secret)-4:]) {
		t.Errorf("the secret is shown again, or not masked: %s", got.Body)
	}
	w.as(w.acme, "POST", "/api/v1/destinations", `{"key":"hook","type":"webhook","config":{"url":"https://example.com/in"}}`).want(409, "already_exists")
	n := w.count("destinations")
	for body, pointer := range map[string]string{
		`{"key":"a","type":"fax","config":{}}`:                                                               "#/type",
		`{"key":"b","type":"webhook","config":{"url":"gopher://x"}}`:                                         "#/config/url",
		`{"key":"c","type":"webhook","config":{"url":"https://example.com","batch":-1}}`:                     "#/config/batch",
		`{"key":"d","type":"webhook","config":{"url":"https://example.com"},"secrets":{"secret":"short"}}`:   "#/secrets/secret",
		`{"key":"e","type":"webhook","config":{"url":"https://example.com"},"segments":["acme-buyers","x"]}`: "#/segments/1",
		`{"key":"dst_1","type":"webhook","config":{"url":"https://example.com"}}`:                            "#/key",
	} {
		if got := w.as(w.acme, "POST", "/api/v1/destinations", body).want(422, "invalid"); got.str("errors", 0, "pointer") != pointer {
			t.Errorf("%s: %s, want %s", body, got.Body, pointer)
		}
	}
	if w.count("destinations") != n {
		t.Error("a refused destination was made")
	}

	tag := header("If-Match", got.Header.Get("ETag"))
	changed := w.as(w.acme, "PATCH", "/api/v1/destinations/hook", `{"name":"The hook","segments":[]}`, tag).want(200)
	if changed.str("name") != "The hook" || changed.len("segments") != 0 {
		t.Errorf("changed to %s", changed.Body)
	}
	w.as(w.acme, "PATCH", "/api/v1/destinations/hook", `{"name":"Mine"}`, tag).want(412, "changed")
	w.as(w.acme, "DELETE", "/api/v1/destinations/hook", "", tag).want(412, "changed")

	put := w.as(w.acme, "PUT", "/api/v1/destinations/hook/segments/"+w.acme.things["segment"], "").want(200)
	if put.len("segments") != 1 {
		t.Errorf("attached: %s", put.Body)
	}
	w.as(w.acme, "PUT", "/api/v1/destinations/hook/segments/acme-buyers", "").want(200)
	w.as(w.acme, "DELETE", "/api/v1/destinations/hook/segments/acme-buyers", "").want(200)
	w.as(w.acme, "DELETE", "/api/v1/destinations/hook/segments/acme-buyers", "").want(404)

	w.as(w.acme, "PUT", "/api/v1/destinations/hook/segments/acme-buyers", "").want(200)
	w.exec(`DELETE FROM segments WHERE key = 'acme-buyers'`)
	w.as(w.acme, "DELETE", "/api/v1/destinations/hook/segments/"+w.acme.things["segment"], "").want(200)

	if got := w.as(w.acme, "POST", "/api/v1/destinations/hook/pause", `{"reason":"holiday"}`).want(200); got.str("status") != "paused" || got.str("status_reason") != "holiday" {
		t.Errorf("paused: %s", got.Body)
	}
	w.as(w.acme, "POST", "/api/v1/destinations/hook/pause", "").want(200)
	if got := w.as(w.acme, "POST", "/api/v1/destinations/hook/resume", "").want(200); got.str("status") != "active" {
		t.Errorf("resumed: %s", got.Body)
	}
	rotated := w.as(w.acme, "POST", "/api/v1/destinations/hook/rotate_secret", "").want(200)
	if s := rotated.str("secrets", "secret"); s == secret || !strings.HasPrefix(s, "whsec_") {
		t.Errorf("rotated: %s", rotated.Body)
	}
	w.as(w.acme, "DELETE", "/api/v1/destinations/hook", "").want(204)
	w.as(w.acme, "GET", "/api/v1/destinations/hook", "").want(404, "not_found")
}

func TestADestinationIsTried(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }))
	defer receiver.Close()
	w.as(w.acme, "POST", "/api/v1/destinations", fmt.Sprintf(`{"key":"hook","type":"webhook","config":{"url":%q}}`, receiver.URL)).want(201)
	got := w.as(w.acme, "POST", "/api/v1/destinations/hook/test", "").want(200)
	if string(got.at("ok")) != "false" || string(got.at("http_status")) != "418" {
		t.Errorf("tried: %s", got.Body)
	}
}

func TestTheLedgerOfADestination(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var destination, segment int64
	fmt.Sscanf(w.acme.things["destination"], "dst_%d", &destination)
	fmt.Sscanf(w.acme.things["segment"], "seg_%d", &segment)
	ada, err := profiles.ParseKey(w.acme.things["profile"])
	if err != nil {
		t.Fatal(err)
	}
	deliver := func(p profiles.Key, outcome activation.Class, status int, when int, messageID string) {
		t.Helper()
		w.exec(`WITH a AS (
				INSERT INTO activation_attempts (lane, id, destination_id, batch_id, message_key, number, started_at, latency_us, outcome, status, reason, excerpt, members)
				VALUES ($1, nextval('activation_attempt'), $2, 1, 'msg_1', 1, $3, 1500, $4, $5, '', 'thanks', 1)
				RETURNING lane, id)
			INSERT INTO deliveries (lane, destination_id, attempt_id, segment_id, profile_id, version, entered, outcome, reason, at, changed_at, message_id, cause)
			SELECT lane, $2, id, $6, $7, 1, true, $4, '', $3, $3, $8, 'event' FROM a`,
			p.Lane(lanes), destination, at(when), string(outcome), status, segment, p, messageID)
	}
	deliver(ada, activation.Retry, 500, 1, "acme-m1")
	deliver(ada, activation.OK, 200, 2, "acme-m1")
	for i := range 5 {
		deliver(w.person(w.acme, person{user: fmt.Sprint("u", i), lastSeen: at(i)}), activation.OK, 200, 3+i, "")
	}
	w.exec(`INSERT INTO activations (lane, destination_id, segment_id, profile_id, generation, wanted, version, sent, sent_version, sent_at, status, next_at, changed_at, message_id, cause)
		VALUES ($1, $2, $3, $4, 1, true, 1, true, 1, $5, 'settled', $5, $5, 'acme-m1', 'event')`, ada.Lane(lanes), destination, segment, ada, at(2))

	base := "/api/v1/destinations/acme-crm"
	whole := w.all(base+"/deliveries", 1000, func(a answer, i int) string { return a.str("data", i, "id") })
	if paged := w.all(base+"/deliveries", 2, func(a answer, i int) string { return a.str("data", i, "id") }); len(whole) != 7 || strings.Join(paged, " ") != strings.Join(whole, " ") {
		t.Errorf("%v by two is %v", whole, paged)
	}
	for query, n := range map[string]int{"?outcome=retry": 1, "?profile=" + ada.String(): 2, "?segment=acme-buyers&outcome=ok": 6} {
		if got := w.as(w.acme, "GET", base+"/deliveries"+query, "").want(200).len("data"); got != n {
			t.Errorf("%s: %d, want %d", query, got, n)
		}
	}
	states := w.as(w.acme, "GET", base+"/activations?status=settled", "").want(200)
	if states.len("data") != 1 || string(states.at("data", 0, "sent")) != "true" || string(states.at("data", 0, "next_at")) != "null" {
		t.Errorf("activations: %s", states.Body)
	}
	if sum := w.as(w.acme, "GET", base+"/summary?segment=acme-buyers", "").want(200); string(sum.at("wanted")) != "1" || string(sum.at("drift")) != "0" {
		t.Errorf("summary: %s", sum.Body)
	}

	trace := w.as(w.acme, "GET", "/api/v1/traces/acme-m1", "").want(200)
	if trace.len("events", 0, "deliveries") != 2 || trace.str("events", 0, "deliveries", 0, "outcome") != "retry" || trace.str("events", 0, "deliveries", 1, "at") != "2026-11-01T10:02:00.000Z" {
		t.Errorf("trace: %s", trace.Body)
	}

	if got := w.as(w.acme, "POST", base+"/replay", `{"everything":true}`).want(202); string(got.at("replayed")) != "1" {
		t.Errorf("replayed: %s", got.Body)
	}
	if trace := w.as(w.acme, "GET", "/api/v1/traces/acme-m1", "").want(200); trace.str("events", 0, "deliveries", 2, "outcome") != "pending" {
		t.Errorf("trace of what is to come: %s", trace.Body)
	}
	for body, want := range map[string]string{
		`{"from":"2026-01-01T00:00:00Z"}`:                                               `"is required with from"`,
		`{"to":"2026-01-01T00:00:00Z"}`:                                                 `"is required with to"`,
		`{"from":"2026-01-02T00:00:00Z","to":"2026-01-01T00:00:00Z"}`:                   `"must be after from"`,
		`{"from":"2026-01-01T00:00:00Z","to":"2026-01-02T00:00:00Z","everything":true}`: `"does not go with from and to"`,
	} {
		if got := w.as(w.acme, "POST", base+"/replay", body).want(422, "invalid"); !strings.Contains(string(got.Body), want) {
			t.Errorf("%s: %s, want %s", body, got.Body, want)
		}
	}
	w.as(w.acme, "POST", base+"/replay", `{"segment":"nothing"}`).want(422, "invalid")
	w.as(w.acme, "GET", base+"/deliveries?outcome=splendid", "").want(400, "bad_parameter")
	w.as(w.acme, "GET", base+"/deliveries?profile=ada", "").want(400, "bad_parameter")
	w.as(w.acme, "GET", base+"/activations?status=odd", "").want(400, "bad_parameter")
}

func TestADestinationAsksForConsent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const hook = "/api/v1/destinations/hook"
	made := w.as(w.acme, "POST", "/api/v1/destinations", `{"key":"hook","type":"webhook","config":{"url":"https://example.com/in"},"consent":{"purposes":["ad_storage"]}}`).want(201)
	if made.str("consent", "purposes", 0) != "ad_storage" || made.str("consent", "mode") != "granted" {
		t.Errorf("made %s", made.Body)
	}
	changed := w.as(w.acme, "PATCH", hook, `{"consent":{"purposes":["marketing"],"mode":"not_denied"}}`).want(200)
	if changed.str("consent", "purposes", 0) != "marketing" || changed.str("consent", "mode") != "not_denied" {
		t.Errorf("changed to %s", changed.Body)
	}
	if got := w.as(w.acme, "PATCH", hook, `{"name":"The hook"}`).want(200); got.str("consent", "purposes", 0) != "marketing" {
		t.Errorf("consent went with another change: %s", got.Body)
	}
	for body, pointer := range map[string]string{
		`{"consent":{"purposes":["a"],"mode":"perhaps"}}`: "#/consent/mode",
		`{"consent":{"purposes":["a",""]}}`:               "#/consent/purposes/1",
		`{"consent":{}}`:                                  "#/consent/purposes",
	} {
		if got := w.as(w.acme, "PATCH", hook, body).want(422, "invalid"); got.str("errors", 0, "pointer") != pointer {
			t.Errorf("%s: %s, want %s", body, got.Body, pointer)
		}
	}
}

func TestWhatIsWrongAtADestination(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var destination, segment int64
	fmt.Sscanf(w.acme.things["destination"], "dst_%d", &destination)
	fmt.Sscanf(w.acme.things["segment"], "seg_%d", &segment)
	const base = "/api/v1/destinations/acme-crm"
	w.as(w.acme, "PUT", base+"/segments/acme-buyers", "").want(200)
	for i, row := range []struct {
		status, reason, sent string
		hours                int
	}{
		{"failed", "refused by the partner", "false", 1},
		{"failed", "refused by the partner", "false", 30},
		{"unreachable", "no e-mail address is known", "false", 30},
		{"settled", "", "true", 30},
	} {
		p := w.person(w.acme, person{user: fmt.Sprint("wrong-", i), lastSeen: at(i)})
		w.exec(`INSERT INTO activations (lane, destination_id, segment_id, profile_id, generation, wanted, version, sent, status, reason, next_at, changed_at, cause)
			VALUES ($1, $2, $3, $4, 1, true, 1, $5::boolean, $6, $7, now(), now() - $8 * interval '1 hour', 'event')`,
			p.Lane(lanes), destination, segment, p, row.sent, row.status, row.reason, row.hours)
	}

	failures := w.as(w.acme, "GET", base+"/failures?segment=acme-buyers", "").want(200)
	if failures.len("data") != 2 || failures.str("data", 0, "reason") != "refused by the partner" || string(failures.at("data", 0, "count")) != "2" {
		t.Errorf("failures: %s", failures.Body)
	}
	for query, want := range map[string]string{"?limit=1": "true", "?limit=2": "false"} {
		if got := w.as(w.acme, "GET", base+"/failures"+query, "").want(200); string(got.at("has_more")) != want {
			t.Errorf("failures%s: %s", query, got.Body)
		}
	}
	for query, n := range map[string]int{"?drift=0": 2, "?drift=86400": 1, "?drift=86400&segment=acme-buyers": 1, "?drift=864000": 0} {
		if got := w.as(w.acme, "GET", base+"/activations"+query, "").want(200).len("data"); got != n {
			t.Errorf("%s: %d drift, want %d", query, got, n)
		}
	}
	w.as(w.acme, "GET", base+"/activations?drift=soon", "").want(400, "bad_parameter")
	sum := w.as(w.acme, "GET", base+"/summary", "").want(200)
	if string(sum.at("unreachable")) != "1" || sum.len("segments") != 1 || sum.str("segments", 0, "segment_key") != "acme-buyers" || string(sum.at("segments", 0, "failed")) != "2" {
		t.Errorf("summary: %s", sum.Body)
	}

	run := w.as(w.acme, "POST", base+"/dry_run", `{"segment":"acme-buyers"}`).want(200)
	if string(run.at("members")) != "4" || run.len("requests") != 1 || !strings.Contains(run.str("requests", 0, "body"), `"entered":[{"profile_id":"p_`) || run.str("requests", 0, "headers", "Webhook-Signature") != "…" {
		t.Errorf("dry run: %s", run.Body)
	}
	w.as(w.acme, "POST", base+"/dry_run", `{"segment":"nothing"}`).want(422, "invalid")
	if got := w.as(w.acme, "POST", base+"/resync", `{"segment":"acme-buyers"}`).want(202); string(got.at("replayed")) != "4" {
		t.Errorf("sent again: %s", got.Body)
	}
	w.as(w.acme, "POST", base+"/resync", "").want(202)
	w.as(w.acme, "PUT", base+"/segments/acme-buyers/audience", `{"audience":"a-1"}`).want(422, "unsupported")
}

// Whoever waits for an audience or for somebody to mend a destination is shown, with what for; and a full synchronisation does
// not make it unknown what was never sent.
func TestWhoWaitsIsShown(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var destination, segment int64
	fmt.Sscanf(w.acme.things["destination"], "dst_%d", &destination)
	fmt.Sscanf(w.acme.things["segment"], "seg_%d", &segment)
	insert := func(user string, allowed bool, status, next string) {
		p := w.person(w.acme, person{user: user, lastSeen: at(1)})
		w.exec(`INSERT INTO activations (lane, destination_id, segment_id, profile_id, generation, member, allowed, wanted, version, sent, status, next_at, changed_at, message_id, cause)
			VALUES ($1, $2, $3, $4, 1, true, $5, $5, 1, false, $6, $7::timestamptz, now(), 'm', 'event')`, p.Lane(lanes), destination, segment, p, allowed, status, next)
	}
	insert("waits", true, "pending", "infinity")
	insert("denied", false, "settled", "infinity")
	base := "/api/v1/destinations/acme-crm"
	got := w.as(w.acme, "GET", base+"/activations", "").want(200)
	if got.len("data") != 2 || string(got.at("data", 0, "next_at")) != "null" || string(got.at("data", 1, "next_at")) != "null" {
		t.Errorf("activations: %s", got.Body)
	}
	for state, want := range map[string]string{
		`UPDATE destination_segments SET ready_at = 'infinity', audience_reason = 'the connection was refused' WHERE destination_id = $1`: "waits for the audience: the connection was refused",
		`UPDATE destinations SET status = 'paused', status_reason = 'the credential was refused' WHERE id = $1`:                           "the destination is paused: the credential was refused",
	} {
		w.exec(`UPDATE destination_segments SET ready_at = now(), audience_reason = '' WHERE destination_id = $1`, destination)
		w.exec(`UPDATE destinations SET status = 'active', status_reason = '' WHERE id = $1`, destination)
		w.exec(state, destination)
		got := w.as(w.acme, "GET", base+"/failures", "").want(200)
		if got.len("data") != 1 || got.str("data", 0, "reason") != want || got.str("data", 0, "status") != "pending" || string(got.at("data", 0, "count")) != "1" {
			t.Errorf("failures: %s, want %q", got.Body, want)
		}
	}
	w.as(w.acme, "POST", base+"/resync", "").want(202)
	if got := w.as(w.acme, "GET", base+"/summary", "").want(200); string(got.at("unknown")) != "0" {
		t.Errorf("after a synchronisation: %s", got.Body)
	}
}

func TestFaultsOfADestinationSayWhatToDo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const base = "/api/v1/destinations"
	for body, want := range map[string][]string{
		`{"key":"x","type":"webhook","config":{"url":7,"batch":"1","urll":1}}`: {
			"#/config/url wrong_type must be a string", "#/config/batch wrong_type must be a whole number",
			"#/config/urll unknown_member is not known here",
		},
		`{"key":"x","type":"webhook","config":{}}`: {"#/config/url required is required"},
		`{"key":"x","type":"fax","config":{}}`:     {"#/type invalid must be one of ga4, tiktok, webhook"},
		`{"key":"x","type":"webhook","config":{"url":"https://example.com/"},"secrets":{"secret":"whsec_…abcd"}}`: {
			"#/secrets/secret invalid is the masked form; send the real secret, or leave secrets out",
		},
	} {
		got := w.as(w.acme, "POST", base, body).want(422, "invalid")
		var faults []string
		for i := range got.len("errors") {
			faults = append(faults, got.str("errors", i, "pointer")+" "+got.str("errors", i, "code")+" "+got.str("errors", i, "detail"))
		}
		if !slices.Equal(faults, want) {
			t.Errorf("%s: %q, want %q", body, faults, want)
		}
	}
	got := w.as(w.acme, "PUT", base+"/acme-crm/events/none", `{"sources":[]}`).want(422, "invalid")
	if got.str("errors", 0, "pointer") != "#" || got.str("errors", 0, "code") != "required" {
		t.Errorf("a subscription to nothing: %s", got.Body)
	}
}

// eventsOnly is a webhook that takes no audiences, and whose secrets are made elsewhere.
type eventsOnly struct{ activation.EventPartner }

// audiencesOnly is one that takes no events.
type audiencesOnly struct{ activation.AudiencePartner }

func (eventsOnly) Type() string    { return "ga4" }
func (audiencesOnly) Type() string { return "tiktok" }

func TestWhatATypeCannotDo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const base = "/api/v1/destinations"
	const config = `"config":{"url":"https://example.com/in"}`
	unsupported := func(method, path, body, pointer, instead string) {
		t.Helper()
		got := w.as(w.acme, method, path, body).want(422, "unsupported")
		if !strings.Contains(got.str("detail"), instead) || pointer != "" && got.str("errors", 0, "pointer") != pointer {
			t.Errorf("%s %s: %s, want %q at %s", method, path, got.Body, instead, pointer)
		}
	}
	unsupported("POST", base, `{"key":"e","type":"ga4",`+config+`,"segments":["acme-buyers"]}`, "#/segments", "subscribe it to events")
	w.as(w.acme, "POST", base, `{"key":"e","type":"ga4",`+config+`}`).want(201)
	w.as(w.acme, "POST", base, `{"key":"a","type":"tiktok",`+config+`}`).want(201)
	unsupported("PATCH", base+"/e", `{"segments":["acme-buyers"]}`, "#/segments", "subscribe it to events")
	unsupported("PUT", base+"/e/segments/acme-buyers", "", "", "subscribe it to events")
	unsupported("PUT", base+"/a/events/orders", `{"types":["track"]}`, "", "attach segments")
	unsupported("POST", base+"/e/rotate_secret", "", "", "changing secrets")
	unsupported("PUT", base+"/acme-crm/segments/acme-buyers/audience", `{"audience":"1"}`, "#/audience", "attach the segment")
}

func TestGivenSecretsAreMaskedAndPausesKeepTheirReason(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	made := w.as(w.acme, "POST", "/api/v1/destinations",
		`{"key":"given","type":"webhook","config":{"url":"https://example.com"},"secrets":{"secret":"`+secret+`"}}`).want(201)
	if shown := made.str("secrets", "secret"); strings.Contains(made.Body, secret) || !strings.HasSuffix(shown, secret[len(secret)-4:]) {
		t.Errorf("a secret that was given is shown as %q", shown)
	}
	w.as(w.acme, "POST", "/api/v1/destinations/given/pause", `{"reason":"closed for now"}`).want(200)
	if got := w.as(w.acme, "POST", "/api/v1/destinations/given/pause", "").want(200); got.str("status_reason") != "closed for now" {
		t.Errorf("paused again: %s", got.Body)
	}
}
