package collector_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"flag"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/profiles"
)

var update = flag.Bool("update", false, "write what is stored into the golden files")

// golden is a request as a client sends it, the answer, and what is stored of it. "{key}" stands for the write key, in
// Authorization for its base64.
type golden struct {
	About   string `json:"about"`
	Request struct {
		Method  string            `json:"method"`
		Path    string            `json:"path"`
		Headers map[string]string `json:"headers"`
		Body    json.RawMessage   `json:"body,omitempty"`
	} `json:"request"`
	Status int              `json:"status"`
	Answer any              `json:"answer,omitempty"`
	Events []map[string]any `json:"events,omitempty"` // by messageId; without receivedAt, and the time if that is when it was received
}

// Requests as the documented clients send them become the events that the files say. What a source does not speak is
// refused.
func TestDialectsAreTranslated(t *testing.T) {
	t.Parallel()
	off := newDialectServer(t, collector.DialectGoatCounter)
	for _, dialect := range []string{collector.DialectSegment, collector.DialectRudderStack, collector.DialectJitsu} {
		files, err := filepath.Glob(filepath.Join("testdata", "dialects", dialect, "*.json"))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s has no golden files: %v", dialect, err)
		}
		s := newDialectServer(t, dialect)
		seen := map[profiles.Key]bool{}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			want := decodeExact[golden](t, text)
			got := want
			w := s.do(want.request(s.key))
			got.Status, got.Answer, got.Events = w.Code, nil, s.stored(seen)
			if w.Header().Get("Content-Type") == "application/json" {
				got.Answer = decodeExact[any](t, w.Body.Bytes())
			}
			if *update {
				writeGolden(t, file, got)
			}
			if diff := cmp.Diff(want, got); diff != "" && !*update {
				t.Errorf("%s (-want +got):\n%s\n%s", file, diff, w.Body)
			}
			w = off.do(want.request(off.key))
			if status := w.Header().Get("X-Event-Status"); w.Code != http.StatusForbidden && status != "rejected; dialect_off" {
				t.Errorf("%s with the dialect off: %d %s %s", file, w.Code, status, w.Body)
			}
		}
	}
	if msgs := off.messages(); len(msgs) != 0 {
		t.Errorf("with the dialects off %d events are stored", len(msgs))
	}
}

func newDialectServer(t *testing.T, dialect string) *server {
	t.Helper()
	s := newServer(t, collector.Config{})
	settings := collector.SourceSettings{Dialects: []string{dialect}}
	change := collector.SourceUpdate{Settings: &settings} // before its key is known to the directory
	if _, err := collector.NewSourceStore(s.pool).Update(t.Context(), s.source.WorkspaceID, "shop", change); err != nil {
		t.Fatal(err)
	}
	return s
}

func (g golden) request(key string) *http.Request {
	fill := strings.NewReplacer("{key}", key).Replace
	r := httptest.NewRequest(g.Request.Method, fill(g.Request.Path), strings.NewReader(fill(string(g.Request.Body))))
	for name, value := range g.Request.Headers {
		if basic, ok := strings.CutPrefix(value, "Basic "); ok {
			value = "Basic " + base64.StdEncoding.EncodeToString([]byte(fill(basic)+":"))
		}
		r.Header.Set(name, fill(value))
	}
	return r
}

// stored returns what the lanes hold that was not seen before, without what depends on the time of the test.
func (s *server) stored(seen map[profiles.Key]bool) []map[string]any {
	var events []map[string]any
	for _, m := range s.messages() {
		if seen[m.ID] {
			continue
		}
		seen[m.ID] = true
		e := decodeExact[map[string]any](s.t, m.Body)
		if e["messageId"] != nil && strings.HasPrefix(e["messageId"].(string), "01") { // the server's
			delete(e, "messageId")
		}
		if e["timestamp"] == e["receivedAt"] {
			delete(e, "timestamp")
		}
		delete(e, "receivedAt")
		events = append(events, e)
	}
	slices.SortFunc(events, func(a, b map[string]any) int {
		x, _ := a["messageId"].(string)
		y, _ := b["messageId"].(string)
		return strings.Compare(x, y)
	})
	return events
}

// decodeExact is decode with numbers as they are written.
func decodeExact[T any](t testing.TB, text []byte) (v T) {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	if err := dec.Decode(&v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return v
}

func writeGolden(t *testing.T, file string, g golden) {
	t.Helper()
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(g); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}
