package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/collector/mapping"
)

const (
	reconcileEvery = time.Second
	forgetEvery    = time.Hour
	maxRecords     = 1000
	maxFetch       = 16 << 20 // bytes of all partitions
	patience       = 20 * time.Second
	maxPause       = 30 * time.Second
	commitPatience = 5 * time.Second
	session        = 10 * time.Second // then a process that was killed is missed, and others get its partitions
)

// Ports are those on which Kafka is usually served, in plain and over TLS, by those who sell it, too.
var Ports = []uint16{443, 9092, 9093, 9094, 9095, 9096, 9097, 9098, 9192, 9194, 9196, 9198, 19092, 29092}

// Dial connects to a broker.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// Consumers consume the topics of all sources of type kafka, each with a member of the source's group.
type Consumers struct {
	store  *Store
	intake *collector.Intake
	dial   Dial
	log    *slog.Logger

	records *prometheus.CounterVec
}

// NewConsumers returns the consumers of the sources in store, which connect by dial and hand on to intake.
func NewConsumers(store *Store, intake *collector.Intake, dial Dial, reg prometheus.Registerer, log *slog.Logger) *Consumers {
	c := &Consumers{store: store, intake: intake, dial: dial, log: log, records: promauto.With(reg).NewCounterVec(prometheus.CounterOpts{
		Name: "mubatch_collector_kafka_records_total",
		Help: "Records of topics, by what became of them; one that is read again counts again.",
	}, []string{"result"})}
	for _, result := range []string{recordTaken, recordRejected, recordSkipped} {
		c.records.WithLabelValues(result)
	}
	return c
}

// running is a source that is being consumed.
type running struct {
	version string
	stop    context.CancelFunc
	done    chan struct{}
}

func (r *running) end() {
	r.stop()
	<-r.done
}

// Run consumes until ctx ends, and returns nil. A source that is new, changed or disabled is noticed within seconds. What goes
// wrong with one does not concern the others, and is tried again.
func (c *Consumers) Run(ctx context.Context) error {
	tick := time.NewTicker(reconcileEvery)
	defer tick.Stop()
	all := map[int32]*running{}
	defer func() {
		for _, r := range all {
			r.stop()
		}
		for _, r := range all {
			<-r.done
		}
	}()
	healthy := true
	var forgotten time.Time
	for {
		if time.Since(forgotten) > forgetEvery {
			forgotten = time.Now()
			if err := c.store.forget(ctx); err != nil && ctx.Err() == nil {
				c.log.WarnContext(ctx, "old kafka records stay, will try again", "err", err)
			}
		}
		list, err := c.store.wanted(ctx)
		if healthy != (err == nil) && ctx.Err() == nil {
			if healthy = err == nil; !healthy {
				c.log.WarnContext(ctx, "kafka sources cannot be read, going on with those known", "err", err)
			}
		}
		if err == nil {
			c.reconcile(ctx, all, list)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// reconcile has the sources in list consumed, as they are now, and no others.
func (c *Consumers) reconcile(ctx context.Context, all map[int32]*running, list []wanted) {
	now := map[int32]bool{}
	for _, w := range list {
		id := w.grant.SourceID
		now[id] = true
		if r := all[id]; r != nil {
			if r.version == w.version {
				continue
			}
			r.end()
		}
		ctx, stop := context.WithCancel(ctx)
		r := &running{version: w.version, stop: stop, done: make(chan struct{})}
		all[id] = r
		go func() {
			defer close(r.done)
			c.keepConsuming(ctx, w)
		}()
	}
	for id, r := range all {
		if !now[id] {
			r.end()
			delete(all, id)
		}
	}
}

// keepConsuming consumes a source until ctx ends.
func (c *Consumers) keepConsuming(ctx context.Context, w wanted) {
	pause := time.Second
	for ctx.Err() == nil {
		begun := time.Now()
		err := c.consume(ctx, w)
		if ctx.Err() != nil {
			return
		}
		if time.Since(begun) > time.Minute {
			pause = time.Second
		}
		c.log.WarnContext(ctx, "a kafka source is not consumed, will try again", "source", w.grant.SourceID, "in", pause, "err", err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		pause = min(2*pause, maxPause)
	}
}

// consume is one membership in the group, until ctx ends or something goes wrong. Whatever is not committed by then is read
// again.
func (c *Consumers) consume(ctx context.Context, w wanted) error {
	if w.err != nil {
		return w.err
	}
	t := translator{}
	if w.settings.Mapping != "" {
		if w.missing {
			return fmt.Errorf("there is no mapping %q", w.settings.Mapping)
		}
		var err error
		if t.program, err = mapping.Compile([]byte(w.document)); err != nil {
			return fmt.Errorf("mapping %q: %w", w.settings.Mapping, err)
		}
	}
	options, err := c.options(w)
	if err != nil {
		return err
	}
	client, err := kgo.NewClient(options...)
	if err != nil {
		return fmt.Errorf("kafka client: %w", err)
	}
	defer leave(client)
	if t.names, err = nameTopics(ctx, client, w.settings.Topics); err != nil {
		return err
	}
	for {
		fetches := client.PollRecords(ctx, maxRecords)
		if ctx.Err() != nil {
			return nil
		}
		records := fetches.Records()
		if len(records) == 0 {
			if err := fetches.Err(); err != nil {
				return fmt.Errorf("read topics: %w", err)
			}
		}
		if err := c.take(ctx, w.grant, &t, records); err != nil {
			return err
		}
		if err := commit(ctx, client, records); err != nil {
			return err
		}
		client.AllowRebalance() // not before: nobody else may begin where we have not ended
	}
}

// leave ends a membership, so that others get its partitions at once if the cluster hears of it.
func leave(client *kgo.Client) {
	ctx, cancel := context.WithTimeout(context.Background(), commitPatience)
	defer cancel()
	client.AllowRebalance()
	_ = client.LeaveGroupContext(ctx) // otherwise the session runs out
	client.Close()
}

// commit commits the offsets behind records that are durable, also if ctx has ended since they became so.
func commit(ctx context.Context, client *kgo.Client, records []*kgo.Record) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitPatience)
	defer cancel()
	if err := client.CommitRecords(ctx, records...); err != nil {
		return fmt.Errorf("commit offsets: %w", err)
	}
	return nil
}

func (c *Consumers) options(w wanted) ([]kgo.Opt, error) {
	s := w.settings
	start := kgo.NewOffset().AtStart()
	if s.Start == Latest {
		start = kgo.NewOffset().AtEnd()
	}
	options := []kgo.Opt{
		kgo.SeedBrokers(s.Brokers...),
		kgo.ClientID("mubatch"),
		kgo.ConsumerGroup(s.Group),
		kgo.ConsumeTopics(s.Topics...),
		kgo.ConsumeResetOffset(start),
		kgo.DisableAutoCommit(),
		kgo.SessionTimeout(session),
		kgo.RebalanceTimeout(patience + 2*commitPatience),
		kgo.BlockRebalanceOnPoll(),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.FetchMaxBytes(maxFetch),
		kgo.MaxConcurrentFetches(4),
	}
	dial := c.dial
	if s.TLS {
		cfg, err := s.tlsConfig(w.secrets)
		if err != nil {
			return nil, err
		}
		dial = overTLS(dial, cfg)
	}
	options = append(options, kgo.Dialer(dial))
	switch s.SASL {
	case Plain:
		options = append(options, kgo.SASL(plain.Auth{User: s.Username, Pass: w.secrets.Password}.AsMechanism()))
	case ScramSHA256:
		options = append(options, kgo.SASL(scram.Auth{User: s.Username, Pass: w.secrets.Password}.AsSha256Mechanism()))
	case ScramSHA512:
		options = append(options, kgo.SASL(scram.Auth{User: s.Username, Pass: w.secrets.Password}.AsSha512Mechanism()))
	}
	return options, nil
}

// nameTopics returns names of topics that no other topic ever has: with the ids of the cluster and, from Kafka 2.8 on, of
// the topic, so that one which is deleted and made again is another.
func nameTopics(ctx context.Context, client *kgo.Client, topics []string) (map[string]string, error) {
	request := kmsg.NewPtrMetadataRequest()
	for _, topic := range topics {
		t := kmsg.NewMetadataRequestTopic()
		t.Topic = kmsg.StringPtr(topic)
		request.Topics = append(request.Topics, t)
	}
	response, err := request.RequestWith(ctx, client)
	if err != nil {
		return nil, fmt.Errorf("ask for topics: %w", err)
	}
	cluster := ""
	if response.ClusterID != nil {
		cluster = *response.ClusterID
	}
	names := map[string]string{}
	for _, t := range response.Topics {
		if t.Topic == nil {
			continue
		}
		if t.ErrorCode != 0 {
			return nil, fmt.Errorf("topic %s: %w", *t.Topic, kerr.ErrorForCode(t.ErrorCode))
		}
		name := *t.Topic
		if t.TopicID != ([16]byte{}) {
			name += fmt.Sprintf("-%x", t.TopicID)
		}
		names[*t.Topic] = cluster + "/" + name
	}
	return names, nil
}

// take makes the events of records durable and sets aside what cannot become any. After an error nothing is known of any.
func (c *Consumers) take(ctx context.Context, g collector.Grant, t *translator, records []*kgo.Record) error {
	var rejected []Rejected
	reject := func(r *kgo.Record, code, reason string) {
		if n := len(rejected); n > 0 && rejected[n-1].Topic == r.Topic && rejected[n-1].Partition == r.Partition && rejected[n-1].Offset == r.Offset {
			return // one reason is enough
		}
		rejected = append(rejected, Rejected{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Code: code, Reason: reason, Record: r.Value})
	}
	var batch batch
	for i, r := range records {
		events, code, reason := t.events(r)
		if code != "" {
			reject(r, code, reason)
		} else if len(events) == 0 {
			c.records.WithLabelValues(recordSkipped).Inc()
			continue
		}
		for _, e := range events {
			batch.add(e, i)
			if !batch.full() {
				continue
			}
			if err := c.hand(ctx, g, &batch, records, reject); err != nil {
				return err
			}
		}
	}
	if err := c.hand(ctx, g, &batch, records, reject); err != nil {
		return err
	}
	err := persist(ctx, func() error { return c.store.reject(ctx, g, rejected) }, func(error) bool { return true })
	if err != nil {
		return err
	}
	c.records.WithLabelValues(recordRejected).Add(float64(len(rejected)))
	return nil
}

// What becomes of a record.
const (
	recordTaken    = "taken"
	recordRejected = "rejected"
	recordSkipped  = "skipped" // no event is made of it
)

// batch is events that are brought at once.
type batch struct {
	events [][]byte
	of     []int // which record each is of
	bytes  int
}

func (b *batch) add(event []byte, of int) {
	b.events, b.of, b.bytes = append(b.events, event), append(b.of, of), b.bytes+len(event)
}

func (b *batch) full() bool { return len(b.events) >= 500 || b.bytes >= 2<<20 }

// hand brings what is in a batch, until it is taken in or patience ends.
func (c *Consumers) hand(ctx context.Context, g collector.Grant, b *batch, records []*kgo.Record, reject func(r *kgo.Record, code, reason string)) error {
	if len(b.events) == 0 {
		return nil
	}
	var results []collector.Result
	err := persist(ctx, func() (err error) {
		results, err = c.intake.Take(ctx, g, time.Now(), b.events)
		return err
	}, func(err error) bool {
		return errors.Is(err, collector.ErrBusy) || errors.Is(err, collector.ErrUnavailable)
	})
	if err != nil {
		return err
	}
	last := -1
	for i, res := range results {
		if res.Status == collector.Rejected {
			reject(records[b.of[i]], res.Code, res.Pointer+" "+res.Reason)
		} else if last != b.of[i] {
			last = b.of[i]
			c.records.WithLabelValues(recordTaken).Inc()
		}
	}
	*b = batch{}
	return nil
}

// persist does something again while it fails with what heals by itself. Patience is shorter than Kafka waits for a member
// that holds up a rebalance.
func persist(ctx context.Context, do func() error, heals func(error) bool) error {
	deadline := time.Now().Add(patience)
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		err := do()
		if err == nil || ctx.Err() != nil || !heals(err) || time.Now().After(deadline) {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
