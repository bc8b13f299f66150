package api

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/api/problem"
	"github.com/mubatch/mubatch/profiles"
)

// Replayer puts failed events back into the lanes they came from, under the messageIds they had, and notes that they
// were replayed. It returns how many: those that are not the workspace's, or are gone, are left out.
type Replayer interface {
	Replay(ctx context.Context, workspace int32, ids []profiles.FailedID) (int, error)
}

// maxReplay is how many events are replayed at a time.
const maxReplay = 1000

type failedJSON struct {
	ID         string     `json:"id"`
	SourceID   string     `json:"source_id"`
	Stage      string     `json:"stage"`
	Reason     string     `json:"reason"`
	SQLState   string     `json:"sqlstate,omitzero"`
	Attempts   int        `json:"attempts"`
	Software   string     `json:"software,omitzero"`
	ReceivedAt timestamp  `json:"received_at"`
	FailedAt   timestamp  `json:"failed_at"`
	ReplayedAt *timestamp `json:"replayed_at"`
}

func showFailed(f profiles.FailedEvent) failedJSON {
	return failedJSON{
		formatFailedID(f.FailedID), formatID(sourceID, f.Source), f.Stage, f.Reason, f.SQLState, f.Attempts, f.Software,
		timestamp(f.ReceivedAt), timestamp(f.FailedAt), maybe(f.ReplayedAt),
	}
}

const failedEventID = "fe_"

func formatFailedID(id profiles.FailedID) string {
	return failedEventID + strconv.Itoa(id.Lane) + "_" + strconv.FormatInt(id.ID, 10)
}

func (c *call) failedID() (profiles.FailedID, error) {
	s := c.param("failed_event")
	rest, _ := strings.CutPrefix(s, failedEventID)
	lane, number, _ := strings.Cut(rest, "_")
	l, err1 := strconv.ParseUint(lane, 10, 15)
	n, err2 := strconv.ParseInt(number, 10, 64)
	id := profiles.FailedID{Lane: int(l), ID: n}
	if err1 != nil || err2 != nil || n < 1 || formatFailedID(id) != s {
		return profiles.FailedID{}, errNotFound()
	}
	return id, nil
}

func listFailedEvents(c *call) (answer, error) {
	var before profiles.Moment
	limit, q, err := c.paging(&before, "stage", "replayed")
	if err != nil {
		return answer{}, err
	}
	filter := profiles.FailedFilter{Stage: q.Get("stage")}
	if q.Has("stage") && !isStage(filter.Stage) {
		return answer{}, badParameter("stage", "must be one of "+strings.Join(stages, ", "))
	}
	switch q.Get("replayed") {
	case "true", "false":
		replayed := q.Get("replayed") == "true"
		filter.Replayed = &replayed
	default:
		if q.Has("replayed") {
			return answer{}, badParameter("replayed", "must be true or false")
		}
	}
	found, err := c.people.Failed(c.Context(), c.workspace(), filter, before, limit+1)
	if err != nil {
		return answer{}, err
	}
	p, err := pageOf(c, found, limit, func(f profiles.FailedEvent) any {
		return profiles.Moment{At: f.FailedAt, Lane: f.Lane, Seq: f.ID}
	}, showFailed)
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusOK, p)
}

var stages = []string{"frame", "decode", "fold", "store", "crash"}

func isStage(s string) bool {
	for _, stage := range stages {
		if s == stage {
			return true
		}
	}
	return false
}

func getFailedEvent(c *call) (answer, error) {
	if _, err := c.query(); err != nil {
		return answer{}, err
	}
	id, err := c.failedID()
	if err != nil {
		return answer{}, err
	}
	f, body, err := c.people.FailedMessage(c.Context(), c.workspace(), id)
	if err != nil {
		return answer{}, err
	}
	out := struct {
		failedJSON
		Payload       jsontext.Value `json:"payload,omitzero"`
		PayloadBase64 []byte         `json:"payload_base64,omitzero"`
	}{failedJSON: showFailed(f)}
	if jsontext.Value(body).IsValid() {
		out.Payload = jsontext.Value(body)
	} else {
		out.PayloadBase64 = body
	}
	return reply(http.StatusOK, out)
}

func replayFailedEvent(c *call) (answer, error) {
	if err := c.noBody(); err != nil {
		return answer{}, err
	}
	id, err := c.failedID()
	if err != nil {
		return answer{}, err
	}
	if _, _, err := c.people.FailedMessage(c.Context(), c.workspace(), id); err != nil {
		return answer{}, err
	}
	if _, err := c.replayer.Replay(c.Context(), c.workspace(), []profiles.FailedID{id}); err != nil {
		return answer{}, err
	}
	f, _, err := c.people.FailedMessage(c.Context(), c.workspace(), id)
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusAccepted, showFailed(f))
}

func replayFailedEvents(c *call) (answer, error) {
	var in struct {
		Stage        string     `json:"stage" validate:"omitempty,oneof=frame decode fold store crash"`
		Source       *string    `json:"source"`
		FailedAfter  *time.Time `json:"failed_after"`
		FailedBefore *time.Time `json:"failed_before"`
	}
	if err := c.decode(&in); err != nil {
		return answer{}, err
	}
	filter := profiles.FailedFilter{Stage: in.Stage, After: in.FailedAfter, Before: in.FailedBefore}
	if in.Source != nil {
		source, err := c.source(*in.Source)
		if missing(err) {
			return answer{}, invalid(problem.FieldError{Pointer: "#/source", Code: "not_found", Detail: "is not a source of this workspace"})
		}
		if err != nil {
			return answer{}, err
		}
		filter.Source = source.ID
	}
	ids, err := c.people.ToReplay(c.Context(), c.workspace(), filter, maxReplay+1)
	if err != nil {
		return answer{}, err
	}
	more := len(ids) > maxReplay
	if more {
		ids = ids[:maxReplay]
	}
	replayed := 0
	if len(ids) > 0 {
		if replayed, err = c.replayer.Replay(c.Context(), c.workspace(), ids); err != nil {
			return answer{}, err
		}
	}
	return reply(http.StatusAccepted, struct {
		Replayed int  `json:"replayed"`
		HasMore  bool `json:"has_more"`
	}{replayed, more})
}
