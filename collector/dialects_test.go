package collector_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

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
	collector.DialectPostHog,
	collector.DialectSnowplow,
	collector.DialectUmami,
	collector.DialectPlausible,
	collector.DialectMatomo,
	collector.DialectGoatCounter,
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
