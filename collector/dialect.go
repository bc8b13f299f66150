package collector

import (
	"net/http"
	"slices"

	"github.com/mubatch/mubatch/api/problem"
)

// A dialect is the protocol of one product's client libraries. Each has a file here that translates what they send into
// events in our shape, hands those to the [Intake], and answers as the libraries expect. Which one a request speaks is told
// by its path; only Segment's routes belong to RudderStack's libraries as well.
const (
	DialectSegment     = "segment"     // Segment's HTTP API, browser SDK and pixel; also our own tag
	DialectRudderStack = "rudderstack" // what RudderStack's libraries send beside that
	DialectJitsu       = "jitsu"
	DialectSnowplow    = "snowplow"
	DialectPostHog     = "posthog"
	DialectUmami       = "umami"
	DialectPlausible   = "plausible"
	DialectMatomo      = "matomo"
	DialectGoatCounter = "goatcounter"
)

// Dialects returns the names of all dialects, in the order in which they are documented.
func Dialects() []string {
	return []string{
		DialectSegment, DialectRudderStack, DialectJitsu, DialectSnowplow, DialectPostHog,
		DialectUmami, DialectPlausible, DialectMatomo, DialectGoatCounter,
	}
}

// defaultDialects are what a source speaks that does not say.
var defaultDialects = []string{DialectSegment, DialectRudderStack}

// Speaks returns the dialects that the source takes events in.
func (s SourceSettings) Speaks() []string {
	if s.Dialects == nil {
		return defaultDialects
	}
	return s.Dialects
}

// mustSpeak returns a problem if the source of g takes none of the dialects, of which there is at least one.
func (g Grant) mustSpeak(dialects ...string) error {
	speaks := g.Settings.Speaks()
	if slices.ContainsFunc(dialects, func(d string) bool { return slices.Contains(speaks, d) }) {
		return nil
	}
	p := problem.New(http.StatusForbidden, "dialect_off", "The source does not take events of this kind of client.")
	p.Detail = `Nothing was stored. To take them, add "` + dialects[0] + `" to settings.dialects of the source.`
	return p
}
