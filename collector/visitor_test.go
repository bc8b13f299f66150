package collector_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/profiles"
)

// site is a collector whose events are applied, with a public segment of those who have bought something, one that is
// not public, and a public count of what was bought.
type site struct {
	*pipeline
	http.Handler
	keys map[string]string // of the sources
}

func newSite(t testing.TB) *site {
	t.Helper()
	p := newPipeline(t, 4)
	s := &site{pipeline: p, keys: map[string]string{}}
	sources := collector.NewSourceStore(p.pool)
	for _, name := range []string{"shop", "blog"} {
		if _, err := sources.Create(t.Context(), 1, collector.Source{Key: name}); err != nil {
			t.Fatal(err)
		}
		key, err := sources.CreateWriteKey(t.Context(), 1, name)
		if err != nil {
			t.Fatal(err)
		}
		s.keys[name] = key.Key
	}
	s.Handler = s.handler(1_000_000)
	p.flush(collector.FlushConfig{Node: "one"})
	bought := []byte(`{"event":"Order Completed","count":{"gte":1}}`)
	segments := profiles.NewSegments(p.pool, p.lanes)
	for _, d := range []profiles.SegmentDefinition{{Key: "vip", Name: "VIP", Rule: bought, Public: true}, {Key: "margin", Name: "Margin", Rule: bought}} {
		if _, err := segments.Create(t.Context(), 1, d); err != nil {
			t.Fatal(err)
		}
	}
	traits := profiles.NewComputedTraits(p.pool, p.lanes)
	count := []byte(`{"event":"Order Completed","count":{}}`)
	for _, d := range []profiles.ComputedDefinition{{Key: "orders", Name: "Orders", Value: count, Public: true}, {Key: "secret-orders", Name: "Orders", Value: count}} {
		if _, err := traits.Create(t.Context(), 1, d); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, "everything to be live, and the lanes to be fresh", func() bool {
		return one[bool](p, `SELECT (SELECT bool_and(live_version > 0) FROM segments) AND (SELECT bool_and(live_version > 0) FROM computed_traits)
			AND (SELECT bool_and(as_of > now() - interval '2 seconds') FROM lanes)`)
	})
	return s
}

// handler returns a collector, as every process has one.
func (s *site) handler(perSecond int) http.Handler {
	cfg := collector.Config{Prefix: s.prefix, Lanes: s.lanes, AllowDegraded: true, VisitorsPerSecond: perSecond}
	log := slog.New(slog.DiscardHandler)
	reg := prometheus.NewRegistry()
	r := chi.NewRouter()
	collector.NewHandler(cfg, collector.NewDirectory(cfg, s.pool, reg, log), collector.NewIntake(cfg, s.committer, reg), reg, log).Routes(r)
	return r
}

type visitorTold struct {
	Success bool
	Visitor *struct{ AnonymousID, Token string }
}

// track sends an event and returns the token that comes with the answer, if any.
func (s *site) track(source, query, body string) string {
	s.t.Helper()
	r := httptest.NewRequest(http.MethodPost, "/v1/track"+query, bytes.NewReader([]byte(body)))
	r.Header.Set("X-Write-Key", s.keys[source])
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	if w.Code != http.StatusOK {
		s.t.Fatalf("%d %s", w.Code, w.Body)
	}
	told := decode[visitorTold](s.t, w.Body.Bytes())
	if told.Visitor == nil {
		return ""
	}
	return told.Visitor.Token
}

func (s *site) me(source, id, token string, header ...string) *httptest.ResponseRecorder {
	s.t.Helper()
	q := url.Values{"writeKey": {s.keys[source]}, "anonymousId": {id}, "token": {token}}
	r := httptest.NewRequest(http.MethodGet, "/v1/me?"+q.Encode(), nil)
	r.Header.Set("Origin", "https://shop.example")
	if len(header) == 2 {
		r.Header.Set(header[0], header[1])
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

func ordered(message, id string) string {
	return fmt.Sprintf(`{"messageId":%q,"anonymousId":%q,"event":"Order Completed"}`, message, id)
}

const browser = "0b1f6f0e-6a1c-4b6e-9d6b-2f8f2f5d7c11"

type told struct {
	Segments []string
	Traits   map[string]float64
	AsOf     *time.Time `json:"as_of"`
}

func TestVisitorsAreToldOfThemselves(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	token := s.track("shop", "?visitor=1", ordered("m1", browser))
	if token == "" {
		t.Fatal("the first event of a visitor brings no token")
	}
	var got told
	var w *httptest.ResponseRecorder
	waitFor(t, "the visitor to be in the segment", func() bool {
		if w = s.me("shop", browser, token); w.Code != http.StatusOK {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		got = decode[told](t, w.Body.Bytes())
		return len(got.Segments) > 0
	})
	if !slices.Equal(got.Segments, []string{"vip"}) || len(got.Traits) != 1 || got.Traits["orders"] != 1 || got.AsOf == nil {
		t.Errorf("got %s, want only what is public", w.Body)
	}
	if c := w.Header(); c.Get("Cache-Control") != "private, max-age=10" || c.Get("Access-Control-Allow-Origin") != "https://shop.example" {
		t.Errorf("headers %v", c)
	}
	if again := s.me("shop", browser, token, "If-None-Match", `"x", `+w.Header().Get("ETag")); again.Code != http.StatusNotModified || again.Body.Len() > 0 {
		t.Errorf("with the ETag: %d %s", again.Code, again.Body)
	}
}

// Anybody can have an anonymousId and its token, and say that it is somebody's whose userId is known.
func TestNobodyIsToldOfAUserWhoseIDIsKnown(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.track("shop", "", `{"messageId":"m1","userId":"victim","event":"Order Completed"}`)
	const stranger = "stranger-" + browser
	token := s.track("shop", "?visitor=1", `{"messageId":"m2","anonymousId":"`+stranger+`","event":"Order Completed"}`)
	waitFor(t, "the stranger to be told of the stranger", func() bool {
		return decode[told](t, s.me("shop", stranger, token).Body.Bytes()).Traits["orders"] == 1
	})
	s.track("shop", "", `{"messageId":"m3","anonymousId":"`+stranger+`","userId":"victim","event":"Seen"}`)
	waitFor(t, "the stranger to be the victim's", func() bool {
		return one[int](s.pipeline, `SELECT count(*) FROM profiles`) == 1
	})
	s.Handler = s.handler(500)
	if w := s.me("shop", stranger, token); w.Code != http.StatusOK || !strings.HasPrefix(w.Body.String(), `{"segments":[],"traits":{}`) {
		t.Errorf("a stranger is told %s of a user", w.Body)
	}
	if _, err := collector.NewSourceStore(s.pool).Update(t.Context(), 1, "shop", collector.SourceUpdate{Settings: &collector.SourceSettings{TellUsers: true}}); err != nil {
		t.Fatal(err)
	}
	s.Handler = s.handler(500)
	if got := decode[told](t, s.me("shop", stranger, token).Body.Bytes()); got.Traits["orders"] != 2 || !slices.Equal(got.Segments, []string{"vip"}) {
		t.Errorf("with tell_users the visitor is told %+v", got)
	}
}

func TestOnlyTheFirstToBeHeardOfAVisitorHasTheToken(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	token := s.track("shop", "?visitor=1", ordered("m1", browser))
	if token == "" {
		t.Fatal("no token")
	}
	applied := func() bool { return one[int](s.pipeline, `SELECT count(*) FROM profiles`) > 0 }
	for _, when := range []string{"at once", "when the event has been applied", "when the claim is forgotten"} {
		for name, send := range map[string]func() string{
			"another event":                    func() string { return s.track("shop", "?visitor=1", ordered("m9"+when, browser)) },
			"the same event at another source": func() string { return s.track("blog", "?visitor=1", ordered("m1", browser)) },
			"an event of a user of that browser": func() string {
				return s.track("shop", "?visitor=1", `{"userId":"eve","anonymousId":"`+browser+`","event":"x"}`)
			},
		} {
			if got := send(); got != "" {
				t.Errorf("%s, %s brings the token of somebody else", when, name)
			}
		}
		want := token
		if when == "when the claim is forgotten" {
			want = ""
		}
		s.Handler = s.handler(500) // in another process, too
		if got := s.track("shop", "?visitor=1", ordered("m1", browser)); got != want {
			t.Errorf("%s, the first event sent again brings %q, want %q", when, got, want)
		}
		waitFor(t, "the event to be applied", applied)
		if when != "at once" {
			s.exec(`UPDATE visitor_claims SET claimed_at = claimed_at - interval '2 hours'`)
			s.Handler = s.handler(500)
		}
	}
}

func TestAVisitorWhoseFirstEventIsQuarantinedHasTheToken(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	if _, err := collector.NewSourceStore(s.pool).Update(t.Context(), 1, "shop", collector.SourceUpdate{Settings: &collector.SourceSettings{Unplanned: "quarantine"}}); err != nil {
		t.Fatal(err)
	}
	s.Handler = s.handler(500)
	if s.track("shop", "?visitor=1", ordered("m1", browser)) == "" {
		t.Error("no token")
	}
	if s.track("shop", "?visitor=1", ordered("m2", browser)) != "" {
		t.Error("the second event brings the token, too")
	}
}

func TestClientsThatGiveUpDoNotKeepOthersFromTheirTokens(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, "/v1/track?visitor=1", strings.NewReader(ordered("m1", "gone-"+browser)))
	r.Header.Set("X-Write-Key", s.keys["shop"])
	s.ServeHTTP(httptest.NewRecorder(), r)
	if s.track("shop", "?visitor=1", ordered("m2", browser)) == "" {
		t.Error("no token")
	}
}

func TestNoTokenForWhomOthersMayKnow(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	if got := s.track("shop", "", ordered("m0", "a-visitor-who-never-asks")); got != "" {
		t.Error("a token that nobody asked for")
	}
	waitFor(t, "the visitor to be known", func() bool { return one[int](s.pipeline, `SELECT count(*) FROM profiles`) > 0 })
	if got := s.track("shop", "?visitor=1", ordered("m1", "a-visitor-who-never-asks")); got != "" {
		t.Error("a visitor who was known before is given away")
	}
	if got := s.track("shop", "?visitor=1", ordered("m2", "short")); got != "" {
		t.Error("a token for an anonymousId that can be guessed")
	}
	if got := s.track("shop", "?visitor=1", `{"messageId":"m3","userId":"ada-the-first-of-all","event":"x"}`); got != "" {
		t.Error("a token for a userId")
	}
}

func TestATokenOpensNothingElse(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	token := s.track("shop", "?visitor=1", ordered("m1", browser))
	for name, w := range map[string]*httptest.ResponseRecorder{
		"another visitor":  s.me("shop", "another-"+browser, token),
		"another source":   s.me("blog", browser, token),
		"no token":         s.me("shop", browser, ""),
		"an altered token": s.me("shop", browser, token[:len(token)-1]+"!"),
		"nobody":           s.me("shop", "", token),
	} {
		if w.Code != http.StatusForbidden || w.Header().Get("Cache-Control") == "private, max-age=10" {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
	s.keys["none"] = "mub_wk_none"
	if w := s.me("none", browser, token); w.Code != http.StatusUnauthorized {
		t.Errorf("an unknown write key: %d %s", w.Code, w.Body)
	}
}

func TestWhoAsksForTooManyVisitorsHasToWait(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	tokens := map[string]string{}
	for i := range 5 {
		id := fmt.Sprintf("%s-%d", browser, i)
		tokens[id] = s.track("shop", "?visitor=1", ordered("m"+id, id))
	}
	s.Handler = s.handler(1) // and a burst of two
	status := map[int]int{}
	for id, token := range tokens {
		w := s.me("shop", id, token)
		if status[w.Code]++; w.Code == http.StatusTooManyRequests && w.Header().Get("Retry-After") == "" {
			t.Error("no Retry-After")
		}
	}
	if status[http.StatusOK] < 2 || status[http.StatusTooManyRequests] < 1 {
		t.Errorf("of 5 visitors at once: %v", status)
	}
	if got := s.track("shop", "?visitor=1", ordered("mx", "one-more-"+browser)); got == "" {
		t.Error("reads keep new visitors from their tokens")
	}
}

func TestNobodyIsGivenAwayByLanesThatAreBehind(t *testing.T) {
	t.Parallel()
	p := newPipeline(t, 2)
	s := &site{pipeline: p, keys: map[string]string{}}
	sources := collector.NewSourceStore(p.pool)
	if _, err := sources.Create(t.Context(), 1, collector.Source{Key: "shop"}); err != nil {
		t.Fatal(err)
	}
	key, err := sources.CreateWriteKey(t.Context(), 1, "shop")
	if err != nil {
		t.Fatal(err)
	}
	s.keys["shop"] = key.Key
	p.exec(`INSERT INTO segments (workspace_id, key, name, rule, behaviours, live_version, public) VALUES (1, 'vip', 'VIP', '{}', '{}', 1, true)`)
	p.exec(`UPDATE lanes SET as_of = now() - interval '4 seconds'`)
	s.Handler = s.handler(500)
	if got := s.track("shop", "?visitor=1", ordered("m1", browser)); got != "" {
		t.Error("a token while the lanes may not know the visitor yet")
	}
	p.exec(`UPDATE lanes SET as_of = now()`)
	if got := s.track("shop", "?visitor=1", ordered("m1", "another-"+browser)); got == "" {
		t.Error("no token though the lanes are fresh")
	}
	p.exec(`UPDATE segments SET public = false`)
	s.Handler = s.handler(500)
	if got := s.track("shop", "?visitor=1", ordered("m2", "a-third-"+browser)); got != "" {
		t.Error("a token though there is nothing to be told")
	}
	p.exec(`UPDATE segments SET public = true`)
	p.exec(`ALTER TABLE visitor_claims RENAME TO visitor_claims_gone`)
	s.Handler = s.handler(500)
	if got := s.track("shop", "?visitor=1", ordered("m3", "a-fourth-"+browser)); got != "" {
		t.Error("a token from nowhere")
	}
}

// BenchmarkMe asks for visitors of whom something is known: one whose answer is kept, and each for the first time.
func BenchmarkMe(b *testing.B) {
	s := newSite(b)
	const visitors = 3000
	ids, tokens := make([]string, visitors), make([]string, visitors)
	for i := range ids {
		ids[i] = fmt.Sprintf("%s-%d", browser, i)
		tokens[i] = s.track("shop", "?visitor=1", ordered(fmt.Sprint("m", i), ids[i]))
	}
	s.settle(visitors)
	measure := func(name string, who func(i int) int) {
		b.Run(name, func(b *testing.B) {
			var took []time.Duration
			for i := 0; b.Loop(); i++ {
				n := who(i)
				if tokens[n] == "" {
					continue
				}
				start := time.Now()
				if w := s.me("shop", ids[n], tokens[n]); w.Code != http.StatusOK {
					b.Fatalf("%d %s", w.Code, w.Body)
				}
				took = append(took, time.Since(start))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
		})
	}
	measure("kept", func(int) int { return 0 })
	measure("read", func(i int) int { return i % visitors })
}
