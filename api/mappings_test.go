package api_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"

	"github.com/mubatch/mubatch/collector/mapping"
)

// quoted returns a document as a member of a body.
func quoted(document string) string {
	b, err := json.Marshal(document)
	if err != nil {
		panic(err)
	}
	return string(b)
}

const signups = `# What the form sends.
version: 1
rules:
  - when: body.kind == 'signup'
    event: {type: track, event: Signed Up, userId: $.id, timestamp: $.at | date}
`

func TestMappingsAreMadeAndChanged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	made := w.as(w.acme, "POST", "/api/v1/mappings", `{"key":"signups","document":`+quoted(signups)+`}`).want(201)
	if made.str("document") != signups || made.str("name") != "signups" || string(made.at("version")) != "1" || made.Header.Get("ETag") != `"1"` {
		t.Errorf("made %s with %s", made.Body, made.Header.Get("ETag"))
	}
	for _, ref := range []string{"signups", made.str("id")} {
		if got := w.as(w.acme, "GET", "/api/v1/mappings/"+ref, "").want(200); got.Header.Get("ETag") != `"1"` || got.Body != made.Body {
			t.Errorf("got %s, made %s", got.Body, made.Body)
		}
	}
	if got := w.as(w.acme, "GET", "/api/v1/mappings?limit=1", "").want(200); got.len("data") != 1 || got.str("next_cursor") == "" {
		t.Errorf("listed %s", got.Body)
	}
	w.as(w.acme, "POST", "/api/v1/mappings", `{"key":"signups","document":`+quoted(signups)+`}`).want(409, "already_exists")
	for _, key := range []string{"map_1", "try", "templates"} {
		got := w.as(w.acme, "POST", "/api/v1/mappings", `{"key":"`+key+`","document":`+quoted(signups)+`}`).want(422, "invalid")
		if got.str("errors", 0, "pointer") != "#/key" {
			t.Errorf("the key %s: %s", key, got.Body)
		}
	}

	changed := w.as(w.acme, "PATCH", "/api/v1/mappings/signups", `{"name":"Sign-ups"}`, header("If-Match", `"1"`)).want(200)
	if changed.str("name") != "Sign-ups" || changed.str("document") != signups || changed.Header.Get("ETag") != `"2"` {
		t.Errorf("changed to %s", changed.Body)
	}
	w.as(w.acme, "PATCH", "/api/v1/mappings/signups", `{"name":"Mine"}`, header("If-Match", `"1"`)).want(412, "changed")
	const object = `{"version": 1, "rules": [{"event": {"type": "page", "userId": "$.id"}}]}`
	if got := w.as(w.acme, "PATCH", "/api/v1/mappings/signups", `{"document":`+object+`}`).want(200); got.str("document") != object {
		t.Errorf("changed to %s", got.Body)
	}

	w.as(w.acme, "DELETE", "/api/v1/mappings/signups", "", header("If-Match", `"1"`)).want(412, "changed")
	w.as(w.acme, "DELETE", "/api/v1/mappings/signups", "", header("If-Match", `"3"`)).want(204)
	w.as(w.acme, "DELETE", "/api/v1/mappings/signups", "").want(404, "not_found")

	log := w.as(w.acme, "GET", "/api/v1/audit_log?subject="+made.str("id"), "").want(200)
	var actions []string
	for i := range log.len("data") {
		actions = append(actions, log.str("data", i, "action"))
	}
	if got := strings.Join(actions, " "); got != "mapping.delete mapping.update mapping.update mapping.create" {
		t.Errorf("the audit log has %s", got)
	}
}

func TestAMappingInUseStays(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.acme.things["mapping"]
	for _, ref := range []string{id, "acme-orders"} {
		w.exec(`UPDATE sources SET settings = jsonb_build_object('webhook', jsonb_build_object('mapping', $1::text)) WHERE key = 'acme-shop'`, ref)
		w.as(w.acme, "DELETE", "/api/v1/mappings/"+id, "").want(409, "in_use")
	}
	w.exec(`UPDATE sources SET settings = '{}' WHERE key = 'acme-shop'`)
	w.exec(`CREATE TABLE uses AS SELECT id FROM mappings; ALTER TABLE uses ADD FOREIGN KEY (id) REFERENCES mappings (id)`)
	w.as(w.acme, "DELETE", "/api/v1/mappings/"+id, "").want(409, "in_use")
	w.exec(`DROP TABLE uses`)
	w.as(w.acme, "DELETE", "/api/v1/mappings/"+id, "").want(204)
}

func TestADocumentThatDoesNotCompileIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	broken := "version: 1\nrules:\n- when: 'body.a ='\n  event:\n    type: page\n    userId: $.id | lowr\n"
	for _, ask := range [][3]string{
		{"POST", "/api/v1/mappings", `{"key":"k","document":%s}`},
		{"PATCH", "/api/v1/mappings/acme-orders", `{"document":%s}`},
		{"POST", "/api/v1/mappings/try", `{"document":%s,"input":{}}`},
	} {
		got := w.as(w.acme, ask[0], ask[1], fmt.Sprintf(ask[2], quoted(broken))).want(422, "invalid")
		if got.len("errors") != 2 || got.str("errors", 0, "pointer") != "#/document" ||
			!strings.HasPrefix(got.str("errors", 0, "detail"), "line 3: rules[0].when is not CEL") ||
			got.str("errors", 1, "code") != "invalid_path" || !strings.HasPrefix(got.str("errors", 1, "detail"), "line 6: rules[0].event.userId calls") {
			t.Errorf("%s %s: %s", ask[0], ask[1], got.Body)
		}
	}
}

func TestAMappingIsTried(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	try := func(body string) answer { return w.as(w.acme, "POST", "/api/v1/mappings/try", body).want(200) }

	got := try(`{"document":` + quoted(signups) + `,"input":{"body":{"kind":"signup","id":820982911946154508,"at":"2026-01-02"}}}`)
	const event = `{"type":"track","event":"Signed Up","userId":820982911946154508,"timestamp":"2026-01-02T00:00:00.000Z"}`
	if string(got.at("events")) != `[{"event":`+event+`,"status":"accepted"}]` || string(got.at("fault")) != "null" {
		t.Errorf("tried: %s", got.Body)
	}
	if got := try(`{"document":` + quoted(signups) + `,"input":{"body":{"kind":"other"}}}`); string(got.at("events")) != "[]" {
		t.Errorf("where no rule applies: %s", got.Body)
	}
	got = try(`{"document":` + quoted(signups) + `,"input":{"body":{"kind":"signup","id":"null"}}}`)
	if got.str("events", 0, "status") != "rejected" || got.str("events", 0, "code") != "missing_id" {
		t.Errorf("what intake would reject: %s", got.Body)
	}
	got = try(`{"document":` + quoted(signups) + `,"input":{"body":{"kind":"signup","id":"u","at":"soon"}}}`)
	if string(got.at("fault", "line")) != "5" || got.str("fault", "path") != "rules[0].event.timestamp" || got.str("fault", "code") != "cannot_convert" {
		t.Errorf("what cannot be made: %s", got.Body)
	}
	got = try(`{"template":"shopify","input":{"headers":{"X-Shopify-Topic":"carts/update"},"body":{"token":"c1"}}}`)
	if got.str("events", 0, "event", "event") != "Cart Updated" {
		t.Errorf("a template: %s", got.Body)
	}
	if got := try(`{"mapping":"acme-orders","input":{"body":{"id":"ada"}}}`); got.str("events", 0, "event", "userId") != "ada" {
		t.Errorf("a mapping: %s", got.Body)
	}
	for body, pointer := range map[string]string{
		`{"input":{}}`: "#", `{"mapping":"globex-orders"}`: "#/mapping", `{"template":"nothing"}`: "#/template",
		`{"mapping":"acme-orders","template":"shopify"}`: "#", `{"document":[]}`: "#/document",
	} {
		if got := w.as(w.acme, "POST", "/api/v1/mappings/try", body).want(422, "invalid"); got.str("errors", 0, "pointer") != pointer {
			t.Errorf("%s: %s", body, got.Body)
		}
	}
}

func TestTemplatesAreListed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	got := w.as(w.acme, "GET", "/api/v1/mappings/templates", "").want(200)
	if got.len("data") != len(mapping.Templates()) || !strings.Contains(got.Body, `"name":"shopify"`) {
		t.Errorf("listed %s", got.Body)
	}
}
