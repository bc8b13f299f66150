package activation

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	refreshLease   = 40 * time.Second // longer than refreshTimeout by what committing may take
	refreshTimeout = 30 * time.Second
	refreshPart    = 0.8              // of a token's life
	refreshAgain   = 30 * time.Second // after a failure
	unproved       = 5 * time.Minute  // a token younger than that which is refused was never any good
)

// refresher has access tokens renewed, by one process at a time for each destination: who has the claim in its row. A token
// that has not ended stays in use meanwhile; with one that has, nothing is sent. What the partner gives is committed before
// anybody uses it, so that a refresh token that is good for once is not lost with the process that got it.
type refresher struct {
	pool     *pgxpool.Pool
	ring     *KeyRing
	partners map[string]Partner

	mu     sync.Mutex
	proved map[int64]int64 // destination → version of its secrets that were good for something
}

// errRefreshing says that somebody else is refreshing, or has just done so.
var errRefreshing = errors.New("somebody else refreshes the token")

// refresh renews a token that was refused, of a destination whose settings are known as t has them, and waits until whoever does it is done.
// OK says that there are newer settings than those.
func (r *refresher) refresh(ctx context.Context, t served) Outcome {
	for {
		o, err := r.try(ctx, t, true)
		if err == nil {
			return o
		}
		if !errors.Is(err, errRefreshing) {
			return Outcome{Class: Retry, Reason: "the refreshed token could not be kept"}
		}
		if now, err := target(ctx, r.pool, r.ring, r.partners, t.ID); err != nil {
			return Outcome{Class: Retry, Reason: "the destination could not be read"}
		} else if now.secrets != t.secrets {
			return Outcome{Class: OK}
		}
		if !wait(ctx, nil, 100*time.Millisecond) {
			return Outcome{Class: Retry, Reason: "the token is being refreshed"}
		}
	}
}

// try renews a token, which may have been refused, unless somebody else does.
func (r *refresher) try(ctx context.Context, t served, refused bool) (o Outcome, err error) {
	const claim = `
		UPDATE destinations
		SET refresh_claim = @claim, refresh_until = now() + @lease::interval,
			token_expires_at = CASE WHEN @refused THEN least(token_expires_at, now()) ELSE token_expires_at END,
			refresh_at = CASE WHEN @refused THEN least(refresh_at, now()) ELSE refresh_at END -- for others, should we die
		WHERE id = @id AND secrets_version = @secrets AND refresh_until < now()`
	// Whoever is refreshing it may have died with the new token, and nothing is sent with the old one until that is known.
	const ended = `
		UPDATE destinations
		SET token_expires_at = least(token_expires_at, now()), refresh_at = least(refresh_at, now())
		WHERE id = @id AND secrets_version = @secrets AND refresh_until >= now()`
	const commit = `
		UPDATE destinations
		SET config = coalesce(@config::text::jsonb, config), secrets = @sealed, secrets_version = secrets_version + 1,
			refreshed_at = CASE WHEN @refused THEN now() END,
			token_expires_at = @expires, refresh_at = @refresh, refresh_claim = NULL, refresh_until = '-infinity'
		WHERE id = @id AND refresh_claim = @claim AND secrets_version = @secrets`
	const fail = `
		UPDATE destinations
		SET refresh_claim = NULL, refresh_until = '-infinity', refresh_at = now() + @again::interval,
			version       = CASE WHEN @status <> '' AND status = 'active' THEN version + 1 ELSE version END,
			status_reason = CASE WHEN @status <> '' AND status = 'active' THEN @reason ELSE status_reason END,
			status        = CASE WHEN @status <> '' AND status = 'active' THEN @status ELSE status END
		WHERE id = @id AND refresh_claim = @claim`
	partner, ok := t.partner.(Refresher)
	if !ok {
		return Outcome{Class: Reauth, Reason: "the access token has ended"}, nil
	}
	var token [16]byte
	rand.Read(token[:])
	tag, err := r.pool.Exec(ctx, claim, pgx.StrictNamedArgs{
		"id": t.ID, "secrets": t.secrets, "claim": token, "lease": refreshLease, "refused": refused,
	})
	if err != nil {
		return Outcome{}, fmt.Errorf("claim the refresh of destination %d: %w", t.ID, err)
	}
	if tag.RowsAffected() == 0 {
		if refused {
			if _, err := r.pool.Exec(ctx, ended, pgx.StrictNamedArgs{"id": t.ID, "secrets": t.secrets}); err != nil {
				return Outcome{}, fmt.Errorf("note that the token of destination %d has ended: %w", t.ID, err)
			}
		}
		return Outcome{}, errRefreshing
	}

	start := time.Now()
	asking, cancel := context.WithTimeout(context.WithoutCancel(ctx), refreshTimeout) // who asked must hear the answer
	defer cancel()
	fresh, expires, o := partner.Refresh(asking, t.Target)
	o = t.clean(o)
	keeping, cancel := context.WithTimeout(context.WithoutCancel(ctx), refreshLease)
	defer cancel()
	if o.Class != OK {
		args := pgx.StrictNamedArgs{
			"id": t.ID, "claim": token, "again": max(refreshAgain, min(o.Wait, longestWait)), "status": Status(""), "reason": o.Reason,
		}
		if o.Class == Reauth || o.Class == Config || o.Class == Gone {
			args["status"] = Paused
		}
		_, err := r.pool.Exec(keeping, fail, args)
		return o, err
	}
	args := pgx.StrictNamedArgs{
		"id": t.ID, "claim": token, "secrets": t.secrets, "config": nil,
		"sealed": r.ring.Seal(secretsOf(t.Workspace, t.ID), fresh.Secrets), "expires": nil, "refresh": nil, "refused": refused,
	}
	if len(fresh.Config) > 0 && !bytes.Equal(fresh.Config, t.Config) { // else somebody may have changed it meanwhile
		args["config"] = string(fresh.Config)
	}
	if !expires.IsZero() {
		args["expires"] = expires
		args["refresh"] = start.Add(time.Duration(float64(expires.Sub(start)) * refreshPart))
	}
	for { // whatever it costs: the old refresh token may be worthless by now
		tag, err = r.pool.Exec(keeping, commit, args)
		if err == nil || !wait(keeping, nil, 100*time.Millisecond) {
			break
		}
	}
	if err != nil {
		return Outcome{}, fmt.Errorf("keep the refreshed secrets of destination %d: %w", t.ID, err)
	}
	if tag.RowsAffected() == 0 { // somebody gave other secrets meanwhile
		return Outcome{Class: OK}, nil
	}
	return o, nil
}

// due refreshes one destination's token that is about to end, and tells of which, if there was one.
func (r *refresher) due(ctx context.Context) (t served, found bool, o Outcome, err error) {
	const query = `
		SELECT id
		FROM destinations
		WHERE refresh_at <= now() AND refresh_until < now() AND status = 'active'
		ORDER BY refresh_at
		LIMIT 1`
	var id int64
	err = r.pool.QueryRow(ctx, query).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return t, false, Outcome{}, nil
	}
	if err != nil {
		return t, false, Outcome{}, fmt.Errorf("look for tokens that end: %w", err)
	}
	t, err = target(ctx, r.pool, r.ring, r.partners, id)
	if err == nil {
		o, err = r.try(ctx, t, false)
	}
	if errors.Is(err, errRefreshing) {
		return t, true, Outcome{Class: OK}, nil
	}
	if err != nil {
		const later = `UPDATE destinations SET refresh_at = now() + interval '1 minute' WHERE id = @id`
		if _, err := r.pool.Exec(ctx, later, pgx.StrictNamedArgs{"id": id}); err != nil {
			return t, false, Outcome{}, err
		}
	}
	return t, true, o, err
}

// prove notes that the secrets of a destination were good for something.
func (r *refresher) prove(t served) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.proved == nil {
		r.proved = map[int64]int64{}
	}
	r.proved[t.ID] = t.secrets
}

// stale tells, after a token was refused, whether refreshing it makes sense. A token that was had because the one before was
// refused, and never did any good, will not be followed by a better one.
func (r *refresher) stale(ctx context.Context, t served) (bool, error) {
	const query = `
		SELECT secrets_version <> @secrets OR refreshed_at IS NULL OR refreshed_at < now() - @young::interval
			OR token_expires_at < now()
		FROM destinations
		WHERE id = @id`
	r.mu.Lock()
	proved := r.proved[t.ID] == t.secrets
	r.mu.Unlock()
	if proved {
		return true, nil
	}
	var stale bool
	err := r.pool.QueryRow(ctx, query, pgx.StrictNamedArgs{"id": t.ID, "secrets": t.secrets, "young": unproved}).Scan(&stale)
	if err != nil {
		return false, fmt.Errorf("look at the age of a token: %w", err)
	}
	return stale, nil
}
