package api

import (
	"net/http"
	"strconv"
	"time"

	"github.com/mubatch/mubatch/collector"
)

type faultCountJSON struct {
	At      *timestamp `json:"at,omitzero"`
	Outcome string     `json:"outcome"`
	Event   string     `json:"event"`
	Reason  string     `json:"reason"`
	Events  int64      `json:"events"`
}

func showFaultCount(n collector.FaultCount) faultCountJSON {
	return faultCountJSON{Outcome: n.Outcome, Event: n.Event, Reason: n.Reason, Events: n.Events}
}

// getQuality tells what was wrong with a source's events, over time.
func getQuality(c *call) (answer, error) {
	const day, mostHours, mostDays = 24 * time.Hour, 7, 90
	q, err := c.query("from", "to", "granularity")
	if err != nil {
		return answer{}, err
	}
	granularity, most := "hour", mostHours
	if q.Has("granularity") {
		switch granularity = q.Get("granularity"); granularity {
		case "hour":
		case "day":
			most = mostDays
		default:
			return answer{}, badParameter("granularity", "must be hour or day")
		}
	}
	from, err := timeIn(q, "from")
	if err != nil {
		return answer{}, err
	}
	to, err := timeIn(q, "to")
	if err != nil {
		return answer{}, err
	}
	if to == nil {
		now := time.Now()
		to = &now
	}
	if from == nil {
		start := to.Add(-day)
		from = &start
	}
	if !from.Before(*to) || to.Sub(*from) > time.Duration(most)*day {
		return answer{}, badParameter("from", "must be before to, by at most "+strconv.Itoa(most)+" days")
	}
	source, err := c.source(c.param("source"))
	if err != nil {
		return answer{}, err
	}
	list, err := c.sources.Quality(c.Context(), c.workspace(), source.ID, *from, *to, granularity)
	if err != nil {
		return answer{}, err
	}
	out := struct {
		SourceID    string           `json:"source_id"`
		From        timestamp        `json:"from"`
		To          timestamp        `json:"to"`
		Granularity string           `json:"granularity"`
		Data        []faultCountJSON `json:"data"`
	}{formatID(sourceID, source.ID), timestamp(*from), timestamp(*to), granularity, []faultCountJSON{}}
	for _, n := range list {
		shown := showFaultCount(n)
		at := timestamp(n.At)
		shown.At = &at
		out.Data = append(out.Data, shown)
	}
	return reply(http.StatusOK, out)
}

type flowJSON struct {
	At          timestamp `json:"at"`
	Accepted    int64     `json:"accepted"`
	Rejected    int64     `json:"rejected"`
	Unavailable int64     `json:"unavailable"`
	Quarantined int64     `json:"quarantined"`
	Flagged     int64     `json:"flagged"`
	Bots        int64     `json:"bots"`
}

func showFlows(list []collector.Flow) []flowJSON {
	out := make([]flowJSON, len(list))
	for i, f := range list {
		out[i] = flowJSON{timestamp(f.At), f.Accepted, f.Rejected, f.Unavailable, f.Quarantined, f.Flagged, f.Bots}
	}
	return out
}

type rejectedJSON struct {
	At      timestamp `json:"at"`
	Type    string    `json:"type"`
	Code    string    `json:"code"`
	Pointer string    `json:"pointer"`
	Reason  string    `json:"reason"`
}

type usedKeyJSON struct {
	WriteKeyID string     `json:"write_key_id"`
	LastUsedAt *timestamp `json:"last_used_at"`
}

// getSourceHealth tells what came from a source, and how it was.
func getSourceHealth(c *call) (answer, error) {
	if _, err := c.query(); err != nil {
		return answer{}, err
	}
	source, err := c.source(c.param("source"))
	if err != nil {
		return answer{}, err
	}
	ctx := c.Context()
	h, err := c.sources.Health(ctx, c.workspace(), source.ID)
	if err != nil {
		return answer{}, err
	}
	days, err := c.people.CountsOfSource(ctx, c.workspace(), source.ID, 2)
	if err != nil {
		return answer{}, err
	}
	keys, err := c.sources.ListWriteKeys(ctx, c.workspace(), formatID(sourceID, source.ID), 0, maxLimit)
	if err != nil {
		return answer{}, err
	}
	out := struct {
		SourceID   string           `json:"source_id"`
		LastSeenAt *timestamp       `json:"last_seen_at"`
		PerMinute  float64          `json:"events_per_minute"`
		Minutes    []flowJSON       `json:"minutes"`
		Hours      []flowJSON       `json:"hours"`
		ClockSkew  skewJSON         `json:"clock_skew"`
		Faults     []faultCountJSON `json:"faults"`
		Rejected   []rejectedJSON   `json:"rejected"`
		Days       []dayCountsJSON  `json:"days"`
		WriteKeys  []usedKeyJSON    `json:"write_keys"`
	}{
		SourceID: formatID(sourceID, source.ID), LastSeenAt: maybe(h.LastSeenAt), PerMinute: perMinute(h.Minutes, time.Now()),
		Minutes: showFlows(h.Minutes), Hours: showFlows(h.Hours), Faults: []faultCountJSON{}, Rejected: []rejectedJSON{},
		Days: []dayCountsJSON{}, WriteKeys: []usedKeyJSON{},
		ClockSkew: skewJSON{h.Skew.Events, h.Skew.Median.Milliseconds(), h.Skew.P95.Milliseconds()},
	}
	for _, n := range h.Faults {
		out.Faults = append(out.Faults, showFaultCount(n))
	}
	for _, r := range h.Samples {
		out.Rejected = append(out.Rejected, rejectedJSON{timestamp(r.At), r.Type, r.Code, r.Pointer, r.Reason})
	}
	for _, n := range days {
		out.Days = append(out.Days, dayCountsJSON{n.Day.Format(time.DateOnly), showCounts(n.Counts)})
	}
	for _, k := range keys {
		if k.RevokedAt == nil {
			out.WriteKeys = append(out.WriteKeys, usedKeyJSON{formatID(writeKeyID, k.ID), maybe(k.LastUsedAt)})
		}
	}
	return reply(http.StatusOK, out)
}

type skewJSON struct {
	Events   int64 `json:"events"`
	MedianMS int64 `json:"median_ms"`
	P95MS    int64 `json:"p95_ms"`
}

// perMinute returns how many events came in a minute, of the last five that are over.
func perMinute(minutes []collector.Flow, now time.Time) float64 {
	const over = 5
	this := now.Truncate(time.Minute)
	var n int64
	for _, f := range minutes {
		if f.At.Before(this) && !f.At.Before(this.Add(-over*time.Minute)) {
			n += f.Accepted + f.Rejected
		}
	}
	return float64(n) / over
}
