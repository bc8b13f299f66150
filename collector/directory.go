package collector

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/mubatch/mubatch/collector/plan"
	"github.com/mubatch/mubatch/profiles"
)

var (
	// ErrUnknownKey says that no source takes events under a write key: it never was one, it was revoked, or its
	// source is disabled.
	ErrUnknownKey = errors.New("unknown write key")
	// ErrNoDirectory says that the directory cannot tell now whether it knows a write key.
	ErrNoDirectory = errors.New("the directory of write keys cannot be read")
	// ErrOnlyWebhooks says that a write key is that of a source of webhooks, which takes nothing else.
	ErrOnlyWebhooks = errors.New("the write key is for webhooks only")
)

// Grant is what a write key allows: to send events to one source.
type Grant struct {
	KeyID       int32           `db:"key_id" json:"key_id"`
	Key         string          `db:"key" json:"key"`
	SourceID    int32           `db:"source_id" json:"source_id"`
	WorkspaceID int32           `db:"workspace_id" json:"workspace_id"`
	Secret      profiles.Secret `db:"secret" json:"secret"` // the workspace's
	Settings    SourceSettings  `db:"settings" json:"settings"`

	// Of a source of webhooks: its mapping, if it is one of the workspace's, and its secrets, as they are sealed, with the
	// numbers they have.
	WebhookMapping   string   `db:"webhook_mapping" json:"webhook_mapping,omitempty"`
	WebhookSecretIDs []int32  `db:"webhook_secret_ids" json:"webhook_secret_ids,omitempty"`
	WebhookSecrets   [][]byte `db:"webhook_secrets" json:"webhook_secrets,omitempty"`

	used *atomic.Bool // since last_used_at was written
	plan trackingPlan // of the source
}

const (
	directoryRefresh  = time.Second
	directoryMinPause = 100 * time.Millisecond // between two reads that unknown keys ask for
	directoryTimeout  = 2 * time.Second
	directorySave     = time.Minute // also if nothing has changed: the file tells its age
)

// Directory is the write keys in memory, so that intake asks nobody. It follows the tables within a second, at once for
// a key that is new, and goes on without Postgres on what it knows, which a file carries over restarts.
type Directory struct {
	cfg  Config
	pool *pgxpool.Pool
	log  *slog.Logger

	snapshot atomic.Pointer[directorySnapshot]

	mu   sync.Mutex
	next *directoryRead // what those who wait for a read that has not begun wait for
	turn chan struct{}  // one read at a time
	last time.Time      // when a read began; whoever has the turn

	webhooks sync.Map // of *webhookCounts, by the id of the source

	// Of Run alone:
	saved     []Grant
	planned   []directorySchema // saved
	savedAt   time.Time
	countedAt time.Time
}

type directorySnapshot struct {
	asOf   time.Time
	grants map[string]Grant
	list   []Grant         // in the order of their ids
	hooks  map[int32]*hook // of the sources of webhooks, by their ids
	plans  []directorySchema

	compiled map[int32]trackingPlan // plans, by the sources
}

// directorySchema is a schema of a source's plan.
type directorySchema struct {
	ID       int32  `db:"id" json:"id"`
	SourceID int32  `db:"source_id" json:"source_id"`
	Type     string `db:"type" json:"type"`
	Event    string `db:"event" json:"event"`
	Action   string `db:"action" json:"action"`
	Version  int    `db:"version" json:"version"`
	Schema   []byte `db:"schema" json:"schema"` // nil where it is that of the snapshot before

	compiled *plan.Schema // nil if it cannot be
}

type directoryRead struct {
	done chan struct{}
	err  error
}

// NewDirectory returns the directory of the write keys in pool's database, as the file of cfg knows it, if there is
// one. It does not ask Postgres; [Directory.Run] does.
func NewDirectory(cfg Config, pool *pgxpool.Pool, reg prometheus.Registerer, log *slog.Logger) *Directory {
	d := &Directory{cfg: cfg.withDefaults(), pool: pool, log: log, turn: make(chan struct{}, 1)}
	d.snapshot.Store(&directorySnapshot{})
	if err := d.load(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warn("the file of write keys is not used", "err", err)
	}
	promauto.With(reg).NewGaugeFunc(prometheus.GaugeOpts{
		Name: "mubatch_collector_directory_age_seconds",
		Help: "How long ago the write keys in memory were read from Postgres.",
	}, func() float64 { return time.Since(d.AsOf()).Seconds() })
	return d
}

// AsOf returns when the write keys were read from Postgres, or the zero time if they never were.
func (d *Directory) AsOf() time.Time { return d.snapshot.Load().asOf }

// Usable tells whether the write keys are known, from Postgres or from the file, and not too old to be used.
func (d *Directory) Usable() bool { return time.Since(d.AsOf()) <= d.cfg.DirectoryMaxAge }

// Lookup returns what key allows. ErrUnknownKey is certain: Postgres has been asked since the call, unless key is
// not even well-formed. If it cannot be asked, the answer is ErrNoDirectory. The key of a source of webhooks lets nobody in
// beside them: it is ErrOnlyWebhooks.
func (d *Directory) Lookup(ctx context.Context, key string) (Grant, error) {
	g, err := d.lookup(ctx, key)
	if err == nil && g.Settings.Webhook != nil {
		return Grant{}, ErrOnlyWebhooks
	}
	return g, err
}

func (d *Directory) lookup(ctx context.Context, key string) (Grant, error) {
	if g, ok := d.find(key); ok {
		return g, nil
	}
	if time.Since(d.AsOf()) < d.cfg.DirectoryMaxAge && !wellFormed(key) {
		return Grant{}, ErrUnknownKey
	}
	if err := d.refresh(ctx); err != nil {
		return Grant{}, fmt.Errorf("%w: %w", ErrNoDirectory, err)
	}
	if g, ok := d.find(key); ok {
		return g, nil
	}
	return Grant{}, ErrUnknownKey
}

func (d *Directory) find(key string) (Grant, bool) {
	s := d.snapshot.Load()
	g, ok := s.grants[key]
	if !ok || time.Since(s.asOf) > d.cfg.DirectoryMaxAge {
		return Grant{}, false
	}
	if !g.used.Load() {
		g.used.Store(true)
	}
	return g, true
}

// planOf returns the plan of a source, whether it has write keys or not.
func (d *Directory) planOf(source int32) (trackingPlan, error) {
	if !d.Usable() {
		return nil, ErrNoDirectory
	}
	return d.snapshot.Load().compiled[source], nil
}

// Run keeps the directory up to date until ctx ends, and returns nil.
func (d *Directory) Run(ctx context.Context) error {
	tick := time.NewTicker(directoryRefresh)
	defer tick.Stop()
	ok := true
	for {
		err := d.refresh(ctx)
		if err == nil {
			d.save(ctx)
			d.count(ctx)
			d.countWebhooks(ctx)
		}
		if ok != (err == nil) && ctx.Err() == nil {
			if ok = err == nil; ok {
				d.log.InfoContext(ctx, "write keys can be read again")
			} else {
				d.log.WarnContext(ctx, "write keys cannot be read, going on with those known", "as_of", d.AsOf(), "err", err)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// refresh returns when a read that began after the call has ended. Those who call at once share one.
func (d *Directory) refresh(ctx context.Context) error {
	d.mu.Lock()
	read := d.next
	if read == nil {
		read = &directoryRead{done: make(chan struct{})}
		d.next = read
		go d.read(context.WithoutCancel(ctx), read) // ends within its timeouts, also if the caller has gone
	}
	d.mu.Unlock()
	select {
	case <-read.done:
		return read.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (d *Directory) read(ctx context.Context, read *directoryRead) {
	d.turn <- struct{}{}
	defer func() { <-d.turn }()
	time.Sleep(directoryMinPause - time.Since(d.last))
	d.last = time.Now()
	d.mu.Lock()
	d.next = nil // from here on it is too late to join
	d.mu.Unlock()

	ctx, cancel := context.WithTimeout(ctx, directoryTimeout)
	defer cancel()
	const query = `
		SELECT k.id AS key_id, k.key, s.id AS source_id, w.id AS workspace_id, w.secret, s.settings,
		       coalesce((
		           SELECT m.document
		           FROM mappings AS m
		           WHERE m.workspace_id = w.id AND s.settings #>> '{webhook,mapping}' IN (m.key, 'map_' || m.id)
		           ORDER BY m.key = s.settings #>> '{webhook,mapping}' DESC
		           LIMIT 1), '') AS webhook_mapping,
		       h.ids AS webhook_secret_ids, h.sealed AS webhook_secrets
		FROM write_keys AS k
		JOIN sources AS s ON s.id = k.source_id
		JOIN workspaces AS w ON w.id = s.workspace_id
		LEFT JOIN (
			SELECT source_id, array_agg(id ORDER BY id) AS ids, array_agg(sealed ORDER BY id) AS sealed
			FROM webhook_secrets
			GROUP BY source_id) AS h ON h.source_id = s.id
		WHERE k.revoked_at IS NULL AND s.enabled
		ORDER BY k.id`
	rows, _ := d.pool.Query(ctx, query) // err: below
	list, err := pgx.CollectRows(rows, pgx.RowToStructByNameLax[Grant])
	var plans []directorySchema
	if err == nil {
		plans, err = d.readPlans(ctx)
	}
	if err != nil {
		read.err = fmt.Errorf("read write keys: %w", err)
	} else {
		d.use(list, plans, d.last)
	}
	close(read.done)
}

// readPlans returns the schemas of all plans. The text of those that are known already stays where it is.
func (d *Directory) readPlans(ctx context.Context) ([]directorySchema, error) {
	const query = `
		SELECT s.id, s.source_id, s.type, s.event, s.action, s.version,
		       CASE WHEN k.id IS NULL THEN convert_to(s.schema, 'UTF8') END AS schema
		FROM source_schemas AS s
		LEFT JOIN unnest(@ids::integer[], @versions::integer[]) AS k (id, version) ON k.id = s.id AND k.version = s.version
		ORDER BY s.id`
	var ids, versions []int32
	for _, s := range d.snapshot.Load().plans {
		ids, versions = append(ids, s.ID), append(versions, int32(s.Version))
	}
	rows, _ := d.pool.Query(ctx, query, pgx.StrictNamedArgs{"ids": ids, "versions": versions}) // err: below
	return pgx.CollectRows(rows, pgx.RowToStructByNameLax[directorySchema])
}

// use makes list the snapshot, with the plans of the sources.
func (d *Directory) use(list []Grant, plans []directorySchema, asOf time.Time) {
	last := d.snapshot.Load()
	s := &directorySnapshot{
		asOf: asOf, grants: make(map[string]Grant, len(list)), list: list, hooks: d.hooks(list, last.hooks), plans: plans,
	}
	s.compiled = d.compile(plans, last.plans)
	for i := range list {
		list[i].plan = s.compiled[list[i].SourceID]
		list[i].used = last.grants[list[i].Key].used
		if list[i].used == nil {
			list[i].used = new(atomic.Bool)
		}
		s.grants[list[i].Key] = list[i]
	}
	d.snapshot.Store(s)
}

// compile returns the plans of sources by their ids. What was compiled before is not compiled again.
func (d *Directory) compile(plans, before []directorySchema) map[int32]trackingPlan {
	known := make(map[int32]directorySchema, len(before))
	for _, s := range before {
		known[s.ID] = s
	}
	bySource := map[int32]trackingPlan{}
	for i := range plans {
		s := &plans[i]
		if k, ok := known[s.ID]; ok && k.Version == s.Version {
			s.Schema, s.compiled = k.Schema, k.compiled
		} else if compiled, err := plan.Compile(s.Schema); err != nil { // it could be when it was saved
			d.log.Error("a schema cannot be compiled any more, its events are not checked", "schema", s.ID, "version", s.Version)
		} else {
			s.compiled = compiled
		}
		if s.compiled == nil {
			continue
		}
		if bySource[s.SourceID] == nil {
			bySource[s.SourceID] = trackingPlan{}
		}
		bySource[s.SourceID][planned{s.Type, s.Event}] = planSchema{s.compiled, s.Action}
	}
	return bySource
}

// count notes which keys have been used, once a minute.
func (d *Directory) count(ctx context.Context) {
	if time.Since(d.countedAt) < time.Minute {
		return
	}
	var used []int32
	var flags []*atomic.Bool
	for _, g := range d.snapshot.Load().list {
		if g.used.Load() {
			used, flags = append(used, g.KeyID), append(flags, g.used)
		}
	}
	if len(used) == 0 {
		return
	}
	const query = `
		UPDATE write_keys
		SET last_used_at = now()
		WHERE id = ANY (@used::integer[])`
	ctx, cancel := context.WithTimeout(ctx, directoryTimeout)
	defer cancel()
	if _, err := d.pool.Exec(ctx, query, pgx.StrictNamedArgs{"used": used}); err != nil {
		d.log.WarnContext(ctx, "the use of write keys could not be noted", "err", err)
		return
	}
	d.countedAt = time.Now()
	for _, f := range flags {
		f.Store(false)
	}
}

// directoryFile is what the file holds. The secrets in it are why nobody else may read it.
type directoryFile struct {
	AsOf   time.Time `json:"as_of"`
	Lanes  int       `json:"lanes"`
	Grants []Grant   `json:"grants"`

	Plans []directorySchema `json:"plans,omitempty"`
}

func (d *Directory) load() error {
	if d.cfg.DirectoryFile == "" {
		return nil
	}
	b, err := os.ReadFile(d.cfg.DirectoryFile)
	if err != nil {
		return err
	}
	var file directoryFile
	if err := json.Unmarshal(b, &file); err != nil {
		return fmt.Errorf("read %s: %w", d.cfg.DirectoryFile, err)
	}
	if file.Lanes != d.cfg.Lanes { // Postgres cannot be asked who is right, and events in lanes that nobody reads are lost
		return fmt.Errorf("read %s: it is of an installation with %d lanes, the configuration says %d", d.cfg.DirectoryFile, file.Lanes, d.cfg.Lanes)
	}
	d.use(file.Grants, file.Plans, file.AsOf)
	return nil
}

// save writes the file if the keys have changed or it has grown old. A crash leaves the old file or the new one.
func (d *Directory) save(ctx context.Context) {
	s := d.snapshot.Load()
	if d.cfg.DirectoryFile == "" || time.Since(d.savedAt) < directorySave && reflect.DeepEqual(d.saved, s.list) && samePlans(d.planned, s.plans) {
		return
	}
	err := func() error {
		b, err := json.Marshal(directoryFile{AsOf: s.asOf, Lanes: d.cfg.Lanes, Grants: s.list, Plans: s.plans})
		if err != nil {
			return err
		}
		f, err := os.CreateTemp(filepath.Dir(d.cfg.DirectoryFile), filepath.Base(d.cfg.DirectoryFile)+".*") // mode 0600
		if err != nil {
			return err
		}
		_, err = f.Write(b)
		if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
			err = os.Rename(f.Name(), d.cfg.DirectoryFile)
		}
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
		return err
	}()
	if err != nil {
		d.log.WarnContext(ctx, "the file of write keys could not be written", "err", err)
		return
	}
	d.saved, d.planned, d.savedAt = s.list, s.plans, time.Now()
}

// samePlans tells whether two lists hold the same versions of the same schemas.
func samePlans(a, b []directorySchema) bool {
	return slices.EqualFunc(a, b, func(x, y directorySchema) bool { return x.ID == y.ID && x.Version == y.Version })
}
