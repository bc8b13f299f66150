package collector_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/collector/browsertest"
	"github.com/mubatch/mubatch/collector/tag"
)

func TestMain(m *testing.M) { browsertest.Main(m) }

// shop is a website with the tag, and the collector that it sends to.
type shop struct {
	*server
	url string
	// meet is called before a request of the tag is served, and tells whether it has answered it.
	meet atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]
}

func newShop(t *testing.T) *shop {
	t.Helper()
	s := &shop{server: newServer(t, collector.Config{})}
	events := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if meet := s.meet.Load(); r.Method == http.MethodPost && meet != nil && (*meet)(w, r) {
			return
		}
		s.ServeHTTP(w, r)
	}))
	t.Cleanup(events.Close)
	pages := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, `<!doctype html><link rel="icon" href="data:,">`+tag.NewSnippet(events.URL, s.key).Pinned)
	}))
	t.Cleanup(pages.Close)
	s.url = pages.URL
	return s
}

func (s *shop) meets(f func(http.ResponseWriter, *http.Request) bool) { s.meet.Store(&f) }

// counts returns how often each event is in the lanes, by name or type.
func (s *shop) counts() map[string]int {
	counts := map[string]int{}
	seen := map[string]bool{}
	for _, m := range s.messages() {
		e := decode[event](s.t, m.Body)
		if !seen[e.MessageID] { // a copy is known by its messageId and not applied
			counts[e.Type+e.Event]++
		}
		seen[e.MessageID] = true
	}
	return counts
}

func (s *shop) await(want map[string]int) {
	s.t.Helper()
	var got string
	browsertest.Until(s.t, fmt.Sprint(want, " are in the lanes"), func() bool {
		got = fmt.Sprint(s.counts())
		return got == fmt.Sprint(want)
	})
}

func TestWhatHappensWithoutANetworkIsSentLater(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	tab := browsertest.New(t)
	tab.Allow("ERR_INTERNET_DISCONNECTED")
	tab.Go(s.url)
	s.await(map[string]int{"page": 1})
	tab.Offline(true)
	tab.Run(`mub.track("a"); await mub.flush(); mub.track("b"); await mub.flush()`)
	tab.Until(`Object.keys(localStorage).filter(k => k.startsWith("mub_q")).length == 2`)
	if n := len(s.messages()); n != 1 {
		t.Fatalf("%d events without a network", n)
	}
	tab.Offline(false)
	s.await(map[string]int{"page": 1, "tracka": 1, "trackb": 1})
}

func TestWhatTheCollectorCannotTakeIsSentAgain(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	var refused atomic.Int32
	s.meets(func(w http.ResponseWriter, r *http.Request) bool {
		if refused.Add(1) > 2 {
			return false
		}
		w.Header().Set("Access-Control-Allow-Origin", r.Header.Get("Origin"))
		w.Header().Set("Access-Control-Expose-Headers", "Retry-After")
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	tab := browsertest.New(t)
	tab.Allow("503")
	tab.Go(s.url)
	tab.Run(`mub.track("a")`)
	s.await(map[string]int{"page": 1, "tracka": 1})
	if n := refused.Load(); n < 3 {
		t.Errorf("%d requests", n)
	}
}

// Closed while a request is on its way whose answer never comes, with more that waits behind it.
func TestNothingIsLostWhenAPageIsClosed(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	began := make(chan struct{}, 10)
	release := make(chan struct{})
	s.meets(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Has("visitor") { // the fetch, not the beacon
			body, _ := io.ReadAll(r.Body)
			began <- struct{}{}
			<-release
			r.Body = io.NopCloser(bytes.NewReader(body))
			w.WriteHeader(http.StatusBadGateway)
			return true
		}
		return false
	})
	t.Cleanup(func() { close(release) })
	tab := browsertest.New(t)
	tab.Go(s.url)
	tab.Run(`mub.track("a"); void mub.flush()`)
	<-began
	tab.Run(`mub.track("b")`)
	tab.Do(chromedp.Navigate("about:blank"))
	s.await(map[string]int{"page": 1, "tracka": 1, "trackb": 1})
}

func TestConsentTravelsWithTheEvents(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	tab := browsertest.New(t)
	tab.Go(s.url)
	s.await(map[string]int{"page": 1})
	tab.Run(`mub.consent("update", {ad_storage: "denied"}); mub.track("a"); mub.flush()`)
	s.await(map[string]int{"page": 1, "tracka": 1})
	for _, m := range s.messages() {
		e := decode[event](t, m.Body)
		if got := bytes.Contains(e.Context, []byte(`"consent":{"ad_storage":"denied"}`)); got != (e.Type == "track") {
			t.Errorf("%s", m.Body)
		}
	}
}
