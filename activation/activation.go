// Package activation keeps what partners hold of people equal to the segments those people are in.
//
//	profiles ──► Ledger ──► activations ──► Dispatcher ──► Partner ──► the world
//	µbatch's     Enqueue    wanted, sent    claim, send,   one package
//	transaction                             record         each
//
// A change of membership becomes a row's wanted state in the transaction that made the change. The dispatcher makes what
// was sent follow what is wanted: it never has two operations under way for one (destination, segment, person), sends
// outside any transaction, and records the answer together with the ledger. What changes while it waits overwrites what was
// wanted before, so an outage of a partner costs as many rows as there are people, not as there were events.
//
// Destinations that subscribe to events are told of each of them once. Such rows are conversions, written in the µbatch's
// transaction too, and the dispatcher sends them with all that it has for people. They come to an end within a week.
package activation

import (
	"context"
	"errors"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// What callers act upon.
var (
	ErrNotFound    = errors.New("not found")
	ErrConflict    = errors.New("the key is taken")
	ErrStale       = errors.New("changed by somebody else in the meantime")
	ErrUnsupported = errors.New("this type of destination cannot do that")
)

// UnsupportedError says what to do instead of what a type of destination cannot do. It is an [ErrUnsupported].
type UnsupportedError struct{ Instead string }

func (e *UnsupportedError) Error() string { return ErrUnsupported.Error() + ": " + e.Instead }

func (e *UnsupportedError) Unwrap() error { return ErrUnsupported }

// ProfileID is the id of a person's profile, the same 128 bits as a profiles.Key.
type ProfileID = [16]byte

// Change is a person's entering or leaving of a segment. One who stays in it is said to have entered again when the person's
// consent changed, or anything that partners derive identifiers from: see [IdentifyingTraits].
type Change struct {
	Workspace int32
	Segment   int64
	Profile   ProfileID
	Entered   bool
	Consent   map[string]bool // of who entered: the latest decision for each purpose; absent if there is none
	At        time.Time
	MessageID string // of the event that caused it; empty if none did
	Cause     string
}

// Causes of changes that are activation's own, or that it treats in a way of its own.
const (
	CauseBackfill = "backfill" // the segment was attached
	CauseDetach   = "detach"   // or detached
	CauseIdentity = "identity" // the person is known by other identifiers now
	CauseConsent  = "consent"  // the person, or the destination, changed what may be sent; removes go first
	CauseErasure  = "erasure"  // the person is to be forgotten; removes go first
)

// Identifier is one name under which somebody is known.
type Identifier struct {
	Kind  string `json:"kind"`
	Value string `json:"value"`
}

// Person is what a partner may be told of somebody.
type Person struct {
	ID          ProfileID
	Identifiers []Identifier
	Traits      map[string]jsontext.Value
	Consent     map[string]bool
}

// Segment is how a segment is called.
type Segment struct {
	ID   int64
	Key  string
	Name string
}

// people tells who somebody is. Those it does not know are missing from its answer.
type people interface {
	People(ctx context.Context, lane int, workspace int32, ids [][16]byte) (map[[16]byte]Person, error)

	// PeopleOf tells who somebody is by the keys of identifiers, whoever those belong to now.
	PeopleOf(ctx context.Context, workspace int32, keys [][16]byte) (map[[16]byte]Person, error)
}

// segments tells how segments are called. Those it does not know are missing from its answer.
type segments interface {
	SegmentInfo(ctx context.Context, workspace int32, ids []int64) (map[int64]Segment, error)
}

// members calls fn with the present members of a segment, some of one lane at a time. Members that come or go while it
// runs may or may not be among them.
type members interface {
	EachMember(ctx context.Context, workspace int32, segment int64, fn func(lane int, ids [][16]byte) error) error
}
