package problem_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/api/problem"
)

func TestWrite(t *testing.T) {
	t.Parallel()
	invalid := problem.New(http.StatusUnprocessableEntity, "invalid", "The request body is invalid.")
	invalid.Detail = "Correct the fields named and send it again."
	invalid.Errors = []problem.FieldError{{Pointer: "#/events/0/profile_id", Code: "required", Detail: "is required"}}
	busy := problem.New(http.StatusServiceUnavailable, "busy", "Too much is in flight.")
	busy.RetryAfter = 1100 * time.Millisecond

	tests := []struct {
		name, method string
		problem      *problem.Problem
		body         string
		retryAfter   string
	}{
		{
			"a problem with faults names each of them", http.MethodPost, invalid,
			`{"type":"https://mubatch.dev/problems/invalid","title":"The request body is invalid.","status":422,` +
				`"detail":"Correct the fields named and send it again.","code":"invalid",` +
				`"errors":[{"pointer":"#/events/0/profile_id","code":"required","detail":"is required"}]}`, "",
		},
		{
			"a wait is told in whole seconds, rounded up", http.MethodPost, busy,
			`{"type":"https://mubatch.dev/problems/busy","title":"Too much is in flight.","status":503,"code":"busy"}`, "2",
		},
		{
			"a bare status is about:blank", http.MethodGet, problem.Status(http.StatusNotFound),
			`{"type":"about:blank","title":"Not Found","status":404,"code":"not_found"}`, "",
		},
		{"HEAD has no body", http.MethodHead, problem.Status(http.StatusNotFound), "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := httptest.NewRecorder()
			problem.Write(w, httptest.NewRequest(tt.method, "/", nil), tt.problem)
			if w.Code != tt.problem.Status {
				t.Errorf("status %d, want %d", w.Code, tt.problem.Status)
			}
			if diff := cmp.Diff(tt.body, w.Body.String()); diff != "" {
				t.Errorf("body (-want +got):\n%s", diff)
			}
			if got := w.Header().Get("Content-Type"); got != problem.ContentType {
				t.Errorf("content type %q", got)
			}
			if got := w.Header().Get("Retry-After"); got != tt.retryAfter {
				t.Errorf("Retry-After %q, want %q", got, tt.retryAfter)
			}
		})
	}
}

func TestPointer(t *testing.T) {
	t.Parallel()
	if got, want := problem.Pointer("batch", "0", "a/b~c %"), "#/batch/0/a~1b~0c%20%25"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := problem.Pointer(); got != "#" {
		t.Errorf("got %q, want #", got)
	}
}
