package api

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/mubatch/mubatch/api/problem"
	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/collector/tag"
	"github.com/mubatch/mubatch/profiles"
)

// getSnippet answers with what to paste into the pages of a source.
func getSnippet(c *call) (answer, error) {
	q, err := c.query("address")
	if err != nil {
		return answer{}, err
	}
	address := q.Get("address")
	if q.Has("address") {
		u, err := url.Parse(address)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			return answer{}, badParameter("address", "must be where pages reach the collector, such as https://events.example.org")
		}
		address = u.String()
	} else {
		address = "http://" + c.Host
		if c.TLS != nil || c.Header.Get("X-Forwarded-Proto") == "https" {
			address = "https://" + c.Host
		}
	}
	s, err := c.source(c.param("source"))
	if err != nil {
		return answer{}, err
	}
	if s.Type != collector.TypeClients { // the key of a source of webhooks is a secret, and lets nothing of a page in
		p := problem.New(http.StatusConflict, "not_for_pages", "The source takes no events of web pages.")
		p.Detail = "Make a source of the type " + collector.TypeClients + "."
		return answer{}, p
	}
	key, err := c.usableWriteKey(formatID(sourceID, s.ID))
	if err != nil {
		return answer{}, err
	}
	snippet := tag.NewSnippet(strings.TrimRight(address, "/"), key)
	return reply(http.StatusOK, struct {
		SourceID  string `json:"source_id"`
		WriteKey  string `json:"write_key"`
		Version   string `json:"version"`
		ScriptURL string `json:"script_url"`
		PinnedURL string `json:"pinned_url"`
		Integrity string `json:"integrity"`
		HTML      string `json:"html"`
		Pinned    string `json:"pinned_html"`
		NoScript  string `json:"noscript_html"`
	}{
		formatID(sourceID, s.ID), key, snippet.Version, snippet.ScriptURL, snippet.PinnedURL, snippet.Integrity, snippet.HTML,
		snippet.Pinned, snippet.NoScript,
	})
}

// usableWriteKey returns the newest write key of a source that was not revoked.
func (c *call) usableWriteKey(source string) (string, error) {
	for before := int32(0); ; {
		keys, err := c.sources.ListWriteKeys(c.Context(), c.workspace(), source, before, maxLimit)
		if err != nil {
			return "", err
		}
		for _, k := range keys {
			if k.RevokedAt == nil {
				return k.Key, nil
			}
			before = k.ID
		}
		if len(keys) < maxLimit {
			p := problem.New(http.StatusConflict, "no_write_key", "The source has no write key.")
			p.Detail = "All that it had were revoked. Make one first."
			return "", p
		}
	}
}

type lossJSON struct {
	Sent       int64  `json:"sent"`
	Received   int64  `json:"received"`
	Missing    int64  `json:"missing"`
	InFlight   int64  `json:"in_flight"`
	Duplicates int64  `json:"duplicates"`
	Streams    int64  `json:"streams"`
	Meaning    string `json:"meaning"`
}

type lossDayJSON struct {
	Date string `json:"date"`
	lossJSON
}

// showLoss says of arrivals what they mean.
func showLoss(a profiles.Arrivals) lossJSON {
	l := lossJSON{a.Sent, a.Received, a.Missing, a.InFlight, a.Duplicates, a.Streams, ""}
	switch {
	case a.Sent == 0:
		l.Meaning = "No event with a number came."
	case a.Missing+a.InFlight == 0:
		l.Meaning = fmt.Sprintf("All of %d events arrived.", a.Sent)
	default:
		l.Meaning = fmt.Sprintf("%d of %d events (%.2f %%) never arrived.", a.Missing, a.Sent, 100*float64(a.Missing)/float64(a.Sent))
		if a.InFlight > 0 {
			l.Meaning += fmt.Sprintf(" %d more may still be on their way.", a.InFlight)
		}
	}
	if a.Duplicates > 0 {
		l.Meaning += fmt.Sprintf(" %d came more than once and count once.", a.Duplicates)
	}
	return l
}

// getLoss answers with every day there is in between, and their sum.
func getLoss(c *call) (answer, error) {
	const defaultDays, maxDays = 7, 31
	q, err := c.query("from", "to")
	if err != nil {
		return answer{}, err
	}
	now := time.Now().UTC()
	today := now.Truncate(24 * time.Hour)
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
	case from.Before(today.AddDate(0, 0, -profiles.ArrivalsKept)):
		return answer{}, badParameter("from", "must not be more than "+strconv.Itoa(profiles.ArrivalsKept)+" days ago: older numbers are not kept")
	}
	s, err := c.source(c.param("source"))
	if err != nil {
		return answer{}, err
	}
	asOf, err := c.people.AsOf(c.Context()) // before counting: what it says must be true
	if err != nil {
		return answer{}, err
	}
	found, err := c.people.Arrivals(c.Context(), c.workspace(), s.ID, from, to, now)
	if err != nil {
		return answer{}, err
	}
	byDay := map[string]profiles.Arrivals{}
	var total profiles.Arrivals
	for _, a := range found {
		byDay[a.Day.Format(time.DateOnly)] = a
		total.Streams, total.Sent, total.Received = total.Streams+a.Streams, total.Sent+a.Sent, total.Received+a.Received
		total.Missing, total.InFlight, total.Duplicates = total.Missing+a.Missing, total.InFlight+a.InFlight, total.Duplicates+a.Duplicates
	}
	out := struct {
		SourceID string        `json:"source_id"`
		Total    lossJSON      `json:"total"`
		Data     []lossDayJSON `json:"data"`
		AsOf     *timestamp    `json:"as_of"`
	}{SourceID: formatID(sourceID, s.ID), Total: showLoss(total), AsOf: unlessZero(asOf)}
	for day := from; !day.After(to); day = day.AddDate(0, 0, 1) {
		date := day.Format(time.DateOnly)
		out.Data = append(out.Data, lossDayJSON{date, showLoss(byDay[date])})
	}
	return reply(http.StatusOK, out)
}
