package activation

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Status tells whether anything is sent to a destination. What should be sent is written down in any case.
type Status string

// A destination is paused by a person or by an answer that a person must look at, and disabled by the receiver.
const (
	Active   Status = "active"
	Paused   Status = "paused"
	Disabled Status = "disabled"
)

// Destination is one account at one partner, as it may be shown.
type Destination struct {
	ID           int64
	Workspace    int32
	Key          string
	Name         string
	Type         string
	Config       jsontext.Value
	Secrets      map[string]string // masked
	Status       Status
	StatusReason string
	BlockedUntil time.Time // zero unless the partner asked to wait
	Consent      Gate
	TokenExpires time.Time // of the access token; zero if nobody knows
	Segments     []Attachment
	Version      int64
	CreatedAt    time.Time
	UpdatedAt    time.Time
}

// Attachment is a segment that a destination is told about.
type Attachment struct {
	Segment    int64
	Filled     bool // its members at the time of attaching are all on the ledger
	AttachedAt time.Time
	Audience   string // the partner's id of the audience; empty if there is none, or none is needed
	Ready      bool   // it has an audience, or needs none
	Waiting    string // why it is not ready
	Matched    *int64 // people that the partner recognised; nil if it does not tell
	State      string // of the audience, in the partner's words
	MatchedAt  time.Time
}

// database is a pool, or a transaction that what is done becomes a part of.
type database interface {
	Begin(ctx context.Context) (pgx.Tx, error)
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Store manages destinations. Its methods may be called at once.
type Store struct {
	pool     *pgxpool.Pool
	db       database // the pool, or a transaction
	ring     *KeyRing
	partners map[string]Partner
	lanes    int
}

// NewStore returns a store of destinations at the given partners, in an installation with so many lanes.
func NewStore(pool *pgxpool.Pool, ring *KeyRing, lanes int, partners ...Partner) *Store {
	s := &Store{pool: pool, db: pool, ring: ring, lanes: lanes, partners: map[string]Partner{}}
	for _, p := range partners {
		s.partners[p.Type()] = p
	}
	return s
}

// In returns a store of the same destinations that works in a transaction: what it does is done when that is committed.
func (s *Store) In(tx pgx.Tx) *Store {
	in := *s
	in.db = tx
	return &in
}

// NewDestination is what somebody gives to make a [Destination].
type NewDestination struct {
	Key      string
	Name     string // the key if empty
	Type     string
	Settings Settings
	Consent  *Gate // the partner's if nil
}

var (
	keyForm    = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)
	publicForm = regexp.MustCompile(`^dst_[0-9]+$`)
)

// Create makes a destination. The second result holds the secrets that the partner made up, to be shown this once. What is
// wrong with the request is reported as [*FieldError]s, joined; a key that is taken as [ErrConflict].
func (s *Store) Create(ctx context.Context, workspace int32, n NewDestination) (Destination, jsontext.Value, error) {
	var errs []error
	if !keyForm.MatchString(n.Key) || publicForm.MatchString(n.Key) {
		errs = append(errs, &FieldError{Pointer: "/key", Detail: "must be 1 to 63 of a-z, 0-9, _ and -, begin with a letter or digit, and not look like an id"})
	}
	if errs = append(errs, checkName(n.Name)); n.Type == "" {
		errs = append(errs, &FieldError{Pointer: "/type", Detail: "is required", Code: CodeRequired})
	}
	settings := n.Settings
	partner, ok := s.partners[n.Type]
	if !ok && n.Type != "" {
		errs = append(errs, &FieldError{
			Pointer: "/type", Detail: "must be one of " + strings.Join(slices.Sorted(maps.Keys(s.partners)), ", "),
		})
	}
	if ok {
		var err error
		settings, err = prepare(partner, settings, settings.Secrets)
		errs = append(errs, err)
	}
	gate := n.Consent
	if gate != nil {
		errs = append(errs, gate.check())
	} else if ok {
		gate = new(partner.Gate())
	}
	if err := errors.Join(errs...); err != nil {
		return Destination{}, nil, err
	}

	const next = `SELECT nextval(pg_get_serial_sequence('destinations', 'id'))`
	const insert = `
		INSERT INTO destinations
			(id, workspace_id, key, name, type, config, secrets, purposes, consent_mode, by_profile, linger, refresh_at)
		VALUES (@id, @workspace, @key, @name, @type, @config::text::jsonb, @secrets, @purposes, @mode, @by_profile, @linger,
			@refresh)`
	var id int64
	if err := s.db.QueryRow(ctx, next).Scan(&id); err != nil {
		return Destination{}, nil, fmt.Errorf("create destination %q: %w", n.Key, err)
	}
	t := Target{ID: id, Workspace: workspace, Key: n.Key, Name: cmp.Or(n.Name, n.Key), Settings: settings}
	limits := partner.Limits(t)
	var refresh *time.Time
	if _, ok := partner.(Refresher); ok {
		refresh = new(time.Now()) // nobody knows how old the token is that came with it
	}
	_, err := s.db.Exec(ctx, insert, pgx.StrictNamedArgs{
		"id": id, "workspace": workspace, "key": n.Key, "name": t.Name, "type": n.Type,
		"config": string(settings.Config), "secrets": s.ring.Seal(secretsOf(workspace, id), settings.Secrets),
		"purposes": gate.purposes(), "mode": gate.mode(), "by_profile": limits.ByProfile, "linger": limits.Linger,
		"refresh": refresh,
	})
	var refused *pgconn.PgError
	if errors.As(err, &refused) && refused.Code == uniqueViolation {
		return Destination{}, nil, ErrConflict
	}
	if err != nil {
		return Destination{}, nil, fmt.Errorf("create destination %q: %w", n.Key, err)
	}
	d, err := s.get(ctx, workspace, id)
	return d, settings.Secrets, err
}

const uniqueViolation = "23505"

func secretsOf(workspace int32, destination int64) Place {
	return Place{Workspace: workspace, Table: "destinations", Column: "secrets", ID: destination}
}

func checkName(name string) error {
	if len(name) > 200 || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' }) {
		return &FieldError{Pointer: "/name", Detail: "must be at most 200 bytes, without control characters"}
	}
	return nil
}

// Get returns the destination with the given id, such as dst_7, or key.
func (s *Store) Get(ctx context.Context, workspace int32, ref string) (Destination, error) {
	id, err := s.find(ctx, workspace, ref)
	if err != nil {
		return Destination{}, err
	}
	return s.get(ctx, workspace, id)
}

func (s *Store) get(ctx context.Context, workspace int32, id int64) (Destination, error) {
	list, err := s.list(ctx, workspace, id-1, 1)
	if err != nil {
		return Destination{}, err
	}
	if len(list) == 0 || list[0].ID != id {
		return Destination{}, ErrNotFound
	}
	return list[0], nil
}

// find returns the id of the destination with the given id or key.
func (s *Store) find(ctx context.Context, workspace int32, ref string) (int64, error) {
	const query = `
		SELECT id
		FROM destinations
		WHERE workspace_id = @workspace AND (id = @id OR key = @key)`
	args := pgx.StrictNamedArgs{"workspace": workspace, "id": int64(0), "key": ref}
	if publicForm.MatchString(ref) {
		id, err := strconv.ParseInt(strings.TrimPrefix(ref, "dst_"), 10, 64)
		if err != nil {
			return 0, ErrNotFound
		}
		args["id"], args["key"] = id, ""
	}
	var id int64
	err := s.db.QueryRow(ctx, query, args).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, ErrNotFound
	}
	if err != nil {
		return 0, fmt.Errorf("find destination %q: %w", ref, err)
	}
	return id, nil
}

// List returns up to limit destinations with ids above after, by id.
func (s *Store) List(ctx context.Context, workspace int32, after int64, limit int) ([]Destination, error) {
	return s.list(ctx, workspace, after, limit)
}

func (s *Store) list(ctx context.Context, workspace int32, after int64, limit int) ([]Destination, error) {
	const query = `
		SELECT id, workspace_id, key, name, type, config::text, secrets, status, status_reason,
			CASE WHEN blocked_until > now() THEN blocked_until END, purposes, consent_mode, token_expires_at, version,
			created_at, updated_at
		FROM destinations
		WHERE workspace_id = @workspace AND id > @after
		ORDER BY id
		LIMIT @limit`
	const attached = `
		SELECT destination_id, segment_id, filled, attached_at, audience, ready_at < 'infinity', audience_reason, matched,
			matched_state, coalesce(matched_at, '0001-01-01 00:00:00Z')
		FROM destination_segments
		WHERE destination_id = ANY(@ids) AND attached
		ORDER BY destination_id, segment_id`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{"workspace": workspace, "after": after, "limit": limit})
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Destination, error) {
		var (
			d       Destination
			config  string
			sealed  []byte
			blocked *time.Time
			expires *time.Time
		)
		err := row.Scan(&d.ID, &d.Workspace, &d.Key, &d.Name, &d.Type, &config, &sealed, &d.Status, &d.StatusReason,
			&blocked, &d.Consent.Purposes, &d.Consent.Mode, &expires, &d.Version, &d.CreatedAt, &d.UpdatedAt)
		if err != nil {
			return Destination{}, err
		}
		d.Config = jsontext.Value(config)
		if blocked != nil {
			d.BlockedUntil = *blocked
		}
		if expires != nil {
			d.TokenExpires = *expires
		}
		secrets, err := s.ring.Open(secretsOf(d.Workspace, d.ID), sealed)
		if p := s.partners[d.Type]; err == nil && p != nil {
			d.Secrets = p.Mask(secrets)
		}
		return d, nil // secrets that do not open must not hide the destination: they are missing, and sending says why
	})
	if err != nil {
		return nil, fmt.Errorf("list destinations: %w", err)
	}
	index := make(map[int64]int, len(list))
	ids := make([]int64, len(list))
	for i, d := range list {
		index[d.ID], ids[i] = i, d.ID
	}
	rows, _ = s.db.Query(ctx, attached, pgx.StrictNamedArgs{"ids": ids})
	var (
		id int64
		a  Attachment
	)
	_, err = pgx.ForEachRow(rows, []any{
		&id, &a.Segment, &a.Filled, &a.AttachedAt, &a.Audience, &a.Ready, &a.Waiting, &a.Matched, &a.State, &a.MatchedAt,
	}, func() error {
		list[index[id]].Segments = append(list[index[id]].Segments, a)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list attached segments: %w", err)
	}
	return list, nil
}

// Update is what somebody wants to change of a [Destination]. Nil fields stay as they are.
type Update struct {
	Name    *string
	Config  jsontext.Value
	Secrets jsontext.Value
	Consent *Gate
	Version int64 // that the caller has seen; 0 if it does not care
}

// Update changes a destination. If somebody else changed it since u.Version it returns [ErrStale]; what is wrong with the
// request is reported as [*FieldError]s, joined.
func (s *Store) Update(ctx context.Context, workspace int32, ref string, u Update) (Destination, error) {
	id, err := s.find(ctx, workspace, ref)
	if err != nil {
		return Destination{}, err
	}
	err = pgx.BeginFunc(ctx, s.db, func(tx pgx.Tx) error {
		if u.Consent != nil {
			if err := u.Consent.check(); err != nil {
				return err
			}
			if err := lockConfig(ctx, tx); err != nil { // before the row: whoever attaches takes them in this order
				return err
			}
		}
		row, err := s.lock(ctx, tx, id)
		if err != nil {
			return err
		}
		if u.Version != 0 && u.Version != row.version {
			return ErrStale
		}
		if u.Name != nil {
			if err := checkName(*u.Name); err != nil {
				return err
			}
			row.name = cmp.Or(*u.Name, row.key)
		}
		if u.Config != nil || u.Secrets != nil {
			settings := row.settings
			row.given = len(u.Secrets) > 0
			if u.Config != nil {
				settings.Config = u.Config
			}
			if u.Secrets != nil {
				settings.Secrets = u.Secrets
				if rotator, ok := row.partner.(Rotator); ok {
					settings.Secrets = rotator.Replace(row.settings.Secrets, u.Secrets, time.Now())
				}
			}
			if row.settings, err = prepare(row.partner, settings, u.Secrets); err != nil {
				return err
			}
			if err := lookForAudiences(ctx, tx, id, row.partner); err != nil {
				return err
			}
		}
		if u.Consent != nil {
			if err := s.setGate(ctx, tx, id, *u.Consent); err != nil {
				return err
			}
		}
		return s.save(ctx, tx, row)
	})
	if err != nil {
		return Destination{}, storeError(err, "update", ref)
	}
	return s.get(ctx, workspace, id)
}

// lookForAudiences has the audiences that a destination still needs made as soon as it is active, however often that went
// wrong with the settings it had.
func lookForAudiences(ctx context.Context, tx pgx.Tx, id int64, p Partner) error {
	const query = `
		UPDATE destination_segments
		SET audience_at = '-infinity', audience_tries = 0, audience_reason = @reason
		WHERE destination_id = @id AND attached AND audience = '' AND ready_at = 'infinity'`
	_, err := tx.Exec(ctx, query, pgx.StrictNamedArgs{"id": id, "reason": noAudience(p)})
	return err
}

// RotateSecret replaces the secrets of a destination. The previous ones hold for a while longer; the new ones are
// returned, to be shown this once.
func (s *Store) RotateSecret(ctx context.Context, workspace int32, ref string) (map[string]string, error) {
	id, err := s.find(ctx, workspace, ref)
	if err != nil {
		return nil, err
	}
	var shown map[string]string
	err = pgx.BeginFunc(ctx, s.db, func(tx pgx.Tx) error {
		row, err := s.lock(ctx, tx, id)
		if err != nil {
			return err
		}
		rotator, ok := row.partner.(Rotator)
		if !ok {
			return &UnsupportedError{"Its secrets are made elsewhere: get new ones there, and give them by changing secrets."}
		}
		row.given = true
		if row.settings.Secrets, shown, err = rotator.Rotate(row.settings.Secrets, time.Now()); err != nil {
			return err
		}
		return s.save(ctx, tx, row)
	})
	if err != nil {
		return nil, storeError(err, "rotate the secret of", ref)
	}
	return shown, nil
}

// setGate changes the consent that a destination asks for, and has everybody in its segments looked at again.
func (s *Store) setGate(ctx context.Context, tx pgx.Tx, id int64, gate Gate) error {
	const query = `
		UPDATE destinations
		SET purposes = @purposes, consent_mode = @mode
		WHERE id = @id AND (purposes, consent_mode) IS DISTINCT FROM (@purposes::text[], @mode::text)`
	const refill = `
		UPDATE destination_segments
		SET generation = nextval('destination_generation'), filled = false, fill_until = '-infinity'
		WHERE destination_id = @id AND attached`
	tag, err := tx.Exec(ctx, query, pgx.StrictNamedArgs{"id": id, "purposes": gate.purposes(), "mode": gate.mode()})
	if err != nil || tag.RowsAffected() == 0 {
		return err
	}
	if _, err = tx.Exec(ctx, refill, pgx.StrictNamedArgs{"id": id}); err != nil {
		return err
	}
	return subscriptionsChanged(ctx, tx)
}

// locked is a destination that a transaction is about to change.
type locked struct {
	id        int64
	workspace int32
	key, name string
	version   int64
	partner   Partner
	settings  Settings
	given     bool // the secrets of settings are new: else a refresh under way may be about to replace those that are stored
}

func (s *Store) lock(ctx context.Context, tx pgx.Tx, id int64) (locked, error) {
	const query = `
		SELECT workspace_id, key, name, type, config::text, secrets, version
		FROM destinations
		WHERE id = @id
		FOR UPDATE`
	var (
		row          = locked{id: id}
		kind, config string
		sealed       []byte
	)
	err := tx.QueryRow(ctx, query, pgx.StrictNamedArgs{"id": id}).
		Scan(&row.workspace, &row.key, &row.name, &kind, &config, &sealed, &row.version)
	if errors.Is(err, pgx.ErrNoRows) {
		return locked{}, ErrNotFound
	}
	if err != nil {
		return locked{}, err
	}
	if row.partner = s.partners[kind]; row.partner == nil {
		return locked{}, ErrUnsupported
	}
	secrets, err := s.ring.Open(secretsOf(row.workspace, id), sealed)
	if err != nil {
		return locked{}, err
	}
	row.settings = Settings{Config: jsontext.Value(config), Secrets: secrets}
	return row, nil
}

func (s *Store) save(ctx context.Context, tx pgx.Tx, row locked) error {
	const query = `
		UPDATE destinations
		SET refresh_at = CASE
				WHEN @refreshes AND (@given OR config <> @config::text::jsonb) THEN now()
				WHEN @refreshes THEN refresh_at END,
			secrets          = CASE WHEN @given THEN @secrets ELSE secrets END,
			secrets_version  = CASE WHEN @given THEN secrets_version + 1 ELSE secrets_version END,
			refreshed_at     = CASE WHEN NOT @given THEN refreshed_at END,
			token_expires_at = CASE WHEN NOT @given THEN token_expires_at END,
			refresh_claim    = CASE WHEN NOT @given THEN refresh_claim END,
			name = @name, config = @config::text::jsonb, linger = @linger, version = version + 1, updated_at = now()
		WHERE id = @id`
	limits := row.partner.Limits(Target{
		ID: row.id, Workspace: row.workspace, Key: row.key, Name: row.name, Settings: row.settings,
	})
	_, refreshes := row.partner.(Refresher)
	_, err := tx.Exec(ctx, query, pgx.StrictNamedArgs{
		"id": row.id, "name": row.name, "config": string(row.settings.Config), "linger": limits.Linger,
		"refreshes": refreshes, "given": row.given,
		"secrets": s.ring.Seal(secretsOf(row.workspace, row.id), row.settings.Secrets),
	})
	return err
}

// storeError passes on what callers act upon and wraps the rest.
func storeError(err error, doing, ref string) error {
	var field *FieldError
	var unsupported *UnsupportedError
	if errors.As(err, &field) || errors.As(err, &unsupported) {
		return err
	}
	for _, known := range []error{ErrNotFound, ErrConflict, ErrStale, ErrUnsupported} {
		if errors.Is(err, known) {
			return known
		}
	}
	return fmt.Errorf("%s destination %q: %w", doing, ref, err)
}

// Pause keeps anything from being sent to a destination until [Store.Resume]. What is under way is not called back.
func (s *Store) Pause(ctx context.Context, workspace int32, ref, reason string) (Destination, error) {
	const query = `
		UPDATE destinations
		SET status = 'paused', status_reason = @reason, version = version + 1, updated_at = now()
		WHERE id = @id`
	return s.setStatus(ctx, workspace, ref, "pause", query, pgx.StrictNamedArgs{"reason": reason})
}

// Resume has everything sent to a destination that waits for it, at once, whatever it waited for. For how long it has been
// tried counts from now on.
func (s *Store) Resume(ctx context.Context, workspace int32, ref string) (Destination, error) {
	const query = `
		UPDATE destinations
		SET status = 'active', status_reason = '', blocked_until = '-infinity', version = version + 1, updated_at = now()
		WHERE id = @id`
	const anew = `
		UPDATE activation_batches
		SET created_at = now()
		WHERE lane = ANY(@lanes::smallint[]) AND destination_id = @destination AND claim_token IS NULL`
	d, err := s.setStatus(ctx, workspace, ref, "resume", query, pgx.StrictNamedArgs{})
	if err != nil {
		return Destination{}, err
	}
	if _, err := s.db.Exec(ctx, anew, pgx.StrictNamedArgs{"lanes": laneNumbers(s.lanes), "destination": d.ID}); err != nil {
		return Destination{}, fmt.Errorf("have what waits for destination %q tried anew: %w", ref, err)
	}
	return d, hasten(ctx, s.db, s.lanes, d.ID)
}

func (s *Store) setStatus(
	ctx context.Context, workspace int32, ref, doing, query string, args pgx.StrictNamedArgs,
) (Destination, error) {
	id, err := s.find(ctx, workspace, ref)
	if err != nil {
		return Destination{}, err
	}
	args["id"] = id
	if _, err := s.db.Exec(ctx, query, args); err != nil {
		return Destination{}, fmt.Errorf("%s destination %q: %w", doing, ref, err)
	}
	return s.get(ctx, workspace, id)
}

// hasten makes due now what waits for its next attempt at a destination. What waits for an audience goes on waiting.
func hasten(ctx context.Context, db database, lanes int, destination int64) error {
	if err := hurry(ctx, db, lanes, pgx.StrictNamedArgs{"destination": destination, "segment": 0, "all": false}); err != nil {
		return err
	}
	return hastenEvents(ctx, db, lanes, destination)
}

// releaseWaiting makes due what waited for the audience of a segment.
func releaseWaiting(ctx context.Context, db database, lanes int, destination, segment int64) error {
	return hurry(ctx, db, lanes, pgx.StrictNamedArgs{"destination": destination, "segment": segment, "all": true})
}

func hurry(ctx context.Context, db database, lanes int, args pgx.StrictNamedArgs) error {
	const query = `
		WITH waiting AS (
			SELECT segment_id, profile_id
			FROM activations
			WHERE lane = @lane AND destination_id = @destination AND (@segment = 0 OR segment_id = @segment)
				AND status = 'pending' AND next_at > now() AND (@all OR next_at < 'infinity')
			ORDER BY segment_id, profile_id
			LIMIT @chunk
			FOR UPDATE
		)
		UPDATE activations a
		SET next_at = now()
		FROM waiting w
		WHERE a.lane = @lane AND a.destination_id = @destination
			AND a.segment_id = w.segment_id AND a.profile_id = w.profile_id`
	for lane := range lanes {
		args["lane"] = lane
		if _, err := inChunks(ctx, db, query, args); err != nil {
			return fmt.Errorf("hasten what waits for destination %v: %w", args["destination"], err)
		}
	}
	return nil
}

// hastenEvents makes due now what events wait for their next attempt at a destination.
func hastenEvents(ctx context.Context, db database, lanes int, destination int64) error {
	const query = `
		WITH waiting AS (
			SELECT id
			FROM conversions
			WHERE lane = @lane AND destination_id = @destination AND status = 'pending' AND next_at > now()
			ORDER BY id
			LIMIT @chunk
			FOR UPDATE
		)
		UPDATE conversions c
		SET next_at = now()
		FROM waiting w
		WHERE c.lane = @lane AND c.destination_id = @destination AND c.id = w.id`
	for lane := range lanes {
		if _, err := inChunks(ctx, db, query, pgx.StrictNamedArgs{"lane": lane, "destination": destination}); err != nil {
			return fmt.Errorf("hasten events that wait for destination %d: %w", destination, err)
		}
	}
	return nil
}

const chunk = 5000

// inChunks runs a statement, with @chunk set, until it changes fewer rows than that. It returns how many it changed.
func inChunks(ctx context.Context, db database, query string, args pgx.StrictNamedArgs) (total int64, err error) {
	args["chunk"] = chunk
	for {
		tag, err := db.Exec(ctx, query, args)
		if err != nil {
			return total, err
		}
		if total += tag.RowsAffected(); tag.RowsAffected() < chunk {
			return total, nil
		}
	}
}

// TestResult is what a destination answered to a test.
type TestResult struct {
	OK      bool
	Outcome string
	Status  int // of HTTP; 0 if there was no answer
	Reason  string
	Excerpt string
	Latency time.Duration
}

// Test sends something to a destination that changes no audience, and waits for the answer. A token that has ended is
// refreshed.
func (s *Store) Test(ctx context.Context, workspace int32, ref string) (TestResult, error) {
	id, err := s.find(ctx, workspace, ref)
	if err != nil {
		return TestResult{}, err
	}
	t, err := target(ctx, s.db, s.ring, s.partners, id)
	if err != nil {
		return TestResult{}, storeError(err, "test", ref)
	}
	ctx, cancel := context.WithTimeout(ctx, t.partner.Limits(t.Target).Timeout)
	defer cancel()
	start := time.Now()
	o := t.clean(t.partner.Test(ctx, t.Target))
	if _, ok := t.partner.(Refresher); ok && o.Class == Refresh {
		r := refresher{pool: s.pool, ring: s.ring, partners: s.partners}
		if o = r.refresh(ctx, t); o.Class == OK {
			if t, err = target(ctx, s.pool, s.ring, s.partners, id); err != nil {
				return TestResult{}, storeError(err, "test", ref)
			}
			o = t.clean(t.partner.Test(ctx, t.Target))
		}
	}
	return TestResult{
		OK: o.Class == OK, Outcome: string(o.Class), Status: o.Status, Reason: o.Reason, Excerpt: o.Excerpt,
		Latency: time.Since(start),
	}, nil
}

// served is a destination as the dispatcher needs it.
type served struct {
	Target
	partner Partner
	gate    Gate
	version int64
	secrets int64 // their version
}

// target returns a destination as its partner needs it.
func target(ctx context.Context, db database, ring *KeyRing, partners map[string]Partner, id int64) (served, error) {
	const query = `
		SELECT workspace_id, key, name, type, config::text, secrets, purposes, consent_mode, version, secrets_version
		FROM destinations
		WHERE id = @id`
	var (
		t            = served{Target: Target{ID: id}}
		kind, config string
		sealed       []byte
	)
	err := db.QueryRow(ctx, query, pgx.StrictNamedArgs{"id": id}).Scan(
		&t.Workspace, &t.Key, &t.Name, &kind, &config, &sealed, &t.gate.Purposes, &t.gate.Mode, &t.version, &t.secrets)
	if errors.Is(err, pgx.ErrNoRows) {
		return served{}, ErrNotFound
	}
	if err != nil {
		return served{}, fmt.Errorf("read destination %d: %w", id, err)
	}
	if t.partner = partners[kind]; t.partner == nil {
		return served{}, fmt.Errorf("destination %d is of type %q: %w", id, kind, ErrUnsupported)
	}
	t.Config = jsontext.Value(config)
	if t.Secrets, err = ring.Open(secretsOf(t.Workspace, id), sealed); err != nil {
		return served{}, err
	}
	return t, nil
}

// Delete forgets a destination and its ledger. It tells the partner nothing: detach its segments first, and wait until
// nothing is pending, to have it hold nobody any more.
func (s *Store) Delete(ctx context.Context, workspace int32, ref string) error {
	id, err := s.find(ctx, workspace, ref)
	if err != nil {
		return err
	}
	const disable = `
		UPDATE destinations
		SET status = 'disabled', status_reason = 'being deleted', version = version + 1, updated_at = now()
		WHERE id = @id`
	const detach = `DELETE FROM destination_segments WHERE destination_id = @id`
	const unsubscribe = `DELETE FROM event_subscriptions WHERE destination_id = @id`
	err = pgx.BeginFunc(ctx, s.db, func(tx pgx.Tx) error {
		if err := lockConfig(ctx, tx); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, disable, pgx.StrictNamedArgs{"id": id}); err != nil {
			return err
		}
		for _, query := range []string{detach, unsubscribe} {
			if _, err := tx.Exec(ctx, query, pgx.StrictNamedArgs{"id": id}); err != nil {
				return err
			}
		}
		return subscriptionsChanged(ctx, tx)
	})
	if err != nil {
		return storeError(err, "delete", ref)
	}
	// From here on nobody adds rows, and a deletion that is interrupted can be repeated.
	for _, query := range []string{
		`DELETE FROM activations a
		USING (
			SELECT segment_id, profile_id
			FROM activations
			WHERE lane = @lane AND destination_id = @id
			ORDER BY segment_id, profile_id
			LIMIT @chunk
			FOR UPDATE
		) d
		WHERE a.lane = @lane AND a.destination_id = @id AND a.segment_id = d.segment_id AND a.profile_id = d.profile_id`,
		`DELETE FROM holdings
		WHERE lane = @lane AND destination_id = @id AND (segment_id, identifier) IN (
			SELECT segment_id, identifier FROM holdings WHERE lane = @lane AND destination_id = @id LIMIT @chunk)`,
		`DELETE FROM conversions
		WHERE lane = @lane AND destination_id = @id AND id IN (
			SELECT id FROM conversions WHERE lane = @lane AND destination_id = @id LIMIT @chunk)`,
		`DELETE FROM conversion_counts
		WHERE lane = @lane AND destination_id = @id AND (subscription_id, outcome, reason) IN (
			SELECT subscription_id, outcome, reason FROM conversion_counts
			WHERE lane = @lane AND destination_id = @id LIMIT @chunk)`,
		`DELETE FROM activation_receipts
		WHERE lane = @lane AND id IN (
			SELECT id FROM activation_receipts WHERE lane = @lane AND destination_id = @id LIMIT @chunk)`,
		`DELETE FROM activation_mappings
		WHERE lane = @lane AND destination_id = @id AND identifiers IN (
			SELECT identifiers FROM activation_mappings WHERE lane = @lane AND destination_id = @id LIMIT @chunk)`,
		`DELETE FROM activation_batches
		WHERE lane = @lane AND id IN (
			SELECT id FROM activation_batches WHERE lane = @lane AND destination_id = @id LIMIT @chunk)`,
		`DELETE FROM deliveries
		WHERE lane = @lane AND destination_id = @id AND id IN (
			SELECT id FROM deliveries WHERE lane = @lane AND destination_id = @id LIMIT @chunk)`,
		`DELETE FROM activation_attempts
		WHERE lane = @lane AND id IN (
			SELECT id FROM activation_attempts WHERE lane = @lane AND destination_id = @id LIMIT @chunk)`,
	} {
		for lane := range s.lanes {
			if _, err := inChunks(ctx, s.db, query, pgx.StrictNamedArgs{"lane": lane, "id": id}); err != nil {
				return storeError(err, "delete what was sent to", ref)
			}
		}
	}
	const remove = `DELETE FROM destinations WHERE id = @id`
	if _, err := s.db.Exec(ctx, remove, pgx.StrictNamedArgs{"id": id}); err != nil {
		return storeError(err, "delete", ref)
	}
	return nil
}

// lockConfig waits for those who write activations under the present attachments, and keeps others from beginning to. It
// gives up after two seconds, because all lanes queue behind it for as long as it waits for one that is slow.
func lockConfig(ctx context.Context, tx pgx.Tx) error {
	const patience = `SET LOCAL lock_timeout = '2s'`
	if _, err := tx.Exec(ctx, patience); err != nil {
		return err
	}
	const query = `SELECT pg_advisory_xact_lock(@lock)`
	_, err := tx.Exec(ctx, query, pgx.StrictNamedArgs{"lock": ConfigLock})
	return err
}
