package api

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/api/problem"
	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/collector/mapping"
	"github.com/mubatch/mubatch/profiles"
)

// Releaser puts quarantined events back into their lanes, if by now they are as they should be: see
// [collector.Releaser.Release].
type Releaser interface {
	Release(ctx context.Context, workspace int32, filter profiles.QuarantineFilter, after profiles.Moment, by *mapping.Program, dry bool) (list []collector.Released, next profiles.Moment, more bool, err error)
}

type quarantinedJSON struct {
	ID            string          `json:"id"`
	SourceID      string          `json:"source_id"`
	MessageID     string          `json:"message_id"`
	Type          *string         `json:"type"`
	Event         *string         `json:"event"`
	Reason        string          `json:"reason"`
	Violations    []violationJSON `json:"violations"`
	ReceivedAt    timestamp       `json:"received_at"`
	QuarantinedAt timestamp       `json:"quarantined_at"`
}

type violationJSON struct {
	Code    string `json:"code"`
	Pointer string `json:"pointer"`
	Detail  string `json:"detail"`
}

func showViolations(list []profiles.Violation) []violationJSON {
	out := make([]violationJSON, len(list))
	for i, v := range list {
		out[i] = violationJSON(v)
	}
	return out
}

func showQuarantined(e profiles.QuarantinedEvent) quarantinedJSON {
	out := quarantinedJSON{
		ID: formatQuarantineID(e.QuarantineID), SourceID: formatID(sourceID, e.Source), MessageID: e.MessageID, Reason: e.Reason,
		Violations: showViolations(e.Violations), ReceivedAt: timestamp(e.ReceivedAt), QuarantinedAt: timestamp(e.QuarantinedAt),
	}
	if e.Type != "" {
		out.Type = &e.Type
	}
	if e.Event != "" {
		out.Event = &e.Event
	}
	return out
}

const quarantineID = "qe_"

func formatQuarantineID(id profiles.QuarantineID) string {
	return quarantineID + strconv.Itoa(id.Lane) + "_" + strconv.FormatInt(id.ID, 10)
}

func parseQuarantineID(s string) (id profiles.QuarantineID, ok bool) {
	rest, _ := strings.CutPrefix(s, quarantineID)
	lane, number, _ := strings.Cut(rest, "_")
	l, err1 := strconv.ParseUint(lane, 10, 15)
	n, err2 := strconv.ParseInt(number, 10, 64)
	id = profiles.QuarantineID{Lane: int(l), ID: n}
	return id, err1 == nil && err2 == nil && n > 0 && formatQuarantineID(id) == s
}

func (c *call) quarantined() (profiles.QuarantineID, error) {
	id, ok := parseQuarantineID(c.param("quarantined_event"))
	if !ok {
		return id, errNotFound()
	}
	return id, nil
}

func listQuarantine(c *call) (answer, error) {
	var before profiles.Moment
	limit, q, err := c.paging(&before, "source", "event", "reason", "from", "to")
	if err != nil {
		return answer{}, err
	}
	filter := profiles.QuarantineFilter{Event: q.Get("event"), Reason: q.Get("reason")}
	if filter.From, err = timeIn(q, "from"); err != nil {
		return answer{}, err
	}
	if filter.Until, err = timeIn(q, "to"); err != nil {
		return answer{}, err
	}
	if q.Has("source") {
		source, err := c.source(q.Get("source"))
		if missing(err) {
			return answer{}, badParameter("source", "is not a source of this workspace")
		}
		if err != nil {
			return answer{}, err
		}
		filter.Source = source.ID
	}
	found, err := c.quarantine.List(c.Context(), c.workspace(), filter, before, limit+1)
	if err != nil {
		return answer{}, err
	}
	p, err := pageOf(c, found, limit, func(e profiles.QuarantinedEvent) any {
		return profiles.Moment{At: e.QuarantinedAt, Lane: e.Lane, Seq: e.ID}
	}, showQuarantined)
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusOK, p)
}

// timeIn returns a time that a parameter gives, or nil if it is not given.
func timeIn(q url.Values, name string) (*time.Time, error) {
	if !q.Has(name) {
		return nil, nil
	}
	t, err := time.Parse(time.RFC3339, q.Get(name))
	if err != nil {
		return nil, badParameter(name, "must be a time as in RFC 3339, such as 2026-01-31T12:00:00Z")
	}
	return &t, nil
}

func getQuarantined(c *call) (answer, error) {
	if _, err := c.query(); err != nil {
		return answer{}, err
	}
	id, err := c.quarantined()
	if err != nil {
		return answer{}, err
	}
	e, err := c.quarantine.Get(c.Context(), c.workspace(), id)
	if err != nil {
		return answer{}, err
	}
	out := struct {
		quarantinedJSON
		Payload       jsontext.Value `json:"payload,omitzero"`
		PayloadBase64 []byte         `json:"payload_base64,omitzero"`
	}{quarantinedJSON: showQuarantined(e)}
	if jsontext.Value(e.Body).IsValid() {
		out.Payload = e.Body
	} else {
		out.PayloadBase64 = e.Body
	}
	return reply(http.StatusOK, out)
}

func discardQuarantined(c *call) (answer, error) {
	id, err := c.quarantined()
	if err != nil {
		return answer{}, err
	}
	c.subject = formatQuarantineID(id)
	n, err := c.quarantine.Discard(c.Context(), c.workspace(), profiles.QuarantineFilter{IDs: []profiles.QuarantineID{id}})
	if err != nil {
		return answer{}, err
	}
	if n == 0 {
		return answer{}, errNotFound()
	}
	return answer{Status: http.StatusNoContent}, nil
}

// quarantineFilter is a filter as it comes in.
type quarantineFilter struct {
	Source *string    `json:"source"`
	Event  string     `json:"event" validate:"max=1000"`
	Reason string     `json:"reason" validate:"max=100"`
	From   *time.Time `json:"from"`
	To     *time.Time `json:"to"`
	IDs    []string   `json:"ids" validate:"omitempty,min=1,max=1000,unique"`
}

// filter returns what a body's filter selects.
func (c *call) filter(in *quarantineFilter) (f profiles.QuarantineFilter, err error) {
	f = profiles.QuarantineFilter{Event: in.Event, Reason: in.Reason, From: in.From, Until: in.To}
	for i, s := range in.IDs {
		id, ok := parseQuarantineID(s)
		if !ok {
			return f, invalid(problem.FieldError{
				Pointer: "#/filter/ids/" + strconv.Itoa(i), Code: "invalid", Detail: "is not the id of a quarantined event",
			})
		}
		f.IDs = append(f.IDs, id)
	}
	if in.Source != nil {
		source, err := c.source(*in.Source)
		if missing(err) {
			return f, invalid(problem.FieldError{Pointer: "#/filter/source", Code: "not_found", Detail: "is not a source of this workspace"})
		}
		if err != nil {
			return f, err
		}
		f.Source = source.ID
	}
	return f, nil
}

func discardQuarantine(c *call) (answer, error) {
	var in struct {
		Filter *quarantineFilter `json:"filter" validate:"required"`
	}
	if err := c.decode(&in); err != nil {
		return answer{}, err
	}
	filter, err := c.filter(in.Filter)
	if err != nil {
		return answer{}, err
	}
	n, err := c.quarantine.Discard(c.Context(), c.workspace(), filter)
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusOK, struct {
		Discarded int `json:"discarded"`
	}{n})
}

type releasedJSON struct {
	ID         string           `json:"id"`
	MessageID  string           `json:"message_id"`
	Outcome    string           `json:"outcome"`
	Violations []violationJSON  `json:"violations"`
	Events     []jsontext.Value `json:"events,omitzero"`
}

func replayQuarantine(c *call) (answer, error) {
	const shown = 20 // events of a dry run
	var in struct {
		Filter  *quarantineFilter `json:"filter" validate:"required"`
		Mapping mappingText       `json:"mapping"`
		DryRun  bool              `json:"dry_run"`
		Cursor  string            `json:"cursor" validate:"max=2000"`
	}
	if err := c.decode(&in); err != nil {
		return answer{}, err
	}
	filter, err := c.filter(in.Filter)
	if err != nil {
		return answer{}, err
	}
	by, err := compileMapping(in.Mapping)
	if err != nil {
		return answer{}, err
	}
	var after profiles.Moment
	if in.Cursor != "" {
		if err := c.openCursor(in.Cursor, &after); err != nil {
			return answer{}, err
		}
	}
	list, next, more, err := c.releaser.Release(c.Context(), c.workspace(), filter, after, by, in.DryRun)
	if err != nil {
		return answer{}, err
	}
	out := struct {
		Replayed   int            `json:"replayed"`
		Kept       int            `json:"kept"`
		Events     []releasedJSON `json:"events"`
		NextCursor *string        `json:"next_cursor"`
		HasMore    bool           `json:"has_more"`
	}{Events: []releasedJSON{}, HasMore: more}
	for _, r := range list {
		e := releasedJSON{ID: formatQuarantineID(r.ID), MessageID: r.MessageID, Outcome: "replayed", Violations: showViolations(r.Violations)}
		if out.Replayed++; len(r.Violations) > 0 {
			e.Outcome = "kept"
			out.Replayed--
			out.Kept++
		}
		if in.DryRun {
			if len(out.Events) >= shown {
				continue
			}
			for _, event := range r.Events {
				e.Events = append(e.Events, event)
			}
		}
		if in.DryRun || e.Outcome == "kept" {
			out.Events = append(out.Events, e)
		}
	}
	if more {
		cursor, err := c.sealCursor(next)
		if err != nil {
			return answer{}, err
		}
		out.NextCursor = &cursor
	}
	status := http.StatusAccepted
	if in.DryRun {
		status = http.StatusOK
	}
	return reply(status, out)
}

// mappingText is a mapping that is given as a document or as its text.
type mappingText struct{ text []byte }

// UnmarshalJSON takes an object or a string.
func (m *mappingText) UnmarshalJSON(b []byte) (err error) {
	switch v := jsontext.Value(b); v.Kind() {
	case '{':
		m.text = v.Clone()
	case '"':
		m.text, err = jsontext.AppendUnquote(nil, v)
	default:
		err = errors.New("neither an object nor a string")
	}
	return err
}

// compileMapping compiles a mapping; nil if none is given.
func compileMapping(given mappingText) (*mapping.Program, error) {
	if len(given.text) == 0 {
		return nil, nil
	}
	by, err := mapping.Compile(given.text)
	var wrong *mapping.InvalidError
	if errors.As(err, &wrong) {
		var faults []problem.FieldError
		for _, f := range wrong.Faults {
			faults = append(faults, problem.FieldError{Pointer: "#/mapping", Code: f.Code, Detail: f.String()})
		}
		return nil, invalid(faults...)
	}
	return by, err
}
