package api_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/mubatch/mubatch/profiles"
)

// number returns the id of a tenant's segment, source or the like.
func (tn tenant) number(thing string) (id int64) {
	prefix := map[string]string{"segment": "seg_%d", "source": "src_%d"}[thing]
	fmt.Sscanf(tn.things[thing], prefix, &id)
	return id
}

func TestSegmentHistory(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.acme.number("segment")
	today := time.Now().UTC().Truncate(24 * time.Hour)
	w.exec(`INSERT INTO segment_days (lane, segment_id, day, entered, "left") VALUES (0, $1, $2, 3, 1), (1, $1, $2, 2, 0), (1, $1, $3, 0, 3)`,
		id, today.AddDate(0, 0, -2), today)

	got := w.as(w.acme, "GET", "/api/v1/segments/acme-buyers/history", "").want(200)
	if got.len("data") != 30 || got.str("data", 29, "date") != today.Format(time.DateOnly) || got.str("as_of") == "" || got.str("segment_id") != w.acme.things["segment"] {
		t.Errorf("thirty days: %s", got.Body)
	}
	day := func(ago int) string { return today.AddDate(0, 0, -ago).Format(time.DateOnly) }
	got = w.as(w.acme, "GET", fmt.Sprintf("/api/v1/segments/seg_%d/history?from=%s&to=2999-12-31", id, day(3)), "").want(200)
	want := fmt.Sprintf(`[{"date":%q,"entered":0,"left":0,"members":0},{"date":%q,"entered":5,"left":1,"members":4},`+
		`{"date":%q,"entered":0,"left":0,"members":4},{"date":%q,"entered":0,"left":3,"members":1}]`, day(3), day(2), day(1), day(0))
	if string(got.at("data")) != want {
		t.Errorf("got  %s\nwant %s", got.at("data"), want)
	}
	for _, q := range []string{
		"from=yesterday", "to=2026-13-01", "from=2026-03-02&to=2026-03-01", "from=2999-01-01", "from=2020-01-01&to=2026-01-01", "days=3", "from=2026-03-01T00:00:00Z",
	} {
		w.as(w.acme, "GET", "/api/v1/segments/acme-buyers/history?"+q, "").want(400, "bad_parameter")
	}
}

func TestTheSegmentsOfAProfile(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ada := "/api/v1/profiles/user_id:ada"
	got := w.as(w.acme, "GET", ada+"/segments", "").want(200)
	want := fmt.Sprintf(`[{"segment_id":%q,"segment_key":"acme-buyers","segment_name":"Buyers","since":"2026-11-01T10:00:00.000Z",`+
		`"cause":{"kind":"event","message_id":"acme-m1","source_id":%q},"next_change_at":null}]`, w.acme.things["segment"], w.acme.things["source"])
	if string(got.at("data")) != want || got.str("as_of") == "" {
		t.Errorf("got  %s\nwant %s", got.Body, want)
	}

	other, err := profiles.NewSegments(w.pool, lanes).Create(t.Context(), w.acme.ID, profiles.SegmentDefinition{Key: "other", Rule: []byte(`{"event":"x"}`)})
	if err != nil {
		t.Fatal(err)
	}
	p, err := profiles.ParseKey(w.acme.things["profile"])
	if err != nil {
		t.Fatal(err)
	}
	w.transition(w.acme, p, other.ID, true, int32(w.acme.number("source")), "m2", at(1))
	w.transition(w.acme, p, 777, false, int32(w.acme.number("source")), "m3", at(2)) // of a segment that is gone
	for filter, n := range map[string]int{"": 3, "?segment=other": 1, "?segment=" + w.acme.things["segment"]: 1, "?segment=seg_777": 1, "?segment=seg_778": 0} {
		if got := w.as(w.acme, "GET", ada+"/transitions"+filter, "").want(200); got.len("data") != n || got.str("as_of") == "" {
			t.Errorf("%q: %s, want %d", filter, got.Body, n)
		}
	}
	w.as(w.acme, "GET", ada+"/transitions?segment=globex-buyers", "").want(400, "bad_parameter")
	w.as(w.acme, "GET", ada+"/transitions?segment=%00", "").want(400, "bad_parameter")
	first := w.as(w.acme, "GET", ada+"/transitions?segment=other&limit=1", "").want(200)
	if string(first.at("has_more")) != "false" {
		t.Errorf("more of one: %s", first.Body)
	}
}
