package profiles

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// write stores what a step decided, in one round trip, and hands what partners must hear of to activation. Rows are written in key
// order.
func (l *Lane) write(ctx context.Context, tx pgx.Tx, w work, out *Outcome, t *tally) error {
	batch := &pgx.Batch{}
	l.writeProfiles(batch, w.now, out)
	l.writeLookups(batch, out)
	l.writeRoutes(batch, out)
	l.writeClaims(batch, out)
	l.writeFamilies(batch, out)
	l.writeArchive(batch, w.now, out, t)
	l.writeDecisions(batch, w.now, out)
	l.writeMemberships(batch, out)
	l.writeTransitions(batch, out, t)
	l.writeOutbox(batch, out)
	var subscriptions int64
	if len(out.Archive) > 0 {
		l.store.activation.AskForSubscriptions(batch, &subscriptions)
	}
	if batch.Len() > 0 {
		if err := tx.SendBatch(ctx, batch).Close(); err != nil {
			return fmt.Errorf("write state of lane %d: %w", l.number, err)
		}
	}
	if len(out.Archive) > 0 {
		n, err := l.enqueueEvents(ctx, tx, out, subscriptions)
		if err != nil {
			return fmt.Errorf("enqueue events of lane %d: %w", l.number, err)
		}
		t.wake = t.wake || n > 0
	}
	changes := changes(out, w.now)
	if len(changes) == 0 {
		return nil
	}
	n, err := l.store.activation.Enqueue(ctx, tx, l.number, changes)
	if err != nil {
		return fmt.Errorf("enqueue activations of lane %d: %w", l.number, err)
	}
	t.wake = t.wake || n > 0
	return nil
}

func compareRefs(a, b Ref) int {
	if a.Workspace != b.Workspace {
		return int(a.Workspace) - int(b.Workspace)
	}
	return bytes.Compare(a.Key[:], b.Key[:])
}

func (l *Lane) writeProfiles(batch *pgx.Batch, now time.Time, out *Outcome) {
	const upsert = `
		INSERT INTO profiles AS p (lane, workspace_id, id, state, due_at, last_seen_at, updated_at)
		SELECT @lane, workspace_id, id, state, due_at, last_seen_at, @now
		FROM unnest(@workspaces::integer[], @ids::uuid[], @states::bytea[], @due::timestamptz[], @seen::timestamptz[])
		     AS t (workspace_id, id, state, due_at, last_seen_at)
		ON CONFLICT (lane, workspace_id, id) DO UPDATE
		SET state        = excluded.state,
		    due_at       = excluded.due_at,
		    last_seen_at = excluded.last_seen_at,
		    updated_at   = excluded.updated_at`
	const remove = `
		DELETE FROM profiles AS p
		USING unnest(@workspaces::integer[], @ids::uuid[]) AS t (workspace_id, id)
		WHERE p.lane = @lane AND p.workspace_id = t.workspace_id AND p.id = t.id`
	var workspaces, goneWorkspaces []int32
	var ids, gone []Key
	var states [][]byte
	var due []*time.Time
	var seen []time.Time
	change := map[int32]int64{} // of how many there are
	for _, ref := range slices.SortedFunc(maps.Keys(out.Profiles), compareRefs) {
		p := out.Profiles[ref]
		if p == nil {
			if out.Before[ref] != nil {
				goneWorkspaces, gone = append(goneWorkspaces, ref.Workspace), append(gone, ref.Key)
				change[ref.Workspace]--
			}
			continue
		}
		if out.Before[ref] == nil {
			change[ref.Workspace]++
		}
		workspaces, ids = append(workspaces, ref.Workspace), append(ids, ref.Key)
		states = append(states, AppendProfile(nil, p))
		var at *time.Time
		if ms := p.due(); ms != 0 {
			t := time.UnixMilli(ms)
			at = &t
			if l.nextDue.IsZero() || t.Before(l.nextDue) {
				l.nextDue = t
			}
		}
		due = append(due, at)
		var last int64
		for _, f := range p.Fragments {
			last = max(last, f.LastSeen)
		}
		seen = append(seen, time.UnixMilli(last))
	}
	if len(ids) > 0 {
		batch.Queue(upsert, pgx.StrictNamedArgs{
			"lane": l.number, "workspaces": workspaces, "ids": ids, "states": states, "due": due, "seen": seen, "now": now,
		})
	}
	if len(gone) > 0 {
		batch.Queue(remove, pgx.StrictNamedArgs{"lane": l.number, "workspaces": goneWorkspaces, "ids": gone})
	}
	l.countProfiles(batch, change)
}

func (l *Lane) countProfiles(batch *pgx.Batch, change map[int32]int64) {
	maps.DeleteFunc(change, func(_ int32, n int64) bool { return n == 0 })
	if len(change) == 0 {
		return
	}
	const count = `
		INSERT INTO profile_counts AS c (lane, workspace_id, profiles)
		SELECT @lane, workspace_id, change
		FROM unnest(@workspaces::integer[], @changes::bigint[]) AS t (workspace_id, change)
		ON CONFLICT (lane, workspace_id) DO UPDATE SET profiles = c.profiles + excluded.profiles`
	var workspaces []int32
	var by []int64
	for _, id := range slices.Sorted(maps.Keys(change)) {
		workspaces, by = append(workspaces, id), append(by, change[id])
	}
	batch.Queue(count, pgx.StrictNamedArgs{"lane": l.number, "workspaces": workspaces, "changes": by})
}

func (l *Lane) writeLookups(batch *pgx.Batch, out *Outcome) {
	const insert = `
		INSERT INTO lookups (lane, workspace_id, key, profile_id)
		SELECT @lane, workspace_id, key, profile_id
		FROM unnest(@workspaces::integer[], @keys::uuid[], @profiles::uuid[]) AS t (workspace_id, key, profile_id)
		ON CONFLICT DO NOTHING`
	const remove = `
		DELETE FROM lookups AS k
		USING unnest(@workspaces::integer[], @keys::uuid[], @profiles::uuid[]) AS t (workspace_id, key, profile_id)
		WHERE k.lane = @lane AND k.workspace_id = t.workspace_id AND k.key = t.key AND k.profile_id = t.profile_id`
	type rows struct {
		workspaces     []int32
		keys, profiles []Key
	}
	var added, removed rows
	add := func(r *rows, ref Ref, id Identifier) {
		r.workspaces = append(r.workspaces, ref.Workspace)
		r.keys = append(r.keys, l.definitions[ref.Workspace].Secret.Key(id))
		r.profiles = append(r.profiles, ref.Key)
	}
	for _, ref := range slices.SortedFunc(maps.Keys(out.Profiles), compareRefs) {
		var before, after []Identifier
		if p := out.Before[ref]; p != nil {
			before = p.lookupIdentifiers()
		}
		if p := out.Profiles[ref]; p != nil {
			after = p.lookupIdentifiers()
		}
		for _, id := range after {
			if !slices.Contains(before, id) {
				add(&added, ref, id)
			}
		}
		for _, id := range before {
			if !slices.Contains(after, id) {
				add(&removed, ref, id)
			}
		}
	}
	if len(removed.keys) > 0 {
		batch.Queue(remove, pgx.StrictNamedArgs{
			"lane": l.number, "workspaces": removed.workspaces, "keys": removed.keys, "profiles": removed.profiles,
		})
	}
	if len(added.keys) > 0 {
		batch.Queue(insert, pgx.StrictNamedArgs{
			"lane": l.number, "workspaces": added.workspaces, "keys": added.keys, "profiles": added.profiles,
		})
	}
}

func (l *Lane) writeRoutes(batch *pgx.Batch, out *Outcome) {
	if len(out.Routes) == 0 {
		return
	}
	const query = `
		INSERT INTO routes AS r (lane, workspace_id, key, root, version, claims)
		SELECT @lane, workspace_id, key, root, version, claims
		FROM unnest(@workspaces::integer[], @keys::uuid[], @roots::uuid[], @versions::bigint[], @claims::bytea[])
		     AS t (workspace_id, key, root, version, claims)
		ON CONFLICT (lane, workspace_id, key) DO UPDATE
		SET root = excluded.root, version = excluded.version, claims = excluded.claims`
	var workspaces []int32
	var keys, roots []Key
	var versions []int64
	var claims [][]byte
	for _, ref := range slices.SortedFunc(maps.Keys(out.Routes), compareRefs) {
		r := out.Routes[ref]
		workspaces, keys = append(workspaces, ref.Workspace), append(keys, ref.Key)
		roots, versions, claims = append(roots, r.Root), append(versions, r.Version), append(claims, appendClaims(r))
	}
	batch.Queue(query, pgx.StrictNamedArgs{
		"lane": l.number, "workspaces": workspaces, "keys": keys, "roots": roots, "versions": versions, "claims": claims,
	})
}

func (l *Lane) writeClaims(batch *pgx.Batch, out *Outcome) {
	if len(out.Claims) == 0 {
		return
	}
	const query = `
		INSERT INTO claims (lane, workspace_id, parent, child, kind, at, stamp, message_id, named)
		SELECT @lane, workspace_id, parent, child, kind, at, stamp, message_id, named
		FROM unnest(@workspaces::integer[], @parents::uuid[], @children::uuid[], @kinds::smallint[], @at::bigint[],
		            @stamps::bigint[], @messages::text[], @named::boolean[])
		     AS t (workspace_id, parent, child, kind, at, stamp, message_id, named)
		ON CONFLICT (lane, workspace_id, parent, child) DO UPDATE
		SET at = excluded.at, stamp = excluded.stamp, message_id = excluded.message_id, named = excluded.named`
	var workspaces []int32
	var parents, children []Key
	var kinds []int16
	var at, stamps []int64
	var messages []string
	var named []bool
	for ref, c := range out.Claims {
		named = append(named, c.Named)
		workspaces = append(workspaces, ref.Workspace)
		parents, children = append(parents, c.Parent), append(children, c.Child)
		kinds = append(kinds, int16(c.Kind))
		at, stamps, messages = append(at, c.Stamp.At), append(stamps, int64(c.Stamp.ID)), append(messages, c.MessageID)
	}
	batch.Queue(query, pgx.StrictNamedArgs{
		"lane": l.number, "workspaces": workspaces, "parents": parents, "children": children, "kinds": kinds, "at": at,
		"stamps": stamps, "messages": messages, "named": named,
	})
}

func (l *Lane) writeFamilies(batch *pgx.Batch, out *Outcome) {
	const remove = `DELETE FROM families WHERE lane = $1 AND workspace_id = $2 AND id = $3`
	const upsert = `
		INSERT INTO families (lane, workspace_id, id, state)
		VALUES ($1, $2, $3, $4)
		ON CONFLICT (lane, workspace_id, id) DO UPDATE SET state = excluded.state`
	const members = `
		INSERT INTO family_members (lane, workspace_id, key, family_id)
		SELECT $1, $2, key, $3 FROM unnest($4::uuid[]) AS t (key)
		ON CONFLICT (lane, workspace_id, key) DO UPDATE
		SET family_id = excluded.family_id
		WHERE family_members.family_id <> excluded.family_id`
	for id, f := range out.Gone {
		batch.Queue(remove, l.number, f.Workspace, id)
	}
	for id, f := range out.Families {
		batch.Queue(upsert, l.number, f.Workspace, id, appendFamily(f))
		batch.Queue(members, l.number, f.Workspace, id, slices.Collect(maps.Keys(f.Roots)))
	}
}

func (l *Lane) writeArchive(batch *pgx.Batch, now time.Time, out *Outcome, t *tally) {
	if len(out.Archive) == 0 {
		return
	}
	const query = `
		INSERT INTO events (lane, seq, received_at, workspace_id, source_id, key, message_key, event_at, applied_at, type, name, payload)
		SELECT @lane, seq, received_at, workspace_id, source_id, key, message_key, event_at, @now, type, name, payload
		FROM unnest(@seqs::bigint[], @received::timestamptz[], @workspaces::integer[], @sources::integer[], @keys::uuid[],
		            @messages::uuid[], @at::timestamptz[], @types::text[], @names::text[], @payloads::bytea[])
		     AS t (seq, received_at, workspace_id, source_id, key, message_key, event_at, type, name, payload)`
	n := len(out.Archive)
	var (
		seqs       = make([]int64, 0, n)
		received   = make([]time.Time, 0, n)
		workspaces = make([]int32, 0, n)
		sources    = make([]int32, 0, n)
		keys       = make([]Key, 0, n)
		messages   = make([]Key, 0, n)
		at         = make([]time.Time, 0, n)
		types      = make([]string, 0, n)
		names      = make([]string, 0, n)
		payloads   = make([][]byte, 0, n)
	)
	for _, a := range out.Archive {
		t.seqs.archive++
		seqs, received = append(seqs, t.seqs.archive), append(received, a.Message.Received)
		workspaces, sources = append(workspaces, a.Message.Workspace), append(sources, a.Message.Source)
		keys, messages = append(keys, a.Message.Key), append(messages, a.Message.ID)
		at, types, names = append(at, time.UnixMilli(a.EventAt)), append(types, a.Type), append(names, a.Name)
		payloads = append(payloads, a.Message.Body)
	}
	batch.Queue(query, pgx.StrictNamedArgs{
		"lane": l.number, "now": now, "seqs": seqs, "received": received, "workspaces": workspaces, "sources": sources,
		"keys": keys, "messages": messages, "at": at, "types": types, "names": names, "payloads": payloads,
	})
}

func (l *Lane) writeDecisions(batch *pgx.Batch, now time.Time, out *Outcome) {
	const query = `
		INSERT INTO decisions (lane, workspace_id, message_key, message_id, key, void, decided_at, applied_at)
		VALUES (@lane, @workspace, @message, @id, @key, @void, @decided, @now)
		ON CONFLICT DO NOTHING`
	for _, d := range out.Decided {
		batch.Queue(query, pgx.StrictNamedArgs{
			"lane": l.number, "workspace": d.Message.Workspace, "message": d.Message.ID, "id": d.Decision.MessageID,
			"key": d.Message.Key, "void": d.Decision.Void, "decided": d.Decision.At, "now": now,
		})
	}
}

func (l *Lane) writeMemberships(batch *pgx.Batch, out *Outcome) {
	if len(out.Transitions) == 0 {
		return
	}
	const enter = `
		INSERT INTO memberships (lane, workspace_id, segment_id, profile_id, entered_at)
		SELECT @lane, workspace_id, segment_id, profile_id, entered_at
		FROM unnest(@workspaces::integer[], @segments::bigint[], @profiles::uuid[], @at::timestamptz[])
		     AS t (workspace_id, segment_id, profile_id, entered_at)
		ORDER BY segment_id, profile_id`
	const leave = `
		DELETE FROM memberships AS m
		USING unnest(@segments::bigint[], @profiles::uuid[]) AS t (segment_id, profile_id)
		WHERE m.lane = @lane AND m.segment_id = t.segment_id AND m.profile_id = t.profile_id`
	const count = `
		INSERT INTO segment_counts AS c (lane, segment_id, members)
		SELECT @lane, segment_id, change FROM unnest(@segments::bigint[], @changes::bigint[]) AS t (segment_id, change)
		ON CONFLICT (lane, segment_id) DO UPDATE SET members = c.members + excluded.members`
	var workspaces []int32
	var entered, left []int64
	var entrants, leavers []Key
	var at []time.Time
	change := map[int64]int64{}
	for _, t := range out.Transitions {
		if t.Entered {
			workspaces, entered, entrants = append(workspaces, t.Workspace), append(entered, t.Segment), append(entrants, t.Profile)
			at = append(at, time.UnixMilli(t.At))
			change[t.Segment]++
		} else {
			left, leavers = append(left, t.Segment), append(leavers, t.Profile)
			change[t.Segment]--
		}
	}
	if len(left) > 0 {
		batch.Queue(leave, pgx.StrictNamedArgs{"lane": l.number, "segments": left, "profiles": leavers})
	}
	if len(entered) > 0 {
		batch.Queue(enter, pgx.StrictNamedArgs{
			"lane": l.number, "workspaces": workspaces, "segments": entered, "profiles": entrants, "at": at,
		})
	}
	var segments, by []int64
	for _, id := range slices.Sorted(maps.Keys(change)) {
		segments, by = append(segments, id), append(by, change[id])
	}
	batch.Queue(count, pgx.StrictNamedArgs{"lane": l.number, "segments": segments, "changes": by})
	l.countDays(batch, out.Transitions)
}

// countDays adds to how many entered and left each segment on a day. The transitions of a step are of one moment.
func (l *Lane) countDays(batch *pgx.Batch, transitions []Transition) {
	const count = `
		INSERT INTO segment_days AS d (lane, segment_id, day, entered, "left")
		SELECT @lane, segment_id, @day, entered, gone
		FROM unnest(@segments::bigint[], @entered::bigint[], @left::bigint[]) AS t (segment_id, entered, gone)
		ON CONFLICT (lane, segment_id, day) DO UPDATE
		SET entered = d.entered + excluded.entered, "left" = d."left" + excluded."left"`
	type moves struct{ entered, left int64 }
	bySegment := map[int64]moves{}
	for _, t := range transitions {
		m := bySegment[t.Segment]
		if t.Entered {
			m.entered++
		} else {
			m.left++
		}
		bySegment[t.Segment] = m
	}
	var segments, entered, left []int64
	for _, id := range slices.Sorted(maps.Keys(bySegment)) {
		segments, entered, left = append(segments, id), append(entered, bySegment[id].entered), append(left, bySegment[id].left)
	}
	day := time.UnixMilli(transitions[0].At).UTC().Truncate(24 * time.Hour)
	batch.Queue(count, pgx.StrictNamedArgs{"lane": l.number, "day": day, "segments": segments, "entered": entered, "left": left})
}

func (l *Lane) writeTransitions(batch *pgx.Batch, out *Outcome, t *tally) {
	if len(out.Transitions) == 0 {
		return
	}
	const query = `
		INSERT INTO transitions (lane, seq, at, workspace_id, segment_id, profile_id, entered, cause, cause_source_id,
		                         cause_message_id, cause_message_key)
		SELECT @lane, seq, at, workspace_id, segment_id, profile_id, entered, cause, source_id, message_id, message_key
		FROM unnest(@seqs::bigint[], @at::timestamptz[], @workspaces::integer[], @segments::bigint[], @profiles::uuid[],
		            @entered::boolean[], @causes::text[], @sources::integer[], @messages::text[], @keys::uuid[])
		     AS t (seq, at, workspace_id, segment_id, profile_id, entered, cause, source_id, message_id, message_key)`
	var seqs, segments []int64
	var at []time.Time
	var workspaces, sources []int32
	var profiles []Key
	var entered []bool
	var causes, messages []string
	var keys []*Key
	for _, tr := range out.Transitions {
		t.seqs.transition++
		seqs, at, workspaces = append(seqs, t.seqs.transition), append(at, time.UnixMilli(tr.At)), append(workspaces, tr.Workspace)
		segments, profiles, entered = append(segments, tr.Segment), append(profiles, tr.Profile), append(entered, tr.Entered)
		causes, sources, messages = append(causes, tr.Cause.Kind), append(sources, tr.Cause.Source), append(messages, tr.Cause.MessageID)
		var key *Key
		if tr.Cause.MessageID != "" {
			k := MessageKey(tr.Cause.MessageID)
			key = &k
		}
		keys = append(keys, key)
	}
	batch.Queue(query, pgx.StrictNamedArgs{
		"lane": l.number, "seqs": seqs, "at": at, "workspaces": workspaces, "segments": segments, "profiles": profiles,
		"entered": entered, "causes": causes, "sources": sources, "messages": messages, "keys": keys,
	})
}

func (l *Lane) writeOutbox(batch *pgx.Batch, out *Outcome) {
	if len(out.Outbox) == 0 {
		return
	}
	const query = `
		INSERT INTO outbox (lane, seq, target, received_at, message)
		SELECT @lane, seq, target, received_at, message
		FROM unnest(@seqs::bigint[], @targets::smallint[], @received::timestamptz[], @messages::bytea[])
		     AS t (seq, target, received_at, message)`
	var seqs []int64
	var targets []int16
	var received []time.Time
	var messages [][]byte
	for _, o := range out.Outbox {
		received = append(received, o.Message.Received)
		seqs, targets, messages = append(seqs, o.Seq), append(targets, int16(o.Target)), append(messages, AppendMessage(nil, o.Message))
	}
	batch.Queue(query, pgx.StrictNamedArgs{
		"lane": l.number, "seqs": seqs, "targets": targets, "received": received, "messages": messages,
	})
}
