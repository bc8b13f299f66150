package api_test

import (
	"fmt"
	"strings"
	"testing"
)

func TestPreview(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for i := range 12 {
		w.person(w.acme, person{user: fmt.Sprint("u", i), lastSeen: at(i), traits: map[string]string{"country": `"FR"`}})
	}
	ask := func(body string) answer { return w.as(w.acme, "POST", "/api/v1/segments/preview", body) }
	got := ask(`{"rule":{"trait":"country","op":"eq","value":"FR"},"sample":3,"exact":true}`).want(200)
	for member, want := range map[string]string{
		"estimate": "12", "low": "12", "high": "12", "exact": "true", "profiles": "13", "profiles_looked_at": "13", "confidence": "0.95",
		"description": `"Everyone whose country is \"FR\"."`, "as_of": `"2026-11-01T12:00:00.000Z"`,
	} {
		if string(got.at(member)) != want {
			t.Errorf("%s is %s, want %s", member, got.at(member), want)
		}
	}
	if got.len("sample") != 3 || got.str("sample", 0, "traits", "country") != "FR" || got.str("sample", 0, "identifiers", 0, "kind") != "user_id" {
		t.Errorf("sample: %s", got.at("sample"))
	}
	// From the archive, of ada alone, whose visitor is hers.
	got = ask(`{"rule":{"event":"Order Completed","where":[{"property":"revenue","op":"gt","value":9007199254740992}]},"exact":true}`).want(200)
	if string(got.at("estimate")) != "1" || got.str("sample", 0, "profile_id") != w.acme.things["profile"] {
		t.Errorf("by event: %s", got.Body)
	}
	if got = ask(`{"rule":{"event":"Order Completed"},"sample":0}`).want(200); string(got.at("profiles")) != "13" || got.len("sample") != 0 {
		t.Errorf("without a sample: %s", got.Body)
	}
	for pointer, body := range map[string]string{
		"#/rule/op":            `{"rule":{"trait":"a","op":"like","value":1}}`,
		"#/rule/all/0/segment": `{"rule":{"all":[{"segment":"globex-buyers"}]}}`,
		"#/rule":               `{}`,
		"#/sample":             `{"rule":{"event":"x"},"sample":101}`,
	} {
		if got := ask(body).want(422, "invalid"); got.str("errors", 0, "pointer") != pointer {
			t.Errorf("%s: %s, want %s", body, got.Body, pointer)
		}
	}
	for sample, detail := range map[string]string{"101": "must be at most 100", "-1": "must be at least 0"} {
		if got := ask(`{"rule":{"event":"x"},"sample":`+sample+`}`).want(422, "invalid"); got.str("errors", 0, "detail") != detail {
			t.Errorf("a sample of %s: %s, want %q", sample, got.Body, detail)
		}
	}
	// A segment may be called preview.
	w.as(w.acme, "POST", "/api/v1/segments", `{"key":"preview","name":"Preview","rule":{"event":"x"}}`).want(201)
}

func TestExplain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	path := "/api/v1/profiles/anonymous_id:a1/segments/acme-buyers/explain"
	got := w.as(w.acme, "GET", path, "").want(200)
	for member, want := range map[string]string{
		"profile_id": `"` + w.acme.things["profile"] + `"`, "segment_key": `"acme-buyers"`, "status": `"building"`, "version": "null", "newest_version": "1",
		"member": "true", "since": `"2026-11-01T10:00:00.000Z"`, "next_change_at": "null", "as_of": `"2026-11-01T12:00:00.000Z"`,
		"cause":       fmt.Sprintf(`{"kind":"event","message_id":"acme-m1","source_id":%q}`, w.acme.things["source"]),
		"description": `"Everyone who did \"Order Completed\"."`,
	} {
		if string(got.at(member)) != want {
			t.Errorf("%s is %s, want %s", member, got.at(member), want)
		}
	}
	event := string(got.at("explanation", "events", 0))
	if got.str("explanation", "kind") != "event" || got.str("explanation", "pointer") != "#" || string(got.at("explanation", "holds")) != "true" ||
		!strings.Contains(event, `"message_id":"acme-m1"`) || !strings.Contains(event, `"event_at":"2026-11-01T10:00:00.000Z"`) {
		t.Errorf("explanation: %s", got.at("explanation"))
	}
	w.exec(`UPDATE segments SET live_version = 1`)
	w.exec(`INSERT INTO segment_versions (segment_id, version, rule, behaviours) SELECT id, 1, rule, behaviours FROM segments ON CONFLICT DO NOTHING`)
	w.exec(`INSERT INTO lane_segments (lane, segment_id, version, phase, live_version) SELECT generate_series(0, 3), id, 1, 'done', 1 FROM segments`)
	if got = w.as(w.acme, "GET", path, "").want(200); string(got.at("version")) != "1" || got.str("status") != "live" {
		t.Errorf("when it is live: %s", got.Body)
	}
	w.as(w.acme, "GET", path+"?verbose=true", "").want(400, "bad_parameter")
}
