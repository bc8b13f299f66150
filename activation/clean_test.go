package activation

import (
	"net/http"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
)

// However short a secret is and wherever a partner repeats it, it is not kept.
func TestOutcomesHoldNoSecrets(t *testing.T) {
	t.Parallel()
	c := served{Target: Target{Settings: Settings{
		Secrets: jsontext.Value(`{"token":"tk-9","key":{"id":"tk-9-long"},"pin":"123"}`),
	}}}
	o := c.clean(Outcome{
		Reason: "tk-9 was refused", Excerpt: `{"token":"tk-9-long","pin":"123"}`, Rows: []RowOutcome{{Reason: "no tk-9"}},
	})
	if o.Reason != "… was refused" || o.Excerpt != `{"token":"…","pin":"123"}` || o.Rows[0].Reason != "no …" {
		t.Errorf("kept as %+v", o)
	}
	text := strings.Repeat("x ", MaxExcerpt/2-3) + "tk-9-l" // which Redact cut
	if o := c.clean(Outcome{Excerpt: text}); strings.Contains(o.Excerpt, "tk-9") || strings.HasSuffix(o.Excerpt, "-l") {
		t.Errorf("the beginning of a secret is kept: %s", o.Excerpt[MaxExcerpt-20:])
	}
	p := c.cleanPolled(Polled{Outcome: Outcome{Excerpt: "tk-9"}, Counts: []ReasonCount{{Reason: "tk-9"}}})
	if p.Excerpt != "…" || p.Counts[0].Reason != "…" {
		t.Errorf("kept as %+v", p)
	}
	d := c.cleanDraft(Draft{URL: "https://x/?q=tk-9", Header: http.Header{"X-Q": {"tk-9"}}, Body: []byte("tk-9")})
	if text := d.URL + d.Header.Get("X-Q") + string(d.Body); strings.Contains(text, "tk-9") {
		t.Errorf("shown as %s", text)
	}
}
