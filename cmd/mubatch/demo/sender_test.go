package demo

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// An unreliable server keeps what it acknowledges, and sometimes what it does not.
type unreliable struct {
	t      *testing.T
	mu     sync.Mutex
	calls  int
	kept   map[string]int
	orders map[string][]time.Time
}

func (u *unreliable) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.calls++
	if key, _, ok := r.BasicAuth(); !ok || key != "write" {
		u.t.Errorf("the key is %q", key)
	}
	if u.calls%5 == 1 {
		w.Header().Set("Retry-After", "0")
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	var body struct {
		Batch []struct {
			MessageID string
			UserID    string
			Timestamp time.Time
		}
	}
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		u.t.Error(err)
	}
	for _, e := range body.Batch {
		if u.kept[e.MessageID]++; u.kept[e.MessageID] == 1 {
			u.orders[e.UserID] = append(u.orders[e.UserID], e.Timestamp)
		}
	}
	if u.calls%5 == 3 {
		panic(http.ErrAbortHandler) // it died before it could answer
	}
	w.Write([]byte(`{"success":true}`))
}

func TestSenderLosesNothingAndKeepsEachPersonsOrder(t *testing.T) {
	t.Parallel()
	u := &unreliable{t: t, kept: map[string]int{}, orders: map[string][]time.Time{}}
	server := httptest.NewServer(u)
	defer server.Close()
	cfg := Config{URL: server.URL, WriteKey: "write", Batch: 50, Patience: time.Minute}
	events := makeEvents(mustRead(t, ""))
	acked := newClock()
	s := newSender(newClient(cfg, t.Logf), cfg, time.Hour, acked)
	if err := s.all(t.Context(), events, 4); err != nil {
		t.Fatal(err)
	}
	if int(s.sent.Load()) != len(events) || len(acked.at) != len(events) || len(u.kept) != len(events) {
		t.Errorf("of %d events %d are counted as sent, %d noted, and %d kept", len(events), s.sent.Load(), len(acked.at), len(u.kept))
	}
	if s.retries.Load() == 0 {
		t.Error("nothing was sent again")
	}
	for person, times := range u.orders {
		for i := range times[1:] {
			if person != "" && times[i+1].Before(times[i]) {
				t.Fatalf("the events of %s are out of order", person)
			}
		}
	}
}

func TestSenderGivesUp(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		status int
		body   string
		calls  int // at least
	}{
		"at once if it is not allowed":          {http.StatusUnauthorized, `{}`, 1},
		"at once if an event is rejected":       {http.StatusOK, `{"success":true,"results":[{"message_id":"x","status":"rejected","reason":"is wrong"}]}`, 1},
		"at once if the answer is not an API's": {http.StatusOK, `<html>`, 1},
		"after a while if nothing gets better":  {http.StatusServiceUnavailable, ``, 3},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			calls := make(chan struct{}, 1000)
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				calls <- struct{}{}
				w.WriteHeader(tt.status)
				w.Write([]byte(tt.body))
			}))
			defer server.Close()
			cfg := Config{URL: server.URL, WriteKey: "write", Batch: 2000, Patience: 500 * time.Millisecond}
			s := newSender(newClient(cfg, t.Logf), cfg, 0, newClock())
			err := s.all(t.Context(), makeEvents(mustRead(t, ""))[:1], 1)
			if err == nil || len(calls) < tt.calls || tt.calls == 1 && len(calls) > 1 {
				t.Errorf("%v after %d calls, want an error after %d", err, len(calls), tt.calls)
			}
		})
	}
}

func TestLatencies(t *testing.T) {
	t.Parallel()
	from, to, zero := newClock(), newClock(), time.Unix(0, 0)
	for i, id := range []string{"a", "b", "c", "d"} {
		from.note([]string{id}, zero)
		to.note([]string{id}, zero.Add(time.Duration(4-i)*time.Second))
		to.note([]string{id}, zero.Add(time.Hour)) // only the first time counts
	}
	to.note([]string{"unknown"}, zero)
	l := between(from, to)
	if diff := cmp.Diff(Latencies{time.Second, 2 * time.Second, 3 * time.Second, 4 * time.Second}, l); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for q, want := range map[float64]time.Duration{0: time.Second, 0.5: 2 * time.Second, 0.99: 4 * time.Second, 1: 4 * time.Second} {
		if got := l.quantile(q); got != want {
			t.Errorf("the quantile %v is %s, want %s", q, got, want)
		}
	}
	if got := Latencies(nil).quantile(0.5); got != 0 {
		t.Errorf("a quantile of nothing is %s", got)
	}
}
