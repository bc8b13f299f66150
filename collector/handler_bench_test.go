package collector_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/mubatch/mubatch/collector"
)

// BenchmarkIntake takes events from HTTP to fsynced in Redis, 64 requests at once.
func BenchmarkIntake(b *testing.B) {
	const event = `{"type":"track","event":"Product Added","userId":"user-%[1]d","anonymousId":"0b1f6f0e-6a1c-4b6e-9d6b-2f8f2f5d7c11",` +
		`"messageId":"node-next-%[2]d","timestamp":"2026-03-01T12:00:00.123Z","sentAt":"2026-03-01T12:00:00.456Z",` +
		`"context":{"library":{"name":"analytics-node","version":"3.1.0"},"locale":"de-DE","page":{"url":"https://shop.example/p/41","title":"Lamp"}},` +
		`"properties":{"product_id":"41","sku":"L-41","name":"Lamp","price":19.99,"quantity":2,"currency":"EUR","tags":["a","b"]}}`
	s := newServer(b, collector.Config{Lanes: 16})
	var n atomic.Int64
	for _, size := range []int{1, 10, 100} {
		b.Run(fmt.Sprintf("%d events a request", size), func(b *testing.B) {
			b.SetParallelism(32)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					path, body := "/v1/track", ""
					if size == 1 {
						body = fmt.Sprintf(event, n.Add(1)%1000, n.Add(1))
					} else {
						events := make([]string, size)
						for i := range events {
							events[i] = fmt.Sprintf(event, n.Add(1)%1000, n.Add(1))
						}
						path, body = "/v1/batch", `{"batch":[`+strings.Join(events, ",")+`]}`
					}
					r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
					r.SetBasicAuth(s.key, "")
					w := httptest.NewRecorder()
					s.ServeHTTP(w, r)
					if w.Code != http.StatusOK {
						b.Error(w.Code, w.Body)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N*size)/b.Elapsed().Seconds(), "events/s")
		})
	}
}
