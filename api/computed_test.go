package api_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/mubatch/mubatch/profiles"
	"github.com/mubatch/mubatch/profiles/rule"
)

func TestComputedTraitsAreMadeAndChanged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	made := w.as(w.acme, "POST", "/api/v1/computed_traits", `{"key":"refunds","name":"Refunds","value":{"event":"Refund","count":{},"within":"1w"}}`).want(201)
	if made.str("status") != "building" || string(made.at("progress")) != "0" || string(made.at("version")) != "1" || made.Header.Get("ETag") != `"1"` {
		t.Errorf("made %s with %s", made.Body, made.Header.Get("ETag"))
	}
	for _, ref := range []string{"refunds", made.str("id")} {
		if got := w.as(w.acme, "GET", "/api/v1/computed_traits/"+ref, "").want(200); got.Header.Get("ETag") != `"1"` || got.Body != made.Body {
			t.Errorf("got %s, made %s", got.Body, made.Body)
		}
	}
	if got := w.as(w.acme, "GET", "/api/v1/computed_traits?limit=1", "").want(200); got.len("data") != 1 || got.str("next_cursor") == "" {
		t.Errorf("listed %s", got.Body)
	}
	w.as(w.acme, "POST", "/api/v1/computed_traits", `{"key":"refunds","name":"Again","value":{"event":"Refund","count":{}}}`).want(409, "already_exists")
	if got := w.as(w.acme, "POST", "/api/v1/computed_traits", `{"key":"ct_9","name":"An id","value":{"event":"Refund","count":{}}}`).want(422, "invalid"); got.str("errors", 0, "pointer") != "#/key" {
		t.Errorf("a key like an id: %s", got.Body)
	}

	same := w.as(w.acme, "PATCH", "/api/v1/computed_traits/refunds", `{"description":"Of a week","value":{"within":"7d","count":{},"event":"Refund"}}`, header("If-Match", `"1"`)).want(200)
	if string(same.at("version")) != "1" || string(same.at("revision")) != "2" || same.str("description") != "Of a week" {
		t.Errorf("changed to %s", same.Body)
	}
	w.as(w.acme, "PATCH", "/api/v1/computed_traits/refunds", `{"name":"Mine"}`, header("If-Match", `"1"`)).want(412, "changed")
	other := w.as(w.acme, "PATCH", "/api/v1/computed_traits/refunds", `{"value":{"event":"Refund","count":{}}}`).want(200)
	if string(other.at("version")) != "2" || string(other.at("revision")) != "3" {
		t.Errorf("changed to %s", other.Body)
	}

	for _, path := range []string{"/api/v1/computed_traits/refunds", "/api/v1/segments/acme-buyers"} {
		if got := w.as(w.acme, "GET", path, "").want(200); string(got.at("public")) != "false" {
			t.Errorf("%s is public without being marked: %s", path, got.Body)
		}
		for _, public := range []string{"true", "false", "true"} {
			got := w.as(w.acme, "PATCH", path, `{"public":`+public+`}`).want(200)
			if string(got.at("public")) != public || string(got.at("version")) == "3" {
				t.Errorf("marked %s: %s", public, got.Body)
			}
		}
		if got := w.as(w.acme, "PATCH", path, `{"description":"d"}`).want(200); string(got.at("public")) != "true" {
			t.Errorf("the mark is lost by another change: %s", got.Body)
		}
	}
	w.as(w.acme, "DELETE", "/api/v1/computed_traits/refunds", "", header("If-Match", `"1"`)).want(412, "changed")
	w.as(w.acme, "DELETE", "/api/v1/computed_traits/refunds", "").want(204)
	w.as(w.acme, "DELETE", "/api/v1/computed_traits/refunds", "").want(404, "not_found")
	if got := w.behaviours(); len(got) == 0 || !strings.HasSuffix(got[len(got)-1], "retired") {
		t.Errorf("counted: %v", got)
	}
}

func TestWhatIsWrongWithAComputedValueIsPointedAt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for pointer, value := range map[string]string{
		"#/value":       `{"event":"x"}`,
		"#/value/wihin": `{"event":"x","count":{},"wihin":"7d"}`,
		"#/value/event": `{"event":"","count":{}}`,
	} {
		for _, ask := range [][2]string{{"POST", "/api/v1/computed_traits"}, {"PATCH", "/api/v1/computed_traits/acme-orders"}} {
			b := fmt.Sprintf(`{"value":%s}`, value)
			if ask[0] == "POST" {
				b = fmt.Sprintf(`{"key":"k","name":"n","value":%s}`, value)
			}
			if got := w.as(w.acme, ask[0], ask[1], b).want(422, "invalid"); got.str("errors", 0, "pointer") != pointer {
				t.Errorf("%s: %s", value, got.Body)
			}
		}
	}
}

func TestProfilesShowComputedTraits(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	show := func() string {
		t.Helper()
		one := w.as(w.acme, "GET", "/api/v1/profiles/user_id:ada", "").want(200)
		list := w.as(w.acme, "GET", "/api/v1/profiles", "").want(200)
		if got := string(list.at("data", 0, "computed")); got != string(one.at("computed")) {
			t.Errorf("the list shows %s, the profile %s", got, one.at("computed"))
		}
		return string(one.at("computed"))
	}
	if got := show(); got != "{}" {
		t.Errorf("shown before it is built: %s", got)
	}
	w.exec(`UPDATE computed_traits SET live_version = 1, live_value = value, live_behaviour_id = behaviour_id WHERE key = 'acme-orders'`)
	if got := show(); got != `{"acme-orders":0}` {
		t.Errorf("without an order: %s", got)
	}

	r, err := rule.Parse([]byte(`{"event":"Order Completed"}`))
	if err != nil {
		t.Fatal(err)
	}
	b := r.Behaviours()[0]
	orders := b.Empty()
	for range 3 {
		b.Fold(&orders, at(0).UnixMilli(), nil)
	}
	ada, err := profiles.NewReader(w.pool, lanes).ByIdentifier(t.Context(), w.acme.ID, w.acme.Secret, profiles.Identifier{Kind: profiles.UserID, Value: "ada"})
	if err != nil {
		t.Fatal(err)
	}
	var id int32
	if err := w.pool.QueryRow(t.Context(), `SELECT behaviour_id FROM computed_traits WHERE key = 'acme-orders'`).Scan(&id); err != nil {
		t.Fatal(err)
	}
	ada.Fragments[0].Timelines = []profiles.Behaved{{Behaviour: id, Timeline: orders}}
	w.exec(`UPDATE profiles SET state = $1 WHERE id = $2`, profiles.AppendProfile(nil, ada), ada.ID)
	if got := show(); got != `{"acme-orders":3}` {
		t.Errorf("after three orders: %s", got)
	}

	// While an edit is being built the value before it answers.
	w.as(w.acme, "PATCH", "/api/v1/computed_traits/acme-orders", `{"value":{"event":"Refund","last":{}}}`).want(200)
	if got := show(); got != `{"acme-orders":3}` {
		t.Errorf("while the next is being built: %s", got)
	}
	w.exec(`UPDATE computed_traits SET live_version = version, live_value = value, live_behaviour_id = behaviour_id WHERE key = 'acme-orders'`)
	if got := show(); got != `{"acme-orders":null}` {
		t.Errorf("without a refund: %s", got)
	}
}
