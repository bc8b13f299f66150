package api_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/collector/tag"
)

func TestASourceHasASnippet(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	made := w.as(w.acme, "POST", "/api/v1/sources", `{"key":"site"}`).want(201)
	got := w.as(w.acme, "GET", "/api/v1/sources/site/snippet?address=https://events.example.org/m/", "").want(200)
	key := got.str("write_key")
	for member, parts := range map[string][]string{
		"html":          {key, `"https://events.example.org/m/mub.js"`},
		"pinned_html":   {key, `"https://events.example.org/m/mub.` + tag.Version + `.js"`, tag.Integrity()},
		"noscript_html": {key, "https://events.example.org/m/v1/pixel/page?"},
		"integrity":     {tag.Integrity()},
		"script_url":    {"https://events.example.org/m/mub.js"},
		"source_id":     {made.str("id")},
	} {
		for _, part := range parts {
			if !strings.Contains(got.str(member), part) {
				t.Errorf("%s: %s is not in %s", member, part, got.str(member))
			}
		}
	}
	w.as(w.acme, "GET", "/api/v1/sources/site/snippet", "").want(200)
	for _, address := range []string{"javascript:alert(1)", "events.example.org", "https://a@b.example", "https://b.example?x", "https://"} {
		w.as(w.acme, "GET", "/api/v1/sources/site/snippet?address="+address, "").want(400, "bad_parameter")
	}
	w.as(w.acme, "GET", "/api/v1/sources/nowhere/snippet", "").want(404)
	w.as(w.acme, "POST", "/api/v1/sources", `{"key":"topics","type":"kafka"}`).want(201)
	w.as(w.acme, "GET", "/api/v1/sources/topics/snippet", "").want(409, "not_for_pages")
	w.exec(`UPDATE write_keys SET revoked_at = now() WHERE key = $1`, key)
	w.as(w.acme, "GET", "/api/v1/sources/site/snippet", "").want(409, "no_write_key")
}

func TestLossIsToldByDay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var source int32
	made := w.as(w.acme, "POST", "/api/v1/sources", `{"key":"site"}`).want(201)
	if _, err := fmt.Sscanf(made.str("id"), "src_%d", &source); err != nil {
		t.Fatal(err)
	}
	w.flush()
	now := time.Now().UTC()
	stream := func(day time.Time, name string) string { return strconv.FormatInt(day.Unix()/(24*3600), 36) + name }
	var events [][]byte
	for _, e := range []struct {
		day time.Time
		n   int
	}{{now, 1}, {now, 4}, {now.AddDate(0, 0, -1), 1}, {now.AddDate(0, 0, -1), 2}, {now, 1}} {
		events = append(events, fmt.Appendf(nil, `{"type":"track","event":"a","anonymousId":"v%d","messageId":"%s-%d","context":{"mub":{"s":%q,"n":%d}}}`,
			e.n, stream(e.day, "m"), e.n, stream(e.day, "tab"), e.n))
	}
	intake := collector.NewIntake(collector.Config{Lanes: lanes}, w.committer, prometheus.NewRegistry())
	grant := collector.Grant{SourceID: source, WorkspaceID: w.acme.ID, Secret: w.acme.Secret}
	if _, err := intake.Take(t.Context(), grant, now, events); err != nil {
		t.Fatal(err)
	}
	path := "/api/v1/sources/site/loss?from=" + now.AddDate(0, 0, -2).Format(time.DateOnly)
	var got answer
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		got = w.as(w.acme, "GET", path, "").want(200)
		if strings.Contains(got.Body, `"received":4`) && strings.Contains(got.Body, `"duplicates":1`) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s", got.Body)
		}
	}
	for _, part := range []string{
		`"total":{"sent":6,"received":4,"missing":0,"in_flight":2,"duplicates":1,"streams":2,"meaning":"0 of 6 events (0.00 %) never arrived. 2 more may still be on their way. 1 came more than once and count once."}`,
		`"date":"` + now.AddDate(0, 0, -2).Format(time.DateOnly) + `","sent":0,`,
		`"date":"` + now.AddDate(0, 0, -1).Format(time.DateOnly) + `","sent":2,"received":2,"missing":0,"in_flight":0,"duplicates":0,"streams":1,"meaning":"All of 2 events arrived."`,
	} {
		if !strings.Contains(got.Body, part) {
			t.Errorf("%s is not in %s", part, got.Body)
		}
	}
	for _, q := range []string{"from=2000-01-01&to=2000-01-02", "from=x", "to=x", "days=3", "from=2999-01-01"} {
		w.as(w.acme, "GET", "/api/v1/sources/site/loss?"+q, "").want(400, "bad_parameter")
	}
	w.as(w.globex, "GET", "/api/v1/sources/site/loss", "").want(404)
}
