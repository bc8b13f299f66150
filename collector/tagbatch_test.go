package collector_test

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/mubatch/mubatch/collector"
)

func TestTheVisitorsCookieIsSetForTheOwnSiteOnly(t *testing.T) {
	t.Parallel()
	s := newServer(t, collector.Config{})
	const id = "0123456789abcdefghij"
	for name, c := range map[string]struct {
		host, origin, query string
		want                string
	}{
		"a subdomain of the site": {
			"events.shop.example", "https://www.shop.example", "cookie=" + id + "&domain=shop.example",
			"mub_id=" + id + "; Path=/; Domain=shop.example; Max-Age=34560000; Secure; SameSite=Lax",
		},
		"a path of the site, without TLS": {
			"shop.example:8080", "http://shop.example:8080", "cookie=" + id + "&domain=shop.example",
			"mub_id=" + id + "; Path=/; Domain=shop.example; Max-Age=34560000; SameSite=Lax",
		},
		"not asked for":          {"shop.example", "https://shop.example", "", ""},
		"a page of another site": {"events.shop.example", "https://evil.example", "cookie=" + id + "&domain=shop.example", ""},
		"another site's cookie":  {"events.shop.example", "https://evil.example", "cookie=" + id + "&domain=evil.example", ""},
		"an ending of the name":  {"badshop.example", "https://badshop.example", "cookie=" + id + "&domain=shop.example", ""},
		"no origin":              {"shop.example", "", "cookie=" + id + "&domain=shop.example", ""},
		"not an id":              {"shop.example", "https://shop.example", "cookie=a%3Bb&domain=shop.example", ""},
	} {
		r := httptest.NewRequest(http.MethodPost, "/v1/b?writeKey="+s.key+"&"+c.query, strings.NewReader(`{"batch":[]}`))
		r.Host = c.host
		if c.origin != "" {
			r.Header.Set("Origin", c.origin)
		}
		w := s.do(r)
		if got := w.Header().Get("Set-Cookie"); w.Code != http.StatusOK || got != c.want {
			t.Errorf("%s: %d, %q, want %q", name, w.Code, got, c.want)
		}
	}
}

// Global Privacy Control is an opt-out of sale, unless the event says what its visitor allows.
func TestGlobalPrivacyControlIsAnOptOut(t *testing.T) {
	t.Parallel()
	s := newServer(t, collector.Config{})
	body := `{"batch":[
		{"type":"track","event":"a","anonymousId":"one","messageId":"1"},
		{"type":"track","event":"a","anonymousId":"one","messageId":"2","context":{"consent":{"ad_user_data":"granted"}}}]}`
	r := httptest.NewRequest(http.MethodPost, "/v1/batch", bytes.NewReader([]byte(body)))
	r.SetBasicAuth(s.key, "")
	r.Header.Set("Sec-GPC", "1")
	if w := s.do(r); w.Code != http.StatusOK {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	s.post("/v1/batch", strings.ReplaceAll(body, `Id":"`, `Id":"x`))
	want := map[string]string{
		"1":  `"consent":{"ad_user_data":"denied","ad_personalization":"denied"}`,
		"2":  `"consent":{"ad_user_data":"granted"}`,
		"x1": "", "x2": `"consent":{"ad_user_data":"granted"}`,
	}
	for _, m := range s.messages() {
		id := decode[event](t, m.Body).MessageID
		if part := want[id]; !bytes.Contains(m.Body, []byte(part)) || part == "" && bytes.Contains(m.Body, []byte("consent")) {
			t.Errorf("%s: %s, want %s", id, m.Body, part)
		}
		delete(want, id)
	}
	if len(want) > 0 {
		t.Errorf("not there: %v", want)
	}
}

func TestAVisitorWithoutScriptsIsSeen(t *testing.T) {
	t.Parallel()
	s := newServer(t, collector.Config{})
	for range 2 {
		r := httptest.NewRequest(http.MethodGet, "/v1/pixel/page?visitor=new&writeKey="+s.key, nil)
		r.Header.Set("Referer", "https://shop.example/shoes")
		if w := s.do(r); w.Header().Get("X-Event-Status") != collector.Accepted {
			t.Fatalf("%s", w.Header().Get("X-Event-Status"))
		}
	}
	seen := map[string]bool{}
	for _, m := range s.messages() {
		e := decode[event](t, m.Body)
		if seen[e.AnonymousID] = true; e.Type != "page" || !bytes.Contains(e.Context, []byte(`"url":"https://shop.example/shoes"`)) {
			t.Errorf("%s", m.Body)
		}
	}
	if len(seen) != 2 || seen[""] {
		t.Errorf("visitors: %v, want 2", seen)
	}
}
