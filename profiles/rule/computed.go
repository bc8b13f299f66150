package rule

import (
	"errors"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/profiles/timeline"
)

// Computed is a value that is computed from what somebody did: an aggregate of a [Rule] without its bounds. It comes from
// [ParseComputed], never changes, and may be used by many at once.
type Computed struct {
	behaviour Behaviour
}

// ParseComputed reads the definition of a computed value. The error is an [*Error] that lists everything wrong with it.
func ParseComputed(_ []byte) (*Computed, error) {
	return nil, &Error{[]Problem{{"#", "computed values are not there yet"}}}
}

// Behaviour returns what c is computed from: Value needs its timeline.
func (c *Computed) Behaviour() Behaviour { return c.behaviour }

// Value returns the value at the time now, null if there is none, and until when it stays the same if nothing else
// happens; zero means for ever.
func (c *Computed) Value(_ timeline.Timeline, _ time.Time) (v jsontext.Value, until time.Time) {
	return jsontext.Value("null"), time.Time{}
}

// MarshalJSON returns the canonical form of c, which [ParseComputed] reads as c again.
func (c *Computed) MarshalJSON() ([]byte, error) {
	return nil, errors.New("rule: was not parsed")
}

// Describe says in English what c is.
func (c *Computed) Describe() string { return "" }
