package api

import (
	"errors"
	"net/http"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/api/problem"
	"github.com/mubatch/mubatch/profiles"
	"github.com/mubatch/mubatch/profiles/rule"
)

const (
	countPatience  = time.Minute      // for counting everybody for whom a rule holds
	countsAtOnce   = 2                // in this process
	defaultSample  = 10               // members
	previewSurplus = 30 * time.Second // beyond countPatience, until a preview is given up
)

type previewJSON struct {
	Estimate         int64         `json:"estimate"`
	Low              int64         `json:"low"`
	High             int64         `json:"high"`
	Confidence       float64       `json:"confidence"`
	Exact            bool          `json:"exact"`
	Profiles         int64         `json:"profiles"`
	ProfilesLookedAt int64         `json:"profiles_looked_at"`
	Sample           []sampledJSON `json:"sample"`
	Description      string        `json:"description"`
	AsOf             *timestamp    `json:"as_of"`
	TookMs           int64         `json:"took_ms"`
}

type sampledJSON struct {
	ProfileID   profiles.Key              `json:"profile_id"`
	Identifiers []profiles.Identifier     `json:"identifiers"`
	Traits      map[string]jsontext.Value `json:"traits"`
	LastSeenAt  *timestamp                `json:"last_seen_at"`
}

// counting bounds how many previews go through everybody at once.
var counting = make(chan struct{}, countsAtOnce)

func previewSegment(c *call) (answer, error) {
	began := time.Now()
	in := struct {
		Rule   jsontext.Value `json:"rule" validate:"required"`
		Exact  bool           `json:"exact"`
		Sample int            `json:"sample" validate:"min=0,max=100"`
	}{Sample: defaultSample}
	if err := c.decode(&in); err != nil {
		return answer{}, err
	}
	ru, err := rule.Parse(in.Rule)
	if err != nil {
		return answer{}, err
	}
	if in.Exact {
		select {
		case counting <- struct{}{}:
			defer func() { <-counting }()
		default:
			p := problem.New(http.StatusServiceUnavailable, "unavailable", "This cannot be done for now.")
			p.Detail = "Others are counting everybody. Try again later, or ask for an estimate."
			p.RetryAfter = 5 * time.Second
			return answer{}, p
		}
	}
	asOf, err := c.people.AsOf(c.Context()) // before looking: what it says must be true
	if err != nil {
		return answer{}, err
	}
	o := profiles.PreviewOptions{Exact: in.Exact, Sample: in.Sample}
	if in.Exact {
		o.Patience = countPatience
	}
	found, err := c.people.Preview(c.Context(), c.workspace(), ru, o)
	switch {
	case errors.Is(err, profiles.ErrTooSlow) && in.Exact:
		p := problem.New(http.StatusUnprocessableEntity, "too_slow", "Counting everybody takes too long.")
		p.Detail = "It takes more than " + countPatience.String() + ". Ask for an estimate, or make a segment of the rule."
		return answer{}, p
	case errors.Is(err, profiles.ErrTooSlow):
		p := problem.New(http.StatusServiceUnavailable, "unavailable", "This cannot be done for now.")
		p.Detail = "Nobody could be looked at in time."
		p.RetryAfter = 2 * time.Second
		return answer{}, p
	case err != nil:
		return answer{}, err
	}
	out := previewJSON{
		Estimate: found.Estimate, Low: found.Low, High: found.High, Confidence: 0.95, Exact: found.Exact, Profiles: found.Profiles,
		ProfilesLookedAt: found.Looked, Sample: []sampledJSON{}, Description: ru.Describe(), AsOf: unlessZero(asOf),
	}
	for _, p := range found.Sample {
		shown := showProfile(p, nil, nil, asOf)
		out.Sample = append(out.Sample, sampledJSON{shown.ID, shown.Identifiers, shown.Traits, shown.LastSeenAt})
	}
	out.TookMs = time.Since(began).Milliseconds()
	return reply(http.StatusOK, out)
}
