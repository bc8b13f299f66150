package collector_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mubatch/mubatch/collector"
)

// newMessages returns the bodies of what came into the lanes since it was last called with the same seen.
func (s *server) newMessages(seen map[string]bool) []string {
	s.t.Helper()
	var bodies []string
	for _, m := range s.messages() {
		if at := fmt.Sprintf("%x %s", m.ID, m.Body); !seen[at] {
			seen[at] = true
			bodies = append(bodies, string(m.Body))
		}
	}
	return bodies
}

// TestRequestsOfOtherProducts sends the documented requests of testdata/dialects/<dialect>/*.http and compares the answer and what is stored
// with the .json beside them.
func TestRequestsOfOtherProducts(t *testing.T) {
	t.Parallel()
	for _, dialect := range otherProducts {
		t.Run(dialect, func(t *testing.T) {
			t.Parallel()
			files, err := filepath.Glob(filepath.Join("testdata", "dialects", dialect, "*.http"))
			if err != nil || len(files) == 0 {
				t.Fatalf("no requests: %v", err)
			}
			s := newDialectServer(t, dialect)
			seen := map[string]bool{}
			for _, file := range files {
				text, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				w := s.do(readRequest(t, strings.ReplaceAll(string(text), "{key}", s.key)))
				got := recorded(t, s, w, s.newMessages(seen))
				name := strings.TrimSuffix(file, ".http") + ".json"
				if *update {
					if err := os.WriteFile(name, got, 0o644); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(name)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(string(want), string(got)); diff != "" {
					t.Errorf("%s (-want +got):\n%s", file, diff)
				}
			}
		})
	}
}

// readRequest reads a request as it is on the wire, without the lines that only the network needs.
func readRequest(t testing.TB, text string) *http.Request {
	t.Helper()
	head, body, _ := strings.Cut(text, "\n\n")
	body = strings.TrimSuffix(body, "\n")
	first, headers, _ := strings.Cut(head, "\n")
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(first + " HTTP/1.1\r\nHost: collect.example\r\n" +
		strings.ReplaceAll(headers, "\n", "\r\n") + "\r\nConnection: close\r\n\r\n")))
	if err != nil {
		t.Fatal(err)
	}
	out := httptest.NewRequest(r.Method, r.URL.String(), strings.NewReader(body))
	out.Header = r.Header
	return out
}

var (
	volatile = regexp.MustCompile(`"(timestamp|receivedAt)":"[^"]*"`)
	ago      = regexp.MustCompile(`"originalTimestamp":"[^"]*\.[0-9]{3}Z","receivedAt"`)
	hashed   = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
	derived  = regexp.MustCompile(`"(posthog|snowplow|umami|plausible|matomo|goatcounter)-[0-9a-f]{32}`)
)

// recorded returns an answer and the events that were stored, without what is another at every run: times of reception, and,
// of dialects that know visitors by a hash of the day, the hashes.
func recorded(t testing.TB, s *server, w *httptest.ResponseRecorder, bodies []string) []byte {
	t.Helper()
	events := []json.RawMessage{}
	for i, body := range bodies {
		body = volatile.ReplaceAllString(body, `"$1":"…"`)
		body = ago.ReplaceAllString(body, `"originalTimestamp":"…","receivedAt"`)
		body = derived.ReplaceAllString(body, `"$1-…`)
		if !strings.Contains(body, `"messageId":"`) {
			t.Errorf("no messageId: %s", body)
		}
		bodies[i] = body
	}
	slices.Sort(bodies)
	for _, body := range bodies {
		if id := decode[struct{ AnonymousID string }](t, []byte(body)).AnonymousID; hashed.MatchString(id) && strings.Contains(body, "-…") {
			body = strings.ReplaceAll(body, id, "(visitor)")
		}
		events = append(events, json.RawMessage(body))
	}
	answer := map[string]any{"status": w.Code, "content_type": w.Header().Get("Content-Type")}
	switch {
	case w.Header().Get("Content-Type") == "image/gif":
	case json.Valid(w.Body.Bytes()):
		answer["body"] = json.RawMessage(hashed.ReplaceAll(w.Body.Bytes(), []byte("…")))
	default:
		answer["body"] = strings.ReplaceAll(w.Body.String(), s.key, "{key}")
	}
	for _, name := range []string{"X-Event-Status", "X-Goatcounter", "X-Plausible-Dropped"} {
		if v := w.Header().Get(name); v != "" {
			answer[strings.ToLower(name)] = v
		}
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(map[string]any{"answer": answer, "events": events}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// otherProducts are the dialects that this file tests.
var otherProducts = []string{
	collector.DialectPostHog, collector.DialectSnowplow, collector.DialectUmami, collector.DialectPlausible,
	collector.DialectMatomo, collector.DialectGoatCounter,
}

func TestOtherProductsAreRefusedUnlessSwitchedOn(t *testing.T) {
	t.Parallel()
	s := newServer(t, collector.Config{})
	for _, dialect := range otherProducts {
		files, err := filepath.Glob(filepath.Join("testdata", "dialects", dialect, "*.http"))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: no requests: %v", dialect, err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			r := readRequest(t, strings.ReplaceAll(string(text), "{key}", s.key))
			r.Header.Set("X-Write-Key", s.key)
			if w := s.do(r); w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), `add \"`+dialect+`\" to settings.dialects`) {
				t.Errorf("%s: %d %s", file, w.Code, w.Body)
			}
		}
	}
	if msgs := s.messages(); len(msgs) != 0 {
		t.Errorf("%d events are stored", len(msgs))
	}
}

// Every kind of garbage gets an answer that keeps the client from sending it for ever, and none is an error of the server.
func TestGarbageOfOtherProducts(t *testing.T) {
	t.Parallel()
	deep := strings.Repeat(`{"a":`, 40) + "1" + strings.Repeat("}", 40)
	garbage := map[string]string{
		"nothing": "", "space": " \n", "cut short": `{"event":"e","distinct_id":"x"`, "no JSON": "\x00\xff\xfe", "null": "null",
		"a number": "17", "a string": `"event"`, "an empty object": "{}", "damaged gzip": "\x1f\x8b\x08\x00garbage",
		"two objects": `{}{}`, "base64 of nothing": "data=", "no base64": "data=%%%", "base64 of no JSON": "data=AAECAw==",
		"members of wrong types": `{"event":{},"properties":[],"data":{},"batch":{},"requests":3,"hits":"x","payload":7,"type":[],"n":{},"u":[]}`,
		"deep":                   `{"event":"e","distinct_id":"x","properties":` + deep + `}`,
		"a list of everything":   `[null,17,"x",[],{},{"event":1},{"event":"e"},{"event":"e","distinct_id":{},"properties":"no"},` + deep + `]`,
		"a member twice":         `{"event":"e","event":"f","distinct_id":"x","properties":{"a":1,"a":2}}`,
		"too many":               `{"batch":[` + strings.Repeat("{},", 2600) + `{}],"data":[` + strings.Repeat("{},", 2600) + `{}]}`,
		"too large":              `{"event":"` + strings.Repeat("x", 600<<10) + `"}`,
	}
	routes := map[string][]string{
		collector.DialectPostHog:     {"/e/", "/batch", "/capture/", "/i/v0/e/", "/track", "/engage/", "/i/v1/analytics/events"},
		collector.DialectSnowplow:    {"/com.snowplowanalytics.snowplow/tp2"},
		collector.DialectUmami:       {"/api/send", "/api/batch"},
		collector.DialectPlausible:   {"/api/event"},
		collector.DialectMatomo:      {"/matomo.php", "/piwik.php"},
		collector.DialectGoatCounter: {"/count", "/count/nobody", "/api/v0/count"},
	}
	for dialect, paths := range routes {
		t.Run(dialect, func(t *testing.T) {
			t.Parallel()
			s := newDialectServer(t, dialect)
			for _, path := range paths {
				for name, text := range garbage {
					r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(text))
					r.Header.Set("X-Write-Key", s.key)
					w := s.do(r)
					many := w.Code == http.StatusOK || w.Code == http.StatusAccepted // lists that are rejected one by one
					if !many && (w.Code < 400 || w.Code >= 500) {
						t.Errorf("POST %s with %s: %d %s", path, name, w.Code, w.Body)
					}
					if name == "too large" && w.Code != http.StatusRequestEntityTooLarge && !strings.HasPrefix(path, "/count") {
						t.Errorf("POST %s with %s: %d", path, name, w.Code)
					}
				}
			}
			for _, query := range []string{"", "?", "?%zz", "?e=pv&p=%00%ff&n=1&rec=1&cx=%%", "?data=%", "?data=e30", "?e=ue&ue_px=AA", "?rec=1&ec_items=%5B%5B%5D&idgoal=0"} {
				for _, path := range []string{"/e/", "/i", "/matomo.php", "/count", "/flags/"} {
					r := httptest.NewRequest(http.MethodGet, path, nil)
					r.URL.RawQuery = strings.TrimPrefix(query, "?")
					r.Header.Set("X-Write-Key", s.key)
					if w := s.do(r); w.Code >= 500 {
						t.Errorf("GET %s%s: %d %s", path, query, w.Code, w.Body)
					}
				}
			}
		})
	}
}

// What a client sends again has the same messageId, whatever else a second attempt changes.
func TestARetryIsOneEvent(t *testing.T) {
	t.Parallel()
	cases := map[string][][2]string{
		collector.DialectPostHog: {
			{"POST /batch/", `{"sent_at":"2026-03-01T12:00:00Z","batch":[{"event":"e","distinct_id":"ada","timestamp":"2026-03-01T11:59:00.5Z"}]}`},
			{"POST /batch/?retry_count=1", `{"sent_at":"2026-03-01T12:00:09Z","batch":[{"event":"e","distinct_id":"ada","timestamp":"2026-03-01T11:59:00.5Z"}]}`},
		},
		collector.DialectSnowplow: {
			{"POST /com.snowplowanalytics.snowplow/tp2", `{"data":[{"e":"pv","uid":"ada","dtm":"1772366400123","stm":"1772366400500"}]}`},
			{"POST /com.snowplowanalytics.snowplow/tp2", `{"data":[{"e":"pv","uid":"ada","dtm":"1772366400123","stm":"1772366409500"}]}`},
		},
		collector.DialectUmami: {
			{"POST /api/send", `{"type":"event","payload":{"url":"/","timestamp":1772366400}}`},
			{"POST /api/send", `{"type":"event","payload":{"url":"/","timestamp":1772366400}}`},
		},
		collector.DialectMatomo: {
			{"GET /matomo.php?rec=1&uid=ada&url=x&r=384625&send_image=0", ""},
			{"POST /piwik.php?send_image=1", "rec=1&uid=ada&url=x&r=384625&cdo=60"},
		},
		collector.DialectGoatCounter: {
			{"POST /count?p=/a&rnd=abc12", ""},
			{"GET /count?p=/a&rnd=abc12", ""},
		},
	}
	for dialect, attempts := range cases {
		t.Run(dialect, func(t *testing.T) {
			t.Parallel()
			s := newDialectServer(t, dialect)
			for _, attempt := range attempts {
				method, path, _ := strings.Cut(attempt[0], " ")
				r := httptest.NewRequest(method, path, strings.NewReader(attempt[1]))
				r.Header.Set("X-Write-Key", s.key)
				if w := s.do(r); w.Code >= 300 {
					t.Fatalf("%s: %d %s", attempt[0], w.Code, w.Body)
				}
			}
			msgs := s.messages()
			if len(msgs) != 2 || msgs[0].ID != msgs[1].ID {
				t.Errorf("%d messages of different ids: %s", len(msgs), msgs[len(msgs)-1].Body)
			}
		})
	}
}

// Whoever the client knows no id of gets a hash of address and browser. Of products that know no visitors at all the address is
// not kept.
func TestCookielessVisitors(t *testing.T) {
	t.Parallel()
	requests := map[string]func(s *server) *http.Request{
		collector.DialectUmami: func(*server) *http.Request {
			return httptest.NewRequest(http.MethodPost, "/api/send", strings.NewReader(`{"type":"event","payload":{"url":"/a"}}`))
		},
		collector.DialectPlausible: func(*server) *http.Request {
			return httptest.NewRequest(http.MethodPost, "/api/event", strings.NewReader(`{"n":"pageview","u":"https://a.example/"}`))
		},
		collector.DialectMatomo: func(*server) *http.Request {
			return httptest.NewRequest(http.MethodGet, "/matomo.php?rec=1&url=https://a.example/", nil)
		},
		collector.DialectSnowplow: func(*server) *http.Request {
			return httptest.NewRequest(http.MethodGet, "/i?e=pv&p=web&tv=no-js-0.1.0&url=https://a.example/", nil)
		},
		collector.DialectGoatCounter: func(s *server) *http.Request {
			return httptest.NewRequest(http.MethodPost, "/count/"+s.key+"?p=/a&rnd=1", nil)
		},
	}
	for dialect, request := range requests {
		t.Run(dialect, func(t *testing.T) {
			t.Parallel()
			s := newDialectServer(t, dialect)
			ids := map[string]string{}
			day := time.Now().UTC().Day()
			for _, browser := range []string{"one", "two", "one"} {
				for _, ip := range []string{"192.0.2.1", "192.0.2.2"} {
					r := request(s)
					r.RemoteAddr = ip + ":1"
					r.Header.Set("User-Agent", browser)
					r.Header.Set("X-Write-Key", s.key)
					if w := s.do(r); w.Code >= 300 {
						t.Fatalf("%d %s", w.Code, w.Body)
					}
				}
			}
			for _, m := range s.messages() {
				keeps := dialect == collector.DialectMatomo || dialect == collector.DialectSnowplow
				if !keeps && bytes.Contains(m.Body, []byte("192.0.2.")) {
					t.Errorf("the address is kept: %s", m.Body)
				}
				e := decode[event](t, m.Body)
				ids[e.AnonymousID] = string(e.Context)
			}
			if len(ids) != 4 && day == time.Now().UTC().Day() {
				t.Errorf("%d visitors, want 4: %v", len(ids), ids)
			}
		})
	}
}

// Events of one request that name several write keys go to the sources of these, and those of no source are rejected alone.
func TestOneRequestForSeveralSources(t *testing.T) {
	t.Parallel()
	s := newServer(t, collector.Config{})
	store := collector.NewSourceStore(s.pool).WithKeys(newKeyRing(t))
	settings := collector.SourceSettings{Dialects: []string{collector.DialectMatomo}}
	s.update(settings)
	other, err := store.Create(t.Context(), s.source.WorkspaceID, collector.Source{Key: "blog", Settings: settings})
	if err != nil {
		t.Fatal(err)
	}
	key, err := store.CreateWriteKey(t.Context(), s.source.WorkspaceID, "blog")
	if err != nil {
		t.Fatal(err)
	}
	webhooks := collector.SourceSettings{Webhook: &collector.WebhookSettings{Settings: signedHook}}
	if _, err := store.Create(t.Context(), s.source.WorkspaceID, collector.Source{Key: "hook", Type: "webhook", Settings: webhooks}, "secret"); err != nil {
		t.Fatal(err)
	}
	hook, err := store.CreateWriteKey(t.Context(), s.source.WorkspaceID, "hook")
	if err != nil {
		t.Fatal(err)
	}
	body := fmt.Sprintf(`{"requests":["?rec=1&uid=a&idsite=%s","?rec=1&uid=b&idsite=%s","?rec=1&uid=c&idsite=1","?rec=1&uid=d","?rec=1&uid=e&idsite=%s"]}`,
		s.key, key.Key, hook.Key)
	w := s.do(httptest.NewRequest(http.MethodPost, "/matomo.php", strings.NewReader(body)))
	if want := `{"status":"success","tracked":2,"invalid":3,"invalid_indices":[2,3,4]}`; w.Code != 200 || w.Body.String() != want {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	got := map[int32]string{}
	for _, m := range s.messages() {
		got[m.Source] = decode[event](t, m.Body).UserID
	}
	if diff := cmp.Diff(map[int32]string{s.source.ID: "a", other.ID: "b"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	w = s.do(httptest.NewRequest(http.MethodPost, "/matomo.php", strings.NewReader(`{"requests":["?rec=1&uid=c&idsite=1"]}`)))
	if w.Code != http.StatusUnauthorized {
		t.Errorf("no event of a known source: %d %s", w.Code, w.Body)
	}
}

// PostHog's browser library compresses without saying so; the others say so.
func TestPostHogCompresses(t *testing.T) {
	t.Parallel()
	s := newDialectServer(t, collector.DialectPostHog)
	for i, header := range []http.Header{
		{"Content-Type": {"text/plain"}},
		{"Content-Type": {"application/json"}, "Content-Encoding": {"gzip"}},
	} {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		fmt.Fprintf(z, `{"api_key":%q,"batch":[{"event":"e","distinct_id":"ada","uuid":"u-%d"}]}`, s.key, i)
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequest(http.MethodPost, "/e/?compression=gzip-js", &b)
		r.Header = header
		if w := s.do(r); w.Code != 200 || w.Body.String() != `{"status":1}` {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	}
	if n := len(s.messages()); n != 2 {
		t.Errorf("%d events, want 2", n)
	}
}

// Browsers are let through on every path, also with headers that only some clients set.
func TestOtherProductsPreflights(t *testing.T) {
	t.Parallel()
	r := chi.NewRouter()
	collector.NewHandler(collector.Config{}, nil, nil, prometheus.NewRegistry(), slog.New(slog.DiscardHandler)).Routes(r)
	for _, path := range []string{
		"/e", "/e/", "/i/v0/e/", "/capture/", "/track/", "/engage", "/batch/", "/flags/", "/decide/", "/i/v1/analytics/events",
		"/array/k/config", "/com.snowplowanalytics.snowplow/tp2", "/i", "/api/send", "/api/batch", "/api/event", "/matomo.php", "/piwik.php",
		"/count", "/count/k", "/api/v0/count",
	} {
		ask := httptest.NewRequest(http.MethodOptions, path, nil)
		ask.Header.Set("Origin", "https://shop.example")
		ask.Header.Set("Access-Control-Request-Headers", "content-type,sp-anonymous,x-umami-cache")
		w := httptest.NewRecorder()
		r.ServeHTTP(w, ask)
		h := w.Header()
		if w.Code != http.StatusNoContent || h.Get("Access-Control-Allow-Origin") != "https://shop.example" ||
			h.Get("Access-Control-Allow-Credentials") != "true" || h.Get("Access-Control-Allow-Headers") != "content-type,sp-anonymous,x-umami-cache" {
			t.Errorf("%s: %d %v", path, w.Code, h)
		}
	}
}

// BenchmarkPostHogBatch takes batches of 100 events as posthog-node sends them, from HTTP to fsynced in Redis.
func BenchmarkPostHogBatch(b *testing.B) {
	const size = 100
	s := newServer(b, collector.Config{Lanes: 16})
	s.update(collector.SourceSettings{Dialects: []string{collector.DialectPostHog}})
	var n atomic.Int64
	b.SetParallelism(8)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			var body bytes.Buffer
			fmt.Fprintf(&body, `{"api_key":%q,"sent_at":"2026-03-01T12:00:00.456Z","batch":[`, s.key)
			for i := range size {
				if i > 0 {
					body.WriteByte(',')
				}
				fmt.Fprintf(&body, `{"type":"capture","library":"posthog-node","library_version":"5.50.0","event":"Product Added","distinct_id":"user-%d",`+
					`"uuid":"0198f2a1-7c60-7111-8111-%012d","timestamp":"2026-03-01T12:00:00.123Z","properties":{"$lib":"posthog-node","$lib_version":"5.50.0",`+
					`"$geoip_disable":true,"product_id":"41","sku":"L-41","name":"Lamp","price":19.99,"quantity":2,"currency":"EUR","tags":["a","b"],`+
					`"$current_url":"https://shop.example/p/41?utm_source=news","$groups":{"company":"acme"}}}`, i, n.Add(1))
			}
			body.WriteString(`]}`)
			w := httptest.NewRecorder()
			s.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/batch/", &body))
			if w.Code != http.StatusOK || w.Header().Get("X-Event-Status") != collector.Accepted {
				b.Error(w.Code, w.Body)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N*size)/b.Elapsed().Seconds(), "events/s")
}

// update changes the settings of the source, before its key is known to the directory.
func (s *server) update(settings collector.SourceSettings) {
	s.t.Helper()
	change := collector.SourceUpdate{Settings: &settings}
	if _, err := collector.NewSourceStore(s.pool).Update(s.t.Context(), s.source.WorkspaceID, "shop", change); err != nil {
		s.t.Fatal(err)
	}
}
