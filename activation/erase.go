package activation

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// How somebody is forgotten.
//
// In the transaction in which a lane forgets a person, every row that destinations may hold of them becomes a remove that
// goes before all others and is never given up ([Ledger.Erase]), and each is noted. What was sent of the person, hashes,
// is kept with the row until the partner has acknowledged the remove: it cannot be told otherwise whom to remove. Then the
// note says when that was, and forgets who it was; so does the ledger, whose lines stay ([Ledger.Released]). When no note
// is left waiting, nothing is left of the person here ([Ledger.Forget]).

// audiences are the destinations and segments that a lane has rows of, found by skipping from one to the next, for which
// the primary key is enough.
const audiences = `
	audiences AS (
		(SELECT destination_id, segment_id FROM activations WHERE lane = @lane ORDER BY destination_id, segment_id LIMIT 1)
		UNION ALL
		SELECT n.destination_id, n.segment_id
		FROM audiences p
		CROSS JOIN LATERAL (
			SELECT destination_id, segment_id
			FROM activations
			WHERE lane = @lane AND (destination_id, segment_id) > (p.destination_id, p.segment_id)
			ORDER BY destination_id, segment_id
			LIMIT 1
		) n
	)`

// theirs are the rows of some people of a lane, at the destinations of their workspace.
const theirs = `
	WITH RECURSIVE` + audiences + `, theirs AS MATERIALIZED (
		SELECT a.destination_id, a.segment_id, a.profile_id
		FROM audiences
		JOIN destinations d ON d.id = audiences.destination_id AND d.workspace_id = @workspace
		CROSS JOIN unnest(@profiles::uuid[]) AS p (id)
		JOIN activations a ON a.lane = @lane AND a.destination_id = audiences.destination_id
			AND a.segment_id = audiences.segment_id AND a.profile_id = p.id
		ORDER BY a.destination_id, a.segment_id, a.profile_id
		FOR UPDATE OF a
	)`

// Erase has every destination that may hold something of some people of a lane told to remove it, in the transaction in
// which the lane forgets them, and after the changes of that transaction were enqueued. It may be repeated.
//
// Messages that were to be tried again and say something of them are made anew without them.
func (l *Ledger) Erase(
	ctx context.Context, tx pgx.Tx, lane int, workspace int32, erasure int64, profiles []ProfileID,
) error {
	if len(profiles) == 0 {
		return nil
	}
	// An add that is under way may arrive: it is waited for, and what it brought removed.
	const note = theirs + `
		INSERT INTO erasure_removes (erasure_id, destination_id, segment_id, lane, profile_id, told)
		SELECT @erasure, a.destination_id, a.segment_id, @lane, a.profile_id, a.sent IS DISTINCT FROM false
		FROM theirs t
		JOIN activations a ON a.lane = @lane AND a.destination_id = t.destination_id AND a.segment_id = t.segment_id
			AND a.profile_id = t.profile_id
		WHERE a.sent IS DISTINCT FROM false OR a.sent_identifiers IS NOT NULL OR a.status IN ('claimed', 'accepted')
		ON CONFLICT DO NOTHING`
	const remove = theirs + `
		UPDATE activations a
		SET member     = false,
			wanted     = false,
			version    = CASE WHEN a.wanted THEN a.version + 1 ELSE a.version END,
			changed_at = now(),
			message_id = '',
			cause      = 'erasure',
			identity_at      = NULL,
			identity_message = '',
			resend     = false,
			renew_at   = NULL,
			reason     = '',
			next_at    = CASE WHEN a.status = 'claimed' OR a.status = 'accepted' AND a.sent IS NULL THEN a.next_at ELSE now() END,
			batch_id   = CASE WHEN a.status = 'claimed' OR a.status = 'accepted' AND a.sent IS NULL THEN a.batch_id END,
			status     = CASE
				WHEN a.status = 'claimed' OR a.status = 'accepted' AND a.sent IS NULL THEN a.status
				WHEN a.sent = false AND a.sent_identifiers IS NULL THEN 'settled'
				ELSE 'pending' END
		FROM theirs t
		WHERE a.lane = @lane AND a.destination_id = t.destination_id AND a.segment_id = t.segment_id
			AND a.profile_id = t.profile_id AND a.cause <> 'erasure'`
	// What an operator called the person is remembered under something else; what was sent says which it is. Where nothing
	// was sent, nothing does: that is forgotten when it ends, which is the operator's to say.
	const mappings = theirs + `
		DELETE FROM activation_mappings m
		USING theirs t
		JOIN activations a ON a.lane = @lane AND a.destination_id = t.destination_id AND a.segment_id = t.segment_id
			AND a.profile_id = t.profile_id
		WHERE m.destination_id = a.destination_id AND a.sent_identifiers IS NOT NULL
			AND m.mapped -> 'ids' = a.sent_identifiers -> 'ids'`
	made, err := unmake(ctx, tx, lane, workspace, profiles, nil)
	if err != nil {
		return err
	}
	for _, query := range []string{note, remove, mappings} {
		args := pgx.StrictNamedArgs{"lane": lane, "workspace": workspace, "profiles": profiles}
		if query == note {
			args["erasure"] = erasure
		}
		if _, err := tx.Exec(ctx, query, args); err != nil {
			return fmt.Errorf("have what destinations hold removed: %w", err)
		}
	}
	return free(ctx, tx, lane, made)
}

// unmade is a message that is not sent again as it was.
type unmade struct {
	ID, Destination, Segment int64
	Profiles                 []ProfileID
	Versions                 []int64
	Removing                 int
}

// unmake deletes the messages of a lane that say something of some people and are not being sent, if they were first tried
// up to a moment, or at all. What they leave behind is for [free]. It locks messages and no rows, so it comes before
// whatever locks rows; and since the caller may have locked rows all the same, it waits for nobody. Who has a message just
// now finds that the person's row has left it, or gives it back, and [Ledger.Forget] comes by again. The messages of a lane
// are those under way: all of them may be looked at.
func unmake(
	ctx context.Context, tx pgx.Tx, lane int, workspace int32, profiles []ProfileID, upTo *time.Time,
) ([]unmade, error) {
	const query = `
		WITH chosen AS (
			SELECT b.id
			FROM activation_batches b
			JOIN destinations d ON d.id = b.destination_id AND d.workspace_id = @workspace
			WHERE b.lane = @lane AND b.claim_token IS NULL AND b.profiles && @profiles::uuid[]
				AND (@up_to::timestamptz IS NULL OR b.created_at <= @up_to)
			ORDER BY b.id
			FOR UPDATE OF b SKIP LOCKED
		)
		DELETE FROM activation_batches b
		USING chosen
		WHERE b.lane = @lane AND b.id = chosen.id
		RETURNING b.id, b.destination_id, b.segment_id, b.profiles, b.versions, b.removing`
	rows, _ := tx.Query(ctx, query, pgx.StrictNamedArgs{
		"lane": lane, "workspace": workspace, "profiles": profiles, "up_to": upTo,
	})
	made, err := pgx.CollectRows(rows, pgx.RowToStructByPos[unmade])
	if err != nil {
		return nil, fmt.Errorf("unmake messages about a person: %w", err)
	}
	return made, nil
}

// free has whoever else was in messages of a lane that were unmade sent anew, and takes back what they were to take away:
// rows, then holdings. A row that somebody else has just now is freed when it is due, as any is whose message is not there.
func free(ctx context.Context, tx pgx.Tx, lane int, made []unmade) error {
	const people = `
		WITH chosen AS (
			SELECT profile_id
			FROM activations
			WHERE lane = @lane AND destination_id = @destination AND segment_id = @segment
				AND profile_id = ANY(@profiles::uuid[]) AND batch_id = @id AND status = 'pending'
			ORDER BY profile_id
			FOR UPDATE SKIP LOCKED
		)
		UPDATE activations a
		SET batch_id = NULL
		FROM chosen
		WHERE a.lane = @lane AND a.destination_id = @destination AND a.segment_id = @segment
			AND a.profile_id = chosen.profile_id`
	const events = `
		WITH chosen AS (
			SELECT id
			FROM conversions
			WHERE lane = @lane AND destination_id = @destination AND id = ANY(@versions::bigint[]) AND batch_id = @id
				AND status = 'pending'
			ORDER BY id
			FOR UPDATE SKIP LOCKED
		)
		UPDATE conversions c
		SET batch_id = NULL
		FROM chosen
		WHERE c.lane = @lane AND c.destination_id = @destination AND c.id = chosen.id`
	const unmark = `
		WITH marked AS (
			SELECT lane, destination_id, segment_id, identifier
			FROM holdings
			WHERE removing = ANY(@ids::bigint[])
			ORDER BY lane, identifier
			FOR UPDATE
		)
		UPDATE holdings h
		SET removing = NULL
		FROM marked m
		WHERE h.lane = m.lane AND h.destination_id = m.destination_id AND h.segment_id = m.segment_id
			AND h.identifier = m.identifier`
	var marked []int64
	for _, m := range made {
		args := pgx.StrictNamedArgs{"lane": lane, "destination": m.Destination, "id": m.ID}
		query := events
		if m.Segment == 0 {
			args["versions"] = m.Versions
		} else {
			query, args["segment"], args["profiles"] = people, m.Segment, m.Profiles
		}
		if _, err := tx.Exec(ctx, query, args); err != nil {
			return fmt.Errorf("have others sent anew: %w", err)
		}
		if m.Removing > 0 {
			marked = append(marked, m.ID)
		}
	}
	if len(marked) == 0 {
		return nil
	}
	if _, err := tx.Exec(ctx, unmark, pgx.StrictNamedArgs{"ids": marked}); err != nil {
		return fmt.Errorf("take back what messages were to take away: %w", err)
	}
	return nil
}

// Released notes which destinations have let go of somebody who was forgotten, and has the ledger forget what it has of
// them there. It returns how many.
func (l *Ledger) Released(ctx context.Context, pool *pgxpool.Pool) (n int, err error) {
	// Whoever is wanted again has come back since: what there is to remove of before goes with the message that adds them.
	// Whoever was told of, and has been let go of without a word, has all identifiers in common with others there.
	const query = `
		WITH done AS (
			SELECT r.id, a.profile_id IS NULL AS gone, coalesce(a.wanted, false) AS wanted, v.at, v.status,
				coalesce(v.entered, r.told) AS shared
			FROM erasure_removes r
			LEFT JOIN activations a ON a.lane = r.lane AND a.destination_id = r.destination_id
				AND a.segment_id = r.segment_id AND a.profile_id = r.profile_id
			LEFT JOIN LATERAL (
				SELECT v.at, v.entered, t.status
				FROM deliveries v
				JOIN activation_attempts t ON t.lane = v.lane AND t.id = v.attempt_id
				WHERE v.lane = r.lane AND v.profile_id = r.profile_id AND v.destination_id = r.destination_id
					AND v.segment_id = r.segment_id AND v.outcome = 'ok'
				ORDER BY v.id DESC
				LIMIT 1
			) v ON true
			WHERE r.outcome = 'waiting' AND (a.profile_id IS NULL OR a.wanted
				OR a.status IN ('settled', 'unreachable') AND a.sent = false AND a.sent_identifiers IS NULL)
			ORDER BY r.id
			LIMIT @chunk
			FOR UPDATE OF r SKIP LOCKED
		), released AS (
			UPDATE erasure_removes r
			SET outcome = CASE
					WHEN d.gone THEN 'destination_deleted'
					WHEN d.wanted THEN 'returned'
					WHEN d.shared THEN 'shared'
					ELSE 'acknowledged' END,
				status = CASE WHEN d.gone OR d.wanted OR d.shared THEN 0 ELSE coalesce(d.status, 0) END,
				at = CASE WHEN d.gone OR d.wanted OR d.shared THEN now() ELSE coalesce(d.at, now()) END
			FROM done d
			WHERE r.id = d.id
			RETURNING r.lane, r.destination_id, r.segment_id, r.profile_id, r.outcome
		)
		SELECT lane, destination_id, segment_id, profile_id
		FROM released`
	type triple struct {
		Lane                 int
		Destination, Segment int64
		Profile              ProfileID
	}
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		rows, _ := tx.Query(ctx, query, pgx.StrictNamedArgs{"chunk": chunk})
		done, err := pgx.CollectRows(rows, pgx.RowToStructByPos[triple])
		if err != nil {
			return err
		}
		n = len(done)
		for _, d := range done {
			if err := redact(ctx, tx, d.Lane, []ProfileID{d.Profile}, d.Destination, d.Segment, time.Now()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("note who has let go of the forgotten: %w", err)
	}
	return n, nil
}

// Waiting returns how many destinations and segments have not let go yet of somebody who was forgotten.
func (l *Ledger) Waiting(ctx context.Context, tx pgx.Tx, erasure int64) (n int, err error) {
	const query = `SELECT count(*) FROM erasure_removes WHERE erasure_id = @erasure AND outcome = 'waiting'`
	if err := tx.QueryRow(ctx, query, pgx.StrictNamedArgs{"erasure": erasure}).Scan(&n); err != nil {
		return 0, fmt.Errorf("count who has not let go: %w", err)
	}
	return n, nil
}

// Forget takes out of the ledger, and of everything beside it, what is left of somebody who was forgotten at a moment and of
// whom no destination holds anything any more. Lines of the ledger stay, without saying of whom they are. Those about events
// are in the lanes of the events, so every lane is looked at for all of the person's ids. It tells whether something is left
// for now.
func (l *Ledger) Forget(
	ctx context.Context, tx pgx.Tx, lanes int, workspace int32, erasure int64, profiles []ProfileID, at time.Time,
) (left bool, err error) {
	const rows = theirs + `
		DELETE FROM activations a
		USING theirs t
		WHERE a.lane = @lane AND a.destination_id = t.destination_id AND a.segment_id = t.segment_id
			AND a.profile_id = t.profile_id AND NOT a.wanted AND a.cause = 'erasure' AND a.status IN ('settled', 'unreachable')
			AND a.sent = false AND a.sent_identifiers IS NULL`
	const receipts = `
		UPDATE activation_receipts
		SET profiles = ARRAY(
			SELECT CASE WHEN p.id = ANY(@profiles::uuid[]) THEN @nobody ELSE p.id END
			FROM unnest(profiles) WITH ORDINALITY AS p (id, n)
			ORDER BY p.n)
		WHERE lane = ANY(@lanes::smallint[]) AND poll_at IS NULL AND profiles && @profiles::uuid[]`
	const removes = `
		UPDATE erasure_removes
		SET profile_id = NULL
		WHERE erasure_id = @erasure`
	const under = `
		SELECT EXISTS (
			SELECT
			FROM activation_batches
			WHERE lane = ANY(@lanes::smallint[]) AND profiles && @profiles::uuid[] AND created_at <= @at)
		OR EXISTS (
			SELECT
			FROM activation_receipts
			WHERE lane = ANY(@lanes::smallint[]) AND profiles && @profiles::uuid[] AND accepted_at <= @at AND poll_at IS NOT NULL)`
	made := make([][]unmade, lanes)
	for lane := range lanes {
		if made[lane], err = unmake(ctx, tx, lane, workspace, profiles, &at); err != nil {
			return false, err
		}
	}
	all := laneNumbers(lanes)
	err = tx.QueryRow(ctx, under, pgx.StrictNamedArgs{"lanes": all, "profiles": profiles, "at": at}).Scan(&left)
	for lane := 0; err == nil && lane < lanes; lane++ {
		if _, err = tx.Exec(ctx, rows, pgx.StrictNamedArgs{"lane": lane, "workspace": workspace, "profiles": profiles}); err == nil {
			err = redact(ctx, tx, lane, profiles, 0, 0, at)
		}
	}
	if err == nil {
		_, err = tx.Exec(ctx, receipts, pgx.StrictNamedArgs{"lanes": all, "profiles": profiles, "nobody": ProfileID{}})
	}
	if err == nil {
		_, err = tx.Exec(ctx, removes, pgx.StrictNamedArgs{"erasure": erasure})
	}
	for lane := 0; err == nil && lane < lanes; lane++ {
		err = free(ctx, tx, lane, made[lane])
	}
	if err != nil {
		return false, fmt.Errorf("forget what destinations were told of: %w", err)
	}
	return left, nil
}

// redact has the ledger forget of whom its lines up to a moment are: at one destination and segment, or everywhere if that
// is 0.
func redact(ctx context.Context, tx pgx.Tx, lane int, profiles []ProfileID, destination, segment int64, at time.Time) error {
	const query = `
		WITH lines AS (
			UPDATE deliveries
			SET profile_id = @nobody, message_id = ''
			WHERE lane = @lane AND profile_id = ANY(@profiles::uuid[]) AND (changed_at <= @at OR cause = 'erasure')
				AND (@destination = 0 OR destination_id = @destination AND segment_id = @segment)
			RETURNING attempt_id
		)
		UPDATE activation_attempts
		SET excerpt = ''
		WHERE lane = @lane AND id IN (SELECT attempt_id FROM lines) AND excerpt <> ''`
	_, err := tx.Exec(ctx, query, pgx.StrictNamedArgs{
		"lane": lane, "profiles": profiles, "nobody": ProfileID{}, "at": at, "destination": destination, "segment": segment,
	})
	if err != nil {
		return fmt.Errorf("redact the ledger: %w", err)
	}
	return nil
}

// Erased is what became of one destination and segment that held somebody who was forgotten.
type Erased struct {
	Destination int64
	Segment     int64
	Outcome     string // waiting, acknowledged, shared (others there have the same identifiers), returned or destination_deleted
	Reason      string // why it is still waited for
	Status      int    // of HTTP; 0 if there was no answer, or nothing had to be said
	At          *time.Time
}

// Erased returns what became of each destination and segment that held somebody who was forgotten.
func (s *Store) Erased(ctx context.Context, erasure int64) ([]Erased, error) {
	const query = `
		SELECT r.destination_id, r.segment_id, r.outcome,
			CASE
				WHEN r.outcome <> 'waiting' THEN ''
				WHEN d.status <> 'active' THEN concat_ws(': ', 'the destination is ' || d.status, nullif(d.status_reason, ''))
				WHEN s.ready_at > now() THEN concat_ws(': ', 'waits for the audience', nullif(s.audience_reason, ''))
				WHEN a.status = 'accepted' THEN 'the partner is working on it'
				WHEN a.reason <> '' THEN a.reason
				ELSE 'about to be removed' END,
			r.status, r.at
		FROM erasure_removes r
		LEFT JOIN destinations d ON d.id = r.destination_id
		LEFT JOIN destination_segments s ON s.destination_id = r.destination_id AND s.segment_id = r.segment_id
		LEFT JOIN activations a ON a.lane = r.lane AND a.destination_id = r.destination_id AND a.segment_id = r.segment_id
			AND a.profile_id = r.profile_id
		WHERE r.erasure_id = @erasure
		ORDER BY r.destination_id, r.segment_id, r.id`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{"erasure": erasure})
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Erased])
	if err != nil {
		return nil, fmt.Errorf("list what destinations have let go of: %w", err)
	}
	return list, nil
}

// KeyRing is what the store seals with.
func (s *Store) KeyRing() *KeyRing { return s.ring }

// Held is what a destination is told of one person in one segment.
type Held struct {
	Destination int64
	Segment     int64
	Status      string
	Kinds       []string // of the identifiers that were sent; nil if the destination is told all of them: [Limits.ByProfile]
}

// Held returns what the destinations of a workspace hold of somebody, or are to hold, under any of the ids that the person
// had.
func (s *Store) Held(ctx context.Context, workspace int32, profiles []ProfileID) ([]Held, error) {
	const query = `
		WITH RECURSIVE` + audiences + `
		SELECT a.destination_id, a.segment_id, a.status,
			CASE WHEN NOT d.by_profile THEN
				ARRAY(SELECT DISTINCT i ->> 'kind' FROM jsonb_path_query(a.sent_identifiers, '$.*[*]') AS i ORDER BY 1)
			END
		FROM audiences
		JOIN destinations d ON d.id = audiences.destination_id AND d.workspace_id = @workspace
		JOIN activations a ON a.lane = @lane AND a.destination_id = audiences.destination_id
			AND a.segment_id = audiences.segment_id
		WHERE a.profile_id = ANY(@profiles::uuid[])
			AND (a.wanted OR a.sent IS DISTINCT FROM false OR a.sent_identifiers IS NOT NULL)
		ORDER BY a.destination_id, a.segment_id, a.profile_id`
	var all []Held
	for lane := range s.lanes {
		rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{"lane": lane, "profiles": profiles, "workspace": workspace})
		list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Held])
		if err != nil {
			return nil, fmt.Errorf("list what destinations hold: %w", err)
		}
		all = append(all, list...)
	}
	return all, nil
}

// Told is one time that a destination was told of somebody.
type Told struct {
	ID           int64
	Destination  int64
	Segment      int64  // 0 if it was about an event
	Subscription *int64 // that an event was sent for
	Entered      bool
	Outcome      string
	Status       int // of HTTP; 0 if there was no answer
	At           time.Time
}

// Told returns at most limit times that the destinations of a workspace were told of a profile from before one, the last
// first. Before 0 is from the last on.
func (s *Store) Told(ctx context.Context, workspace int32, profile ProfileID, before int64, limit int) ([]Told, error) {
	const query = `
		SELECT v.id, v.destination_id, v.segment_id, v.subscription_id, v.entered, v.outcome, coalesce(t.status, 0), v.at
		FROM deliveries v
		JOIN destinations d ON d.id = v.destination_id AND d.workspace_id = @workspace
		LEFT JOIN activation_attempts t ON t.lane = v.lane AND t.id = v.attempt_id
		WHERE v.lane = ANY(@lanes::smallint[]) AND v.profile_id = @profile AND (@before::bigint = 0 OR v.id < @before)
		ORDER BY v.id DESC
		LIMIT @limit`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{
		"workspace": workspace, "lanes": laneNumbers(s.lanes), "profile": profile, "before": before, "limit": limit,
	})
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Told])
	if err != nil {
		return nil, fmt.Errorf("list what destinations were told: %w", err)
	}
	return list, nil
}
