package collector

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type intakeMetrics struct {
	events    *prometheus.CounterVec
	ack       prometheus.Histogram
	blocked   *prometheus.CounterVec
	sanitized prometheus.Counter
}

func newIntakeMetrics(reg prometheus.Registerer) *intakeMetrics {
	with := promauto.With(reg)
	m := &intakeMetrics{
		events: with.NewCounterVec(prometheus.CounterOpts{
			Name: "mubatch_collector_events_total",
			Help: "Events received, by type and what became of them.",
		}, []string{"type", "result"}),
		ack: with.NewHistogram(prometheus.HistogramOpts{
			Name:    "mubatch_collector_ack_seconds",
			Help:    "Time that a request waited until its events were durable, of those that became so.",
			Buckets: prometheus.ExponentialBuckets(0.00025, 2, 15),
		}),
		blocked: with.NewCounterVec(prometheus.CounterOpts{
			Name: "mubatch_collector_blocked_ids_total",
			Help: "Identifiers left out because they identify nobody, by field.",
		}, []string{"field"}),
		sanitized: with.NewCounter(prometheus.CounterOpts{
			Name: "mubatch_collector_sanitized_events_total",
			Help: "Events in which characters were replaced.",
		}),
	}
	for _, kind := range append([]string{otherKind}, kinds...) {
		for _, result := range []string{Accepted, Rejected, resultUnavailable} {
			m.events.WithLabelValues(kind, result)
		}
	}
	for _, f := range []field{fieldUserID, fieldAnonymousID, fieldPreviousID, fieldGroupID} {
		m.blocked.WithLabelValues(fieldNames[f])
	}
	return m
}

// otherKind is the type of an event that names none we know.
const otherKind = "other"

// newRequestMetrics returns the counter of the requests, and exports the bytes that they hold.
func newRequestMetrics(reg prometheus.Registerer, bytes *budget) *prometheus.CounterVec {
	with := promauto.With(reg)
	with.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "mubatch_collector_request_bytes",
		Help: "Bytes of requests being worked on.",
	}, func() float64 { return float64(bytes.used.Load()) })
	return with.NewCounterVec(prometheus.CounterOpts{
		Name: "mubatch_collector_requests_total",
		Help: "Requests answered, by dialect and HTTP status; a pixel always answers 200.",
	}, []string{"dialect", "status"})
}
