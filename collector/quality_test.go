package collector_test

import (
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/profiles"
)

// noted is what is noted of an event.
type noted struct {
	Bot        *struct{ Name string } `json:"_bot"`
	Violations []profiles.Violation   `json:"_violations"`
}

func TestAnActionDecidesWhatBecomesOfAnEvent(t *testing.T) {
	t.Parallel()
	s := newServer(t, collector.Config{})
	store := collector.NewSourceStore(s.pool)
	for event, action := range map[string]string{"Allowed": "allow", "Flagged": "flag", "Held": "quarantine"} {
		_, err := store.CreateSchema(t.Context(), s.source.WorkspaceID, collector.SourceSchema{
			SourceID: s.source.ID, Type: "track", Event: event, Action: action,
			Schema: []byte(`{"properties":{"properties":{"required":["plan"]}}}`),
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	w := s.post("/v1/batch", `{"batch":[
		{"type":"track","event":"Allowed","userId":"ada","messageId":"1"},
		{"type":"track","event":"Flagged","userId":"ada","messageId":"2","_violations":"mine","_bot":"mine"},
		{"type":"track","event":"Held","userId":"ada","messageId":"3"},
		{"type":"track","event":"Held","userId":"ada","messageId":"4","properties":{"plan":"pro"}},
		{"type":"track","event":"Unplanned","userId":"ada","messageId":"5"},
		{"type":"page","name":"Held","userId":"ada","messageId":"6"}]}`)
	if w.Code != 200 || strings.Contains(w.Body.String(), "rejected") {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	held := 0
	for _, m := range s.messages() {
		body := m.Body
		if m.Kind == profiles.KindQuarantine {
			q, err := profiles.DecodeQuarantined(m.Body)
			if err != nil {
				t.Fatal(err)
			}
			held++
			if q.MessageID != "3" || q.Event != "Held" || q.Type != "track" || len(q.Violations) != 1 || m.ID != profiles.MessageKey("3") {
				t.Errorf("quarantined is %+v", q)
			}
			body = q.Body
		}
		n, e := decode[noted](t, body), decode[event](t, body)
		if flagged := len(n.Violations) > 0; flagged != (e.Event == "Flagged") || n.Bot != nil {
			t.Errorf("%s has %+v", e.Event, n)
		}
	}
	if held != 1 {
		t.Errorf("%d are quarantined, want 1", held)
	}
}

func TestBotsAreToldByWhoSentTheEvent(t *testing.T) {
	t.Parallel()
	s := newServer(t, collector.Config{})
	for i, c := range []struct {
		want   string
		more   string // of the event
		header []string
	}{
		{"", "", nil},
		{"", "", []string{"User-Agent", "Go-http-client/1.1"}}, // somebody's server
		{"Go-http-client", "", []string{"User-Agent", "Go-http-client/1.1", "Origin", "https://a.example"}},
		{"bingbot", `,"context":{"userAgent":"Mozilla/5.0 (compatible; bingbot/2.0)"}`, nil},
		{"", `,"context":{"userAgent":"Mozilla/5.0 Firefox/145.0"}`, []string{"User-Agent", "curl/8", "Origin", "https://a.example"}},
		{"prefetch", "", []string{"Sec-Purpose", "prefetch;prerender"}},
		{"prefetch", "", []string{"Purpose", "prefetch"}},
		{"headless", "", []string{"Sec-Ch-Ua", `"HeadlessChrome";v="142"`, "Origin", "https://a.example"}},
		{"", `,"context":{"userAgent":17}`, nil},
	} {
		id := fmt.Sprint("m", i)
		r := httptest.NewRequest("POST", "/v1/track", strings.NewReader(`{"event":"x","userId":"ada","messageId":"`+id+`"`+c.more+`}`))
		r.SetBasicAuth(s.key, "")
		for h := 0; h < len(c.header); h += 2 {
			r.Header.Set(c.header[h], c.header[h+1])
		}
		if w := s.do(r); w.Code != 200 {
			t.Fatalf("%+v: %d %s", c, w.Code, w.Body)
		}
		got := ""
		for _, m := range s.messages() {
			if n := decode[noted](t, m.Body); m.ID == profiles.MessageKey(id) && n.Bot != nil {
				got = n.Bot.Name
			}
		}
		if got != c.want {
			t.Errorf("%+v: the bot is %q", c, got)
		}
	}
}

// Without Postgres, a process that starts goes on by the plan in its file.
func TestThePlanOutlivesPostgres(t *testing.T) {
	t.Parallel()
	cfg := collector.Config{DirectoryFile: filepath.Join(t.TempDir(), "directory.json")}
	s := newServer(t, cfg)
	cfg.Lanes = 2
	store := collector.NewSourceStore(s.pool)
	schema, err := store.CreateSchema(t.Context(), s.source.WorkspaceID, collector.SourceSchema{
		SourceID: s.source.ID, Type: "track", Event: "Held", Action: "quarantine", Schema: []byte(`{"properties":{"properties":{"required":["plan"]}}}`),
	})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	first := collector.NewDirectory(cfg, s.pool, prometheus.NewRegistry(), log)
	run(t, first.Run)
	wait := func(holds func() bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !holds(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("waited in vain")
			}
		}
	}
	// It is written when the plan changes, too.
	wait(func() bool { return takenAs(t, cfg, s) == profiles.KindQuarantine })
	if _, err := store.ReplaceSchema(t.Context(), s.source.WorkspaceID, s.source.ID, schema.ID, []byte(`{}`), "quarantine"); err != nil {
		t.Fatal(err)
	}
	wait(func() bool { return takenAs(t, cfg, s) == profiles.KindEvent })
}

// takenAs returns as what an event is taken in by a process that has nothing but the file, or 0 while there is none.
func takenAs(t *testing.T, cfg collector.Config, s *server) profiles.MessageKind {
	t.Helper()
	directory := collector.NewDirectory(cfg, nil, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if !directory.Usable() {
		return 0
	}
	grant, err := directory.Lookup(t.Context(), s.key)
	if err != nil {
		t.Fatal(err)
	}
	id := rand.Text()
	event := []byte(`{"type":"track","event":"Held","userId":"ada","messageId":"` + id + `"}`)
	if _, err := s.intake.Take(t.Context(), grant, time.Now(), [][]byte{event}); err != nil {
		t.Fatal(err)
	}
	for _, m := range s.messages() {
		if m.ID == profiles.MessageKey(id) {
			return m.Kind
		}
	}
	t.Fatal("it is in no lane")
	return 0
}
