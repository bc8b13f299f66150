package tag_test

import (
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/mubatch/mubatch/collector/browsertest"
)

// Tabs take turns. What one has removed another may still see for a moment, since browsers tell their processes of storage
// later; then it sends a copy, with the same messageId.
func TestTabsShareTheQueue(t *testing.T) {
	s := newSite(t, `data-auto="off"`)
	release := make(chan struct{})
	s.answer = func(http.ResponseWriter, *http.Request) bool {
		<-release
		return false
	}
	one := s.open("/")
	two := one.Open()
	s.visit(two, "/")
	one.Run(`for (let i = 0; i < 5; i++) mub.track("one" + i); mub.flush()`)
	browsertest.Until(t, "the first tab sends", func() bool { return len(s.sent()) == 1 })
	two.Run(`for (let i = 0; i < 5; i++) mub.track("two" + i); mub.flush()`) // waits for the first one
	one.Run(`mub.track("one5"); await new Promise(r => setTimeout(r, 300))`)
	check(t, "requests while one is on its way", len(s.sent()), 1)
	close(release)
	got := s.await(11)
	numbers := map[string]int{}
	for _, e := range got {
		numbers[e.Context.Mub.S+strconv.Itoa(e.Context.Mub.N)]++
		check(t, "visitor", e.AnonymousID, got[0].AnonymousID)
	}
	check(t, "numbers, each of them once", len(numbers), 11)
	one.Until(`Object.keys(localStorage).filter(k => k.startsWith("mub_q")).length == 0`)
}

// An event that is made while the last ones are on their way is not forgotten when their answer comes.
func TestWhatComesWhileSendingIsSentToo(t *testing.T) {
	s := newSite(t, `data-auto="off"`)
	tab := s.open("/")
	tab.Run(`for (let i = 0; i < 40; i++) { mub.track("e" + i); mub.flush(); await new Promise(r => setTimeout(r, i % 8)) }`)
	for i, e := range s.await(40) {
		check(t, "event", e.Event, "e"+strconv.Itoa(i))
	}
}

func TestAFullQueueDropsTheOldest(t *testing.T) {
	s := newSite(t, `data-auto="off"`)
	s.answer = func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusTooManyRequests)
		return true
	}
	tab := s.open("/")
	tab.Allow("429")
	tab.Run(`for (let i = 0; i < 120; i++) mub.track("e" + i, {text: "x".repeat(500)})`)
	tab.Until(`Object.keys(localStorage).filter(k => k.startsWith("mub_q")).length == 100`)
	browsertest.Until(t, "it was refused", func() bool { return len(s.sent()) > 0 })
	s.set(func() { s.answer, s.requests = nil, nil })
	tab.Run(`dispatchEvent(new Event("online"))`)
	got := s.await(100)
	check(t, "the first that is left", got[0].Event, "e20")
	check(t, "its number", got[0].Context.Mub.N, 21)
	check(t, "the last", got[99].Event, "e119")
	for _, r := range s.sent() {
		if n := len(r.batch.Batch); n > 40 {
			t.Errorf("%d events of 500 characters in one request", n)
		}
	}
}

// What the collector will never take is not sent again; what it may take later is.
func TestOnlyWhatMayHelpIsRepeated(t *testing.T) {
	for status, again := range map[int]bool{400: false, 401: false, 413: false, 408: true, 429: true, 500: true, 503: true} {
		t.Run(strconv.Itoa(status), func(t *testing.T) {
			s := newSite(t, `data-auto="off"`)
			s.answer = func(w http.ResponseWriter, _ *http.Request) bool {
				w.WriteHeader(status)
				return true
			}
			tab := s.open("/")
			tab.Allow(strconv.Itoa(status))
			tab.Run(`mub.track("a"); await mub.flush()`)
			check(t, "kept", browsertest.Eval[bool](tab, `Object.keys(localStorage).some(k => k.startsWith("mub_q"))`), again)
			if !again {
				return
			}
			s.set(func() { s.answer = nil })
			browsertest.Until(t, "it is sent again", func() bool { return len(s.sent()) > 1 })
			first, second := s.sent()[0].batch, s.sent()[1].batch
			check(t, "messageId", second.Batch[0].MessageID, first.Batch[0].MessageID)
			check(t, "retry", second.Retry, 1)
			tab.Until(`!Object.keys(localStorage).some(k => k.startsWith("mub_q"))`)
		})
	}
}

func TestRetryAfterIsRespected(t *testing.T) {
	s := newSite(t, `data-auto="off"`)
	var refused time.Time
	s.answer = func(w http.ResponseWriter, _ *http.Request) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !refused.IsZero() {
			return false
		}
		refused = time.Now()
		w.Header().Set("Retry-After", "2")
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	}
	tab := s.open("/")
	tab.Allow("503")
	tab.Run(`mub.track("a"); await mub.flush(); mub.track("b"); await mub.flush()`)
	browsertest.Until(t, "it is sent again", func() bool { return len(s.sent()) > 1 })
	s.mu.Lock()
	waited := time.Since(refused)
	s.mu.Unlock()
	if waited < 2*time.Second {
		t.Errorf("it was sent again after %v", waited)
	}
	check(t, "events in the second request", len(s.sent()[1].batch.Batch), 2)
}

// A beacon without a network is taken and lost.
func TestAPageThatIsLeftWithoutANetworkKeepsItsEvents(t *testing.T) {
	s := newSite(t, `data-auto="off"`)
	s.before = `if (location.pathname == "/") Object.defineProperty(navigator, "onLine", {value: false})`
	tab := s.open("/")
	tab.Run(`mub.track("a"); dispatchEvent(new Event("pagehide"))`)
	check(t, "kept", browsertest.Eval[bool](tab, `Object.keys(localStorage).some(k => k.startsWith("mub_q"))`), true)
}
