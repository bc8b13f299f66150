package main

import (
	"testing"

	"github.com/mubatch/mubatch/cmd/mubatch/demo"
	"github.com/mubatch/mubatch/collector/redistest"
	"github.com/mubatch/mubatch/migrations/pgtest"
)

// TestSegmentsAnswerAsSQLDoes asks what the shop's marketers would, as of three dates, of segments that were made before,
// during and after the replay, and of SQL over the raw lines.
func TestSegmentsAnswerAsSQLDoes(t *testing.T) {
	t.Parallel()
	databaseURL := pgtest.NewURL(t)
	_, prefix := redistest.New(t)
	redistest.RequireReal(t)
	at := serveForTest(t, databaseURL, prefix)

	answers, err := demo.Ask(t.Context(), demo.Config{URL: at.URL, SecretKey: at.SecretKey, File: *sales, Check: databaseURL, Out: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range answers {
		if !a.Equal || a.People == 0 {
			t.Errorf("%+v", a)
		}
	}
	if len(answers) != 13*3 {
		t.Errorf("%d answers, want 39", len(answers))
	}
}
