package ga4

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"github.com/mubatch/mubatch/activation"
)

// Validate implements [activation.Validator]. Google's validation server looks at the form alone, as strictly as it can: it
// knows neither secrets nor streams.
func (p *Partner) Validate(ctx context.Context, to activation.Target, m activation.Message) activation.Outcome {
	return p.validate(ctx, to, m.Body)
}

// Test implements [activation.Partner]. What the validation server cannot know its outcome says even if all is well.
func (p *Partner) Test(ctx context.Context, to activation.Target) activation.Outcome {
	cfg, _, err := read(to.Settings)
	visitor := `"client_id":"1234567890.1234567890"`
	if err == nil && cfg.FirebaseAppID != "" {
		visitor = `"app_instance_id":"0123456789abcdef0123456789abcdef"`
	}
	o := p.validate(ctx, to, []byte(`{`+visitor+`,"events":[{"name":"mubatch_test","params":{"engagement_time_msec":1}}]}`))
	if o.Class == activation.OK {
		o.Reason = "Google Analytics is there. It never tells whether the api_secret and the id of the stream are right: " +
			"look for the first events in its Realtime report"
	}
	return o
}

// finding is what the validation server says of one thing: "Validate events" in the Measurement Protocol's guide.
type finding struct {
	Path        string `json:"fieldPath"`
	Description string `json:"description"`
	Code        string `json:"validationCode"`
}

func (p *Partner) validate(ctx context.Context, to activation.Target, body []byte) activation.Outcome {
	strict := append([]byte(`{"validation_behavior":"ENFORCE_RECOMMENDATIONS",`), body[1:]...)
	a, o := p.post(ctx, to, validate, strict)
	if o.Class != activation.OK {
		return o
	}
	var answer struct {
		Findings *[]finding `json:"validationMessages"`
	}
	if a.Status != http.StatusOK || a.Decode(&answer) != nil || answer.Findings == nil {
		return a.Unreadable()
	}
	if list := *answer.Findings; len(list) > 0 {
		o.Class, o.Reason = activation.Drop, words(list)
	}
	return o
}

// path matches what a finding may be about, in a form that says nothing of anybody.
var path = regexp.MustCompile(`^[A-Za-z0-9_.\[\]]{1,100}$`)

// words says what the validation server found, without its descriptions, which repeat what they are about.
func words(list []finding) string {
	const most = 5
	var said []string
	for _, f := range list[:min(len(list), most)] {
		what := "something"
		if path.MatchString(f.Path) {
			what = f.Path
		}
		said = append(said, what+" "+f.words())
	}
	if more := len(list) - most; more > 0 {
		said = append(said, fmt.Sprintf("and %d more", more))
	}
	return "Google Analytics would not take this: " + strings.Join(said, "; ")
}

func (f finding) words() string {
	switch f.Code {
	case "VALUE_INVALID":
		return "has a value that is not allowed"
	case "VALUE_REQUIRED":
		return "is missing something that is required"
	case "NAME_INVALID":
		return "has a name that is not allowed"
	case "NAME_RESERVED":
		return "has a name that Google keeps to itself"
	case "VALUE_OUT_OF_BOUNDS":
		return "has a value that is too large, too small or too old"
	case "EXCEEDED_MAX_ENTITIES":
		return "has too many of something"
	case "NAME_DUPLICATED":
		return "has one name twice"
	default:
		return "is not as it should be"
	}
}
