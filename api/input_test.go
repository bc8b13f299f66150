package api_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// bodies lists the operations under /api/v1 that take a body, with one that is valid.
func bodies(t testing.TB) map[[2]string]bool {
	t.Helper()
	k, err := theContract()
	if err != nil {
		t.Fatal(err)
	}
	found := map[[2]string]bool{}
	for path, item := range k.doc.Paths.Map() {
		for method, op := range item.Operations() {
			if strings.HasPrefix(path, "/api/v1/") && op.RequestBody != nil && op.RequestBody.Value.Required &&
				op.RequestBody.Value.Content["application/json"] != nil {
				found[[2]string{method, path}] = true
			}
		}
	}
	return found
}

func TestBodiesThatCannotBeRead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tests := []struct {
		name, body string
		status     int
		code       string
		options    []option
	}{
		{"no body", "", 415, "unsupported_media_type", nil},
		{"an empty body", " ", 400, "malformed", nil},
		{"half an object", `{"name":`, 400, "malformed", nil},
		{"no JSON", `name=x`, 400, "malformed", nil},
		{"two values", `{} {}`, 400, "malformed", nil},
		{"a list", `[]`, 422, "invalid", nil},
		{"a string", `"x"`, 422, "invalid", nil},
		{"null", `null`, 422, "invalid", nil},
		{"a member that is not known", `{"nmae":"x"}`, 400, "unknown_member", nil},
		{"a member in another case", `{"Name":"x"}`, 400, "unknown_member", nil},
		{"a member of the answer", `{"created_at":"2026-01-01T00:00:00Z"}`, 400, "unknown_member", nil},
		{"a name twice", `{"name":"x","name":"y"}`, 400, "malformed", nil},
		{"a NUL", `{"name":"a\u0000b"}`, 422, "invalid", nil},
		{"half a surrogate pair", `{"name":"\ud800"}`, 400, "malformed", nil},
		{"invalid UTF-8", "{\"name\":\"\xff\"}", 400, "malformed", nil},
		{"deep nesting", `{"name":` + strings.Repeat("[", 10_001) + strings.Repeat("]", 10_001) + `}`, 400, "malformed", nil},
		{"too much", `{"name":"` + strings.Repeat("x", 256<<10) + `"}`, 413, "too_large", nil},
		{"a form", `{}`, 415, "unsupported_media_type", []option{header("Content-Type", "application/x-www-form-urlencoded")}},
		{"another charset", `{}`, 415, "unsupported_media_type", []option{header("Content-Type", "application/json; charset=latin1")}},
		{"compression", `{}`, 415, "unsupported_media_type", []option{header("Content-Encoding", "gzip")}},
	}
	ops := bodies(t)
	for op := range ops {
		for _, tt := range tests {
			got := w.as(w.acme, op[0], w.fill(op[1], w.acme.things), tt.body, tt.options...)
			if got.Status != tt.status || got.str("code") != tt.code {
				t.Errorf("%s %s with %s: %d %s, want %d %s: %s", op[0], op[1], tt.name, got.Status, got.str("code"), tt.status, tt.code, got.Body)
			}
		}
	}
	t.Logf("%d operations, %d bodies each", len(ops), len(tests))
}

// However a member of a body is wrong, the answer says where.
func TestEveryMemberOfEveryBodyIsChecked(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	k, err := theContract()
	if err != nil {
		t.Fatal(err)
	}
	tried := 0
	for op := range bodies(t) {
		operation := k.doc.Paths.Value(op[1]).GetOperation(op[0])
		properties := operation.RequestBody.Value.Content["application/json"].Schema.Value.Properties
		for name, property := range properties {
			for _, wrong := range []string{`7`, `"a\u0000b"`, `true`, `[[]]`, `{"x":[]}`, `null`, `"` + strings.Repeat("x", 3000) + `"`} {
				if admits(property.Value, wrong) {
					continue
				}
				good := map[string]jsontext.Value{
					"key": jsontext.Value(`"k"`), "name": jsontext.Value(`"n"`), "rule": jsontext.Value(`{"event":"x"}`),
					"type": jsontext.Value(`"webhook"`), "config": jsontext.Value(`{"url":"https://example.com"}`),
					"filter": jsontext.Value(`{}`),
				}
				for member := range good {
					if _, ok := properties[member]; !ok {
						delete(good, member)
					}
				}
				good[name] = jsontext.Value(wrong)
				b, err := json.Marshal(good)
				if err != nil {
					t.Fatal(err)
				}
				got := w.as(w.acme, op[0], w.fill(op[1], w.acme.things), string(b))
				tried++
				if got.Status != 422 && got.Status != 400 {
					t.Errorf("%s %s with %s = %.20s: %d %s", op[0], op[1], name, wrong, got.Status, got.Body)
					continue
				}
				if !strings.Contains(got.Body, `"pointer":"#/`+name) {
					t.Errorf("%s %s with %s = %.20s: nothing points at it: %s", op[0], op[1], name, wrong, got.Body)
				}
			}
		}
	}
	t.Logf("%d wrong members", tried)
}

// admits tells whether a value may be right, as far as its type says.
func admits(s *openapi3.Schema, value string) bool {
	switch value {
	case "7":
		return s.Type.Includes("integer") || s.Type.Includes("number")
	case "true":
		return s.Type.Includes("boolean")
	case "null":
		return s.Type.Includes("null")
	case `{"x":[]}`:
		return s.AdditionalProperties.Has != nil && *s.AdditionalProperties.Has // any object
	default:
		return false
	}
}

func TestParametersThatAreWrong(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.person(w.acme, person{user: "grace", lastSeen: at(1)})
	cursor := w.as(w.acme, "GET", "/api/v1/profiles?limit=1", "").want(200).str("next_cursor")
	if cursor == "" {
		t.Fatal("no second page")
	}
	w.as(w.acme, "GET", "/api/v1/profiles?limit=1&cursor="+cursor, "").want(200)

	flipped := []byte(cursor)
	flipped[len(flipped)/2] ^= 1
	for path, code := range map[string]string{
		"/api/v1/profiles?limit=0":                             "bad_parameter",
		"/api/v1/profiles?limit=1001":                          "bad_parameter",
		"/api/v1/profiles?limit=ten":                           "bad_parameter",
		"/api/v1/profiles?limit=9999999999999999999":           "bad_parameter",
		"/api/v1/profiles?limit=1&limit=2":                     "bad_parameter",
		"/api/v1/profiles?sort=name":                           "bad_parameter",
		"/api/v1/profiles?cursor=":                             "bad_cursor",
		"/api/v1/profiles?cursor=AAAA":                         "bad_cursor",
		"/api/v1/profiles?cursor=%00":                          "bad_cursor",
		"/api/v1/profiles?cursor=" + string(flipped):           "bad_cursor",
		"/api/v1/segments?cursor=" + cursor:                    "bad_cursor",
		"/api/v1/profiles?x=%zz":                               "bad_parameter",
		"/api/v1/failed_events?stage=somewhere":                "bad_parameter",
		"/api/v1/failed_events?replayed=maybe":                 "bad_parameter",
		"/api/v1/failed_events?stage=fold&cursor=" + cursor:    "bad_cursor",
		"/api/v1/stats?days=0":                                 "bad_parameter",
		"/api/v1/stats?days=401":                               "bad_parameter",
		"/api/v1/workspace?verbose=true":                       "bad_parameter",
		"/api/v1/profiles/user_id:ada/events?cursor=" + cursor: "bad_cursor",
	} {
		if got := w.as(w.acme, "GET", path, ""); got.Status != 400 || got.str("code") != code {
			t.Errorf("GET %s: %d %s, want 400 %s", path, got.Status, got.Body, code)
		}
	}
	other := w.as(w.globex, "GET", "/api/v1/profiles?limit=1&cursor="+cursor, "")
	other.want(400, "bad_cursor")
}

func TestPathsThatNameNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	odd := []string{
		"%00", "%ff%fe", "..%2f..%2fetc", "%2e%2e", "seg_0", "seg_-1", "seg_1e3", "seg_99999999999999999999", "src_4294967297", "wk_4294967298",
		"fe_99999999_1", "fe_1_-1", "fe_01_1", "key_0x1", "p_zz", "p_" + strings.Repeat("A", 32), "user_id:", ":x", "user_id:%00", "email:%ff",
		"user_id:" + strings.Repeat("x", 4000), "custom%00kind:x", "%25", "a%2Fb", "💥", "'%20OR%201=1--", "*",
	}
	for _, rt := range w.managed() {
		for _, p := range parameter.FindAllStringSubmatch(rt[1], -1) {
			for _, value := range odd {
				things := clone(w.acme.things)
				things[p[1]] = value
				path := w.fill(rt[1], things)
				if _, err := url.Parse(path); err != nil {
					continue
				}
				got := w.as(w.acme, rt[0], path, body(rt[0]))
				if p[1] == "message_id" && got.Status == http.StatusOK {
					continue // any text may be a messageId
				}
				if got.Status != http.StatusNotFound && got.Status != http.StatusUnprocessableEntity && got.Status != http.StatusBadRequest {
					t.Errorf("%s %s: status %d: %s", rt[0], path, got.Status, got.Body)
				}
			}
		}
	}
}

func TestRoutesThatAreNotThere(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, path := range []string{"/", "/api", "/api/v1", "/api/v1/", "/api/v1/nothing", "/api/v1/segments/", "/api/v1//segments", "/api/v2/segments"} {
		w.as(w.acme, "GET", path, "").want(404, "no_route")
	}
	got := w.as(w.acme, "POST", "/api/v1/segments/x", "{}").want(405, "method_not_allowed")
	if allow := got.Header.Get("Allow"); allow != "GET, PUT, PATCH, DELETE" {
		t.Errorf("Allow is %q", allow)
	}
	if allow := w.do("PUT", "/v1/anything-else", "").want(405).Header.Get("Allow"); allow != "POST" {
		t.Errorf("of a route beside the API, Allow is %q", allow)
	}
	head := w.as(w.acme, "HEAD", "/api/v1/segments", "")
	if head.Status != 200 || head.Body != "" {
		t.Errorf("HEAD: %d %q", head.Status, head.Body)
	}
}

func TestRequestIDs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	got := w.as(w.acme, "GET", "/api/v1/nothing-here", "", header("X-Request-Id", "mine-12345"))
	if id := got.Header.Get("X-Request-Id"); id != "mine-12345" {
		t.Errorf("the id is %q", id)
	}
	got = w.as(w.acme, "GET", "/api/v1/segments/none", "", header("X-Request-Id", "not <one>"))
	if id := got.Header.Get("X-Request-Id"); len(id) < 20 || !strings.HasSuffix(got.str("instance"), id) {
		t.Errorf("the id is %q: %s", id, got.Body)
	}
}
