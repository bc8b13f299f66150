package activation

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// doubtEvery is how often an event is looked at again whose person is not there or may not be sent. Lanes tell one another
// of people and consent, and one that is behind may not have heard yet: what is so for a minute is taken to be true.
const doubtEvery = time.Second

// prepareEvents makes the body of a claim of events and keeps it, so that whoever tries again sends the same bytes, and
// looks whether each of them may still be sent. It tells whether the message is to be sent as it is.
func (d *Dispatcher) prepareEvents(ctx context.Context, l *line, c *claim) (ready bool, err error) {
	p, err := d.planEvents(ctx, l, c)
	if err != nil {
		return false, err
	}
	switch {
	case len(p.results) == 0 && c.body != nil:
		c.members = p.send
		return true, nil
	case len(p.send) == 0:
		return false, d.queue.drop(ctx, c, p)
	case c.body != nil: // the message has to be made anew, under another key
		var what decision
		what.retry(p.send, len(c.members), c.attempts, 0, "")
		what.rows = append(what.rows, p.results...)
		err := pgx.BeginFunc(ctx, d.queue.pool, func(tx pgx.Tx) error {
			ids, err := d.queue.lockClaim(ctx, tx, c, len(what.again))
			if err != nil {
				return err
			}
			return d.queue.applyDecision(ctx, tx, c, what, ids, false)
		})
		return false, err
	}
	return d.queue.persist(ctx, c, p, func(members []claimed) ([]byte, int, error) { return l.encodeEvents(c, members) })
}

// planEvents decides which events of a claim are sent.
func (d *Dispatcher) planEvents(ctx context.Context, l *line, c *claim) (p plan, err error) {
	partner, ok := l.target.partner.(EventPartner)
	if !ok {
		return p, fmt.Errorf("%w: %w", errEncode, ErrUnsupported)
	}
	var keys [][16]byte
	for _, m := range c.members {
		keys = append(keys, m.Profile)
	}
	persons, err := d.people.PeopleOf(ctx, l.target.Workspace, keys)
	if err != nil {
		return p, err
	}
	for _, m := range c.members {
		person, known := persons[m.Profile]
		m.person = person
		switch r := judgeEvent(partner, l, &m, known); {
		case r.status != "":
			p.results = append(p.results, r)
		case l.limits.OnePerson && c.body == nil && len(p.send) > 0 && !m.sameVisitor(p.send[0]):
			p.later = append(p.later, m)
		default:
			p.send = append(p.send, m)
		}
	}
	return p, nil
}

// sameVisitor tells whether two events are of the same user on the same device.
func (m claimed) sameVisitor(n claimed) bool {
	a, b := m.event.event, n.event.event
	return a.UserID == b.UserID && a.AnonymousID == b.AnonymousID
}

// judgeEvent makes an event ready to be sent, or returns what becomes of it instead.
func judgeEvent(partner EventPartner, l *line, m *claimed, known bool) result {
	e := m.event
	if l.limits.MaxAge > 0 && time.Since(e.at) > l.limits.MaxAge {
		return result{claimed: *m, status: expired, reason: "older than the partner takes"}
	}
	if e.mapping == nil {
		return result{claimed: *m, status: failed, reason: "the subscription was removed"}
	}
	final, reason := "", ""
	switch {
	case !known:
		final, reason = failed, "the profile is gone"
	case !l.target.gate.Allows(m.person.Consent):
		final, reason = denied, noConsent
	}
	if final != "" && !e.settled {
		return result{claimed: *m, status: doubted, wait: doubtEvery, reason: reason}
	}
	if final != "" {
		return result{claimed: *m, status: final, reason: reason}
	}
	if reason := e.ready(partner, l.target.Target, m); reason != "" {
		return result{claimed: *m, status: failed, reason: reason}
	}
	return result{}
}

// ready completes an event, or says why the partner cannot take it.
func (e *conversion) ready(partner EventPartner, to Target, m *claimed) (reason string) {
	event, err := decodeEvent(e.name, m.ChangedAt, e.body)
	if err != nil {
		return "the event cannot be read"
	}
	if event.Timestamp.IsZero() { // of a sample
		event.Timestamp = e.at
	}
	mapping, ok := partner.MapEvent(to, e.name)
	mapping = mapping.over(*e.mapping)
	if !ok && e.mapping.Name == "" {
		return "the partner has no name for such events"
	}
	event.Person, event.As = m.person, mapping.Name
	if event.Fields, reason = mapping.apply(e.body, m.ChangedAt); reason != "" {
		return reason
	}
	e.event = event
	return partner.RefuseEvent(to, event)
}

// encodeEvents makes the body about the first of some events.
func (l *line) encodeEvents(c *claim, members []claimed) (body []byte, took int, err error) {
	partner, ok := l.target.partner.(EventPartner)
	if !ok {
		return nil, 0, fmt.Errorf("%w: %w", errEncode, ErrUnsupported)
	}
	b := EventBatch{ID: c.id, At: time.Now(), Events: make([]Event, len(members))}
	for i, m := range members {
		b.Events[i] = m.event.event
	}
	body, took, err = partner.EncodeEvents(l.target.Target, b)
	if err != nil {
		return nil, 0, fmt.Errorf("%w: %w", errEncode, err)
	}
	if took < 1 || took > len(members) {
		return nil, 0, fmt.Errorf("%w: took %d of %d events", errEncode, took, len(members))
	}
	return body, took, nil
}
