package api

import (
	"cmp"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/jackc/pgx/v5"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/api/problem"
	"github.com/mubatch/mubatch/profiles"
)

type destinationJSON struct {
	ID           string            `json:"id"`
	Key          string            `json:"key"`
	Name         string            `json:"name"`
	Type         string            `json:"type"`
	Config       jsontext.Value    `json:"config"`
	Secrets      map[string]string `json:"secrets"`
	Consent      activation.Gate   `json:"consent"`
	Status       activation.Status `json:"status"`
	StatusReason string            `json:"status_reason"`
	BlockedUntil *timestamp        `json:"blocked_until"`
	TokenExpires *timestamp        `json:"token_expires_at"`
	Segments     []attachmentJSON  `json:"segments"`
	Revision     int64             `json:"revision"`
	CreatedAt    timestamp         `json:"created_at"`
	UpdatedAt    timestamp         `json:"updated_at"`
}

type attachmentJSON struct {
	SegmentID  string     `json:"segment_id"`
	SegmentKey *string    `json:"segment_key"`
	Filled     bool       `json:"filled"`
	AttachedAt timestamp  `json:"attached_at"`
	Audience   *string    `json:"audience"`
	Ready      bool       `json:"ready"`
	WaitingFor string     `json:"waiting_for"`
	Matched    *int64     `json:"matched"`
	State      string     `json:"audience_state"`
	MatchedAt  *timestamp `json:"matched_at"`
}

func showDestination(d activation.Destination, names map[int64]activation.Segment) destinationJSON {
	out := destinationJSON{
		ID: formatID(destinationID, d.ID), Key: d.Key, Name: d.Name, Type: d.Type, Config: d.Config, Secrets: d.Secrets,
		Consent: d.Consent, Status: d.Status, StatusReason: d.StatusReason, BlockedUntil: unlessZero(d.BlockedUntil),
		TokenExpires: unlessZero(d.TokenExpires), Revision: d.Version,
		CreatedAt: timestamp(d.CreatedAt), UpdatedAt: timestamp(d.UpdatedAt),
	}
	for _, a := range d.Segments {
		shown := attachmentJSON{
			SegmentID: formatID(segmentID, a.Segment), SegmentKey: keyOf(names, a.Segment), Filled: a.Filled,
			AttachedAt: timestamp(a.AttachedAt), Ready: a.Ready, WaitingFor: a.Waiting, Matched: a.Matched, State: a.State,
			MatchedAt: unlessZero(a.MatchedAt),
		}
		if a.Audience != "" {
			shown.Audience = &a.Audience
		}
		out.Segments = append(out.Segments, shown)
	}
	return out
}

// keyOf returns the key of a segment, or nil if it is gone.
func keyOf(names map[int64]activation.Segment, id int64) *string {
	if seg, ok := names[id]; ok {
		return &seg.Key
	}
	return nil
}

func (c *call) namesOf(list ...activation.Destination) (map[int64]activation.Segment, error) {
	var ids []int64
	for _, d := range list {
		for _, a := range d.Segments {
			ids = append(ids, a.Segment)
		}
	}
	return c.segments.SegmentInfo(c.Context(), c.workspace(), ids)
}

func (c *call) replyDestination(status int, d activation.Destination, err error) (answer, error) {
	if err != nil {
		return answer{}, err
	}
	names, err := c.namesOf(d)
	if err != nil {
		return answer{}, err
	}
	ans, err := reply(status, showDestination(d, names))
	ans.ETag = etag(d.Version)
	return ans, err
}

// destination returns the destination that the path names, and a reference to it by its id.
func (c *call) destination() (d activation.Destination, ref string, err error) {
	ref = c.param("destination")
	if _, ok := parseID(destinationID, ref); !ok && !humanKey.MatchString(ref) {
		return d, "", errNotFound()
	}
	d, err = c.destinations.Get(c.Context(), c.workspace(), ref)
	c.subject = formatID(destinationID, d.ID)
	return d, c.subject, err
}

// segment returns the segment that a key or id names.
func (c *call) segment(ref string) (profiles.StoredSegment, error) {
	if id, ok := parseID(segmentID, ref); ok {
		return c.segments.Get(c.Context(), c.workspace(), profiles.SegmentRef{ID: id})
	}
	if !humanKey.MatchString(ref) {
		return profiles.StoredSegment{}, errNotFound()
	}
	return c.segments.Get(c.Context(), c.workspace(), profiles.SegmentRef{Key: ref})
}

// attachable returns the ids of the segments that a body lists.
func (c *call) attachable(refs []string) (ids []int64, err error) {
	var faults []problem.FieldError
	for i, ref := range refs {
		s, err := c.segment(ref)
		fault := problem.FieldError{Pointer: problem.Pointer("segments", strconv.Itoa(i)), Code: "not_found", Detail: "is not a segment of this workspace"}
		switch {
		case missing(err):
			faults = append(faults, fault)
		case err != nil:
			return nil, err
		case s.Deleting:
			fault.Code, fault.Detail = "deleting", "is being deleted"
			faults = append(faults, fault)
		case !slices.Contains(ids, s.ID):
			ids = append(ids, s.ID)
		}
	}
	if faults != nil {
		return nil, invalid(faults...)
	}
	return ids, nil
}

func listDestinations(c *call) (answer, error) {
	var after int64
	limit, _, err := c.paging(&after)
	if err != nil {
		return answer{}, err
	}
	found, err := c.destinations.List(c.Context(), c.workspace(), after, limit+1)
	if err != nil {
		return answer{}, err
	}
	names, err := c.namesOf(found...)
	if err != nil {
		return answer{}, err
	}
	p, err := pageOf(c, found, limit, func(d activation.Destination) any { return d.ID }, func(d activation.Destination) destinationJSON {
		return showDestination(d, names)
	})
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusOK, p)
}

func createDestination(c *call) (answer, error) {
	var in struct {
		Key      string         `json:"key" validate:"required,key"`
		Name     string         `json:"name" validate:"max=200"`
		Type     string         `json:"type" validate:"required,max=63"`
		Config   jsontext.Value `json:"config" validate:"required"`
		Secrets  jsontext.Value `json:"secrets"`
		Consent  *gateJSON      `json:"consent"`
		Segments []string       `json:"segments" validate:"max=100"`
	}
	if err := c.decode(&in); err != nil {
		return answer{}, err
	}
	var made destinationJSON
	var revision int64
	err := pgx.BeginFunc(c.Context(), c.db, func(tx pgx.Tx) error {
		inTx := *c
		inTx.stores = c.in(tx)
		ids, err := inTx.attachable(in.Segments)
		if err != nil {
			return err
		}
		d, secrets, err := inTx.destinations.Create(c.Context(), c.workspace(), activation.NewDestination{
			Key: in.Key, Name: in.Name, Type: in.Type, Settings: activation.Settings{Config: in.Config, Secrets: in.Secrets},
			Consent: in.Consent.gate(),
		})
		if err != nil {
			return err
		}
		ref := formatID(destinationID, d.ID)
		for _, id := range ids {
			if err := inTx.destinations.Attach(c.Context(), c.workspace(), ref, id); err != nil {
				return unsupportedAt("segments", err)
			}
		}
		if d, err = inTx.destinations.Get(c.Context(), c.workspace(), ref); err != nil {
			return err
		}
		names, err := inTx.namesOf(d)
		if err != nil {
			return err
		}
		made, revision = showDestination(d, names), d.Version
		maps.Copy(made.Secrets, madeUp(in.Secrets, secrets))
		return nil
	})
	if err != nil {
		return answer{}, err
	}
	ans, err := reply(http.StatusCreated, made)
	ans.ETag = etag(revision)
	return ans, err
}

// gateJSON is the consent that somebody wants a destination to ask for.
type gateJSON struct {
	Purposes []string `json:"purposes" validate:"required,max=20"`
	Mode     string   `json:"mode"`
}

func (g *gateJSON) gate() *activation.Gate {
	if g == nil {
		return nil
	}
	return &activation.Gate{Purposes: g.Purposes, Mode: activation.ConsentMode(g.Mode)}
}

// madeUp returns those of the secrets that are texts and were not given.
func madeUp(given, secrets jsontext.Value) map[string]string {
	var members, ours map[string]jsontext.Value
	if json.Unmarshal(secrets, &members) != nil || len(given) > 0 && json.Unmarshal(given, &ours) != nil {
		return nil
	}
	shown := map[string]string{}
	for name, v := range members {
		var s string
		if _, ok := ours[name]; !ok && json.Unmarshal(v, &s) == nil && s != "" {
			shown[name] = s
		}
	}
	return shown
}

func getDestination(c *call) (answer, error) {
	if _, err := c.query(); err != nil {
		return answer{}, err
	}
	d, _, err := c.destination()
	return c.replyDestination(http.StatusOK, d, err)
}

func updateDestination(c *call) (answer, error) {
	var in struct {
		Name     *string        `json:"name" validate:"omitnil,min=1,max=200"`
		Config   jsontext.Value `json:"config"`
		Secrets  jsontext.Value `json:"secrets"`
		Consent  *gateJSON      `json:"consent"`
		Segments *[]string      `json:"segments" validate:"omitnil,max=100"`
	}
	if err := c.decode(&in); err != nil {
		return answer{}, err
	}
	revision, err := c.ifMatch()
	if err != nil {
		return answer{}, err
	}
	_, ref, err := c.destination()
	if err != nil {
		return answer{}, err
	}
	var d activation.Destination
	err = pgx.BeginFunc(c.Context(), c.db, func(tx pgx.Tx) (err error) {
		inTx := *c
		inTx.stores = c.in(tx)
		d, err = inTx.destinations.Update(c.Context(), c.workspace(), ref, activation.Update{
			Name: in.Name, Config: in.Config, Secrets: in.Secrets, Consent: in.Consent.gate(), Version: int64(revision),
		})
		if err != nil || in.Segments == nil {
			return err
		}
		if err := inTx.attachOnly(d, ref, *in.Segments); err != nil {
			return err
		}
		d, err = inTx.destinations.Get(c.Context(), c.workspace(), ref)
		return err
	})
	return c.replyDestination(http.StatusOK, d, err)
}

// attachOnly has a destination told about the segments listed and no others.
func (c *call) attachOnly(d activation.Destination, ref string, refs []string) error {
	want, err := c.attachable(refs)
	if err != nil {
		return err
	}
	for _, a := range d.Segments {
		if !slices.Contains(want, a.Segment) {
			if err := c.destinations.Detach(c.Context(), c.workspace(), ref, a.Segment); err != nil {
				return err
			}
		}
	}
	for _, id := range want {
		if err := c.destinations.Attach(c.Context(), c.workspace(), ref, id); err != nil {
			return unsupportedAt("segments", err)
		}
	}
	return nil
}

func deleteDestination(c *call) (answer, error) {
	revision, err := c.ifMatch()
	if err != nil {
		return answer{}, err
	}
	d, ref, err := c.destination()
	if err != nil {
		return answer{}, err
	}
	if revision != 0 && int64(revision) != d.Version {
		return answer{}, errChanged()
	}
	if err := c.destinations.Delete(c.Context(), c.workspace(), ref); err != nil {
		return answer{}, err
	}
	return answer{Status: http.StatusNoContent}, nil
}

func attachSegment(c *call) (answer, error) {
	if err := c.noBody(); err != nil {
		return answer{}, err
	}
	_, ref, err := c.destination()
	if err != nil {
		return answer{}, err
	}
	s, err := c.segment(c.param("segment"))
	if err != nil {
		return answer{}, err
	}
	if s.Deleting {
		return answer{}, profiles.ErrDeleting
	}
	if err := c.destinations.Attach(c.Context(), c.workspace(), ref, s.ID); err != nil {
		return answer{}, err
	}
	d, err := c.destinations.Get(c.Context(), c.workspace(), ref)
	return c.replyDestination(http.StatusOK, d, err)
}

func detachSegment(c *call) (answer, error) {
	_, ref, err := c.destination()
	if err != nil {
		return answer{}, err
	}
	id, ok := parseID(segmentID, c.param("segment")) // which may be gone by now
	if !ok {
		s, err := c.segment(c.param("segment"))
		if err != nil {
			return answer{}, err
		}
		id = s.ID
	}
	if err := c.destinations.Detach(c.Context(), c.workspace(), ref, id); err != nil {
		return answer{}, err
	}
	d, err := c.destinations.Get(c.Context(), c.workspace(), ref)
	return c.replyDestination(http.StatusOK, d, err)
}

func setAudience(c *call) (answer, error) {
	var in struct {
		Audience string `json:"audience" validate:"required,max=200"`
	}
	_, ref, err := c.destination()
	if err != nil {
		return answer{}, err
	}
	s, err := c.segment(c.param("segment"))
	if err != nil {
		return answer{}, err
	}
	if err := c.decode(&in); err != nil {
		return answer{}, err
	}
	if err := c.destinations.SetAudience(c.Context(), c.workspace(), ref, s.ID, in.Audience); err != nil {
		return answer{}, unsupportedAt("audience", err)
	}
	d, err := c.destinations.Get(c.Context(), c.workspace(), ref)
	return c.replyDestination(http.StatusOK, d, err)
}

func pauseDestination(c *call) (answer, error) {
	var in struct {
		Reason string `json:"reason" validate:"max=200"`
	}
	if len(c.body) > 0 {
		if err := c.decode(&in); err != nil {
			return answer{}, err
		}
	}
	d, ref, err := c.destination()
	if err != nil {
		return answer{}, err
	}
	if in.Reason == "" && d.Status == activation.Paused {
		in.Reason = d.StatusReason // which still holds
	}
	d, err = c.destinations.Pause(c.Context(), c.workspace(), ref, in.Reason)
	return c.replyDestination(http.StatusOK, d, err)
}

func resumeDestination(c *call) (answer, error) {
	if err := c.noBody(); err != nil {
		return answer{}, err
	}
	_, ref, err := c.destination()
	if err != nil {
		return answer{}, err
	}
	d, err := c.destinations.Resume(c.Context(), c.workspace(), ref)
	return c.replyDestination(http.StatusOK, d, err)
}

func testDestination(c *call) (answer, error) {
	if err := c.noBody(); err != nil {
		return answer{}, err
	}
	_, ref, err := c.destination()
	if err != nil {
		return answer{}, err
	}
	t, err := c.destinations.Test(c.Context(), c.workspace(), ref)
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusOK, showTest(t))
}

type testJSON struct {
	OK         bool    `json:"ok"`
	Outcome    string  `json:"outcome"`
	HTTPStatus int     `json:"http_status"`
	Reason     string  `json:"reason"`
	Excerpt    string  `json:"excerpt"`
	LatencyMS  float64 `json:"latency_ms"`
}

func showTest(t activation.TestResult) testJSON {
	return testJSON{t.OK, t.Outcome, t.Status, t.Reason, t.Excerpt, float64(t.Latency.Microseconds()) / 1000}
}

func dryRunDestination(c *call) (answer, error) {
	var in struct {
		Segment string `json:"segment" validate:"required"`
	}
	_, ref, err := c.destination()
	if err != nil {
		return answer{}, err
	}
	if err := c.decode(&in); err != nil {
		return answer{}, err
	}
	s, err := c.segmentOfBody(in.Segment)
	if err != nil {
		return answer{}, err
	}
	run, err := c.destinations.DryRun(c.Context(), c.workspace(), ref, s.ID, c.identities, c.segments)
	if errors.Is(err, activation.ErrNotFound) {
		return answer{}, invalid(problem.FieldError{Pointer: "#/segment", Code: "not_attached", Detail: "is not attached to this destination"})
	}
	if err != nil {
		return answer{}, err
	}
	out := struct {
		Members     int         `json:"members"`
		Unreachable int         `json:"unreachable"`
		Denied      int         `json:"denied"`
		Requests    []draftJSON `json:"requests"`
		Validated   *testJSON   `json:"validated"`
	}{Members: run.Members, Unreachable: run.Unreachable, Denied: run.Denied, Requests: showDrafts(run.Requests)}
	if run.Validated != nil {
		out.Validated = new(showTest(*run.Validated))
	}
	return reply(http.StatusOK, out)
}

// segmentOfBody returns the segment that a member of the body names.
func (c *call) segmentOfBody(ref string) (profiles.StoredSegment, error) {
	s, err := c.segment(ref)
	if missing(err) {
		return s, invalid(problem.FieldError{Pointer: "#/segment", Code: "not_found", Detail: "is not a segment of this workspace"})
	}
	return s, err
}

func resyncDestination(c *call) (answer, error) {
	var in struct {
		Segment *string `json:"segment"`
	}
	if len(c.body) > 0 {
		if err := c.decode(&in); err != nil {
			return answer{}, err
		}
	}
	_, ref, err := c.destination()
	if err != nil {
		return answer{}, err
	}
	r := activation.Replay{Everything: true}
	if in.Segment != nil {
		s, err := c.segmentOfBody(*in.Segment)
		if err != nil {
			return answer{}, err
		}
		r.Segment = s.ID
	}
	return c.replay(ref, r)
}

func (c *call) replay(ref string, r activation.Replay) (answer, error) {
	n, err := c.destinations.Replay(c.Context(), c.workspace(), ref, r)
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusAccepted, struct {
		Replayed int64 `json:"replayed"`
	}{n})
}

func listFailures(c *call) (answer, error) {
	limit, q, err := c.paging(new(int64), "segment")
	if err != nil {
		return answer{}, err
	}
	_, ref, err := c.destination()
	if err != nil {
		return answer{}, err
	}
	segment, _, err := c.about(q)
	if err != nil {
		return answer{}, err
	}
	found, err := c.destinations.Failures(c.Context(), c.workspace(), ref, segment, limit+1)
	if err != nil {
		return answer{}, err
	}
	type failureJSON struct {
		SegmentID      *string   `json:"segment_id"`
		SubscriptionID *string   `json:"subscription_id"`
		Status         string    `json:"status"`
		Reason         string    `json:"reason"`
		Count          int64     `json:"count"`
		LastAt         timestamp `json:"last_at"`
	}
	p := page[failureJSON]{Data: []failureJSON{}, HasMore: len(found) > limit}
	for _, f := range found[:min(len(found), limit)] {
		p.Data = append(p.Data, failureJSON{
			segmentOrNone(f.Segment), subscriptionOrNone(f.Subscription), f.Status, f.Reason, f.Count, timestamp(f.Last),
		})
	}
	return reply(http.StatusOK, p)
}

func rotateSecret(c *call) (answer, error) {
	if err := c.noBody(); err != nil {
		return answer{}, err
	}
	_, ref, err := c.destination()
	if err != nil {
		return answer{}, err
	}
	secrets, err := c.destinations.RotateSecret(c.Context(), c.workspace(), ref)
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusOK, struct {
		Secrets map[string]string `json:"secrets"`
	}{secrets})
}

func replayDestination(c *call) (answer, error) {
	var in struct {
		Everything bool       `json:"everything"`
		From       *time.Time `json:"from" validate:"required_with=To"`
		To         *time.Time `json:"to" validate:"required_with=From"`
		Segment    *string    `json:"segment"`
	}
	if err := c.decode(&in); err != nil {
		return answer{}, err
	}
	switch {
	case in.From != nil && !in.From.Before(*in.To):
		return answer{}, invalid(problem.FieldError{Pointer: "#/to", Code: "order", Detail: "must be after from"})
	case in.From != nil && in.Everything:
		return answer{}, invalid(problem.FieldError{Pointer: "#/everything", Code: "excluded", Detail: "does not go with from and to"})
	}
	_, ref, err := c.destination()
	if err != nil {
		return answer{}, err
	}
	r := activation.Replay{Everything: in.Everything}
	if in.From != nil {
		r.From, r.To = *in.From, *in.To
	}
	if in.Segment != nil {
		s, err := c.segmentOfBody(*in.Segment)
		if err != nil {
			return answer{}, err
		}
		r.Segment = s.ID
	}
	return c.replay(ref, r)
}

func getDestinationSummary(c *call) (answer, error) {
	q, err := c.query("segment")
	if err != nil {
		return answer{}, err
	}
	_, ref, err := c.destination()
	if err != nil {
		return answer{}, err
	}
	segment, _, err := c.about(q)
	if err != nil {
		return answer{}, err
	}
	s, err := c.destinations.Summary(c.Context(), c.workspace(), ref, segment)
	if err != nil {
		return answer{}, err
	}
	out := struct {
		summaryJSON
		Segments      []segmentSummaryJSON      `json:"segments,omitempty"`
		Events        *eventSummaryJSON         `json:"events,omitempty"`
		Subscriptions []subscriptionSummaryJSON `json:"subscriptions,omitempty"`
	}{summaryJSON: summaryJSON(s)}
	if segment == 0 {
		each, err := c.destinations.Summaries(c.Context(), c.workspace(), ref)
		if err != nil {
			return answer{}, err
		}
		ids := slices.Sorted(maps.Keys(each))
		names, err := c.segments.SegmentInfo(c.Context(), c.workspace(), ids)
		if err != nil {
			return answer{}, err
		}
		for _, id := range ids {
			out.Segments = append(out.Segments, segmentSummaryJSON{formatID(segmentID, id), keyOf(names, id), summaryJSON(each[id])})
		}
		events, subscriptions, err := c.eventSummaries(ref)
		if err != nil {
			return answer{}, err
		}
		out.Events, out.Subscriptions = &events, subscriptions
	}
	return reply(http.StatusOK, out)
}

type segmentSummaryJSON struct {
	SegmentID  string  `json:"segment_id"`
	SegmentKey *string `json:"segment_key"`
	summaryJSON
}

type summaryJSON struct {
	Wanted      int64 `json:"wanted"`
	Sent        int64 `json:"sent"`
	Accepted    int64 `json:"accepted"`
	Unknown     int64 `json:"unknown"`
	Pending     int64 `json:"pending"`
	Unreachable int64 `json:"unreachable"`
	Parked      int64 `json:"parked"`
	Failed      int64 `json:"failed"`
	Denied      int64 `json:"denied"`
	Drift       int64 `json:"drift"`
}

// about reads the filters by segment and by profile, both zero if not given.
func (c *call) about(q url.Values) (segment int64, profile *activation.ProfileID, err error) {
	if q.Has("segment") {
		s, err := c.segment(q.Get("segment"))
		if missing(err) {
			return 0, nil, badParameter("segment", "is not a segment of this workspace")
		}
		if err != nil {
			return 0, nil, err
		}
		segment = s.ID
	}
	if q.Has("profile") {
		id, err := profiles.ParseKey(q.Get("profile"))
		if err != nil {
			return 0, nil, badParameter("profile", "must be the id of a profile, p_ and 32 hexadecimal digits")
		}
		profile = new(activation.ProfileID(id))
	}
	return segment, profile, nil
}

type deliveryJSON struct {
	ID         string       `json:"id"`
	SegmentID  *string      `json:"segment_id"`
	ProfileID  profiles.Key `json:"profile_id"`
	Version    int64        `json:"version"`
	Change     string       `json:"change"`
	Outcome    string       `json:"outcome"`
	Reason     string       `json:"reason"`
	At         timestamp    `json:"at"`
	ChangedAt  timestamp    `json:"changed_at"`
	Cause      causeJSON    `json:"cause"`
	MessageKey string       `json:"message_key"`
	Attempt    int          `json:"attempt"`
	HTTPStatus int          `json:"http_status"`
	LatencyMS  float64      `json:"latency_ms"`
	Excerpt    string       `json:"excerpt"`

	SubscriptionID *string `json:"subscription_id"`
	Event          *string `json:"event"`
}

func showDelivery(d activation.Delivery) deliveryJSON {
	said, event := change(d.Entered), (*string)(nil)
	if d.Subscription != nil {
		said, event = happened, &d.Event
	}
	return deliveryJSON{
		formatID(deliveryID, d.ID), segmentOrNone(d.Segment), d.Profile, d.Version, said, d.Outcome, d.Reason,
		timestamp(d.At), timestamp(d.ChangedAt),
		causeJSON{Kind: d.Cause, MessageID: d.MessageID},
		d.MessageKey, d.Attempt,
		d.HTTPStatus, float64(d.Latency.Microseconds()) / 1000, d.Excerpt, subscriptionOrNone(d.Subscription), event,
	}
}

// happened is what a destination is told of an event.
const happened = "happened"

func change(entered bool) string {
	if entered {
		return "entered"
	}
	return "left"
}

func listDeliveries(c *call) (answer, error) {
	var before int64
	limit, q, err := c.paging(&before, "segment", "profile", "outcome")
	if err != nil {
		return answer{}, err
	}
	outcome := activation.Class(q.Get("outcome"))
	if q.Has("outcome") && !slices.Contains(activation.Classes, outcome) {
		return answer{}, badParameter("outcome", "is not one that a delivery can have")
	}
	_, ref, err := c.destination()
	if err != nil {
		return answer{}, err
	}
	segment, profile, err := c.about(q)
	if err != nil {
		return answer{}, err
	}
	found, err := c.destinations.Deliveries(c.Context(), c.workspace(), ref, activation.DeliveryFilter{
		Segment: segment, Profile: profile, Outcome: outcome, Before: before, Limit: limit + 1,
	})
	if err != nil {
		return answer{}, err
	}
	p, err := pageOf(c, found, limit, func(d activation.Delivery) any { return d.ID }, showDelivery)
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusOK, p)
}

type activationJSON struct {
	SegmentID string       `json:"segment_id"`
	ProfileID profiles.Key `json:"profile_id"`
	Wanted    bool         `json:"wanted"`
	Member    bool         `json:"member"`
	Allowed   bool         `json:"allowed"`
	Sent      *bool        `json:"sent"`
	Version   int64        `json:"version"`
	Status    string       `json:"status"`
	Reason    string       `json:"reason"`
	Attempts  int          `json:"attempts"`
	NextAt    *timestamp   `json:"next_at"`
	ChangedAt timestamp    `json:"changed_at"`
	SentAt    *timestamp   `json:"sent_at"`
	Cause     causeJSON    `json:"cause"`
}

func showActivation(s activation.State) activationJSON {
	out := activationJSON{
		SegmentID: formatID(segmentID, s.Segment), ProfileID: s.Profile, Wanted: s.Wanted, Member: s.Member,
		Allowed: s.Allowed, Sent: s.Sent, Version: s.Version,
		Status: s.Status, Reason: s.Reason, Attempts: s.Attempts, ChangedAt: timestamp(s.ChangedAt), SentAt: maybe(s.SentAt),
		Cause: causeJSON{Kind: s.Cause, MessageID: s.MessageID},
	}
	if s.Status == "pending" {
		out.NextAt = maybe(s.NextAt)
	}
	return out
}

var activationStatuses = []string{"pending", "claimed", "accepted", "settled", "unreachable", "parked", "failed"}

func listActivations(c *call) (answer, error) {
	var after activation.StateCursor
	limit, q, err := c.paging(&after, "segment", "profile", "status", "drift")
	if err != nil {
		return answer{}, err
	}
	if q.Has("status") && !slices.Contains(activationStatuses, q.Get("status")) {
		return answer{}, badParameter("status", "must be one of "+strings.Join(activationStatuses, ", "))
	}
	_, ref, err := c.destination()
	if err != nil {
		return answer{}, err
	}
	segment, profile, err := c.about(q)
	if err != nil {
		return answer{}, err
	}
	f := activation.StateFilter{Status: q.Get("status"), Segment: segment, Profile: profile, After: after, Limit: limit + 1}
	if f.Drift = q.Has("drift"); f.Drift {
		seconds, err := strconv.ParseUint(q.Get("drift"), 10, 32)
		if err != nil || seconds > 31_536_000 {
			return answer{}, badParameter("drift", "must be a number of seconds, of a year at most")
		}
		f.Since = time.Duration(seconds) * time.Second
	}
	found, _, err := c.destinations.States(c.Context(), c.workspace(), ref, f)
	if err != nil {
		return answer{}, err
	}
	p, err := pageOf(c, found, limit, func(s activation.State) any {
		return activation.StateCursor{Lane: profiles.Key(s.Profile).Lane(c.lanes), Segment: s.Segment, Profile: s.Profile}
	}, showActivation)
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusOK, p)
}

// fieldFaults collects what activation finds wrong with the members of a body.
func fieldFaults(err error) (faults []problem.FieldError) {
	var field *activation.FieldError
	if several, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range several.Unwrap() {
			faults = append(faults, fieldFaults(e)...)
		}
	} else if errors.As(err, &field) {
		var tokens []string // none of the body as a whole
		for at := range strings.SplitSeq(strings.TrimPrefix(field.Pointer, "/"), "/") {
			if field.Pointer != "" {
				tokens = append(tokens, unescapePointer.Replace(at))
			}
		}
		faults = append(faults, problem.FieldError{
			Pointer: problem.Pointer(tokens...), Code: cmp.Or(field.Code, "invalid"), Detail: field.Detail,
		})
	}
	return faults
}

var unescapePointer = strings.NewReplacer("~1", "/", "~0", "~")
