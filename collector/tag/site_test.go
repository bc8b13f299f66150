package tag_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/go-chi/chi/v5"

	"github.com/mubatch/mubatch/collector/browsertest"
	"github.com/mubatch/mubatch/collector/tag"
)

func TestMain(m *testing.M) { browsertest.Main(m) }

// site is a website and, on another origin, a collector that keeps what it is sent.
type site struct {
	t         *testing.T
	pages     *httptest.Server
	collector *httptest.Server

	mu       sync.Mutex
	html     map[string]string                             // of paths; others have the tag alone
	attrs    string                                        // of the script element
	before   string                                        // script that runs before the tag
	policy   string                                        // Content-Security-Policy of the pages
	answer   func(http.ResponseWriter, *http.Request) bool // true if it has answered
	seen     func(*http.Request)                           // is told of requests for pages
	requests []request
}

type request struct {
	method, path string
	query        url.Values
	header       http.Header
	batch        batch
}

type batch struct {
	Batch    []event        `json:"batch"`
	WriteKey string         `json:"writeKey"`
	SentAt   string         `json:"sentAt"`
	Retry    int            `json:"retry"`
	Context  map[string]any `json:"context"`
}

type event struct {
	Type, Event, Name, Category, MessageID   string
	UserID, AnonymousID, GroupID, PreviousID string
	Timestamp                                string
	Properties, Traits                       map[string]any
	Context                                  struct {
		Page               struct{ URL, Path, Search, Referrer, Title string }
		Campaign, ClickIDs map[string]string
		ClickIDsAt         map[string]float64
		Consent            map[string]string
		Attribution        map[string]struct {
			URL, Referrer string
			Campaign      map[string]string
		}
		SessionID    float64
		SessionStart bool
		Mub          struct {
			S string
			N int
		}
	}
}

func newSite(t *testing.T, attrs string) *site {
	t.Helper()
	t.Parallel()
	return newSiteBeside(t, attrs)
}

// newSiteBeside is newSite for a test that has one already.
func newSiteBeside(t *testing.T, attrs string) *site {
	t.Helper()
	s := &site{t: t, attrs: attrs, html: map[string]string{}}
	s.pages = httptest.NewServer(http.HandlerFunc(s.page))
	t.Cleanup(s.pages.Close)
	r := chi.NewRouter()
	tag.Routes(r)
	r.HandleFunc("/v1/*", s.collect)
	s.collector = httptest.NewServer(r)
	t.Cleanup(s.collector.Close)
	return s
}

// at returns the address of a page on localhost, or on another name of this machine.
func (s *site) at(path string, host ...string) string {
	_, port, _ := strings.Cut(strings.TrimPrefix(s.pages.URL, "http://"), ":")
	return "http://" + append(host, "localhost")[0] + ":" + port + path
}

func (s *site) script() string {
	return `<script async src="` + s.collector.URL + `/mub.js" data-write-key="key" ` + s.attrs + `></script>`
}

func (s *site) page(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen != nil {
		s.seen(r)
	}
	w.Header().Set("Content-Type", "text/html")
	if s.policy != "" {
		w.Header().Set("Content-Security-Policy", s.policy)
	}
	before := ""
	if s.before != "" {
		before = "<script>" + s.before + "</script>"
	}
	body, ok := s.html[r.URL.Path]
	if !ok {
		body = before + s.script()
	}
	_, _ = io.WriteString(w, `<!doctype html><link rel="icon" href="data:,"><title>`+r.URL.Path+`</title>`+body)
}

func (s *site) collect(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Access-Control-Allow-Origin", r.Header.Get("Origin"))
	h.Set("Access-Control-Allow-Credentials", "true")
	h.Set("Access-Control-Expose-Headers", "Retry-After")
	got := request{method: r.Method, path: r.URL.Path, query: r.URL.Query(), header: r.Header}
	if r.Method == http.MethodPost {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return // the page has gone
		}
		if err := json.Unmarshal(b, &got.batch); err != nil {
			s.t.Errorf("%v: %s", err, b)
		}
	}
	s.mu.Lock()
	s.requests = append(s.requests, got)
	answer := s.answer
	s.mu.Unlock()
	if answer == nil || !answer(w, r) {
		_, _ = io.WriteString(w, `{"success":true}`)
	}
}

func (s *site) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *site) sent() []request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// events returns what has come, each once, in the order in which it came first.
func (s *site) events() []event {
	var list []event
	seen := map[string]bool{}
	for _, r := range s.sent() {
		for _, e := range r.batch.Batch {
			if !seen[e.MessageID] {
				list = append(list, e)
			}
			seen[e.MessageID] = true
		}
	}
	return list
}

// await waits until there are that many events and returns them.
func (s *site) await(n int) []event {
	s.t.Helper()
	browsertest.Until(s.t, fmt.Sprint(n, " events have come"), func() bool { return len(s.events()) >= n })
	if got := s.events(); len(got) != n {
		s.t.Fatalf("%d events have come, want %d: %+v", len(got), n, got)
	}
	return s.events()
}

// open opens a page and waits until the tag is there.
func (s *site) open(path string, host ...string) *browsertest.Tab {
	s.t.Helper()
	tab := browsertest.New(s.t)
	s.visit(tab, path, host...)
	return tab
}

func (s *site) visit(tab *browsertest.Tab, path string, host ...string) {
	s.t.Helper()
	tab.Go(s.at(path, host...))
	tab.Until("window.mub && mub.version")
}

func check[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}
