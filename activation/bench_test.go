package activation_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/jackc/pgx/v5"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/partnertest"
)

func BenchmarkEnqueue(b *testing.B) {
	for _, size := range []int{100, 1000, 5000} {
		b.Run(fmt.Sprintf("changes=%d", size), func(b *testing.B) {
			bench := partnertest.NewBench(b, newWebhook(b))
			bench.Destination(b, "hook", "webhook", settings("https://example.com/"), vip)
			const people = 100_000
			next := 0
			for b.Loop() {
				changes := make([]activation.Change, size)
				for i := range changes {
					changes[i] = change(next%people, next/people%2 == 0)
					changes[i].Cause = "event"
					next++
				}
				err := pgx.BeginFunc(b.Context(), bench.Pool, func(tx pgx.Tx) error {
					_, err := bench.Ledger.Enqueue(b.Context(), tx, 0, changes)
					return err
				})
				if err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N*size)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}

func BenchmarkDeliver(b *testing.B) {
	for _, batch := range []int{1, 100} {
		b.Run(fmt.Sprintf("batch=%d", batch), func(b *testing.B) {
			receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
			}))
			b.Cleanup(receiver.Close)
			bench := partnertest.NewBench(b, newWebhook(b))
			bench.Destination(b, "hook", "webhook", activation.Settings{
				Config: jsontext.Value(fmt.Sprintf(`{"url":%q,"batch":%d}`, receiver.URL, batch)),
			}, vip)
			people := 20 * batch
			if batch == 1 {
				people = 500
			}
			for n := range people {
				bench.World.Add(partnertest.Somebody(n))
			}
			bench.Dispatch(b, activation.DispatchConfig{})
			entered := false
			for b.Loop() {
				entered = !entered
				changes := make([]activation.Change, people)
				for n := range changes {
					changes[n] = change(n, entered)
				}
				bench.Apply(b, changes...)
				bench.Rest(b, "hook")
			}
			b.ReportMetric(float64(b.N*people)/b.Elapsed().Seconds(), "deliveries/s")
		})
	}
}

// BenchmarkBeside measures how long a change takes to a destination that is well: alone, beside others that are well, and
// beside the same that are not. What a dead destination costs the others is the difference between the latter two.
func BenchmarkBeside(b *testing.B) {
	fine := func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }
	unavailable := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }
	hanging := func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) // or nobody notices that the sender has gone
		<-r.Context().Done()
	}
	for name, others := range map[string][]http.HandlerFunc{
		"nobody":               nil,
		"one that is well":     {fine},
		"two that are well":    {fine, fine},
		"one answering 503":    {unavailable},
		"one hanging":          {hanging},
		"one 503, one hanging": {unavailable, hanging},
	} {
		b.Run("beside="+name, func(b *testing.B) {
			const every = 5 * time.Millisecond
			bench := partnertest.NewBench(b, newWebhook(b))
			serve := func(h http.HandlerFunc) string {
				server := httptest.NewServer(h)
				b.Cleanup(func() {
					server.CloseClientConnections()
					server.Close()
				})
				return server.URL
			}
			arrived := make(chan time.Time, 16)
			bench.Destination(b, "well", "webhook", activation.Settings{
				Config: jsontext.Value(fmt.Sprintf(`{"url":%q,"batch":1}`, serve(func(_ http.ResponseWriter, r *http.Request) {
					io.Copy(io.Discard, r.Body)
					arrived <- time.Now()
				}))),
			}, vip)
			for i, other := range others {
				bench.Destination(b, fmt.Sprint("other-", i), "webhook", settings(serve(other)), vip)
			}
			const people = 1000
			for n := range people {
				bench.World.Add(partnertest.Somebody(n))
			}
			bench.Dispatch(b, activation.DispatchConfig{Schedule: activation.DefaultSchedule})
			for n := range 200 { // those that are not well have something to fail with
				bench.Apply(b, change(n, true))
				<-arrived
			}
			var took []time.Duration
			entered := make([]bool, people)
			for n := range 200 {
				entered[n] = true
			}
			for n := 0; b.Loop(); n = (n + 1) % people {
				time.Sleep(every)
				entered[n] = !entered[n]
				start := time.Now()
				bench.Apply(b, change(n, entered[n]))
				took = append(took, (<-arrived).Sub(start))
			}
			slices.Sort(took)
			for _, p := range []int{50, 99} {
				b.ReportMetric(float64(took[min(len(took)*p/100, len(took)-1)].Microseconds())/1000, fmt.Sprintf("p%d-ms", p))
			}
		})
	}
}
