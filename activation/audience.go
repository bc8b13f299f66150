package activation

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// wanting is an attached segment that waits for its audience.
type wanting struct {
	Destination int64
	Segment     int64
	Tries       int
}

const audienceLease = 2 * time.Minute

// create makes the audience of one attached segment, if the partner can, and tells whether there was one to be made.
func (d *Dispatcher) create(ctx context.Context) (found bool, err error) {
	// Segments at partners that cannot make audiences are looked at once an hour: the partner's code may have learned it.
	const claim = `
		UPDATE destination_segments s
		SET audience_at = now() + @lease::interval, audience_tries = s.audience_tries + 1
		FROM (
			SELECT s.destination_id, s.segment_id
			FROM destination_segments s
			JOIN destinations d ON d.id = s.destination_id
			WHERE s.attached AND s.audience = '' AND s.ready_at = 'infinity' AND s.audience_at < now()
				AND d.status = 'active' AND d.blocked_until <= now() AND ` + tokenHolds + `
			ORDER BY s.audience_at, s.destination_id, s.segment_id
			LIMIT 1
			FOR UPDATE OF s SKIP LOCKED
		) n
		WHERE s.destination_id = n.destination_id AND s.segment_id = n.segment_id
		RETURNING s.destination_id, s.segment_id, s.audience_tries`
	rows, _ := d.queue.pool.Query(ctx, claim, pgx.StrictNamedArgs{"lease": audienceLease})
	w, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[wanting])
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("claim a segment that needs an audience: %w", err)
	}
	stop := ctx
	ctx = context.WithoutCancel(ctx)
	t, err := target(ctx, d.queue.pool, d.queue.ring, d.partners, w.Destination)
	if err != nil {
		return true, errors.Join(err, d.retryAudience(ctx, w, time.Minute, "the destination cannot be read"))
	}
	creator, ok := t.partner.(Creator)
	if !ok {
		return true, d.retryAudience(ctx, w, time.Hour, noAudience(t.partner))
	}
	names, err := d.segments.SegmentInfo(ctx, t.Workspace, []int64{w.Segment})
	if err != nil {
		return true, errors.Join(err, d.retryAudience(ctx, w, time.Second, "the segment cannot be read"))
	}
	segment := names[w.Segment]
	segment.ID = w.Segment

	limits := t.partner.Limits(t.Target)
	one := d.accounts.of(t, limits)
	if pause, err := d.accounts.take(ctx, one); err != nil || pause > 0 {
		return true, errors.Join(err, d.retryAudience(ctx, w, max(pause, 100*time.Millisecond), "the account may not ask yet"))
	}
	asking, cancel := context.WithTimeout(stop, min(limits.Timeout, audienceLease/2))
	defer cancel()
	audience, o := creator.Create(asking, t.Target, segment)
	o = t.clean(o)
	d.metrics.created.WithLabelValues(t.partner.Type(), string(o.Class)).Inc()
	if err := d.accounts.heed(ctx, one, o); err != nil {
		d.log.WarnContext(ctx, "note what an account may ask", "err", err)
	}
	switch {
	case o.Class == OK && audience != "":
		return true, d.keepAudience(ctx, w, audience, o.Wait)
	case o.Class == OK:
		return true, d.retryAudience(ctx, w, time.Minute, "the partner gave the audience no id")
	case o.Class == Refresh:
		o = d.freshen(ctx, t)
		pause := 100 * time.Millisecond
		if o.Class != OK {
			pause = refreshAgain
		}
		return true, d.retryAudience(ctx, w, pause, o.Reason)
	case o.Class == Reauth, o.Class == Config, o.Class == Gone:
		decision := decision{status: Paused, reason: o.Reason}
		err := pgx.BeginFunc(ctx, d.queue.pool, func(tx pgx.Tx) error {
			return changeDestination(ctx, tx, w.Destination, t.version, decision)
		})
		return true, errors.Join(err, d.retryAudience(ctx, w, time.Second, o.Reason))
	case o.Class == RetryAfter:
		return true, d.retryAudience(ctx, w, min(max(o.Wait, time.Second), longestWait), o.Reason)
	}
	if stop.Err() != nil { // we broke it off
		return true, d.retryAudience(ctx, w, 0, o.Reason)
	}
	pause, ok := delay(d.cfg.Schedule, w.Tries)
	if !ok || pause > 5*time.Minute { // people wait
		pause = jitter(5 * time.Minute)
	}
	return true, d.retryAudience(ctx, w, pause, o.Reason)
}

func (d *Dispatcher) retryAudience(ctx context.Context, w wanting, pause time.Duration, reason string) error {
	const query = `
		UPDATE destination_segments
		SET audience_at = now() + @pause::interval, audience_reason = @reason
		WHERE destination_id = @destination AND segment_id = @segment AND audience = ''`
	_, err := d.queue.pool.Exec(ctx, query, pgx.StrictNamedArgs{
		"destination": w.Destination, "segment": w.Segment, "pause": pause, "reason": reason,
	})
	if err != nil {
		return fmt.Errorf("put off making an audience: %w", err)
	}
	return nil
}

// keepAudience writes down which audience was made, after which everybody waiting for it is due. Nobody must be left waiting
// who is written down at the same time by a µbatch that has not seen it: the lock is waited for until it is had.
func (d *Dispatcher) keepAudience(ctx context.Context, w wanting, audience string, pause time.Duration) error {
	const query = `
		UPDATE destination_segments
		SET audience = @audience, ready_at = now() + @pause::interval, audience_reason = '', size_at = now() + interval '1 hour'
		WHERE destination_id = @destination AND segment_id = @segment AND audience = ''`
	ctx, cancel := context.WithTimeout(ctx, audienceLease/2)
	defer cancel()
	for {
		err := pgx.BeginFunc(ctx, d.queue.pool, func(tx pgx.Tx) error {
			if err := lockConfig(ctx, tx); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, query, pgx.StrictNamedArgs{
				"destination": w.Destination, "segment": w.Segment, "audience": audience, "pause": max(pause, 0),
			})
			return err
		})
		if err == nil {
			break
		}
		if !wait(ctx, nil, 200*time.Millisecond) {
			return fmt.Errorf("keep audience: %w", err)
		}
	}
	if err := releaseWaiting(ctx, d.queue.pool, d.cfg.Lanes, w.Destination, w.Segment); err != nil {
		return err
	}
	d.Wake()
	return nil
}

// freshen refreshes a token that was refused, if that makes sense. The answer is OK if there are newer settings now.
func (d *Dispatcher) freshen(ctx context.Context, t served) Outcome {
	r := d.refresher
	stale, err := r.stale(ctx, t)
	if err != nil {
		return Outcome{Class: Retry, Reason: "the age of the token could not be read"}
	}
	if !stale {
		return Outcome{Class: Reauth, Reason: "a new access token was refused"}
	}
	o := r.refresh(ctx, t)
	d.metrics.refreshed.WithLabelValues(t.partner.Type(), string(o.Class)).Inc()
	return o
}

// measure asks the partner for the size of one audience, once an hour, and tells whether there was one to ask for.
func (d *Dispatcher) measure(ctx context.Context) (found bool, err error) {
	const claim = `
		UPDATE destination_segments s
		SET size_at = now() + interval '1 hour'
		FROM (
			SELECT s.destination_id, s.segment_id
			FROM destination_segments s
			JOIN destinations d ON d.id = s.destination_id
			WHERE s.attached AND s.audience <> '' AND s.size_at < now() AND d.status = 'active' AND d.blocked_until <= now()
				AND ` + tokenHolds + ` AND d.type = ANY(@types)
			ORDER BY s.size_at
			LIMIT 1
			FOR UPDATE OF s SKIP LOCKED
		) n
		WHERE s.destination_id = n.destination_id AND s.segment_id = n.segment_id
		RETURNING s.destination_id, s.segment_id, s.audience`
	const keep = `
		UPDATE destination_segments
		SET matched = @matched, matched_state = @state, matched_at = now()
		WHERE destination_id = @destination AND segment_id = @segment AND audience = @audience`
	var types []string
	for kind, p := range d.partners {
		if _, ok := p.(Sizer); ok {
			types = append(types, kind)
		}
	}
	if len(types) == 0 {
		return false, nil
	}
	var (
		destination, segment int64
		audience             string
	)
	err = d.queue.pool.QueryRow(ctx, claim, pgx.StrictNamedArgs{"types": types}).Scan(&destination, &segment, &audience)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("claim an audience to measure: %w", err)
	}
	t, err := target(ctx, d.queue.pool, d.queue.ring, d.partners, destination)
	if err != nil {
		return true, err
	}
	limits := t.partner.Limits(t.Target)
	one := d.accounts.of(t, limits)
	if pause, err := d.accounts.take(ctx, one); err != nil || pause > 0 {
		return true, err // in an hour, then
	}
	asking, cancel := context.WithTimeout(ctx, limits.Timeout)
	defer cancel()
	size, o := t.partner.(Sizer).Size(asking, t.Target, audience)
	size.State = t.cleaner().text(size.State)
	if err := d.accounts.heed(ctx, one, o); err != nil {
		return true, err
	}
	if o.Class != OK {
		return true, nil // what is wrong shows when something is sent
	}
	var matched *int64
	if size.Matched >= 0 {
		matched = &size.Matched
	}
	_, err = d.queue.pool.Exec(ctx, keep, pgx.StrictNamedArgs{
		"destination": destination, "segment": segment, "audience": audience, "matched": matched, "state": size.State,
	})
	if err != nil {
		return true, fmt.Errorf("keep the size of an audience: %w", err)
	}
	return true, nil
}
