package kafka_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/collector/kafka"
	"github.com/mubatch/mubatch/collector/redistest"
	"github.com/mubatch/mubatch/migrations/pgtest"
	"github.com/mubatch/mubatch/profiles"
)

const lanes = 4

// world is a cluster with a topic of three partitions, and a mubatch whose source "shop" is to consume it.
type world struct {
	t         testing.TB
	pool      *pgxpool.Pool
	cluster   *kfake.Cluster
	store     *kafka.Store
	committer *collector.Committer
	stream    *collector.Stream
	source    collector.Source
	produced  int
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, pool: pgtest.New(t)}
	cluster, err := kfake.NewCluster(kfake.NumBrokers(2), kfake.SeedTopics(3, "orders"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	w.cluster = cluster
	rdb, prefix := redistest.New(t)
	cfg := collector.Config{Prefix: prefix, Lanes: lanes, AllowDegraded: true}
	w.stream = collector.NewStream(cfg.Stream(), rdb)
	w.committer = collector.NewCommitter(cfg, w.stream, prometheus.NewRegistry(), discard)
	ring, _, err := activation.NewKeyRing()
	if err != nil {
		t.Fatal(err)
	}
	w.store = kafka.NewStore(w.pool, seals{ring})
	const workspace = `INSERT INTO workspaces (key, name, secret) VALUES ('acme', 'Acme', 'a secret')`
	if _, err := w.pool.Exec(t.Context(), workspace); err != nil {
		t.Fatal(err)
	}
	if w.source, err = collector.NewSourceStore(w.pool).Create(t.Context(), 1, collector.Source{Key: "shop", Type: "kafka"}); err != nil {
		t.Fatal(err)
	}
	return w
}

var discard = slog.New(slog.DiscardHandler)

// seals seals as the server does.
type seals struct{ ring *activation.KeyRing }

func (s seals) place(workspace, source int32) activation.Place {
	return activation.Place{Workspace: workspace, Table: "kafka_sources", Column: "secrets", ID: int64(source)}
}

func (s seals) Seal(workspace, source int32, secrets []byte) []byte {
	return s.ring.Seal(s.place(workspace, source), secrets)
}

func (s seals) Open(workspace, source int32, sealed []byte) ([]byte, error) {
	return s.ring.Open(s.place(workspace, source), sealed)
}

// consumed says what the source consumes.
func (w *world) consumed(mapping string) {
	w.t.Helper()
	err := w.store.Put(w.t.Context(), 1, w.source.ID, kafka.Settings{
		Brokers: w.cluster.ListenAddrs(), Topics: []string{"orders"}, Group: "g", Start: kafka.Earliest, Mapping: mapping,
	}, kafka.Secrets{Password: "unused"})
	if err != nil {
		w.t.Fatal(err)
	}
}

// run runs something until the test ends or stop is called, and waits for its end.
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

// process is the consumers of one process, and its connections to the cluster.
type process struct {
	stop func()
	mu   sync.Mutex
	dead bool
	all  []net.Conn
}

func (w *world) process() *process {
	p := &process{}
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.dead {
			return nil, net.ErrClosed
		}
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		if err == nil {
			p.all = append(p.all, conn)
		}
		return conn, err
	}
	intake := collector.NewIntake(collector.Config{Lanes: lanes}, w.committer, prometheus.NewRegistry())
	p.stop = run(w.t, kafka.NewConsumers(w.store, intake, dial, prometheus.NewRegistry(), slog.New(slog.NewTextHandler(w.t.Output(), nil))).Run)
	return p
}

// kill ends a process of which the cluster hears nothing more.
func (p *process) kill() {
	p.mu.Lock()
	p.dead = true
	for _, conn := range p.all {
		conn.Close()
	}
	p.mu.Unlock()
	go p.stop()
}

func (w *world) commits() { run(w.t, w.committer.Run) }

// produce puts records into the topic.
func (w *world) produce(values ...string) {
	w.t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(w.cluster.ListenAddrs()...))
	if err != nil {
		w.t.Fatal(err)
	}
	defer client.Close()
	var records []*kgo.Record
	for _, v := range values {
		w.produced++
		records = append(records, &kgo.Record{
			Topic: "orders", Key: fmt.Append(nil, w.produced), Value: []byte(v), Timestamp: time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC),
			Headers: []kgo.RecordHeader{{Key: "X-Kind", Value: []byte("order")}},
		})
	}
	if err := client.ProduceSync(w.t.Context(), records...).FirstErr(); err != nil {
		w.t.Fatal(err)
	}
}

// stored returns the events in the lanes, with their messageIds.
func (w *world) stored() (events []profiles.Event, copies map[string]int) {
	w.t.Helper()
	copies = map[string]int{}
	for lane := range lanes {
		var after collector.Offset
		for {
			entries, err := w.stream.Read(w.t.Context(), lane, after, 1000, 8<<20, time.Millisecond)
			if err != nil {
				w.t.Fatal(err)
			}
			if len(entries) == 0 {
				break
			}
			for _, e := range entries {
				after = e.Offset
				for _, m := range e.Messages {
					if m.Kind != profiles.KindEvent {
						continue
					}
					event, err := profiles.DecodeEvent(m.Body)
					if err != nil {
						w.t.Fatal(err)
					}
					if copies[event.MessageID]++; copies[event.MessageID] == 1 {
						events = append(events, *event)
					}
				}
			}
		}
	}
	return events, copies
}

func (w *world) until(what string, holds func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(time.Minute); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("waited in vain for %s", what)
		}
	}
}

func (w *world) rejected() []kafka.Rejected {
	w.t.Helper()
	list, err := w.store.Rejected(w.t.Context(), 1, w.source.ID, 0, 100)
	if err != nil {
		w.t.Fatal(err)
	}
	return list
}

func TestEveryRecordBecomesAnEventAndAPoisonedOneIsSetAside(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.commits()
	w.produce(
		`{"type":"track","event":"Order Completed","userId":"ada","properties":{"id":9007199254740993}}`,
		`not JSON`,
		``, // deleted, of a compacted topic
		`{"type":"track","userId":"ada"}`,
		`[1]`,
		`{"type":"track","event":"Order Completed","userId":"bob","messageId":"mine","timestamp":"2026-10-01T00:00:00Z"}`,
	)
	w.consumed("")
	w.process()
	w.produce(`{"type":"page","anonymousId":"v1"}`)
	var events []profiles.Event
	w.until("the records to be taken in", func() bool {
		events, _ = w.stored()
		return len(events) == 3 && len(w.rejected()) == 3
	})
	for _, e := range events {
		at := "2026-11-01T12:00:00Z"
		switch {
		case e.UserID == "bob":
			if at = "2026-10-01T00:00:00Z"; e.MessageID != "mine" {
				t.Errorf("its own messageId became %q", e.MessageID)
			}
		case !strings.HasPrefix(e.MessageID, "kafka/"):
			t.Errorf("the messageId is %q", e.MessageID)
		}
		if e.UserID == "ada" && !strings.Contains(string(e.Properties), "9007199254740993") {
			t.Errorf("properties became %s", e.Properties)
		}
		if got := e.Timestamp.Format(time.RFC3339); got != at {
			t.Errorf("happened at %s, want %s", got, at)
		}
	}
	codes := map[string]string{}
	for _, r := range w.rejected() {
		codes[string(r.Record)] = r.Code
		if r.Topic != "orders" || r.Reason == "" {
			t.Errorf("set aside: %+v", r)
		}
	}
	want := map[string]string{"not JSON": "malformed_json", "[1]": "malformed_json", `{"type":"track","userId":"ada"}`: "missing_event"}
	if fmt.Sprint(codes) != fmt.Sprint(want) {
		t.Errorf("set aside %v, want %v", codes, want)
	}
}

func TestARecordIsMapped(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.commits()
	_, err := collector.NewMappingStore(w.pool).Create(t.Context(), 1, collector.Mapping{Key: "orders", Document: `
version: 1
rules:
  - when: headers['x-kind'] == 'order'
    for_each: $.items
    event:
      type: track
      event: Product Sold
      userId: $body.customer
      properties: {sku: $.sku, topic: "$meta['topic']"}
`})
	if err != nil {
		t.Fatal(err)
	}
	w.produce(`{"customer":"ada","items":[{"sku":"a"},{"sku":"b"}]}`, `{"customer":"bob","items":[]}`)
	w.consumed("orders")
	w.process()
	w.until("both items", func() bool {
		events, copies := w.stored()
		if len(events) < 2 {
			return false
		}
		for id := range copies {
			if !strings.HasPrefix(id, "kafka/") {
				t.Errorf("the messageId is %q", id)
			}
		}
		for _, e := range events {
			if e.UserID != "ada" || !strings.Contains(string(e.Properties), `"topic":"orders"`) {
				t.Errorf("mapped to %s of %s", e.Properties, e.UserID)
			}
		}
		return true
	})
}

// However often consumers are killed, and whatever the group does about it, every record counts once.
func TestKilledConsumersLoseAndDoubleNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.commits()
	w.consumed("")
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	store := profiles.NewStore(w.pool, profiles.Config{Lanes: lanes}, activation.NewLedger(prometheus.NewRegistry()), func() {}, log)
	if err := store.Install(t.Context()); err != nil {
		t.Fatal(err)
	}
	run(t, collector.NewFlusher(collector.FlushConfig{Node: "one", TrimLag: time.Hour}, w.stream, w.committer, store, prometheus.NewRegistry(), log).Run)
	rng := rand.New(rand.NewPCG(1, 2))
	// Every other commit comes from a member that the group has given up, as after a pause that was too long.
	var commits atomic.Int64
	w.cluster.ControlKey(int16(kmsg.OffsetCommit), func(r kmsg.Request) (kmsg.Response, error, bool) {
		w.cluster.KeepControl()
		if commits.Add(1)%2 == 0 {
			return nil, nil, false
		}
		request := r.(*kmsg.OffsetCommitRequest)
		response := request.ResponseKind().(*kmsg.OffsetCommitResponse)
		for _, t := range request.Topics {
			topic := kmsg.NewOffsetCommitResponseTopic()
			topic.Topic, topic.TopicID = t.Topic, t.TopicID
			for _, p := range t.Partitions {
				partition := kmsg.NewOffsetCommitResponseTopicPartition()
				partition.Partition, partition.ErrorCode = p.Partition, kerr.IllegalGeneration.Code
				topic.Partitions = append(topic.Partitions, partition)
			}
			response.Topics = append(response.Topics, topic)
		}
		return response, nil, true
	})
	const n = 1200
	var values []string
	for i := range n {
		values = append(values, fmt.Sprintf(`{"type":"track","event":"e","userId":"u%d","properties":{"n":%d}}`, i%50, i))
	}
	first := w.process()
	w.produce(values[:n/3]...)
	w.until("something to be taken in", func() bool { _, copies := w.stored(); return len(copies) > 0 })
	first.kill()
	second := w.process()
	w.produce(values[n/3 : 2*n/3]...)
	time.Sleep(time.Duration(rng.IntN(500)) * time.Millisecond) // wherever it is by then
	w.process()
	w.produce(values[2*n/3:]...)
	second.stop()
	applied := func() (got, duplicates int) {
		const query = `SELECT coalesce(sum(applied), 0), coalesce(sum(duplicate), 0) FROM counters`
		if err := w.pool.QueryRow(t.Context(), query).Scan(&got, &duplicates); err != nil {
			t.Fatal(err)
		}
		return got, duplicates
	}
	w.until("all records to be applied", func() bool { got, _ := applied(); return got >= n })
	events, copies := w.stored()
	seen := map[string]bool{}
	for _, e := range events {
		seen[string(e.Properties)] = true
	}
	got, duplicates := applied()
	if got != n || len(seen) != n || len(copies) != n || duplicates == 0 {
		t.Errorf("%d applied, %d different, %d messageIds; want %d, and %d read again", got, len(seen), len(copies), n, duplicates)
	}
}

func TestOffsetsAreCommittedOnlyBehindWhatIsDurable(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.consumed("")
	w.produce(`{"type":"page","userId":"ada"}`, `{"type":"page","userId":"bob"}`)
	p := w.process() // nobody makes anything durable
	w.until("it to be in the group", func() bool { return w.members() == 1 })
	time.Sleep(time.Second) // nothing tells that a record waits to be durable
	p.stop()
	if _, copies := w.stored(); len(copies) != 0 {
		t.Fatalf("stored %v", copies)
	}
	w.commits()
	w.process()
	w.until("both records", func() bool { _, copies := w.stored(); return len(copies) == 2 })
}

func TestASourceIsConsumedWhileItIsEnabled(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.commits()
	w.process()
	w.produce(`{"type":"page","userId":"one"}`)
	w.consumed("nothing") // a mapping that there is not
	on, off := true, false
	sources := collector.NewSourceStore(w.pool)
	enable := func(enabled *bool) {
		t.Helper()
		if _, err := sources.Update(t.Context(), 1, "shop", collector.SourceUpdate{Enabled: enabled}); err != nil {
			t.Fatal(err)
		}
	}
	w.consumed("")
	w.until("the first", func() bool { _, copies := w.stored(); return len(copies) == 1 })
	enable(&off)
	w.until("nobody to be in the group", func() bool { return w.members() == 0 })
	w.produce(`{"type":"page","userId":"two"}`)
	if _, copies := w.stored(); len(copies) != 1 {
		t.Errorf("stored %v of a source that is disabled", copies)
	}
	enable(&on)
	w.until("the second", func() bool { _, copies := w.stored(); return len(copies) == 2 })
}

// members returns how many members the group has.
func (w *world) members() int {
	w.t.Helper()
	info := w.cluster.GroupInfo("g")
	if info == nil {
		return 0
	}
	return len(info.Members)
}

func TestWhatIsWrongWithSettingsIsPointedAt(t *testing.T) {
	t.Parallel()
	good := kafka.Settings{Brokers: []string{"k:9092"}, Topics: []string{"a"}, Start: kafka.Latest}
	if faults := good.Check(kafka.Secrets{}); len(faults) > 0 {
		t.Errorf("good settings: %v", faults)
	}
	for want, change := range map[string]func(*kafka.Settings, *kafka.Secrets){
		"/brokers":             func(s *kafka.Settings, _ *kafka.Secrets) { s.Brokers = nil },
		"/brokers/0":           func(s *kafka.Settings, _ *kafka.Secrets) { s.Brokers = []string{"k"} },
		"/topics":              func(s *kafka.Settings, _ *kafka.Secrets) { s.Topics = nil },
		"/topics/1":            func(s *kafka.Settings, _ *kafka.Secrets) { s.Topics = []string{"a", "a"} },
		"/topics/0":            func(s *kafka.Settings, _ *kafka.Secrets) { s.Topics = []string{"a b"} },
		"/start":               func(s *kafka.Settings, _ *kafka.Secrets) { s.Start = "middle" },
		"/sasl":                func(s *kafka.Settings, _ *kafka.Secrets) { s.SASL = "gssapi" },
		"/username":            func(s *kafka.Settings, _ *kafka.Secrets) { s.SASL = kafka.ScramSHA512 },
		"/secrets/password":    func(s *kafka.Settings, _ *kafka.Secrets) { s.SASL, s.Username = kafka.ScramSHA512, "u" },
		"/tls":                 func(s *kafka.Settings, x *kafka.Secrets) { s.SASL, s.Username, x.Password = kafka.Plain, "u", "p" },
		"/ca":                  func(s *kafka.Settings, _ *kafka.Secrets) { s.TLS, s.CA = true, "x" },
		"/secrets/certificate": func(s *kafka.Settings, x *kafka.Secrets) { s.TLS, x.Key = true, "x" },
	} {
		s, x := good, kafka.Secrets{}
		change(&s, &x)
		if faults := s.Check(x); len(faults) != 1 || faults[0].Pointer != want {
			t.Errorf("%s: %v", want, faults)
		}
	}
}
