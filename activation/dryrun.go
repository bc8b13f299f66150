package activation

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
)

// DryRun is what a destination would be sent.
type DryRun struct {
	Members     int         // people in the message
	Unreachable int         // of those looked at, people whom the partner cannot know by anything
	Denied      int         // people who have not given the consent that the destination asks for
	Requests    []Draft     // the requests that would be made, redacted
	Validated   *TestResult // what the partner says of the message, if it checks without applying, or why there is none
}

// dryRunMembers is how many people a dry run is about, at most.
const dryRunMembers = 20

// DryRun makes the message about some members of a segment that is attached to a destination, those first who wait to be
// added, and shows it instead of sending it. A partner that checks messages without applying them is asked to.
func (s *Store) DryRun(
	ctx context.Context, workspace int32, ref string, segment int64, who people, names segments,
) (DryRun, error) {
	id, err := s.find(ctx, workspace, ref)
	if err != nil {
		return DryRun{}, err
	}
	t, err := target(ctx, s.db, s.ring, s.partners, id)
	if err != nil {
		return DryRun{}, storeError(err, "try", ref)
	}
	const attached = `
		SELECT audience
		FROM destination_segments
		WHERE destination_id = @destination AND segment_id = @segment AND attached`
	const members = `
		SELECT lane, profile_id
		FROM activations
		WHERE lane = ANY(@lanes::smallint[]) AND destination_id = @destination AND segment_id = @segment AND member
		ORDER BY status = 'settled', lane, profile_id
		LIMIT @limit`
	q := &queue{pool: s.pool, ring: s.ring, lanes: s.lanes}
	p := plan{}
	c := claim{workspace: workspace, destination: id, segment: segment}
	err = s.db.QueryRow(ctx, attached, pgx.StrictNamedArgs{"destination": id, "segment": segment}).Scan(&c.audience)
	if errors.Is(err, pgx.ErrNoRows) {
		return DryRun{}, ErrNotFound
	}
	if err != nil {
		return DryRun{}, fmt.Errorf("read attachment: %w", err)
	}
	rows, _ := s.db.Query(ctx, members, pgx.StrictNamedArgs{
		"lanes": laneNumbers(s.lanes), "destination": id, "segment": segment, "limit": dryRunMembers,
	})
	byLane := map[int][]ProfileID{}
	var (
		lane    int
		profile ProfileID
	)
	_, err = pgx.ForEachRow(rows, []any{&lane, &profile}, func() error {
		byLane[lane] = append(byLane[lane], profile)
		return nil
	})
	if err != nil {
		return DryRun{}, fmt.Errorf("read members: %w", err)
	}
	found, err := names.SegmentInfo(ctx, workspace, []int64{segment})
	if err != nil {
		return DryRun{}, err
	}
	p.segment = found[segment]
	p.segment.ID = segment

	limits := t.partner.Limits(t.Target)
	missing := limits.NeedsAudience && c.audience == ""
	if missing {
		c.audience = "(the audience to be made)"
	}
	var out DryRun
	for lane := range s.lanes {
		if len(byLane[lane]) == 0 {
			continue
		}
		persons, err := who.People(ctx, lane, workspace, byLane[lane])
		if err != nil {
			return DryRun{}, err
		}
		for id, person := range persons {
			if !t.gate.Allows(person.Consent) {
				out.Denied++
				delete(persons, id)
			}
		}
		current, _, err := q.identify(ctx, t, limits, persons)
		if unmapped := (*mapError)(nil); errors.As(err, &unmapped) {
			o := unmapped.outcome
			out.Validated = &TestResult{
				Outcome: string(o.Class), Status: o.Status, Reason: "people cannot be identified now: " + o.Reason, Excerpt: o.Excerpt,
			}
			return out, nil
		}
		if err != nil {
			return DryRun{}, dryRunError(err)
		}
		for _, id := range byLane[lane] {
			person, known := persons[id]
			switch person.ID = id; {
			case !known:
			case current[id].empty():
				out.Unreachable++
			default:
				p.send = append(p.send, claimed{
					Profile: id, Version: 1, ChangedAt: time.Now(), Cause: CauseBackfill, Entered: true, person: person,
					ids: current[id],
				})
			}
		}
	}
	if len(p.send) == 0 {
		return out, nil
	}
	p.send = p.send[:min(len(p.send), max(limits.Members, 1))]
	l := &line{target: t, limits: limits}
	body, took, err := l.encode(&c, p, p.send)
	if err != nil {
		return DryRun{}, dryRunError(err)
	}
	c.members = p.send[:took]
	out.Members = took
	m := Message{
		Key: "msg_dry_run", Segment: segment, Audience: c.audience, Body: body, Attempt: 1, Members: c.refs(),
	}
	out.Requests, out.Validated, err = t.draft(ctx, limits, m, !missing)
	return out, err
}

// draft returns the requests that would be made of a message, redacted, and what the partner says of it, if it can be asked.
func (t served) draft(ctx context.Context, limits Limits, m Message, ask bool) (drafts []Draft, said *TestResult, err error) {
	ctx, cancel := context.WithTimeout(ctx, orElse(limits.Timeout, 20*time.Second))
	defer cancel()
	if drafter, ok := t.partner.(Drafter); ok {
		if drafts, err = drafter.Draft(t.Target, m); err != nil {
			return nil, nil, dryRunError(err)
		}
	} else {
		t.partner.Send(context.WithValue(ctx, draftsKey{}, &drafts), t.Target, m)
	}
	open := append(textsIn(t.Config), m.Audience)
	for i := range drafts {
		drafts[i] = t.cleanDraft(drafts[i]).redacted(open)
	}
	if validator, ok := t.partner.(Validator); ok && ask {
		start := time.Now()
		o := t.clean(validator.Validate(ctx, t.Target, m))
		said = &TestResult{
			OK: o.Class == OK, Outcome: string(o.Class), Status: o.Status, Reason: o.Reason, Excerpt: o.Excerpt,
			Latency: time.Since(start),
		}
	}
	return drafts, said, nil
}

// dryRunError makes what a partner says of the settings something that its reader can act upon.
func dryRunError(err error) error {
	if errors.Is(err, errEncode) {
		return &FieldError{Pointer: "/config", Detail: errEncode.Error() + " with these settings"}
	}
	return err
}

// openHeaders are those of which the values may be shown.
var openHeaders = []string{"Accept", "Content-Type", "Content-Encoding", "User-Agent"}

// harmless matches the values of other headers that hold nothing secret: versions, methods, flags.
var harmless = regexp.MustCompile(`^[A-Za-z0-9._-]{1,16}$`)

// secretNames matches the names of headers and parameters that hold secrets.
var secretNames = regexp.MustCompile(`(?i)auth|token|key|secret|sig|proof|cred|pass|cookie`)

const maxDraft = 16 << 10

// redacted returns a draft as it may be shown: without secrets, with addresses left out and hashes cut short. Texts that are
// open may be shown whatever they look like.
func (d Draft) redacted(open []string) Draft {
	if u, err := url.Parse(d.URL); err == nil {
		u.User = nil
		q := u.Query()
		for name, values := range q {
			for i := range values {
				if secretNames.MatchString(name) || len(values[i]) > 64 {
					values[i] = "…"
				}
			}
		}
		u.RawQuery = q.Encode()
		d.URL = strings.ReplaceAll(u.String(), url.QueryEscape("…"), "…")
	} else {
		d.URL = "…"
	}
	header := http.Header{}
	for name, values := range d.Header {
		for _, v := range values {
			if !slices.Contains(openHeaders, name) && (secretNames.MatchString(name) || !harmless.MatchString(v)) {
				v = "…"
			}
			header.Add(name, v)
		}
	}
	d.Header = header
	if !utf8.Valid(d.Body) {
		d.Body = fmt.Appendf(nil, "(%d bytes)", len(d.Body))
		return d
	}
	body, ok := redactJSON(d.Body, open)
	text := string(body)
	if !ok {
		text = redactText(string(d.Body))
	}
	if len(text) > maxDraft {
		text = strings.ToValidUTF8(text[:maxDraft], "") + "…"
	}
	d.Body = []byte(text)
	return d
}

// hashLike matches what tells nobody anything by its first characters.
var hashLike = regexp.MustCompile(`^(?:p_)?[0-9a-f]{32,128}$`)
