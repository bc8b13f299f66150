package activation_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

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
