package collector_test

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/mubatch/mubatch/api/problem"
	"github.com/mubatch/mubatch/collector"
)

// Whatever a browser asks to send, it may, and needs no key to ask: the Authorization of Segment's library above all.
func TestPreflightsAllowWhatClientsSend(t *testing.T) {
	t.Parallel()
	s := newServer(t, collector.Config{})
	headers := "authorization,content-type,x-retry-count,anonymousid,sentat,rsa-retry-attempt,x-write-key,x-ip-policy"
	for _, path := range []string{
		"/v1/t", "/v1/i", "/v1/p", "/v1/s", "/v1/g", "/v1/a", "/v1/b", "/v1/m", "/v1/batch", "/v1/projects/any/settings",
		"/sourceConfig", "/sourceConfig/", "/beacon/v1/batch", "/v1/merge", "/pixel/v1/track",
		"/api/s/page", "/api/s/s2s/track", "/api/s/s2s/batch", "/v1/batch/b", "/api/px/page",
	} {
		r := httptest.NewRequest(http.MethodOptions, path, nil)
		r.Header.Set("Origin", "https://shop.example")
		r.Header.Set("Access-Control-Request-Method", http.MethodPost)
		r.Header.Set("Access-Control-Request-Headers", headers)
		w := s.do(r)
		if w.Code != http.StatusNoContent || w.Header().Get("Access-Control-Allow-Origin") != "https://shop.example" ||
			w.Header().Get("Access-Control-Allow-Headers") != headers {
			t.Errorf("%s: %d %v", path, w.Code, w.Header())
		}
	}
}

func TestLettersAreCalls(t *testing.T) {
	t.Parallel()
	s := newServer(t, collector.Config{})
	for _, call := range []string{"track", "identify", "page", "screen", "group", "alias"} {
		body := `{"messageId":"` + call + `","userId":"ada","event":"e","groupId":"g","previousId":"p","type":"nonsense"}`
		if w := s.post("/v1/"+call[:1], body); w.Code != 200 || w.Body.String() != `{"success":true}` {
			t.Errorf("%s: %d %s", call, w.Code, w.Body)
		}
	}
	if w := s.post("/v1/m", `{"series":[{"type":"Counter","metric":"analytics_js.invoke"}]}`); w.Code != 200 {
		t.Errorf("telemetry: %d %s", w.Code, w.Body)
	}
	if w := s.post("/v1/x", `{"userId":"ada"}`); w.Code != 404 {
		t.Errorf("no letter of ours: %d %s", w.Code, w.Body)
	}
	msgs := s.messages()
	for _, m := range msgs {
		if e := decode[event](t, m.Body); e.Type != e.MessageID {
			t.Errorf("the letter of %s made %s", e.MessageID, e.Type)
		}
	}
	if len(msgs) != 6 {
		t.Errorf("%d events are stored, want 6", len(msgs))
	}
}

func TestSettingsSendLibrariesHere(t *testing.T) {
	t.Parallel()
	s := newServer(t, collector.Config{TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
	type settings struct {
		Integrations map[string]struct{ APIKey, APIHost, Protocol string }
		Metrics      map[string]int
	}
	tests := map[string]struct {
		host, from string
		header     http.Header
		protocol   string
	}{
		"nobody knows better":                       {"collect.example:8080", "192.0.2.1:1", http.Header{}, "http"},
		"the page is of HTTPS":                      {"collect.example", "192.0.2.1:1", http.Header{"Origin": {"https://shop.example"}}, "https"},
		"the page is of HTTPS and the same origin":  {"shop.example", "192.0.2.1:1", http.Header{"Referer": {"https://shop.example/a"}}, "https"},
		"the page is of HTTPS, and this is its own": {"127.0.0.1:8080", "127.0.0.1:1", http.Header{"Origin": {"https://shop.example"}}, "http"},
		"a proxy that is trusted knows":             {"collect.example", "10.0.0.1:1", http.Header{"X-Forwarded-Proto": {"https"}}, "https"},
		"a stranger does not":                       {"collect.example", "192.0.2.1:1", http.Header{"X-Forwarded-Proto": {"https"}}, "http"},
	}
	for name, tt := range tests {
		r := httptest.NewRequest(http.MethodGet, "/v1/projects/"+s.key+"/settings", nil)
		r.Host, r.RemoteAddr, r.Header = tt.host, tt.from, tt.header
		w := s.do(r)
		got := decode[settings](t, w.Body.Bytes())
		to := got.Integrations["Segment.io"]
		if w.Code != 200 || len(got.Integrations) != 1 || to.APIKey != s.key || to.APIHost != tt.host+"/v1" || to.Protocol != tt.protocol {
			t.Errorf("%s: %d %+v, want %s", name, w.Code, got, tt.protocol)
		}
		if rate, ok := got.Metrics["sampleRate"]; !ok || rate != 0 {
			t.Errorf("%s: telemetry goes out: %v", name, got.Metrics)
		}
	}
	w := s.do(httptest.NewRequest(http.MethodGet, "/v1/projects/wrong/settings", nil))
	if p := decode[problem.Problem](t, w.Body.Bytes()); w.Code != 404 || p.Code != "unknown_write_key" {
		t.Errorf("an unknown key: %d %s", w.Code, w.Body)
	}

	// Without Postgres nobody can tell whether a key is known, and a page that is told no would track nothing.
	s = newServer(t, collector.Config{})
	s.pool.Close()
	if w := s.do(httptest.NewRequest(http.MethodGet, "/v1/projects/"+s.key+"/settings", nil)); w.Code != 200 {
		t.Errorf("without Postgres: %d %s", w.Code, w.Body)
	}
	if w := s.do(httptest.NewRequest(http.MethodGet, "/v1/projects/wrong/settings", nil)); w.Code != 404 {
		t.Errorf("what cannot be a key, without Postgres: %d %s", w.Code, w.Body)
	}
}

func TestSourceConfigHasNoDestinations(t *testing.T) {
	t.Parallel()
	s := newServer(t, collector.Config{})
	for _, path := range []string{"/sourceConfig", "/sourceConfig/?p=npm&v=3.34.1&build=modern&writeKey=" + s.key} {
		r := httptest.NewRequest(http.MethodGet, path, nil)
		if !strings.Contains(path, "writeKey") {
			r.SetBasicAuth(s.key, "")
		}
		type config struct {
			Source struct {
				ID, WorkspaceID string
				Enabled         bool
				Config          map[string]any
				Destinations    []any
			}
		}
		w := s.do(r)
		if got := decode[config](t, w.Body.Bytes()).Source; w.Code != 200 || got.ID == "" || !got.Enabled || got.Config == nil ||
			got.Destinations == nil || len(got.Destinations) != 0 {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
	if w := s.do(httptest.NewRequest(http.MethodGet, "/sourceConfig/?writeKey=wrong", nil)); w.Code != 401 {
		t.Errorf("an unknown key: %d", w.Code)
	}
}

// Whatever is written to Jitsu's routes, the server does not fail, and no address passes that is to be removed.
func TestJitsuRemovesAddressesFromWhateverComes(t *testing.T) {
	t.Parallel()
	s := newDialectServer(t, collector.DialectJitsu)
	for body, want := range map[string]int{
		`{"userId":"a","context":{"ip":"203.0.113.77"}}`:                                                                     200,
		`{"userId":"a","context":{"ip":"203.0.113.77","ip":1}}`:                                                              400,
		"{\"userId\":\"\\ud800\xff\",\"context\":{\"ip\":\"203.0.113.77\",\"clientIds\":{\"ga4\":{\"clientId\":\"\xff\"}}}}": 200,
		`{"userId":"a","context":{"ip":"203.0.113.77","clientIds":{"x":[{"a":1,"a":2}]}}}`:                                   400,
		`{"userId":"a","context":null,"requestIp":{"x":1e30}}`:                                                               200,
		`{"userId":"a","context":{"clientIds":"x","clickIds":{"gclid":"g"},"ip":{"v4":"203.0.113.77"}}}`:                     200,
		` [] `: 400, `{`: 400, ``: 400,
	} {
		r := httptest.NewRequest(http.MethodPost, "/api/s/page", strings.NewReader(body))
		r.Header.Set("X-Write-Key", s.key+":x")
		r.Header.Set("X-IP-Policy", "remove")
		if w := s.do(r); w.Code != want {
			t.Errorf("%s: %d %s", body, w.Code, w.Body)
		}
	}
	msgs := s.messages()
	for _, m := range msgs {
		if bytes.Contains(m.Body, []byte("203.0.113.77")) || bytes.Contains(m.Body, []byte("192.0.2.1")) {
			t.Errorf("%s was kept", m.Body)
		}
	}
	if len(msgs) != 4 {
		t.Errorf("%d events are stored, want 4", len(msgs))
	}
}
