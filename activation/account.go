package activation

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// From which part of what an account may ask it is slowed down, and from which on nothing is sent.
const (
	slowFrom  = 0.75
	stopFrom  = 0.95
	slowFor   = 5 * time.Minute
	stopFor   = time.Minute
	slowest   = 0.05
	lookEvery = time.Second // for what other processes know of an account
	aheadFor  = 100 * time.Millisecond
)

// accounts keeps to what accounts at partners may ask, together with all other processes. Their budget is in the database:
// each process takes some requests ahead, at most a tenth of a second's worth, with the moments at which they may be made.
type accounts struct {
	pool *pgxpool.Pool

	mu  sync.Mutex
	all map[string]*account
}

type account struct {
	key   string
	rates []Rate

	mu      sync.Mutex
	ahead   []slots   // by rate
	blocked time.Time // nothing before
	looked  time.Time
	pace    float64
}

// slots are requests that this process may make, the first at next.
type slots struct {
	next time.Time
	step time.Duration
	left int
}

// of returns the account that a destination is counted by.
func (a *accounts) of(t served, limits Limits) *account {
	if limits.Account == "" && len(limits.Rates) == 0 {
		return &account{pace: 1}
	}
	// Of one workspace: where its requests go is for its owner to say, and so is what they are answered.
	key := fmt.Sprintf("ws_%d:%s:%s", t.Workspace, t.partner.Type(), limits.Account)
	if limits.Account == "" {
		key = fmt.Sprintf("%s:dst_%d", t.partner.Type(), t.ID)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.all == nil {
		a.all = map[string]*account{}
	}
	if a.all[key] == nil {
		a.all[key] = &account{key: key, pace: 1}
	}
	one := a.all[key]
	one.mu.Lock()
	defer one.mu.Unlock()
	if len(one.rates) != len(limits.Rates) {
		one.ahead = make([]slots, len(limits.Rates))
	}
	one.rates = limits.Rates
	return one
}

// take asks for one request. It returns 0 if it may be made now, or how long to wait before asking again.
func (a *accounts) take(ctx context.Context, one *account) (time.Duration, error) {
	if one.key == "" {
		return 0, nil
	}
	one.mu.Lock()
	defer one.mu.Unlock()
	if time.Since(one.looked) > lookEvery {
		if err := a.look(ctx, one); err != nil {
			return 0, err
		}
	}
	if wait := time.Until(one.blocked); wait > 0 {
		return wait, nil
	}
	rates := one.rates
	if len(rates) == 0 && one.pace < 1 { // the partner says that it is too much, and nobody knows of what
		rates = []Rate{{Requests: 10, Per: time.Second}}
		if len(one.ahead) == 0 {
			one.ahead = make([]slots, 1)
		}
	}
	var wait time.Duration
	for i, r := range rates {
		if s := &one.ahead[i]; s.left > 0 && time.Since(s.next) > aheadFor {
			s.left = 0 // or those that were not made in time would all be made at once
		}
		if one.ahead[i].left == 0 {
			var err error
			if one.ahead[i], err = a.reserve(ctx, one, r); err != nil {
				return 0, err
			}
		}
		wait = max(wait, time.Until(one.ahead[i].next))
	}
	if wait > 0 {
		return wait, nil
	}
	for i := range rates {
		one.ahead[i].left--
		one.ahead[i].next = one.ahead[i].next.Add(one.ahead[i].step)
	}
	return 0, nil
}

// giveBack returns a request that was taken and not made.
func (one *account) giveBack() {
	if one.key == "" {
		return
	}
	one.mu.Lock()
	defer one.mu.Unlock()
	for i := range one.ahead {
		if one.ahead[i].step > 0 {
			one.ahead[i].left++
			one.ahead[i].next = one.ahead[i].next.Add(-one.ahead[i].step)
		}
	}
}

// A rate is kept in every window of its period, wherever that begins: of the requests a part may be made at once, the rest
// evenly over the period. Of a short period that part is small; of a day it is half, so that a morning's work is not spread
// over it.
func (r Rate) split() (step, burst time.Duration) {
	part := 0.05
	if r.Per >= time.Hour {
		part = 0.5
	}
	step = time.Duration(float64(r.Per) / (float64(max(r.Requests, 1)) * (1 - part)))
	return step, time.Duration(float64(step) * part * float64(r.Requests))
}

// reserve takes some requests of a rate ahead.
func (a *accounts) reserve(ctx context.Context, one *account, r Rate) (slots, error) {
	const query = `
		INSERT INTO activation_accounts AS a (account, period_us, next_at)
		VALUES (@account, @period, now() + @all::interval - @burst::interval)
		ON CONFLICT (account, period_us) DO UPDATE
		SET next_at = greatest(a.next_at, now() - @burst::interval) + @all::interval
		RETURNING extract(epoch FROM next_at - @all::interval - now())::float8`
	step, burst := r.split()
	step = time.Duration(float64(step) / one.pace)
	n := min(max(int(aheadFor/max(step, time.Microsecond)), 1), 1000)
	var first float64
	err := a.pool.QueryRow(ctx, query, pgx.StrictNamedArgs{
		"account": one.key, "period": r.Per.Microseconds(), "all": time.Duration(n) * step, "burst": burst,
	}).Scan(&first)
	if err != nil {
		return slots{}, fmt.Errorf("take requests of account ahead: %w", err)
	}
	return slots{next: time.Now().Add(time.Duration(first * float64(time.Second))), step: step, left: n}, nil
}

// look reads what other processes know of an account.
func (a *accounts) look(ctx context.Context, one *account) error {
	const query = `
		SELECT greatest(extract(epoch FROM greatest(blocked_until, now()) - now()), 0)::float8,
			CASE WHEN slow_until > now() THEN pace ELSE 1 END
		FROM activation_accounts
		WHERE account = @account AND period_us = 0`
	var blocked float64
	err := a.pool.QueryRow(ctx, query, pgx.StrictNamedArgs{"account": one.key}).Scan(&blocked, &one.pace)
	if errors.Is(err, pgx.ErrNoRows) {
		one.pace, err = 1, nil
	}
	if err != nil {
		return fmt.Errorf("look at account: %w", err)
	}
	if until := time.Now().Add(time.Duration(blocked * float64(time.Second))); blocked > 0 && until.After(one.blocked) {
		one.blocked = until
	}
	one.looked = time.Now()
	return nil
}

// heed takes in what an answer says of the account: how long to wait, and how much of its budget is used up.
func (a *accounts) heed(ctx context.Context, one *account, o Outcome) error {
	wait := time.Duration(0)
	if o.Class == RetryAfter {
		wait = min(max(o.Wait, time.Second), longestWait)
	}
	pace := 1.0
	switch {
	case o.Usage >= stopFrom:
		pace = slowest
		if wait == 0 {
			wait = max(min(o.Wait, longestWait), 0)
		}
		if wait == 0 {
			wait = stopFor
		}
	case o.Usage >= slowFrom:
		pace = max((stopFrom-o.Usage)/(stopFrom-slowFrom), slowest)
	}
	if one.key == "" || wait == 0 && pace == 1 {
		return nil
	}
	one.mu.Lock()
	if until := time.Now().Add(wait); wait > 0 && until.After(one.blocked) {
		one.blocked = until
	}
	one.pace = min(one.pace, pace)
	for i := range one.ahead {
		one.ahead[i].left = 0
	}
	one.mu.Unlock()
	const query = `
		INSERT INTO activation_accounts AS a (account, period_us, blocked_until, pace, slow_until)
		VALUES (@account, 0, now() + @wait::interval, @pace, now() + CASE WHEN @pace < 1 THEN @slow::interval ELSE '0' END)
		ON CONFLICT (account, period_us) DO UPDATE
		SET blocked_until = greatest(a.blocked_until, excluded.blocked_until),
			pace          = CASE WHEN excluded.slow_until > now() THEN excluded.pace ELSE a.pace END,
			slow_until    = greatest(a.slow_until, excluded.slow_until)`
	_, err := a.pool.Exec(ctx, query, pgx.StrictNamedArgs{
		"account": one.key, "wait": wait, "pace": pace, "slow": slowFor + wait,
	})
	if err != nil {
		return fmt.Errorf("note what an account may ask: %w", err)
	}
	return nil
}
