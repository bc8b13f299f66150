package files

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/time/rate"

	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/collector/mapping"
)

// applying is an import being worked on.
type applying struct {
	*Runner
	*job
	grant   collector.Grant
	source  string
	mapping *mapping.Program // nil: rows are events
	limit   *rate.Limiter    // nil: none
	rows    int              // that become durable together
	looked  time.Time        // at the lanes

	began time.Time // for the rate, with the rows since then
	since int64
	speed float64 // rows a second
}

// run imports what there is, file by file.
func (r *Runner) run(ctx context.Context, j *job) error {
	a := &applying{Runner: r, job: j, rows: r.cfg.Batch, began: time.Now()}
	var err error
	if a.grant, a.source, err = r.grant(ctx, j); err != nil {
		return err
	}
	if j.Mapping != "" {
		if a.mapping, err = mapping.Compile([]byte(j.Mapping)); err != nil {
			return badFile("bad_mapping", "the mapping is not valid: %v", err)
		}
	}
	if j.Rate > 0 {
		a.rows = min(a.rows, max(j.Rate/5, 1)) // a slow import still gets on several times a second
		a.limit = rate.NewLimiter(rate.Limit(j.Rate), a.rows)
	}
	from, done, err := r.place(j)
	if err != nil {
		return err
	}
	defer done()
	if err := a.find(ctx, from); err != nil {
		return err
	}
	for {
		f, err := a.next(ctx)
		if err != nil || f == nil {
			return err
		}
		var bad *FileError
		switch err := a.file(ctx, from, f); {
		case errors.As(err, &bad):
			if err := a.end(ctx, f, Failed, bad.Reason); err != nil {
				return err
			}
		case err != nil:
			return err
		default:
			if err := a.end(ctx, f, Done, ""); err != nil {
				return err
			}
		}
	}
}

// find notes the files there are: of a watched place each time, of others once, so that an import has an end.
func (a *applying) find(ctx context.Context, from place) error {
	if a.Watch == nil {
		var known bool
		const query = `SELECT EXISTS (SELECT FROM import_files WHERE import_id = $1)`
		if err := a.pool.QueryRow(ctx, query, a.ID).Scan(&known); err != nil {
			return fmt.Errorf("look for the files of an import: %w", err)
		}
		if known {
			return nil
		}
	}
	list, err := from.list(ctx)
	if err != nil {
		return err
	}
	listing := hashOf(list)
	if last, ok := a.listings.Load(a.ID); ok && last == listing {
		return nil // as it was noted
	}
	names, versions, sizes := make([]string, len(list)), make([]string, len(list)), make([]int64, len(list))
	for i, o := range list {
		names[i], versions[i], sizes[i] = strings.ToValidUTF8(o.Name, "\uFFFD"), o.Version, o.Size
	}
	const query = `
		INSERT INTO import_files (import_id, name, version, size)
		SELECT @id, name, version, size
		FROM unnest(@names::text[], @versions::text[], @sizes::bigint[]) WITH ORDINALITY AS f (name, version, size, n)
		ORDER BY n
		ON CONFLICT (import_id, name, version) DO NOTHING`
	args := pgx.StrictNamedArgs{"id": a.ID, "names": names, "versions": versions, "sizes": sizes}
	if _, err := a.pool.Exec(ctx, query, args); err != nil {
		return fmt.Errorf("note the files of an import: %w", err)
	}
	if a.Watch != nil {
		a.listings.Store(a.ID, listing)
	}
	return nil
}

var listingSeed = maphash.MakeSeed()

func hashOf(list []object) uint64 {
	var h maphash.Hash
	h.SetSeed(listingSeed)
	for _, o := range list {
		for _, part := range []string{o.Name, o.Version} {
			_, _ = h.WriteString(part) // never fails
			_ = h.WriteByte(0)         // never fails
		}
	}
	return h.Sum64()
}

// next returns the first file that is not read to its end, or nil.
func (a *applying) next(ctx context.Context) (*File, error) {
	const query = `
		SELECT ` + fileColumns + `
		FROM import_files AS f
		WHERE f.import_id = @id AND f.state = 'pending'
		ORDER BY f.id
		LIMIT 1`
	rows, _ := a.pool.Query(ctx, query, pgx.StrictNamedArgs{"id": a.ID}) // err: below
	f, err := pgx.CollectExactlyOneRow(rows, pgx.RowToAddrOfStructByName[File])
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the files of an import: %w", err)
	}
	return f, nil
}

// end notes that nothing more will be read of a file.
func (a *applying) end(ctx context.Context, f *File, state, reason string) error {
	const query = `
		UPDATE import_files
		SET state = @state, reason = @reason, finished_at = now(), bytes_read = CASE WHEN @state = 'done' THEN size ELSE bytes_read END
		WHERE import_id = @id AND id = @file AND EXISTS (SELECT FROM imports WHERE id = @id AND lease_owner = @owner)`
	args := pgx.StrictNamedArgs{"id": a.ID, "file": f.ID, "owner": a.owner, "state": state, "reason": reason}
	tag, err := a.pool.Exec(ctx, query, args)
	if err != nil {
		return fmt.Errorf("end file %d: %w", f.ID, err)
	}
	if tag.RowsAffected() == 0 {
		return errTaken
	}
	return nil
}

// maxBatchBytes bounds the events that become durable together.
const maxBatchBytes = 1 << 20

// batch is rows whose events become durable together.
type batch struct {
	events  [][]byte
	rowOf   []int // of each event
	bytes   int
	rows    []batchRow
	skipped int
	at      Position // behind the last row
	read    int64
}

type batchRow struct {
	number, line int64
	sample       []byte
	fault        *Fault
}

// file imports a file from where it was left.
func (a *applying) file(ctx context.Context, from place, f *File) error {
	c, closer, err := from.open(ctx, object{f.Name, f.Version, f.Size})
	if err != nil {
		return err
	}
	defer closer.Close()
	rows, err := openRows(ctx, c, f.Name, a.Format, f.Position)
	if err != nil {
		return err
	}
	defer rows.Close()
	p := newProgram(a.mapping, a.source, f.Name, a.identity(f)...)
	var b batch
	for {
		row, err := rows.Next()
		if err != nil && !errors.Is(err, io.EOF) {
			if flushed := a.flush(ctx, f, &b); flushed != nil {
				return flushed
			}
			return err
		}
		if err != nil { // the end
			return a.flush(ctx, f, &b)
		}
		events, fault := p.events(row, time.Now())
		for _, e := range events {
			b.rowOf = append(b.rowOf, len(b.rows))
			b.bytes += len(e)
		}
		b.events = append(b.events, events...)
		if len(events) == 0 && fault == nil {
			b.skipped++
		}
		b.rows = append(b.rows, batchRow{row.Number, row.Line, bytes.Clone(sampleOf(row.Body)), fault})
		b.at, b.read = rows.Position(), rows.read.Load()
		if len(b.rows) >= a.rows || b.bytes >= maxBatchBytes {
			if err := a.flush(ctx, f, &b); err != nil {
				return err
			}
		}
	}
}

// identity tells a file, and how it is read, from all others.
func (a *applying) identity(f *File) []string {
	if a.URL == "" {
		if a.Digest != "" {
			return []string{a.Digest}
		}
		return []string{fmt.Sprint("import ", a.ID)}
	}
	at, _ := ParseLocation(a.URL)       // was parsed for the place
	format, _ := json.Marshal(a.Format) // has nothing that JSON cannot hold
	return []string{at.Scheme, a.S3.Endpoint, at.Bucket, f.Name, f.Version, string(format), a.Mapping}
}

// flush makes a batch durable and then notes how far the file is imported.
func (a *applying) flush(ctx context.Context, f *File, b *batch) error {
	if len(b.rows) == 0 {
		return nil
	}
	if a.limit != nil {
		if err := a.limit.WaitN(ctx, len(b.rows)); err != nil {
			return err
		}
	}
	if err := a.waitForLanes(ctx); err != nil {
		return err
	}
	results, err := a.take(ctx, b.events)
	if err != nil {
		return err
	}
	accepted := 0
	for i, res := range results {
		row := &b.rows[b.rowOf[i]]
		switch {
		case res.Status == collector.Accepted:
			accepted++
		case row.fault == nil:
			row.fault = &Fault{Code: res.Code, Reason: res.Reason, Pointer: res.Pointer}
		}
	}
	if err := a.save(ctx, f, b, accepted); err != nil {
		return err
	}
	*b = batch{events: b.events[:0], rowOf: b.rowOf[:0], rows: b.rows[:0]}
	return nil
}

// waitForLanes waits while lanes are behind, so that an import takes what live traffic leaves.
func (a *applying) waitForLanes(ctx context.Context) error {
	if time.Since(a.looked) < 100*time.Millisecond {
		return nil
	}
	for began, told := time.Now(), false; ; {
		asOf, err := a.lanes.AsOf(ctx)
		if err != nil && ctx.Err() != nil {
			return err
		}
		if err == nil && time.Since(asOf) <= a.cfg.MaxLag {
			a.looked = time.Now()
			return nil
		}
		if time.Since(began) > longWait && !told {
			told = true
			a.tell(ctx, "events are applied late: it waits until they are not")
		}
		if sleep(ctx, 50*time.Millisecond); ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// longWait is how long an import waits before it says why.
const longWait = 5 * time.Second

// tell says why an import waits, until its next batch is in.
func (a *applying) tell(ctx context.Context, reason string) {
	const query = `UPDATE imports SET reason = @reason, rows_per_second = 0 WHERE id = @id AND lease_owner = @owner AND state = 'running'`
	args := pgx.StrictNamedArgs{"id": a.ID, "owner": a.owner, "reason": reason}
	if _, err := a.pool.Exec(ctx, query, args); err != nil && ctx.Err() == nil {
		a.log.WarnContext(ctx, "it could not be told why an import waits", "import", a.ID, "err", err)
	}
}

// take brings events until they are in. After an error some of them may be: the lanes know them again.
func (a *applying) take(ctx context.Context, events [][]byte) ([]collector.Result, error) {
	if len(events) == 0 {
		return nil, nil
	}
	const longest = 5 * time.Second
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, longest) {
		if pause == longest {
			a.tell(ctx, "events cannot be stored for now: it tries again")
		}
		results, err := a.in.Take(ctx, a.grant, time.Now(), events)
		if err == nil || !errors.Is(err, collector.ErrBusy) && !errors.Is(err, collector.ErrUnavailable) {
			return results, err
		}
		if sleep(ctx, pause); ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
}

// save notes what became of a batch. The import may have been paused meanwhile; but if another process has it, that one
// has brought the same rows, or will.
func (a *applying) save(ctx context.Context, f *File, b *batch, accepted int) error {
	reasons := map[string]int64{}
	var rejects []batchRow
	for _, row := range b.rows {
		if row.fault != nil {
			reasons[row.fault.Code]++
			rejects = append(rejects, row)
		}
	}
	if a.since += int64(len(b.rows)); time.Since(a.began) > time.Second {
		a.speed = float64(a.since) / time.Since(a.began).Seconds()
		a.began, a.since = time.Now(), 0
	}
	err := pgx.BeginFunc(ctx, a.pool, func(tx pgx.Tx) error {
		const own = `
			UPDATE imports
			SET kept = least(kept + @rejected, @most), rows_per_second = @speed, attempts = 0, reason = ''
			FROM (SELECT kept AS before FROM imports WHERE id = @id FOR UPDATE) AS was
			WHERE id = @id AND lease_owner = @owner
			RETURNING was.before`
		var kept int
		err := tx.QueryRow(ctx, own, pgx.StrictNamedArgs{
			"id": a.ID, "owner": a.owner, "rejected": len(rejects), "most": maxRejects, "speed": a.speed,
		}).Scan(&kept)
		if errors.Is(err, pgx.ErrNoRows) {
			return errTaken
		}
		if err != nil {
			return err
		}
		const query = `
			UPDATE import_files
			SET position = @position, bytes_read = @read, rows = rows + @rows, events = events + @events, skipped = skipped + @skipped,
				rejected = rejected + @rejected, reasons = reasons || (
					SELECT coalesce(jsonb_object_agg(n.key, n.value::bigint + coalesce((reasons ->> n.key)::bigint, 0)), '{}')
					FROM jsonb_each_text(@reasons) AS n)
			WHERE import_id = @id AND id = @file`
		if _, err := tx.Exec(ctx, query, pgx.StrictNamedArgs{
			"id": a.ID, "file": f.ID, "position": b.at, "read": b.read, "rows": len(b.rows), "events": accepted,
			"skipped": b.skipped, "rejected": len(rejects), "reasons": reasons,
		}); err != nil {
			return err
		}
		return a.keep(ctx, tx, f, rejects[:min(len(rejects), max(maxRejects-kept, 0))])
	})
	if err != nil {
		return fmt.Errorf("save how far an import is: %w", err)
	}
	f.Position = b.at
	a.Runner.rows.WithLabelValues("accepted").Add(float64(len(b.rows) - len(rejects) - b.skipped))
	a.Runner.rows.WithLabelValues("rejected").Add(float64(len(rejects)))
	a.Runner.rows.WithLabelValues("skipped").Add(float64(b.skipped))
	return nil
}

// keep keeps rejected rows for whoever has the file.
func (a *applying) keep(ctx context.Context, tx pgx.Tx, f *File, rejects []batchRow) error {
	if len(rejects) == 0 {
		return nil
	}
	columns := make([][]string, 4)
	numbers, lines := make([]int64, len(rejects)), make([]int64, len(rejects))
	for i, row := range rejects {
		numbers[i], lines[i] = row.number, row.line
		for j, text := range []string{row.fault.Code, row.fault.Reason, row.fault.Pointer, string(row.sample)} {
			columns[j] = append(columns[j], strings.ReplaceAll(strings.ToValidUTF8(text, "\uFFFD"), "\x00", "\uFFFD"))
		}
	}
	const query = `
		INSERT INTO import_rejects (import_id, file_id, row, line, code, reason, pointer, sample)
		SELECT @id, @file, row, line, code, reason, pointer, sample
		FROM unnest(@rows::bigint[], @lines::bigint[], @codes::text[], @reasons::text[], @pointers::text[], @samples::text[])
			AS r (row, line, code, reason, pointer, sample)
		ON CONFLICT (import_id, file_id, row) DO NOTHING`
	_, err := tx.Exec(ctx, query, pgx.StrictNamedArgs{
		"id": a.ID, "file": f.ID, "rows": numbers, "lines": lines, "codes": columns[0], "reasons": columns[1],
		"pointers": columns[2], "samples": columns[3],
	})
	return err
}
