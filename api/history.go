package api

import (
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/mubatch/mubatch/profiles"
)

type segmentDayJSON struct {
	Date    string `json:"date"`
	Entered int64  `json:"entered"`
	Left    int64  `json:"left"`
	Members int64  `json:"members"`
}

// getSegmentHistory answers with every day there is in between, so that nobody has to fill gaps.
func getSegmentHistory(c *call) (answer, error) {
	const defaultDays, maxDays = 30, 1100
	q, err := c.query("from", "to")
	if err != nil {
		return answer{}, err
	}
	today := time.Now().UTC().Truncate(24 * time.Hour)
	to := today
	if q.Has("to") {
		if to, err = time.Parse(time.DateOnly, q.Get("to")); err != nil {
			return answer{}, badParameter("to", "must be a date, such as 2026-01-31")
		}
		if to.After(today) {
			to = today
		}
	}
	from := to.AddDate(0, 0, 1-defaultDays)
	if q.Has("from") {
		if from, err = time.Parse(time.DateOnly, q.Get("from")); err != nil {
			return answer{}, badParameter("from", "must be a date, such as 2026-01-31")
		}
	}
	switch {
	case from.After(to):
		return answer{}, badParameter("from", "must not be later than to, nor than today (UTC)")
	case to.Sub(from) >= maxDays*24*time.Hour:
		return answer{}, badParameter("from", "must not be more than "+strconv.Itoa(maxDays)+" days before to")
	}
	ref, err := c.segmentRef()
	if err != nil {
		return answer{}, err
	}
	seg, err := c.segments.Find(c.Context(), c.workspace(), ref)
	if err != nil {
		return answer{}, err
	}
	asOf, err := c.people.AsOf(c.Context()) // before counting: what it says must be true
	if err != nil {
		return answer{}, err
	}
	days, err := c.people.History(c.Context(), seg.ID, from, to)
	if err != nil {
		return answer{}, err
	}
	out := struct {
		SegmentID string           `json:"segment_id"`
		Data      []segmentDayJSON `json:"data"`
		AsOf      *timestamp       `json:"as_of"`
	}{SegmentID: formatID(segmentID, seg.ID), AsOf: unlessZero(asOf)}
	for _, d := range days {
		out.Data = append(out.Data, segmentDayJSON{d.Day.Format(time.DateOnly), d.Entered, d.Left, d.Members})
	}
	return reply(http.StatusOK, out)
}

type profileSegmentJSON struct {
	SegmentID    string     `json:"segment_id"`
	SegmentKey   string     `json:"segment_key"`
	SegmentName  string     `json:"segment_name"`
	Since        timestamp  `json:"since"`
	Cause        *causeJSON `json:"cause"`
	NextChangeAt *timestamp `json:"next_change_at"`
}

func listProfileSegments(c *call) (answer, error) {
	var after int64
	limit, _, err := c.paging(&after)
	if err != nil {
		return answer{}, err
	}
	ctx := c.Context()
	asOf, err := c.people.AsOf(ctx)
	if err != nil {
		return answer{}, err
	}
	p, err := c.find()
	if err != nil {
		return answer{}, err
	}
	found, err := c.people.Memberships(ctx, p, after, limit+1)
	if err != nil {
		return answer{}, err
	}
	segments, err := c.segmentsOf(ctx, p)
	if err != nil {
		return answer{}, err
	}
	list, err := pageOf(c, found, limit, func(m profiles.Membership) any { return m.Segment }, func(m profiles.Membership) profileSegmentJSON {
		seg := segments[m.Segment]
		return profileSegmentJSON{
			formatID(segmentID, m.Segment), seg.Key, seg.Name, timestamp(m.Since), showCause(m.Cause), unlessZero(m.Due),
		}
	})
	if err != nil {
		return answer{}, err
	}
	list.Data = slices.DeleteFunc(list.Data, func(s profileSegmentJSON) bool { return s.SegmentKey == "" }) // gone by now
	return reply(http.StatusOK, freshPage[profileSegmentJSON]{list, unlessZero(asOf)})
}

// showCause returns a cause for JSON, null if there is none.
func showCause(cause profiles.Cause) *causeJSON {
	if cause.Kind == "" {
		return nil
	}
	out := &causeJSON{Kind: cause.Kind, MessageID: cause.MessageID}
	if cause.Source != 0 {
		out.SourceID = formatID(sourceID, cause.Source)
	}
	return out
}
