package api_test

import (
	"log/slog"
	"net/http/httptest"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mubatch/mubatch/api"
)

// While Postgres is down nobody is let in, nobody is told that their key is wrong, and the process is alive.
func TestWithoutPostgresEverythingIsToBeTriedAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	pool, err := pgxpool.New(t.Context(), "postgres://nobody@127.0.0.1:1/nothing?connect_timeout=2")
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	server := httptest.NewServer(api.New(api.Config{
		Pool: pool, Destinations: w.destinations, Lanes: lanes, Replayer: w.replay, Registerer: prometheus.NewRegistry(),
		Metrics: w.router, Log: slog.New(slog.DiscardHandler),
	}))
	defer server.Close()
	w.url = server.URL
	for _, rt := range w.managed() {
		got := w.as(w.acme, rt[0], w.fill(rt[1], w.acme.things), body(rt[0]), header("Idempotency-Key", "x"))
		if got.Status != 503 || got.str("code") != "unavailable" || got.Header.Get("Retry-After") == "" {
			t.Errorf("%s: %d %s", got.asked, got.Status, got.Body)
		}
	}
	w.do("GET", "/livez", "").want(200)
}
