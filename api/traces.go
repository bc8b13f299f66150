package api

import (
	"net/http"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/profiles"
)

type traceJSON struct {
	MessageID string       `json:"message_id"`
	Status    string       `json:"status"`
	Events    []tracedJSON `json:"events"`
	AsOf      *timestamp   `json:"as_of"`
}

type tracedJSON struct {
	Status             string               `json:"status"`
	SourceID           string               `json:"source_id"`
	Type               string               `json:"type,omitzero"`
	Name               string               `json:"name,omitzero"`
	ProfileID          *profiles.Key        `json:"profile_id,omitzero"`
	EventAt            *timestamp           `json:"event_at,omitzero"`
	ReceivedAt         timestamp            `json:"received_at"`
	AppliedAt          *timestamp           `json:"applied_at,omitzero"`
	FailedEventID      string               `json:"failed_event_id,omitzero"`
	FailedAt           *timestamp           `json:"failed_at,omitzero"`
	QuarantinedEventID string               `json:"quarantined_event_id,omitzero"`
	QuarantinedAt      *timestamp           `json:"quarantined_at,omitzero"`
	Stage              string               `json:"stage,omitzero"`
	Reason             string               `json:"reason,omitzero"`
	Transitions        []transitionJSON     `json:"transitions"`
	Deliveries         []tracedDeliveryJSON `json:"deliveries"`
}

type tracedDeliveryJSON struct {
	DestinationID  string       `json:"destination_id"`
	DestinationKey string       `json:"destination_key"`
	SegmentID      *string      `json:"segment_id"`
	SubscriptionID *string      `json:"subscription_id"`
	ProfileID      profiles.Key `json:"profile_id"`
	Change         string       `json:"change"`
	Outcome        string       `json:"outcome"`
	Reason         string       `json:"reason"`
	Attempt        int          `json:"attempt"`
	HTTPStatus     int          `json:"http_status"`
	ChangedAt      timestamp    `json:"changed_at"`
	At             *timestamp   `json:"at"`
}

func getTrace(c *call) (answer, error) {
	if _, err := c.query(); err != nil {
		return answer{}, err
	}
	ctx, id := c.Context(), c.param("message_id")
	if id == "" {
		return answer{}, errNotFound()
	}
	asOf, err := c.people.AsOf(ctx) // before looking: what it says must be true
	if err != nil {
		return answer{}, err
	}
	found, err := c.people.Trace(ctx, c.workspace(), id)
	if err != nil {
		return answer{}, err
	}
	out := traceJSON{MessageID: id, Status: "unknown", Events: []tracedJSON{}, AsOf: unlessZero(asOf)}
	for i, t := range found {
		e, err := c.showTraced(t, id)
		if err != nil {
			return answer{}, err
		}
		if i == 0 {
			out.Status = e.Status
		}
		out.Events = append(out.Events, e)
	}
	return reply(http.StatusOK, out)
}

func (c *call) showTraced(t profiles.Traced, messageID string) (tracedJSON, error) {
	out := tracedJSON{SourceID: formatID(sourceID, t.Source), ReceivedAt: timestamp(t.ReceivedAt)}
	if t.Suppressed {
		out.Status = "suppressed"
		return out, nil
	}
	if q := t.Quarantined; q != nil {
		out.Status, out.QuarantinedEventID, out.QuarantinedAt = "quarantined", formatQuarantineID(q.QuarantineID), unlessZero(q.QuarantinedAt)
		out.Type, out.Name, out.Reason = q.Type, q.Event, q.Reason
		return out, nil
	}
	if !t.Applied {
		out.Status, out.FailedEventID = "failed", formatFailedID(t.Failed.FailedID)
		out.FailedAt, out.Stage, out.Reason = unlessZero(t.Failed.FailedAt), t.Failed.Stage, t.Failed.Reason
		return out, nil
	}
	out.Status, out.Type, out.Name, out.ProfileID = "applied", t.Type, t.Name, &t.Profile
	out.EventAt, out.AppliedAt = unlessZero(t.EventAt), unlessZero(t.AppliedAt)
	segments, err := c.segments.SegmentInfo(c.Context(), c.workspace(), segmentsIn(t.Transitions))
	if err != nil {
		return tracedJSON{}, err
	}
	for _, tr := range t.Transitions {
		out.Transitions = append(out.Transitions, showTransition(tr, segments))
	}
	out.Deliveries, err = c.deliveriesOf(t, messageID)
	return out, err
}

// deliveriesOf returns what destinations were told because of an event.
func (c *call) deliveriesOf(t profiles.Traced, messageID string) ([]tracedDeliveryJSON, error) {
	var who []activation.Involved
	for _, tr := range t.Transitions {
		who = append(who, activation.Involved{Lane: tr.At.Lane, Segment: tr.Segment, Profile: tr.Profile})
	}
	found, err := c.destinations.Trace(c.Context(), c.workspace(), messageID, who)
	if err != nil {
		return nil, err
	}
	list := make([]tracedDeliveryJSON, len(found))
	for i, d := range found {
		said := change(d.Entered)
		if d.Subscription != nil {
			said = happened
		}
		list[i] = tracedDeliveryJSON{
			formatID(destinationID, d.Destination), d.DestinationKey, segmentOrNone(d.Segment), subscriptionOrNone(d.Subscription),
			d.Profile, said, d.Outcome, d.Reason, d.Attempt, d.HTTPStatus, timestamp(d.ChangedAt), maybe(d.At),
		}
	}
	return list, nil
}
