package files

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"golang.org/x/sync/errgroup"

	"github.com/mubatch/mubatch/collector"
)

// Config tunes a runner. Zero fields mean the defaults.
type Config struct {
	Folder string            // from which every workspace may import; none if empty
	Client http.RoundTripper // for buckets
	Lease  time.Duration     // how long an import stays with a process that is not heard of: 6 s
	MaxLag time.Duration     // how far lanes may be behind before an import waits for them: 2 s
	Poll   time.Duration     // how often imports to work on are looked for: 1 s
	AtOnce int               // imports this process works on at once: 2
	Batch  int               // rows that become durable together: 1,000
}

func (c Config) withDefaults() Config {
	c.Lease = cmp.Or(c.Lease, 6*time.Second)
	c.MaxLag = cmp.Or(c.MaxLag, 2*time.Second)
	c.Poll = cmp.Or(c.Poll, time.Second)
	c.AtOnce = cmp.Or(c.AtOnce, 2)
	c.Batch = cmp.Or(c.Batch, 1000)
	return c
}

type intake interface { // *collector.Intake is the real one
	Take(ctx context.Context, from collector.Grant, received time.Time, events [][]byte) ([]collector.Result, error)
}

type freshness interface { // *profiles.Reader is the real one
	AsOf(ctx context.Context) (time.Time, error)
}

// Runner works on imports, beside others on the same database.
type Runner struct {
	cfg   Config
	pool  *pgxpool.Pool
	keys  Keys
	in    intake
	lanes freshness
	log   *slog.Logger
	rows  *prometheus.CounterVec

	listings sync.Map // by the id of a watched import: a hash of what was found last
}

// NewRunner returns a runner that hands events to in, no faster than lanes shows that they are applied.
func NewRunner(cfg Config, pool *pgxpool.Pool, keys Keys, in intake, lanes freshness, reg prometheus.Registerer, log *slog.Logger) *Runner {
	r := &Runner{
		cfg: cfg.withDefaults(), pool: pool, keys: keys, in: in, lanes: lanes, log: log,
		rows: promauto.With(reg).NewCounterVec(prometheus.CounterOpts{
			Name: "mubatch_files_rows_total",
			Help: "Rows of imported files, by what became of them.",
		}, []string{"result"}),
	}
	for _, result := range []string{"accepted", "rejected", "skipped"} {
		r.rows.WithLabelValues(result)
	}
	return r
}

// Run works on imports until ctx ends, and returns nil. What it leaves, another process goes on with at once.
func (r *Runner) Run(ctx context.Context) error {
	var g errgroup.Group
	for range r.cfg.AtOnce {
		g.Go(func() error { r.work(ctx); return nil })
	}
	g.Go(func() error { r.clean(ctx); return nil })
	return g.Wait()
}

// work takes one import after the other.
func (r *Runner) work(ctx context.Context) {
	for ctx.Err() == nil {
		j, err := r.claim(ctx)
		if err == nil && j != nil {
			r.do(ctx, j)
			continue
		}
		if err != nil && ctx.Err() == nil {
			r.log.WarnContext(ctx, "imports cannot be looked for, will retry", "err", err)
		}
		sleep(ctx, r.cfg.Poll)
	}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

const (
	keepRejects = 7 * 24 * time.Hour  // rejected rows, which are people's data
	keepUploads = 30 * 24 * time.Hour // those that nobody completes, and of imports that have failed
)

// clean forgets what is not needed any more.
func (r *Runner) clean(ctx context.Context) {
	for ctx.Err() == nil {
		if err := r.forget(ctx); err != nil && ctx.Err() == nil {
			r.log.WarnContext(ctx, "old imports could not be cleaned, will retry", "err", err)
		}
		sleep(ctx, time.Hour)
	}
}

// forget deletes what is too old. An import that goes on has room for as many newer rejected rows.
func (r *Runner) forget(ctx context.Context) error {
	const rejects = `
		WITH gone AS (
			DELETE FROM import_rejects
			WHERE rejected_at < now() - @keep::interval
			RETURNING import_id
		)
		UPDATE imports AS i
		SET kept = greatest(i.kept - n.rows, 0)
		FROM (SELECT import_id, count(*) AS rows FROM gone GROUP BY import_id) AS n
		WHERE i.id = n.import_id`
	if _, err := r.pool.Exec(ctx, rejects, pgx.StrictNamedArgs{"keep": keepRejects}); err != nil {
		return fmt.Errorf("forget rejected rows: %w", err)
	}
	const uploads = `
		WITH old AS (
			SELECT id
			FROM imports
			WHERE coalesce(finished_at, CASE WHEN state = 'uploading' THEN created_at END) < now() - @keep::interval
		), chunks AS (
			DELETE FROM import_chunks WHERE import_id IN (SELECT id FROM old)
		)
		UPDATE imports
		SET state = 'cancelled', finished_at = now()
		WHERE state = 'uploading' AND id IN (SELECT id FROM old)`
	if _, err := r.pool.Exec(ctx, uploads, pgx.StrictNamedArgs{"keep": keepUploads}); err != nil {
		return fmt.Errorf("forget uploads: %w", err)
	}
	return nil
}

// job is an import that this process works on.
type job struct {
	ID          int64
	WorkspaceID int32
	SourceID    int32
	URL         string
	Format      Format
	Mapping     string
	S3          S3
	S3Secret    []byte
	Rate        int
	Watch       *Watch
	Digest      string
	Attempts    int

	owner string
}

// claim takes an import that nobody works on, or returns nil: one of the workspace of which the fewest are worked on.
func (r *Runner) claim(ctx context.Context) (*job, error) {
	const query = `
		UPDATE imports
		SET lease_owner = @owner, lease_until = now() + @lease::interval, state = 'running', started_at = coalesce(started_at, now())
		WHERE id = (
			SELECT i.id
			FROM imports AS i
			WHERE i.state IN ('queued', 'running') AND i.next_at <= now() AND coalesce(i.lease_until <= now(), true)
			ORDER BY (
				SELECT count(*)
				FROM imports AS other
				WHERE other.workspace_id = i.workspace_id AND other.state = 'running' AND other.lease_until > now()
			), i.next_at
			LIMIT 1
			FOR UPDATE SKIP LOCKED)
		RETURNING id, workspace_id, source_id, url, format, mapping, s3, s3_secret, rate, watch, digest, attempts`
	owner := rand.Text()
	rows, _ := r.pool.Query(ctx, query, pgx.StrictNamedArgs{"owner": owner, "lease": r.cfg.Lease}) // err: below
	j, err := pgx.CollectExactlyOneRow(rows, pgx.RowToAddrOfStructByName[job])
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("claim an import: %w", err)
	}
	j.owner = owner
	return j, nil
}

// errTaken says that somebody has paused or cancelled an import, or another process works on it.
var errTaken = errors.New("the import is not ours any more")

// do works on an import until it is done, cannot go on, or is not ours any more.
func (r *Runner) do(ctx context.Context, j *job) {
	working, stop := context.WithCancelCause(ctx)
	var beats sync.WaitGroup
	beats.Go(func() { r.keepLease(working, stop, j) })
	err := r.run(working, j)
	if cause := context.Cause(working); cause != nil && ctx.Err() == nil {
		err = cause
	}
	stop(nil)
	beats.Wait()

	// What becomes of it is to be told also when the process ends.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	var bad *FileError
	switch {
	case errors.Is(err, errTaken):
		err = r.release(ctx, j, "", 0, 0)
	case errors.Is(err, context.Canceled): // the process ends
		err = r.release(ctx, j, "", 0, 0)
	case errors.As(err, &bad) && j.Watch == nil:
		err = r.finish(ctx, j, Failed, bad.Reason)
	case err != nil:
		pause := min(time.Second<<min(j.Attempts, 8), 5*time.Minute)
		r.log.WarnContext(ctx, "an import waits", "import", j.ID, "due_in", pause, "err", err)
		reason := "the file cannot be read for now"
		if bad != nil {
			reason = bad.Reason
		}
		err = r.release(ctx, j, reason, pause, j.Attempts+1)
	case j.Watch != nil:
		err = r.release(ctx, j, "", j.Watch.Every, 0)
	default:
		err = r.conclude(ctx, j)
	}
	if err != nil { // the lease ends by itself
		r.log.WarnContext(ctx, "what became of an import could not be told", "import", j.ID, "err", err)
	}
}

// keepLease renews the lease until ctx ends, and stops the work if the import is not ours any more.
func (r *Runner) keepLease(ctx context.Context, stop context.CancelCauseFunc, j *job) {
	const query = `
		UPDATE imports
		SET lease_until = now() + @lease::interval
		WHERE id = @id AND lease_owner = @owner AND state = 'running'`
	until := time.Now().Add(r.cfg.Lease)
	for {
		if sleep(ctx, min(r.cfg.Lease/5, time.Second)); ctx.Err() != nil {
			return
		}
		began := time.Now()
		renewing, cancel := context.WithDeadline(ctx, until)
		tag, err := r.pool.Exec(renewing, query, pgx.StrictNamedArgs{"id": j.ID, "owner": j.owner, "lease": r.cfg.Lease})
		cancel()
		switch {
		case err == nil && tag.RowsAffected() == 0, err != nil && time.Now().After(until):
			stop(errTaken)
			return
		case err == nil:
			until = began.Add(r.cfg.Lease)
		}
	}
}

// release lets go of an import, to be taken up after a pause.
func (r *Runner) release(ctx context.Context, j *job, reason string, pause time.Duration, attempts int) error {
	const query = `
		UPDATE imports
		SET lease_owner = NULL, lease_until = NULL, reason = CASE WHEN state = 'running' THEN @reason ELSE reason END,
			state = CASE WHEN state = 'running' AND watch IS NULL THEN 'queued' ELSE state END,
			next_at = now() + @pause::interval, attempts = @attempts, rows_per_second = 0
		WHERE id = @id AND lease_owner = @owner`
	args := pgx.StrictNamedArgs{"id": j.ID, "owner": j.owner, "reason": reason, "pause": pause, "attempts": attempts}
	if _, err := r.pool.Exec(ctx, query, args); err != nil {
		return fmt.Errorf("release import %d: %w", j.ID, err)
	}
	return nil
}

// conclude finishes an import whose files have all been read.
func (r *Runner) conclude(ctx context.Context, j *job) error {
	const query = `SELECT count(*), count(*) FILTER (WHERE state = 'failed'), coalesce(max(reason), '') FROM import_files WHERE import_id = $1`
	var files, failed int
	var reason string
	if err := r.pool.QueryRow(ctx, query, j.ID).Scan(&files, &failed, &reason); err != nil {
		return fmt.Errorf("conclude import %d: %w", j.ID, err)
	}
	switch {
	case files == 0:
		return r.finish(ctx, j, Failed, "there is no such file")
	case failed == 1 && files == 1:
		return r.finish(ctx, j, Failed, reason)
	case failed > 0:
		return r.finish(ctx, j, Failed, fmt.Sprintf("%d of %d files could not be imported", failed, files))
	}
	return r.finish(ctx, j, Done, "")
}

func (r *Runner) finish(ctx context.Context, j *job, state, reason string) error {
	const query = `
		UPDATE imports
		SET lease_owner = NULL, lease_until = NULL, state = @state, reason = @reason, finished_at = now(), rows_per_second = 0
		WHERE id = @id AND lease_owner = @owner AND state = 'running'`
	args := pgx.StrictNamedArgs{"id": j.ID, "owner": j.owner, "state": state, "reason": reason}
	tag, err := r.pool.Exec(ctx, query, args)
	if err != nil {
		return fmt.Errorf("finish import %d: %w", j.ID, err)
	}
	if tag.RowsAffected() == 0 {
		return r.release(ctx, j, "", 0, 0)
	}
	r.log.InfoContext(ctx, "import ended", "import", j.ID, "state", state)
	if state != Done { // may be resumed
		return nil
	}
	return NewStore(r.pool, r.keys).dropUpload(ctx, j.ID)
}

// place returns where the files of an import are.
func (r *Runner) place(j *job) (_ place, done func(), err error) {
	done = func() {}
	if j.URL == "" {
		return &upload{pool: r.pool, id: j.ID}, done, nil
	}
	at, err := ParseLocation(j.URL)
	if err != nil {
		return nil, nil, badFile("bad_url", "the url %v", err)
	}
	if at.Scheme == "s3" {
		open := j.S3
		if j.S3Secret != nil {
			plain, err := r.keys.Open(j.WorkspaceID, j.ID, j.S3Secret)
			if err != nil {
				return nil, nil, fmt.Errorf("open the secrets of import %d: %w", j.ID, err)
			}
			if err := json.Unmarshal(plain, &open); err != nil {
				return nil, nil, fmt.Errorf("open the secrets of import %d: %w", j.ID, err)
			}
		}
		b, err := newBucket(at, open, r.cfg.Client)
		return b, done, err
	}
	if r.cfg.Folder == "" {
		return nil, nil, badFile("not_allowed", "the operator of this server allows no folder to import from")
	}
	root, err := os.OpenRoot(r.cfg.Folder)
	if err != nil {
		return nil, nil, fmt.Errorf("open the folder of imports: %w", err)
	}
	f := &folder{root: root, at: at}
	if j.Watch != nil {
		f.settle = j.Watch.Settle
	}
	return f, func() { root.Close() }, nil
}

// grant returns what lets an import bring events of its source.
func (r *Runner) grant(ctx context.Context, j *job) (collector.Grant, string, error) {
	const query = `
		SELECT 0 AS key_id, '' AS key, s.id AS source_id, w.id AS workspace_id, w.secret, s.settings, s.key AS name
		FROM sources AS s
		JOIN workspaces AS w ON w.id = s.workspace_id
		WHERE s.id = @source AND s.enabled`
	type named struct {
		collector.Grant
		Name string
	}
	rows, _ := r.pool.Query(ctx, query, pgx.StrictNamedArgs{"source": j.SourceID}) // err: below
	g, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByNameLax[named])
	if errors.Is(err, pgx.ErrNoRows) {
		return collector.Grant{}, "", badFile("source_disabled", "the source is disabled")
	}
	if err != nil {
		return collector.Grant{}, "", fmt.Errorf("read the source: %w", err)
	}
	return g.Grant, g.Name, nil
}
