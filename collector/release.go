package collector

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/mubatch/mubatch/collector/mapping"
	"github.com/mubatch/mubatch/collector/plan"
	"github.com/mubatch/mubatch/profiles"
)

// Releaser puts quarantined events back into their lanes, if by now they are as they should be.
//
//	quarantine ─► mapping, if there is one ─► the plan of now ─► lane
//	                                              └─ still violates: stays
type Releaser struct {
	cfg       Config
	pool      *pgxpool.Pool
	committer *Committer
}

// NewReleaser returns a releaser of the quarantine in pool's database.
func NewReleaser(cfg Config, pool *pgxpool.Pool, committer *Committer) *Releaser {
	return &Releaser{cfg: cfg.withDefaults(), pool: pool, committer: committer}
}

// maxRelease is how many events are released at a time: what they hold is in memory all at once.
const maxRelease = 200

// Released is what became of a quarantined event.
type Released struct {
	ID         profiles.QuarantineID
	MessageID  string
	Violations []profiles.Violation // why it stays; none if it is released
	Events     [][]byte             // what it has become, also if it stays
}

// Release has the events that filter selects tried again, the oldest first, from after a moment: as they are, or if there is
// one as a mapping makes them. They keep the time at which they were received, and their messageId; where a mapping makes
// several of one that do not say theirs, the second is called as the first with :2 behind it. Those that violate the plan of
// now by what is to be quarantined stay, and so do those that the mapping cannot make anything of. The others are on their
// way when Release returns, unless it is a dry run; however often that is asked for, each is applied once. more tells whether
// there are others, after next.
func (r *Releaser) Release(ctx context.Context, workspace int32, filter profiles.QuarantineFilter, after profiles.Moment, by *mapping.Program, dry bool) (list []Released, next profiles.Moment, more bool, err error) {
	lanes := r.committer.stream.Lanes()
	found, err := profiles.NewQuarantine(r.pool, lanes).Oldest(ctx, workspace, filter, after, maxRelease+1)
	if err != nil {
		return nil, after, false, err
	}
	if more = len(found) > maxRelease; more {
		found = found[:maxRelease]
	}
	grants := map[int32]*Grant{}
	var routed []Routed
	for i := range found {
		e := &found[i]
		next = profiles.Moment{At: e.QuarantinedAt, Lane: e.Lane, Seq: e.ID}
		g := grants[e.Source]
		if g == nil {
			if g, err = r.grant(ctx, workspace, e.Source); err != nil {
				return nil, after, false, err
			}
			grants[e.Source] = g
		}
		rel := Released{ID: e.QuarantineID, MessageID: e.MessageID}
		var events []profiles.Message
		for n, raw := range rel.become(e, by) {
			m, violations := r.event(g, e, raw, n, by != nil)
			rel.Violations = append(rel.Violations, violations...)
			if len(violations) == 0 {
				events = append(events, m)
				raw = m.Body
			}
			rel.Events = append(rel.Events, raw)
		}
		if len(rel.Violations) == 0 {
			routed = append(routed, Routed{Lane: e.Lane, Message: profiles.ReleaseMessage(workspace, e.QuarantineID, e.ReceivedAt, events)})
		}
		list = append(list, rel)
	}
	if dry || len(routed) == 0 {
		return list, next, more, nil
	}
	if err := r.committer.Commit(ctx, routed); err != nil {
		return nil, after, false, err
	}
	return list, next, more, nil
}

// grant returns what an event of a source is to be taken by now, whether the source takes any or not.
func (r *Releaser) grant(ctx context.Context, workspace, source int32) (*Grant, error) {
	const query = `
		SELECT w.id AS workspace_id, w.secret, coalesce(s.id, @source) AS source_id, coalesce(s.settings, '{}') AS settings
		FROM workspaces AS w
		LEFT JOIN sources AS s ON s.workspace_id = w.id AND s.id = @source
		WHERE w.id = @workspace`
	rows, _ := r.pool.Query(ctx, query, pgx.StrictNamedArgs{"workspace": workspace, "source": source}) // err: below
	g, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByNameLax[Grant])
	if err != nil {
		return nil, fmt.Errorf("read the source of a quarantined event: %w", err)
	}
	schemas, err := NewSourceStore(r.pool).ListSchemas(ctx, workspace, source, 0, maxSchemas)
	if err != nil {
		return nil, err
	}
	g.plan = trackingPlan{}
	for _, s := range schemas {
		compiled, err := plan.Compile(s.Schema)
		if err != nil {
			continue // collectors do not check by it either, and say so
		}
		g.plan[planned{s.Type, s.Event}] = planSchema{compiled, s.Action}
	}
	return &g, nil
}

// become returns what a quarantined event becomes. If that is nothing, it says why in Violations.
func (rel *Released) become(e *profiles.QuarantinedEvent, by *mapping.Program) [][]byte {
	if by == nil {
		if e.Type == "" {
			rel.Violations = []profiles.Violation{{Code: "not_an_event", Detail: "is not an event: replay it through a mapping"}}
			return nil
		}
		return [][]byte{e.Body}
	}
	made, err := by.Map(mapping.Input{Body: e.Body, ReceivedAt: e.ReceivedAt})
	var fault *mapping.FaultError
	switch {
	case errors.As(err, &fault):
		rel.Violations = []profiles.Violation{{Code: "mapping_failed", Detail: fault.Error()}}
	case err != nil:
		rel.Violations = []profiles.Violation{{Code: "mapping_failed", Detail: "cannot be mapped"}}
	case len(made) == 0:
		rel.Violations = []profiles.Violation{{Code: "mapping_empty", Detail: "no rule of the mapping applies to it"}}
	}
	return made
}

// event returns the message of an event, the n-th that a quarantined one has become, or what is wrong with it.
func (r *Releaser) event(g *Grant, e *profiles.QuarantinedEvent, raw []byte, n int, mapped bool) (profiles.Message, []profiles.Violation) {
	of := shared{received: e.ReceivedAt.UTC(), maxBytes: r.cfg.MaxEventBytes}
	if !mapped {
		of.maxBytes = len(raw) // it was accepted
	} else {
		id := e.MessageID
		if n > 0 {
			id += ":" + strconv.Itoa(n+1)
		}
		raw = WithMessageID(raw, id)
	}
	var ec eventCleaner
	c, f := ec.clean(raw, "", &of)
	if f != nil {
		return profiles.Message{}, []profiles.Violation{{Code: f.code, Pointer: f.pointer(), Detail: f.reason}}
	}
	if !mapped {
		c.body = slices.Clip(bytes.Clone(raw)) // as it was cleaned, with what was noted then
	}
	found := ec.inspect(&c, g, &of)
	for _, v := range e.Violations { // a request is not sent again, so that what it said of a browser is all that is known
		if v.Code == "bot" && found.bot == "" && g.Settings.Bots == ActionQuarantine {
			found.worse(ActionQuarantine, v)
		}
	}
	if found.action == ActionQuarantine {
		return profiles.Message{}, found.violations
	}
	if !mapped {
		found.bot = "" // it has been noted
	}
	c.note(&found)
	key := g.Secret.Key(c.who)
	return profiles.Message{
		Kind: profiles.KindEvent, Workspace: g.WorkspaceID, Source: e.Source, ID: profiles.MessageKey(c.messageID), Key: key,
		Received: of.received, Body: c.body,
	}, nil
}
