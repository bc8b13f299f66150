package api_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRequestsAreCountedByOperationNotByPath(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.as(w.acme, "GET", "/api/v1/profiles/user_id:ada", "").want(200)
	w.as(w.acme, "GET", "/api/v1/profiles/user_id:nobody", "").want(404)
	w.as(w.acme, "GET", "/api/v1/ada@example.com", "").want(404)
	w.as(w.acme, "PUT", "/api/v1/profiles/user_id:ada", "{}").want(405)
	w.as(w.acme, "BREW", "/api/v1/profiles/user_id:ada", "").want(405)

	families, err := w.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, family := range families {
		if family.GetName() != "mubatch_api_request_duration_seconds" {
			continue
		}
		for _, m := range family.Metric {
			got = append(got, m.Label[0].GetValue()+" "+m.Label[1].GetValue())
		}
	}
	slices.Sort(got)
	want := []string{"GET /api/v1/profiles/{profile} 200", "GET /api/v1/profiles/{profile} 404", "none 404", "none 405"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
