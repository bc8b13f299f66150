package api

import (
	"net/http"
	"strconv"
	"time"

	"github.com/go-chi/chi/v5/middleware"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// measure times every request, by operation and status. What no route matches counts as one operation. Live feeds, which
// take as long as somebody listens, are left out.
func measure(reg prometheus.Registerer) func(http.Handler) http.Handler {
	seconds := promauto.With(reg).NewHistogramVec(prometheus.HistogramOpts{
		Name:    "mubatch_api_request_duration_seconds",
		Help:    "Time to answer requests to the management API, by operation and status.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 20},
	}, []string{"operation", "status"})
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			begun := time.Now()
			wrapped := middleware.NewWrapResponseWriter(w, r.ProtoMajor)
			defer func() { // also if what was begun is broken off
				if wrapped.Header().Get("Content-Type") == eventStream {
					return
				}
				status := wrapped.Status()
				if status == 0 {
					status = http.StatusOK
				}
				seconds.WithLabelValues(label(r, status), strconv.Itoa(status)).Observe(time.Since(begun).Seconds())
			}()
			next.ServeHTTP(wrapped, r)
		})
	}
}

func label(r *http.Request, status int) string {
	op := operation(r)
	if op == r.Method || status == http.StatusMethodNotAllowed || len(op) > 0 && op[len(op)-1] == '*' {
		return "none"
	}
	return op
}
