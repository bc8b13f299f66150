package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"
)

// BenchmarkEventToPartner measures how long it takes from the HTTP answer to an event until a signed webhook is at the
// receiver because of it, while events come at a rate, on durable stores. Each event has somebody enter or leave a segment.
// Events are sent when it is their time, whether or not those before have been answered. Use -benchtime 1x.
func BenchmarkEventToPartner(b *testing.B) {
	for _, rate := range []int{100, 1000, 5000} {
		b.Run(fmt.Sprintf("rate=%d", rate), func(b *testing.B) {
			needPrograms(b)
			v := newVictims(b)
			for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
				if res, err := http.Get(v.at.URL + "/readyz"); err == nil && res.Body.Close() == nil && res.StatusCode == http.StatusOK {
					break
				}
			}
			r := newRace(b)
			v.at.do(b, http.MethodPost, "/api/v1/segments", map[string]any{
				"key": "pro", "name": "pro", "rule": json.RawMessage(`{"trait": "plan", "op": "eq", "value": "pro"}`),
			}, new(any))
			v.at.live(b, "pro")
			v.at.do(b, http.MethodPost, "/api/v1/destinations", map[string]any{
				"key": "receiver", "name": "receiver", "type": "webhook", "segments": []string{"pro"}, "config": map[string]any{"url": r.url},
			}, new(any))
			const warm, measured = 3 * time.Second, 8 * time.Second
			for b.Loop() {
				r.run(b, v.at, rate, warm)
				r.forget()
				r.run(b, v.at, rate, measured)
			}
			took, missing := r.latencies()
			b.ReportMetric(float64(missing), "late") // half a minute after the last event: the rate is too high
			for _, p := range []int{50, 99} {
				b.ReportMetric(float64(took[min(len(took)*p/100, len(took)-1)].Microseconds())/1000, fmt.Sprintf("p%d-ms", p))
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// race is between events' answers and their arrival at a receiver.
type race struct {
	url    string
	client *http.Client

	mu      sync.Mutex
	serial  int
	answers map[string]time.Time
	arrived map[string]time.Time
}

func newRace(b *testing.B) *race {
	r := &race{client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256}}, answers: map[string]time.Time{}, arrived: map[string]time.Time{}}
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		var m struct {
			Data struct {
				Entered, Left []struct {
					MessageID string `json:"message_id"`
				}
			}
		}
		err := json.NewDecoder(req.Body).Decode(&m)
		at := time.Now()
		if err != nil {
			b.Error(err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, e := range append(m.Data.Entered, m.Data.Left...) {
			r.arrived[e.MessageID] = at
		}
	}))
	r.url = server.URL
	b.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
		r.client.CloseIdleConnections()
	})
	return r
}

// crowd is how many people there are. Nobody is touched again within four seconds at the highest rate.
const crowd = 20_000

// run sends events at a rate for a while, and waits until all have arrived.
func (r *race) run(b *testing.B, at info, rate int, d time.Duration) {
	b.Helper()
	const tick = 2 * time.Millisecond
	var requests sync.WaitGroup
	began, sent := time.Now(), 0
	for now := range time.Tick(tick) {
		due := int(min(now.Sub(began), d).Seconds() * float64(rate))
		for sent < due {
			n := min(due-sent, 20) // as a client that gathers a little would
			var events []map[string]any
			for range n {
				plan := "pro"
				if r.serial/crowd%2 == 1 {
					plan = "free"
				}
				events = append(events, map[string]any{
					"type": "identify", "userId": fmt.Sprintf("user-%d", r.serial%crowd), "messageId": fmt.Sprintf("m-%d", r.serial),
					"traits": map[string]any{"plan": plan},
				})
				r.serial++
			}
			sent += n
			requests.Go(func() { r.send(b, at, events) })
		}
		if now.Sub(began) >= d {
			break
		}
	}
	requests.Wait()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if _, missing := r.latencies(); missing == 0 {
			return
		}
	}
}

func (r *race) send(b *testing.B, at info, events []map[string]any) {
	body, err := json.Marshal(map[string]any{"writeKey": at.WriteKey, "batch": events})
	if err != nil {
		b.Error(err)
		return
	}
	res, err := r.client.Post(at.URL+"/v1/batch", "application/json", bytes.NewReader(body))
	if err != nil {
		b.Error(err)
		return
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	answered := time.Now()
	if err != nil || res.StatusCode != http.StatusOK {
		b.Errorf("POST /v1/batch: %d, %v", res.StatusCode, err)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range events {
		r.answers[e["messageId"].(string)] = answered
	}
}

func (r *race) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.answers)
	clear(r.arrived)
}

// latencies are how long it took, the shortest first, and of how many events nothing has arrived.
func (r *race) latencies() (took []time.Duration, missing int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, answered := range r.answers {
		arrived, ok := r.arrived[id]
		if !ok {
			missing++
			continue
		}
		took = append(took, max(arrived.Sub(answered), 0))
	}
	slices.Sort(took)
	return took, missing
}
