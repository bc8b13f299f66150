package activation

import (
	"context"
	"fmt"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// Partner speaks one partner's API. One value serves all destinations of its type, many at once.
type Partner interface {
	// Type is the name that destinations have for it.
	Type() string

	// Prepare checks what somebody wants to store as a destination's settings and returns what is to be stored, with
	// secrets made up where the partner makes them. What is wrong with them it reports as *[FieldError]s, joined.
	Prepare(Settings) (Settings, error)

	// Mask returns a destination's secrets in a form that may be shown.
	Mask(secrets jsontext.Value) map[string]string

	// Limits tells how a destination wants to be spoken to.
	Limits(Target) Limits

	// Encode makes the body of a message about the first of the members, at least one and as many as fit into it, and
	// returns how many. It is called once for each batch: all attempts get the same bytes.
	Encode(Target, Batch) (body []byte, took int, err error)

	// Send makes one attempt. It returns by ctx's end at the latest.
	Send(ctx context.Context, to Target, m Message) Outcome

	// Test tries whether the destination answers, without changing any audience.
	Test(ctx context.Context, to Target) Outcome
}

// Rotator is a [Partner] whose secrets are made by us and can be replaced.
type Rotator interface {
	// Rotate returns new secrets, in which the previous ones still hold for a while, and what the receiver must be told.
	Rotate(secrets jsontext.Value, now time.Time) (kept jsontext.Value, shown map[string]string, err error)
}

// Settings are what a partner needs to know about a destination.
type Settings struct {
	Config  jsontext.Value // may be shown
	Secrets jsontext.Value // sealed at rest, shown masked
}

// FieldError tells what is wrong with one field of what somebody wants to store.
type FieldError struct {
	Pointer string // JSON Pointer into the request, such as /config/url
	Detail  string // for the reader, such as "is required"
}

func (e *FieldError) Error() string { return fmt.Sprintf("%s %s", e.Pointer, e.Detail) }

// Target is a destination as its partner sees it, its secrets opened.
type Target struct {
	ID        int64
	Workspace int32
	Key       string
	Name      string
	Settings
}

// Limits tells how a destination wants to be spoken to.
type Limits struct {
	Members     int           // at most so many in one message
	Mixed       bool          // entering and leaving may share a message
	Concurrency int           // at most so many messages at once, from one process
	Timeout     time.Duration // of one attempt
}

// Batch is what one message is about: people who entered or left one segment.
type Batch struct {
	ID      int64 // grows: of two batches about one person the later has the greater one
	Segment Segment
	Members []Member
	At      time.Time
}

// Member is one person's entering or leaving.
type Member struct {
	Person    Person // who was removed altogether has only an ID
	Entered   bool
	Version   int64 // grows with each change of this person in this segment
	At        time.Time
	MessageID string
	Cause     string
}

// Message is a batch, encoded.
type Message struct {
	Key     string // the same for every attempt, and for no other message
	Body    []byte
	Attempt int // 1 for the first
	Members []MemberRef
}

// MemberRef names one member of a message, in the order of the batch.
type MemberRef struct {
	Profile ProfileID
	Entered bool
	Version int64
}
