package activation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// plan is what a claim is going to say of whom.
type plan struct {
	segment Segment
	send    []claimed
	later   []claimed // come in a message of their own
	results []result  // of those about whom nothing is said
}

// errEncode says that a partner cannot make a message with a destination's settings.
var errEncode = errors.New("the message could not be made")

// plan decides what has to be said of each member of a claim: it compares what the person is to be known by with what was
// sent, and looks once more whether the person may be sent.
//
//	not wanted                        remove what was sent
//	wanted, known by nothing          remove what was sent, then it is unreachable
//	wanted, what was sent not current remove what was sent, then add
//	wanted, all that was sent current add, unless it is just that which the partner is known to have
func (d *Dispatcher) plan(ctx context.Context, l *line, c *claim) (p plan, err error) {
	names, err := d.segments.SegmentInfo(ctx, l.target.Workspace, []int64{c.segment})
	if err != nil {
		return p, err
	}
	p.segment = names[c.segment]
	p.segment.ID = c.segment
	var ids []ProfileID
	for _, m := range c.members {
		if m.Wanted || c.byProfile {
			ids = append(ids, m.Profile)
		}
	}
	var persons map[ProfileID]Person
	if len(ids) > 0 {
		if persons, err = d.people.People(ctx, c.lane, l.target.Workspace, ids); err != nil {
			return p, err
		}
	}
	current, ends, err := d.queue.identify(ctx, l.target, l.limits, persons)
	// Who is to be removed needs nobody to be asked for names, and does not wait for those who do.
	var unmapped *mapError
	asking := errors.As(err, &unmapped) && slices.ContainsFunc(c.members, func(m claimed) bool { return !m.Wanted })
	if err != nil && !asking {
		return p, err
	}
	for _, m := range c.members {
		if m.Wanted && asking {
			wait := max(unmapped.outcome.Wait, time.Second)
			p.results = append(p.results, result{claimed: m, status: pending, wait: min(wait, longestWait), reason: unmapped.outcome.Reason})
			continue
		}
		person, known := persons[m.Profile]
		person.ID = m.Profile
		now := current[m.Profile]
		m.person, m.Entered, m.ids = person, m.Wanted, now
		switch {
		case c.byProfile && m.Wanted && !known:
			p.results = append(p.results, gone(m))
		case m.Wanted && known && !l.target.gate.Allows(person.Consent):
			p.results = append(p.results, result{claimed: m, status: demoted})
		case c.byProfile:
			p.send = append(p.send, m)
		case !m.Wanted && m.held.empty():
			p.results = append(p.results, result{claimed: m, status: void})
		case !m.Wanted:
			p.send = append(p.send, m.remove())
		case !m.held.empty() && (!known || now.empty() || !now.covers(m.held)):
			p.send = append(p.send, m.replace().remove())
		case !known:
			p.results = append(p.results, gone(m))
		case now.empty():
			p.results = append(p.results, result{claimed: m, status: unreachable, reason: now.Reason})
		case m.Sent != nil && *m.Sent && !m.Resend && now.equal(m.held):
			p.results = append(p.results, result{claimed: m, status: same})
		default:
			m.until = ends[m.Profile]
			if m.IdentityAt != nil && m.IdentityAt.After(m.ChangedAt) {
				m = m.replace()
			}
			p.send = append(p.send, m)
		}
	}
	if !l.limits.Mixed && slices.ContainsFunc(p.send, func(m claimed) bool { return !m.Entered }) {
		var removes []claimed
		for _, m := range p.send {
			if m.Entered {
				p.later = append(p.later, m)
			} else {
				removes = append(removes, m)
			}
		}
		p.send = removes
	}
	return p, nil
}

// remove has what was sent removed.
func (m claimed) remove() claimed {
	m.Entered, m.ids = false, m.held
	m.person = Person{ID: m.Profile}
	return m
}

// replace makes the change of the person's identity what caused the message.
func (m claimed) replace() claimed {
	m.Cause, m.MessageID = CauseIdentity, m.IdentityMessage
	if m.IdentityAt != nil {
		m.ChangedAt = *m.IdentityAt
	}
	return m
}

// gone is what becomes of a member whose profile is not there. If it was merged or deleted, its row has changed by now and
// this does not apply to it.
func gone(m claimed) result {
	return result{claimed: m, status: failed, reason: "the profile is gone"}
}

// identify asks the partner what it is to know people by, and, if it has to ask somebody else for that, does. ends tells when
// the answers of such end.
func (q *queue) identify(ctx context.Context, t served, limits Limits, persons map[ProfileID]Person) (
	current map[ProfileID]Identifiers, ends map[ProfileID]time.Time, err error,
) {
	current = make(map[ProfileID]Identifiers, len(persons))
	partner, ok := t.partner.(AudiencePartner)
	if !ok {
		return nil, nil, fmt.Errorf("%w: %w", errEncode, ErrUnsupported)
	}
	for id, p := range persons {
		p.ID = id
		ids, err := partner.Identify(t.Target, p.identifying())
		if err != nil {
			return nil, nil, fmt.Errorf("%w: %w", errEncode, err)
		}
		current[id] = ids.tidy()
	}
	mapper, ok := t.partner.(Mapper)
	if !ok {
		return current, nil, nil
	}
	return q.mapped(ctx, t, limits, mapper, current)
}

// tidy leaves out what is there twice, and what is empty.
func (ids Identifiers) tidy() Identifiers {
	seen := map[Identifier]bool{}
	twice := func(id Identifier) bool {
		drop := seen[id] || id.Value == ""
		seen[id] = true
		return drop
	}
	ids.IDs = slices.DeleteFunc(slices.Clone(ids.IDs), twice)
	ids.Details = slices.DeleteFunc(slices.Clone(ids.Details), twice)
	if ids.empty() {
		ids.Details = nil
	} else {
		ids.Reason = ""
	}
	return ids
}

// encode makes the body about the first of some members.
func (l *line) encode(c *claim, p plan, members []claimed) (body []byte, took int, err error) {
	b := Batch{ID: c.id, Segment: p.segment, Audience: c.audience, At: time.Now(), Members: make([]Member, len(members))}
	for i, m := range members {
		b.Members[i] = Member{
			Person: m.person, Identifiers: m.ids, Entered: m.Entered, Version: m.Version, At: m.ChangedAt,
			MessageID: m.MessageID, Cause: m.Cause,
		}
	}
	partner, ok := l.target.partner.(AudiencePartner)
	if !ok {
		return nil, 0, fmt.Errorf("%w: %w", errEncode, ErrUnsupported)
	}
	body, took, err = partner.Encode(l.target.Target, b)
	if err != nil {
		return nil, 0, fmt.Errorf("%w: %w", errEncode, err)
	}
	if took < 1 || took > len(members) {
		return nil, 0, fmt.Errorf("%w: took %d of %d members", errEncode, took, len(members))
	}
	return body, took, nil
}

// errAwaits says that some members must wait for a message that is under way, and for how long.
type errAwaits struct{ who map[ProfileID]time.Duration }

func (e *errAwaits) Error() string {
	return fmt.Sprintf("%d members wait for the removal of the same identifiers", len(e.who))
}

// awaitPause is how long a member waits before it is looked at again whether what is being sent has arrived.
const awaitPause = 200 * time.Millisecond

// prepare makes the body of a claim and keeps it, so that whoever tries again sends the same bytes. It tells whether
// anything is left to be sent.
func (d *Dispatcher) prepare(ctx context.Context, l *line, c *claim) (ready bool, err error) {
	if c.ofEvents() {
		return d.prepareEvents(ctx, l, c)
	}
	if c.body != nil {
		return true, nil
	}
	p, err := d.plan(ctx, l, c)
	if err != nil {
		return false, err
	}
	for {
		if len(p.send) == 0 {
			return false, d.queue.drop(ctx, c, p)
		}
		ready, err := d.queue.persist(ctx, c, p, func(members []claimed) ([]byte, int, error) {
			return l.encode(c, p, members)
		})
		var await *errAwaits
		if !errors.As(err, &await) {
			return ready, err
		}
		var still []claimed
		for _, m := range p.send {
			if wait, ok := await.who[m.Profile]; ok {
				p.results = append(p.results, result{
					claimed: m, status: pending, wait: wait,
					reason: "somebody else with the same identifier is being removed",
				})
			} else {
				still = append(still, m)
			}
		}
		p.send = still
	}
}

// persist writes a claim's body down, and with it what the partner may hold from then on. The members become those that
// the body is about; the rest is given back.
func (q *queue) persist(
	ctx context.Context, c *claim, p plan, encode func([]claimed) ([]byte, int, error),
) (ready bool, err error) {
	const lock = `
		SELECT true
		FROM activation_batches
		WHERE lane = @lane AND id = @id AND claim_token = @token
		FOR UPDATE`
	const query = `
		UPDATE activation_batches
		SET body = @body, profiles = @profiles, versions = @versions, entered = @entered, identities = @identities,
			removing = @removing
		WHERE lane = @lane AND id = @id AND claim_token = @token`
	body, took, err := encode(p.send)
	if err != nil {
		return false, err
	}
	next := *c
	write := func(db database) (pgconn.CommandTag, error) {
		s := next.arrays()
		return db.Exec(ctx, query, pgx.StrictNamedArgs{
			"body": q.ring.Seal(bodyOf(c.workspace, c.id), body), "profiles": s.profiles, "versions": s.versions,
			"entered": s.entered, "identities": s.identities, "removing": next.removing, "lane": c.lane, "id": c.id,
			"token": c.token,
		})
	}
	if c.byProfile && took == len(p.send) && len(p.results)+len(p.later) == 0 { // there is nothing else to be written
		next.members = p.send
		tag, err := write(q.pool)
		if err == nil && tag.RowsAffected() == 0 {
			err = errLost
		}
		if err != nil {
			return false, fmt.Errorf("keep the body of batch %d: %w", c.id, err)
		}
		next.body = body
		*c = next
		return true, nil
	}
	err = pgx.BeginFunc(ctx, q.pool, func(tx pgx.Tx) error {
		// All rows at once, in order: some are written before the holdings and some after.
		profiles := make([]ProfileID, len(c.members))
		for i, m := range c.members {
			profiles[i] = m.Profile
		}
		var first pgx.Batch
		var held bool
		first.Queue(lock, pgx.StrictNamedArgs{"lane": c.lane, "id": c.id, "token": c.token}).
			QueryRow(func(row pgx.Row) error { return row.Scan(&held) })
		lockRows(&first, c, profiles)
		err := tx.SendBatch(ctx, &first).Close()
		if errors.Is(err, pgx.ErrNoRows) {
			return errLost
		}
		if err != nil {
			return err
		}
		next.members = p.send[:took]
		results := slices.Clone(p.results)
		for _, m := range slices.Concat(p.send[took:], p.later) {
			results = append(results, result{claimed: m, status: pending})
		}
		if !c.byProfile {
			changed, more, err := q.reserve(ctx, tx, &next, results)
			if err != nil {
				return err
			}
			results = more
			if changed && len(next.members) > 0 {
				if body, took, err = encode(next.members); err != nil {
					return err
				}
				if took < len(next.members) {
					return fmt.Errorf("%w: fewer identifiers took more room", errEncode)
				}
			}
		}
		if len(next.members) == 0 {
			return q.end(ctx, tx, c, results)
		}
		ready = true
		if _, err := write(tx); err != nil {
			return err
		}
		return applyResults(ctx, tx, c, results, false)
	})
	if err != nil {
		return false, fmt.Errorf("keep the body of batch %d: %w", c.id, err)
	}
	if ready {
		next.body = body
		*c = next
	}
	return ready, nil
}

// reserve notes what the partner may hold once a claim is sent, and leaves out of the message what others stand for too. It
// tells whether any member is another than before; those about whom nothing is left to be said are among the results.
func (q *queue) reserve(ctx context.Context, tx pgx.Tx, c *claim, results []result) (changed bool, _ []result, err error) {
	var (
		more   = map[handle]int32{}
		taking []handle
		adding []handle
		kept   []claimed // rows whose sent_identifiers change
	)
	for _, m := range c.members {
		if !m.Entered {
			taking = append(taking, m.ids.handles()...)
			continue
		}
		before := m.held.handles()
		for _, h := range m.ids.handles() {
			if !slices.Contains(before, h) {
				more[h]++
				adding = append(adding, h)
			}
		}
		if !m.ids.equal(m.held) {
			kept = append(kept, m)
		}
	}
	if len(taking) > 0 && len(adding) > 0 { // in one order, or two such messages wait for each other
		if _, err := q.weigh(ctx, tx, c, distinct(slices.Concat(taking, adding))); err != nil {
			return false, nil, err
		}
	}
	removing, err := q.hold(ctx, tx, c, more)
	if err != nil {
		return false, nil, err
	}
	if len(removing) > 0 {
		if err := q.overtake(ctx, tx, c, removing); err != nil {
			return false, nil, err
		}
	}

	if len(taking) > 0 {
		held, err := q.weigh(ctx, tx, c, distinct(taking))
		if err != nil {
			return false, nil, err
		}
		var members []claimed
		for _, m := range c.members {
			if m.Entered {
				members = append(members, m)
				continue
			}
			remove := give(held, m.ids, m.Sent == nil || *m.Sent, c.id)
			if !remove.equal(m.ids) {
				changed = true
				m.ids = remove
				kept = append(kept, m)
			}
			if remove.empty() {
				results = append(results, result{claimed: m, status: void, reason: "others there have the same identifiers"})
				continue
			}
			c.removing += len(remove.handles())
			members = append(members, m)
		}
		c.members = members
		if err := q.keep(ctx, tx, c, held); err != nil {
			return false, nil, err
		}
	}
	return changed, results, q.keepIdentifiers(ctx, tx, c, kept)
}

// overtake sees to identifiers that are to be added while messages are there that remove them. Of a message that is in
// flight nobody knows when it arrives: the members have to wait, and overtake returns [*errAwaits]. Any other message loses
// its mark, and is made anew before it is sent again.
func (q *queue) overtake(ctx context.Context, tx pgx.Tx, c *claim, removing map[handle]int64) error {
	const query = `
		UPDATE holdings
		SET removing = NULL
		WHERE ctid = ANY (ARRAY (
			SELECT h.ctid
			FROM unnest(@lanes::smallint[], @handles::uuid[]) AS t (lane, identifier)
			CROSS JOIN LATERAL (
				SELECT ctid
				FROM holdings
				WHERE lane = t.lane AND destination_id = @destination AND segment_id = @segment AND identifier = t.identifier
				OFFSET 0
			) AS h))`
	var batches []int64
	var handles []handle
	for h, batch := range removing {
		batches, handles = append(batches, batch), append(handles, h)
	}
	flying, err := q.inFlight(ctx, tx, batches)
	if err != nil {
		return err
	}
	await := &errAwaits{who: map[ProfileID]time.Duration{}}
	for _, m := range c.members {
		for _, h := range m.ids.handles() {
			if wait, ok := flying[removing[h]]; ok && m.Entered {
				await.who[m.Profile] = max(await.who[m.Profile], wait)
			}
		}
	}
	if len(await.who) > 0 {
		return await
	}
	_, err = tx.Exec(ctx, query, pgx.StrictNamedArgs{
		"lanes": q.lanesOf(handles), "handles": handles, "destination": c.destination, "segment": c.segment,
	})
	return err
}

// lockRows locks rows of a claim, in order.
func lockRows(batch *pgx.Batch, c *claim, profiles []ProfileID) {
	const query = `
		SELECT profile_id
		FROM activations
		WHERE lane = @lane AND destination_id = @destination AND segment_id = @segment AND profile_id = ANY(@profiles)
		ORDER BY profile_id
		FOR UPDATE`
	batch.Queue(query, pgx.StrictNamedArgs{
		"lane": c.lane, "destination": c.destination, "segment": c.segment, "profiles": profiles,
	})
}

// keepIdentifiers writes what the partner may know members by.
func (q *queue) keepIdentifiers(ctx context.Context, tx pgx.Tx, c *claim, members []claimed) error {
	const query = `
		UPDATE activations a
		SET sent_identifiers = t.identifiers
		FROM unnest(@profiles::uuid[], @identifiers::text[]::jsonb[]) AS t (profile_id, identifiers)
		WHERE a.lane = @lane AND a.destination_id = @destination AND a.segment_id = @segment
			AND a.profile_id = t.profile_id`
	if len(members) == 0 {
		return nil
	}
	profiles, identifiers := make([]ProfileID, len(members)), make([]*string, len(members))
	for i, m := range members {
		profiles[i] = m.Profile
		if b := m.ids.bytes(); b != nil {
			identifiers[i] = new(string(b))
		}
	}
	var batch pgx.Batch
	lockRows(&batch, c, profiles)
	batch.Queue(query, pgx.StrictNamedArgs{
		"lane": c.lane, "destination": c.destination, "segment": c.segment, "profiles": profiles, "identifiers": identifiers,
	})
	return tx.SendBatch(ctx, &batch).Close()
}

// drop ends a claim of which there is nothing to tell.
func (q *queue) drop(ctx context.Context, c *claim, p plan) error {
	results := slices.Clone(p.results)
	for _, m := range p.later {
		results = append(results, result{claimed: m, status: pending})
	}
	err := pgx.BeginFunc(ctx, q.pool, func(tx pgx.Tx) error {
		if _, err := q.lockClaim(ctx, tx, c, 0); err != nil {
			return err
		}
		return q.end(ctx, tx, c, results)
	})
	if err != nil {
		return fmt.Errorf("drop batch %d: %w", c.id, err)
	}
	return nil
}

// end deletes a claim's batch and writes what becomes of its rows.
func (q *queue) end(ctx context.Context, tx pgx.Tx, c *claim, results []result) error {
	if err := q.forget(ctx, tx, c.lane, c.id, c.removing); err != nil {
		return err
	}
	return applyResults(ctx, tx, c, results, false)
}
