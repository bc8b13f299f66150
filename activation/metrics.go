package activation

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	deliveries *prometheus.CounterVec
	members    *prometheus.CounterVec
	latency    *prometheus.HistogramVec
	freshness  *prometheus.HistogramVec
	created    *prometheus.CounterVec
	refreshed  *prometheus.CounterVec
	swept      prometheus.Counter
	lost       prometheus.Counter
	filled     prometheus.Counter
	dueAge     prometheus.Gauge
	open       prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer, partners map[string]Partner) *metrics {
	with := promauto.With(reg)
	m := &metrics{
		deliveries: with.NewCounterVec(prometheus.CounterOpts{
			Name: "mubatch_activation_deliveries_total",
			Help: "Messages sent to partners, by partner and outcome.",
		}, []string{"partner", "outcome"}),
		members: with.NewCounterVec(prometheus.CounterOpts{
			Name: "mubatch_activation_members_total",
			Help: "People and events in those messages, by partner and what became of each.",
		}, []string{"partner", "outcome"}),
		latency: with.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "mubatch_activation_send_seconds",
			Help:    "Time from the start of a request to its outcome.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2.5, 12),
		}, []string{"partner"}),
		freshness: with.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "mubatch_activation_change_to_accepted_seconds",
			Help:    "Time from a change of membership, or the receipt of an event, to the partner's acceptance.",
			Buckets: prometheus.ExponentialBuckets(0.005, 3, 14),
		}, []string{"partner"}),
		created: with.NewCounterVec(prometheus.CounterOpts{
			Name: "mubatch_activation_audiences_total",
			Help: "Attempts at making audiences at partners, by partner and outcome.",
		}, []string{"partner", "outcome"}),
		refreshed: with.NewCounterVec(prometheus.CounterOpts{
			Name: "mubatch_activation_refreshes_total",
			Help: "Refreshes of access tokens that were refused, by partner and outcome.",
		}, []string{"partner", "outcome"}),
		swept: with.NewCounter(prometheus.CounterOpts{
			Name: "mubatch_activation_leases_expired_total",
			Help: "Messages whose sender died or hung.",
		}),
		lost: with.NewCounter(prometheus.CounterOpts{
			Name: "mubatch_activation_claims_lost_total",
			Help: "Outcomes that came after their lease had run out.",
		}),
		filled: with.NewCounter(prometheus.CounterOpts{
			Name: "mubatch_activation_fillings_total",
			Help: "Segments whose attaching or detaching was carried through to their present members.",
		}),
		dueAge: with.NewGauge(prometheus.GaugeOpts{
			Name: "mubatch_activation_due_age_seconds",
			Help: "How long the oldest work that could be sent has been due.",
		}),
		open: with.NewGauge(prometheus.GaugeOpts{
			Name: "mubatch_activation_breakers_open",
			Help: "Destinations that are left alone for a moment because they fail.",
		}),
	}
	for name := range partners {
		m.latency.WithLabelValues(name)
		m.freshness.WithLabelValues(name)
		for _, class := range Classes {
			m.deliveries.WithLabelValues(name, string(class))
		}
		for _, class := range []Class{OK, Retry, Drop} {
			m.members.WithLabelValues(name, string(class))
		}
	}
	return m
}
