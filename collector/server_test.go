package collector_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/collector/redistest"
	"github.com/mubatch/mubatch/migrations/pgtest"
	"github.com/mubatch/mubatch/profiles"
)

// server is a collector with one workspace, one source and one write key.
type server struct {
	t      testing.TB
	pool   *pgxpool.Pool
	source collector.Source
	key    string
	stream *collector.Stream
	reg    *prometheus.Registry
	intake *collector.Intake
	http.Handler
}

func newServer(t testing.TB, cfg collector.Config) *server {
	t.Helper()
	redistest.RequireReal(t)
	rdb, prefix := redistest.New(t)
	cfg.Prefix = prefix
	return newServerOn(t, cfg, rdb)
}

func newServerOn(t testing.TB, cfg collector.Config, rdb redis.UniversalClient) *server {
	t.Helper()
	if cfg.Lanes == 0 {
		cfg.Lanes = 2
	}
	s := &server{t: t, pool: pgtest.New(t), reg: prometheus.NewRegistry()}
	workspace := newWorkspace(t, s.pool, "acme")
	store := collector.NewSourceStore(s.pool)
	var err error
	if s.source, err = store.Create(t.Context(), workspace, collector.Source{Key: "shop"}); err != nil {
		t.Fatal(err)
	}
	key, err := store.CreateWriteKey(t.Context(), workspace, "shop")
	if err != nil {
		t.Fatal(err)
	}
	s.key = key.Key

	committer, stream, _ := runCommitter(t, cfg, rdb)
	s.stream = stream
	log := slog.New(slog.DiscardHandler)
	directory := collector.NewDirectory(cfg, s.pool, s.reg, log)
	s.intake = collector.NewIntake(cfg, committer, s.reg)
	r := chi.NewRouter()
	collector.NewHandler(cfg, directory, s.intake, s.reg, log).Routes(r)
	s.Handler = r
	return s
}

// post sends a body with the write key and returns the answer.
func (s *server) post(path, body string) *httptest.ResponseRecorder {
	s.t.Helper()
	r := httptest.NewRequest(http.MethodPost, path, bytes.NewReader([]byte(body)))
	r.SetBasicAuth(s.key, "")
	return s.do(r)
}

func (s *server) do(r *http.Request) *httptest.ResponseRecorder {
	s.t.Helper()
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	if w.Code >= 500 && w.Code != http.StatusServiceUnavailable {
		s.t.Errorf("%s %s: %d %s", r.Method, r.URL, w.Code, w.Body)
	}
	return w
}

// messages returns what the lanes hold.
func (s *server) messages() []profiles.Message {
	s.t.Helper()
	var msgs []profiles.Message
	for lane := range s.stream.Lanes() {
		var after collector.Offset
		for {
			entries, err := s.stream.Read(context.Background(), lane, after, 1000, 8<<20, time.Millisecond)
			if err != nil {
				s.t.Fatal(err)
			}
			if len(entries) == 0 {
				break
			}
			for _, e := range entries {
				after = e.Offset
				for _, m := range e.Messages {
					if got := m.Key.Lane(s.stream.Lanes()); got != lane {
						s.t.Errorf("a message of lane %d is in lane %d", got, lane)
					}
					msgs = append(msgs, m)
				}
			}
		}
	}
	return msgs
}

// event is a stored body.
type event struct {
	Type, Event, Name, MessageID, UserID, AnonymousID, PreviousID, GroupID string
	Timestamp, OriginalTimestamp, SentAt, ReceivedAt, Category             string
	Context, Properties, Traits, Integrations                              json.RawMessage
}

func decode[T any](t testing.TB, b []byte) (v T) {
	t.Helper()
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatalf("%v in %s", err, b)
	}
	return v
}
