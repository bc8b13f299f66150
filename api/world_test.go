package api_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/webhook"
	"github.com/mubatch/mubatch/api"
	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/collector/files"
	"github.com/mubatch/mubatch/collector/kafka"
	"github.com/mubatch/mubatch/collector/redistest"
	inbound "github.com/mubatch/mubatch/collector/webhook"
	"github.com/mubatch/mubatch/migrations/pgtest"
	"github.com/mubatch/mubatch/profiles"
)

const lanes = 4

// world is a server on a database of its own, with two workspaces that must know nothing of each other.
type world struct {
	t       testing.TB
	pool    *pgxpool.Pool
	url     string
	client  *http.Client
	router  chi.Router
	replay  *replayer
	metrics *prometheus.Registry
	sent    int
	stop    chan struct{} // closed: the server is about to stop

	stream    *collector.Stream
	tail      *collector.Tail // not running
	committer *collector.Committer

	stopCommits func()

	ring         *activation.KeyRing
	cfg          collector.Config
	destinations *activation.Store
	acme         tenant
	globex       tenant
}

// tenant is a workspace with a key that may do everything, and what the path of each route needs.
type tenant struct {
	profiles.Workspace
	secret string
	things map[string]string // by the name of the path's parameter
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, pool: pgtest.New(t), stop: make(chan struct{})}
	w.replay, w.metrics = &replayer{pool: w.pool}, prometheus.NewRegistry()
	ring, _, err := activation.NewKeyRing()
	if err != nil {
		t.Fatal(err)
	}
	w.ring = ring
	rdb, prefix := redistest.New(t)
	cfg := collector.Config{Prefix: prefix, Lanes: lanes, AllowDegraded: true}
	w.cfg = cfg
	w.stream = collector.NewStream(cfg.Stream(), rdb)
	w.tail = collector.NewTail(w.stream, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	w.committer = collector.NewCommitter(cfg, w.stream, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	w.stopCommits = run(t, w.committer.Run)
	outbound := activation.Outbound{AllowPrivate: true}
	hook := webhook.New(activation.NewClient(outbound), outbound)
	w.destinations = activation.NewStore(w.pool, ring, lanes, hook, eventsOnly{hook}, audiencesOnly{hook})
	w.router = chi.NewRouter()
	w.router.Post("/v1/anything-else", func(http.ResponseWriter, *http.Request) {}) // as the collector's are, beside the API
	w.router.Mount("/", api.New(api.Config{
		Pool: w.pool, Destinations: w.destinations, Lanes: lanes,
		Identities: profiles.NewStore(w.pool, profiles.Config{Lanes: lanes}, nil, nil, nil), Replayer: w.replay,
		Releaser: collector.NewReleaser(cfg, w.pool, w.committer), Committer: w.committer,
		ImportKeys: importKeys{w.ring}, Tail: w.tail, Kafka: kafka.NewStore(w.pool, api.KafkaSeals{Ring: w.ring}), Registerer: w.metrics,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Stopping: w.stop, Heartbeat: time.Second,
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain; version=0.0.4")
			_, _ = io.WriteString(w, "mubatch_up 1\n")
		}),
		Checks: []api.Check{{Name: "postgres", Probe: func(ctx context.Context) (api.Readiness, string) {
			if err := w.pool.Ping(ctx); err != nil {
				return api.NotReady, "cannot be reached"
			}
			return api.Ready, ""
		}}},
	}))
	server := httptest.NewServer(w.router)
	t.Cleanup(server.Close)
	w.url = server.URL
	w.client = &http.Client{Transport: checked{t, server.Client().Transport}}
	w.exec(`INSERT INTO lanes (lane, as_of) SELECT generate_series(0, 3), '2026-11-01T12:00:00Z'`)
	w.acme, w.globex = w.found("acme"), w.found("globex")
	return w
}

// run runs something until the test ends or the function it returns is called, and waits for its end.
func run(t testing.TB, f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// flush has the lanes apply what comes, from nothing: what the tests put there by hand is not quite what lanes do.
func (w *world) flush() {
	w.t.Helper()
	w.exec(`TRUNCATE profiles, routes, lookups, events, memberships, segment_counts, transitions, failed_events, quarantined_events, counters`)
	log := slog.New(slog.NewTextHandler(w.t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	store := profiles.NewStore(w.pool, profiles.Config{Lanes: lanes, Keys: w.ring}, activation.NewLedger(prometheus.NewRegistry()), func() {}, log)
	run(w.t, collector.NewFlusher(collector.FlushConfig{Node: "one"}, w.stream, w.committer, store, prometheus.NewRegistry(), log).Run)
}

// found makes a workspace, and one of everything in it.
func (w *world) found(key string) tenant {
	w.t.Helper()
	ctx := w.t.Context()
	ws, err := profiles.NewWorkspaces(w.pool).Create(ctx, key, strings.ToUpper(key))
	if err != nil {
		w.t.Fatal(err)
	}
	tn := tenant{Workspace: ws, secret: w.newKey(ws.ID, api.Scopes()...), things: map[string]string{}}

	k, _, err := api.NewKeyStore(w.pool).Create(ctx, ws.ID, api.NewKey{Name: "spare"})
	if err != nil {
		w.t.Fatal(err)
	}
	tn.things["key"] = fmt.Sprintf("key_%d", k.ID)

	sources := collector.NewSourceStore(w.pool)
	s, err := sources.Create(ctx, ws.ID, collector.Source{Key: key + "-shop", Name: "Shop"})
	if err != nil {
		w.t.Fatal(err)
	}
	tn.things["source"] = fmt.Sprintf("src_%d", s.ID)
	wk, err := sources.CreateWriteKey(ctx, ws.ID, s.Key)
	if err != nil {
		w.t.Fatal(err)
	}
	tn.things["write_key"] = fmt.Sprintf("wk_%d", wk.ID)
	hook, err := sources.WithKeys(w.ring).Create(ctx, ws.ID, collector.Source{
		Key: key + "-hook", Type: "webhook",
		Settings: collector.SourceSettings{Webhook: &collector.WebhookSettings{Settings: inbound.Settings{Provider: "stripe"}}},
	}, key+" secret 1")
	if err != nil {
		w.t.Fatal(err)
	}
	second, err := sources.WithKeys(w.ring).AddWebhookSecret(ctx, ws.ID, hook.Key, key+" secret 2")
	if err != nil {
		w.t.Fatal(err)
	}
	tn.things["webhook_secret"] = fmt.Sprintf("whs_%d", second.ID)

	m, err := collector.NewMappingStore(w.pool).Create(ctx, ws.ID, collector.Mapping{
		Key: key + "-orders", Document: `{"version": 1, "rules": [{"event": {"type": "page", "userId": "$.id"}}]}`,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	tn.things["mapping"] = fmt.Sprintf("map_%d", m.ID)

	seg, err := profiles.NewSegments(w.pool, lanes).Create(ctx, ws.ID, profiles.SegmentDefinition{
		Key: key + "-buyers", Name: "Buyers", Rule: jsontext.Value(`{"event":"Order Completed"}`),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	tn.things["segment"] = fmt.Sprintf("seg_%d", seg.ID)

	ct, err := profiles.NewComputedTraits(w.pool, lanes).Create(ctx, ws.ID, profiles.ComputedDefinition{
		Key: key + "-orders", Name: "Orders", Value: jsontext.Value(`{"event":"Order Completed","count":{}}`),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	tn.things["computed_trait"] = fmt.Sprintf("ct_%d", ct.ID)

	d, _, err := w.destinations.Create(ctx, ws.ID, activation.NewDestination{
		Key: key + "-crm", Type: "webhook", Settings: activation.Settings{Config: jsontext.Value(`{"url":"https://example.com/hook"}`)},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	tn.things["destination"] = fmt.Sprintf("dst_%d", d.ID)
	if err := w.destinations.Attach(ctx, ws.ID, d.Key, seg.ID); err != nil {
		w.t.Fatal(err)
	}

	sub, _, err := w.destinations.Subscribe(ctx, ws.ID, d.Key, key+"-orders", activation.NewSubscription{
		EventFilter: activation.EventFilter{Names: []string{"Order Completed"}},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	tn.things["subscription"] = fmt.Sprintf("sub_%d", sub.ID)

	ada := w.person(tn, person{
		user: "ada", visitors: []string{"a1"}, email: "Ada@Example.com", lastSeen: at(0), member: seg.ID,
		traits: map[string]string{"email": `"Ada@Example.com"`, "country": `"DE"`, "ltv": `12345678901234567890.5`},
	})
	tn.things["profile"] = ada.String()
	tn.things["message_id"] = key + "-m1"
	w.event(tn, ada, s.ID, key+"-m1", at(0))
	w.transition(tn, ada, seg.ID, true, s.ID, key+"-m1", at(0))

	body := fmt.Sprintf(`{"type":"track","event":"Bad","messageId":"%s-bad","userId":"ada"}`, key)
	schema, err := sources.CreateSchema(ctx, ws.ID, collector.SourceSchema{
		SourceID: s.ID, Type: "track", Event: "Signed Up", Schema: []byte(`{}`), Action: collector.ActionFlag,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	tn.things["schema"] = fmt.Sprintf("sch_%d", schema.ID)
	tn.things["quarantined_event"] = w.quarantined(tn, s.ID, key+"-held", ada)
	tn.things["failed_event"] = w.failed(tn, s.ID, key+"-bad", "store", profiles.AppendMessage(nil, profiles.Message{
		Kind: profiles.KindEvent, Workspace: ws.ID, Source: s.ID, ID: profiles.MessageKey(key + "-bad"),
		Key: ada, Received: at(0), Body: []byte(body),
	}))
	in, _, err := files.NewStore(w.pool, nil).Create(ctx, ws.ID, files.New{Source: s, Name: "people.ndjson", Size: 100})
	if err != nil {
		w.t.Fatal(err)
	}
	tn.things["import"] = fmt.Sprintf("imp_%d", in.ID)
	gone, _, err := profiles.NewErasures(w.pool, lanes, w.ring).Ask(ctx, ws.ID, ws.Secret, profiles.NewErasure{
		Kind: profiles.UserID, Key: ws.Secret.Key(profiles.Identifier{Kind: profiles.UserID, Value: "gone"}), KeyID: 1,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	tn.things["erasure"] = fmt.Sprintf("era_%d", gone.ID)
	w.exec(`INSERT INTO counters (lane, workspace_id, source_id, day, accepted, applied, duplicate, failed)
		VALUES (0, $1, $2, (now() AT TIME ZONE 'UTC')::date, 5, 3, 1, 1), (1, $1, $2, (now() AT TIME ZONE 'UTC')::date - 3, 2, 2, 0, 0)`, ws.ID, s.ID)
	return tn
}

// at returns a time, so many minutes after a fixed one.
func at(minutes int) time.Time {
	return time.Date(2026, 11, 1, 10, minutes, 0, 0, time.UTC)
}

type person struct {
	user     string
	visitors []string
	email    string
	traits   map[string]string
	lastSeen time.Time
	member   int64
}

// person puts somebody where the lanes would.
func (w *world) person(tn tenant, p person) profiles.Key {
	w.t.Helper()
	root := tn.Secret.Key(profiles.Identifier{Kind: profiles.UserID, Value: p.user})
	profile := &profiles.Profile{ID: root, Workspace: tn.ID}
	add := func(id profiles.Identifier, traits []profiles.Trait) {
		profile.Fragments = append(profile.Fragments, profiles.Fragment{
			Key: tn.Secret.Key(id), Identifier: id, FirstSeen: at(-60).UnixMilli(), LastSeen: p.lastSeen.UnixMilli(), Traits: traits,
		})
	}
	var traits []profiles.Trait
	for _, name := range []string{"country", "email", "ltv"} {
		if v, ok := p.traits[name]; ok {
			traits = append(traits, profiles.Trait{Name: name, Value: jsontext.Value(v), Stamp: profiles.Stamp{At: 1}})
		}
	}
	add(profiles.Identifier{Kind: profiles.UserID, Value: p.user}, traits)
	for _, v := range p.visitors {
		id := profiles.Identifier{Kind: profiles.AnonymousID, Value: v}
		add(id, nil)
		key := tn.Secret.Key(id)
		w.exec(`INSERT INTO routes (lane, workspace_id, key, root, version) VALUES ($1, $2, $3, $4, 1)`, key.Lane(lanes), tn.ID, key, root)
	}
	slices.SortFunc(profile.Fragments, func(a, b profiles.Fragment) int { return bytes.Compare(a.Key[:], b.Key[:]) })
	lane := root.Lane(lanes)
	if p.member != 0 {
		profile.Standings = []profiles.Standing{{Segment: p.member, Member: true, Since: p.lastSeen.UnixMilli()}}
		w.exec(`INSERT INTO memberships (lane, workspace_id, segment_id, profile_id, entered_at) VALUES ($1, $2, $3, $4, $5)`,
			lane, tn.ID, p.member, root, p.lastSeen)
		w.exec(`INSERT INTO segment_counts AS c (lane, segment_id, members) VALUES ($1, $2, 1)
			ON CONFLICT (lane, segment_id) DO UPDATE SET members = c.members + 1`, lane, p.member)
	}
	if p.email != "" {
		key := tn.Secret.Key(profiles.Identifier{Kind: profiles.Email, Value: strings.ToLower(p.email)})
		w.exec(`INSERT INTO lookups (lane, workspace_id, key, profile_id) VALUES ($1, $2, $3, $4)`, lane, tn.ID, key, root)
	}
	w.exec(`INSERT INTO profile_counts AS c (lane, workspace_id, profiles) VALUES ($1, $2, 1)
		ON CONFLICT (lane, workspace_id) DO UPDATE SET profiles = c.profiles + 1`, lane, tn.ID)
	w.exec(`INSERT INTO profiles (lane, workspace_id, id, state, last_seen_at, updated_at) VALUES ($1, $2, $3, $4, $5, now())`,
		lane, tn.ID, root, profiles.AppendProfile(nil, profile), p.lastSeen)
	return root
}

func (w *world) event(tn tenant, key profiles.Key, source int32, messageID string, happened time.Time) {
	w.t.Helper()
	w.exec(`INSERT INTO events (lane, seq, received_at, workspace_id, source_id, key, message_key, event_at, applied_at, type, name, payload)
		SELECT $1, coalesce(max(seq), 0) + 1, $2, $3, $4, $5, $6, $2, $7, 'track', 'Order Completed', $8 FROM events WHERE lane = $1`,
		key.Lane(lanes), happened, tn.ID, source, key, profiles.MessageKey(messageID), happened.Add(time.Second),
		[]byte(fmt.Sprintf(`{"type":"track","event":"Order Completed","messageId":%q,"userId":"ada","properties":{"revenue":9007199254740993}}`, messageID)))
}

func (w *world) transition(tn tenant, p profiles.Key, segment int64, entered bool, source int32, messageID string, when time.Time) {
	w.t.Helper()
	w.exec(`INSERT INTO transitions (lane, seq, at, workspace_id, segment_id, profile_id, entered, cause, cause_source_id, cause_message_id, cause_message_key)
		SELECT $1, coalesce(max(seq), 0) + 1, $2, $3, $4, $5, $6, 'event', $7, $8, $9 FROM transitions WHERE lane = $1`,
		p.Lane(lanes), when, tn.ID, segment, p, entered, source, messageID, profiles.MessageKey(messageID))
	w.exec(`UPDATE lanes SET transition_seq = (SELECT max(seq) FROM transitions WHERE lane = $1) WHERE lane = $1`, p.Lane(lanes))
}

func (w *world) failed(tn tenant, source int32, messageID, stage string, message []byte) string {
	w.t.Helper()
	var id int64
	err := w.pool.QueryRow(w.t.Context(), `INSERT INTO failed_events
		(lane, workspace_id, source_id, message_key, received_at, stage, reason, sqlstate, software, message)
		VALUES (2, $1, $2, $3, $4, $5, 'value out of range', '22003', 'v0', $6) RETURNING id`,
		tn.ID, source, profiles.MessageKey(messageID), at(0), stage, message).Scan(&id)
	if err != nil {
		w.t.Fatal(err)
	}
	return fmt.Sprintf("fe_2_%d", id)
}

func (w *world) quarantined(tn tenant, source int32, messageID string, key profiles.Key) string {
	w.t.Helper()
	body, err := profiles.AppendQuarantined(nil, profiles.Quarantined{
		MessageID: messageID, Type: "track", Event: "Signed Up", Violations: []profiles.Violation{{Code: "required", Pointer: "#/properties/plan", Detail: "is required"}},
		Body: []byte(fmt.Sprintf(`{"type":"track","event":"Signed Up","messageId":%q,"userId":"ada"}`, messageID)),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	message := profiles.AppendMessage(nil, profiles.Message{
		Kind: profiles.KindQuarantine, Workspace: tn.ID, Source: source, ID: profiles.MessageKey(messageID), Key: key, Received: at(0), Body: body,
	})
	var id int64
	if err := w.pool.QueryRow(w.t.Context(), `INSERT INTO quarantined_events
		(lane, workspace_id, source_id, message_key, message_id, received_at, type, event, reason, violations, message, keys)
		VALUES (2, $1, $2, $3, $4, $5, 'track', 'Signed Up', 'required', '[{"code":"required","pointer":"#/properties/plan","detail":"is required"}]', $6, '{}')
		RETURNING id`, tn.ID, source, profiles.MessageKey(messageID), messageID, at(0), message).Scan(&id); err != nil {
		w.t.Fatal(err)
	}
	return fmt.Sprintf("qe_2_%d", id)
}

func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	if _, err := w.pool.Exec(w.t.Context(), sql, args...); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) newKey(workspace int32, scopes ...api.Scope) string {
	w.t.Helper()
	_, secret, err := api.NewKeyStore(w.pool).Create(w.t.Context(), workspace, api.NewKey{Name: "test", Scopes: scopes})
	if err != nil {
		w.t.Fatal(err)
	}
	return secret
}

// replayer notes what it is to replay, as the real one would after it did.
type replayer struct{ pool *pgxpool.Pool }

func (r *replayer) Replay(ctx context.Context, workspace int32, ids []profiles.FailedID) (n int, err error) {
	for _, id := range ids {
		tag, err := r.pool.Exec(ctx, `UPDATE failed_events SET replayed_at = now() WHERE lane = $1 AND id = $2 AND workspace_id = $3`,
			id.Lane, id.ID, workspace)
		if err != nil {
			return n, err
		}
		n += int(tag.RowsAffected())
	}
	return n, nil
}

// answer is what came back.
type answer struct {
	t      testing.TB
	asked  string
	Status int
	Header http.Header
	Body   string
}

type option func(*http.Request)

func header(name, value string) option {
	return func(r *http.Request) { r.Header.Set(name, value) }
}

// as sends a request with a tenant's key. The body is JSON, or nothing if it is empty.
func (w *world) as(tn tenant, method, path, body string, options ...option) answer {
	w.t.Helper()
	return w.do(method, path, body, append([]option{header("Authorization", "Bearer "+tn.secret)}, options...)...)
}

func (w *world) do(method, path, body string, options ...option) answer {
	w.t.Helper()
	var content io.Reader
	if body != "" {
		content = strings.NewReader(body)
	}
	r, err := http.NewRequestWithContext(w.t.Context(), method, w.url+path, content)
	if err != nil {
		w.t.Fatal(err)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for _, o := range options {
		o(r)
	}
	resp, err := w.client.Do(r)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return answer{w.t, method + " " + path, resp.StatusCode, resp.Header, string(b)}
}

// want fails the test unless the answer has that status and, if it is a problem, that code.
func (a answer) want(status int, code ...string) answer {
	a.t.Helper()
	if a.Status != status {
		a.t.Fatalf("%s: status %d, want %d: %s", a.asked, a.Status, status, a.Body)
	}
	if len(code) > 0 && a.str("code") != code[0] {
		a.t.Fatalf("%s: code %q, want %q: %s", a.asked, a.str("code"), code[0], a.Body)
	}
	return a
}

// at returns what is at a path of member names and indices, as JSON.
func (a answer) at(path ...any) jsontext.Value {
	a.t.Helper()
	v := jsontext.Value(a.Body)
	for _, step := range path {
		switch step := step.(type) {
		case string:
			var m map[string]jsontext.Value
			if err := json.Unmarshal(v, &m); err != nil {
				a.t.Fatalf("%s: %v at %q of %s", a.asked, err, step, a.Body)
			}
			v = m[step]
		case int:
			var l []jsontext.Value
			if err := json.Unmarshal(v, &l); err != nil || step >= len(l) {
				a.t.Fatalf("%s: no %d in %s: %s", a.asked, step, v, a.Body)
			}
			v = l[step]
		}
	}
	return v
}

// str is like at for a string; it is empty if there is none.
func (a answer) str(path ...any) string {
	a.t.Helper()
	var s string
	_ = json.Unmarshal(a.at(path...), &s) // anything else is no string
	return s
}

func (a answer) len(path ...any) int {
	a.t.Helper()
	var l []jsontext.Value
	if err := json.Unmarshal(a.at(path...), &l); err != nil {
		a.t.Fatalf("%s: no list at %v: %s", a.asked, path, a.Body)
	}
	return len(l)
}
