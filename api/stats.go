package api

import (
	"net/http"
	"strconv"
	"time"

	"github.com/mubatch/mubatch/profiles"
)

type countsJSON struct {
	Accepted    int64 `json:"accepted"`
	Applied     int64 `json:"applied"`
	Duplicate   int64 `json:"duplicate"`
	Failed      int64 `json:"failed"`
	Suppressed  int64 `json:"suppressed"`
	Quarantined int64 `json:"quarantined"`
	AddsUp      bool  `json:"adds_up"`
}

func showCounts(n profiles.Counts) countsJSON {
	return countsJSON{n.Accepted, n.Applied, n.Duplicate, n.Failed, n.Suppressed, n.Quarantined, n.AddUp()}
}

type sourceCountsJSON struct {
	SourceID  string     `json:"source_id"`
	SourceKey *string    `json:"source_key"`
	Events    countsJSON `json:"events"`
}

type dayCountsJSON struct {
	Day    string     `json:"day"`
	Events countsJSON `json:"events"`
}

func getStats(c *call) (answer, error) {
	const defaultDays, maxDays = 30, 400
	q, err := c.query("days")
	if err != nil {
		return answer{}, err
	}
	days := defaultDays
	if q.Has("days") {
		days, err = strconv.Atoi(q.Get("days"))
		if err != nil || days < 1 || days > maxDays {
			return answer{}, badParameter("days", "must be a whole number from 1 to "+strconv.Itoa(maxDays))
		}
	}

	ctx := c.Context()
	asOf, err := c.people.AsOf(ctx) // before counting: what it says must be true
	if err != nil {
		return answer{}, err
	}
	bySource, err := c.people.CountsBySource(ctx, c.workspace())
	if err != nil {
		return answer{}, err
	}
	byDay, err := c.people.CountsByDay(ctx, c.workspace(), days)
	if err != nil {
		return answer{}, err
	}
	keys, err := c.sourceKeys()
	if err != nil {
		return answer{}, err
	}

	var total profiles.Counts
	out := struct {
		Events     countsJSON         `json:"events"`
		Sources    []sourceCountsJSON `json:"sources"`
		Days       []dayCountsJSON    `json:"days"`
		Profiles   int64              `json:"profiles"`
		Segments   int64              `json:"segments"`
		AsOf       *timestamp         `json:"as_of"`
		LagSeconds *float64           `json:"lag_seconds"`
	}{AsOf: unlessZero(asOf)}
	for _, n := range bySource {
		total = total.Plus(n.Counts)
		s := sourceCountsJSON{SourceID: formatID(sourceID, n.Source), Events: showCounts(n.Counts)}
		if key, ok := keys[n.Source]; ok {
			s.SourceKey = &key
		}
		out.Sources = append(out.Sources, s)
	}
	for _, n := range byDay {
		out.Days = append(out.Days, dayCountsJSON{n.Day.Format(time.DateOnly), showCounts(n.Counts)})
	}
	out.Events = showCounts(total)
	if out.Profiles, err = c.people.Count(ctx, c.workspace()); err != nil {
		return answer{}, err
	}
	if out.Segments, err = c.segments.Count(ctx, c.workspace()); err != nil {
		return answer{}, err
	}
	if !asOf.IsZero() {
		lag := max(time.Since(asOf).Seconds(), 0)
		out.LagSeconds = &lag
	}
	return reply(http.StatusOK, out)
}
