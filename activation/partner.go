package activation

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// Partner speaks one partner's API. One value serves all destinations of its type, many at once. It is an
// [AudiencePartner], an [EventPartner], or both.
//
// What else a partner can do it says by implementing [Rotator], [Refresher], [Creator], [Poller], [Mapper], [Sizer],
// [Validator] or [Drafter].
type Partner interface {
	// Type is the name that destinations have for it.
	Type() string

	// Prepare checks what somebody wants to store as a destination's settings and returns what is to be stored, with
	// secrets made up where the partner makes them. What is wrong with them it reports as *[FieldError]s, joined.
	Prepare(Settings) (Settings, error)

	// Mask returns a destination's secrets in a form that may be shown.
	Mask(secrets jsontext.Value) map[string]string

	// Gate is the consent that a destination asks for unless its owner says otherwise. Most partners want [AdGate].
	Gate() Gate

	// Limits tells how a destination wants to be spoken to.
	Limits(Target) Limits

	// Send makes one attempt. It returns by ctx's end at the latest. A message that is about events has Events, any other
	// has Members.
	Send(ctx context.Context, to Target, m Message) Outcome

	// Test tries whether the destination answers, without changing any audience and without an event that counts.
	Test(ctx context.Context, to Target) Outcome
}

// AudiencePartner is a [Partner] that is told who is in segments.
//
// A person goes to a partner in two steps. Identify says what the partner is to know the person by; Encode makes a body of
// what Identify said: of what it says now for who is to be added, and, word for word, of what was sent for who is to be
// removed. Between the two the machinery compares, keeps what it is about to send, and sees to it that an identifier which
// somebody else in the audience has too is not taken away.
type AudiencePartner interface {
	Partner

	// Identify derives what the partner is to know a person by, normalised and hashed as it wants it. It is pure, and the
	// same whenever the destination's config and the person are: a difference has the person removed and added again. Of
	// the person's traits it sees [IdentifyingTraits] only. Whoever has nothing the partner could use gets no IDs, and a
	// Reason. An error says that the settings are no good, and pauses the destination.
	Identify(Target, Person) (Identifiers, error)

	// Encode makes the body of a message about the first of the members, at least one and as many as fit into it, and
	// returns how many. It goes by each member's Identifiers, and never mixes those of two. It is pure, and may be called
	// again with fewer members before anything is sent; all attempts get the same bytes.
	Encode(Target, Batch) (body []byte, took int, err error)
}

// Rotator is a [Partner] whose secrets are made by us and can be replaced.
type Rotator interface {
	// Rotate returns new secrets, in which the previous ones still hold for a while, and what the receiver must be told.
	Rotate(secrets jsontext.Value, now time.Time) (kept jsontext.Value, shown map[string]string, err error)

	// Replace returns the secrets that are to be stored when somebody gives some, for [Partner.Prepare] to check. What is
	// left out stays as it is at present, and what is replaced holds for a while longer, as with Rotate.
	Replace(present, given jsontext.Value, now time.Time) jsontext.Value
}

// Refresher is a [Partner] whose access tokens run out and are had anew, as with OAuth 2. One process at a time refreshes a
// destination: when it has been made or changed, when 80 % of a token's life are over, and when Send, Create, Poll, … return the class [Refresh]. The new
// settings are committed before anybody uses them. A token that is refused although it is new means [Reauth].
type Refresher interface {
	// Refresh returns the settings with a new access token, and with the new refresh token if there is one, and when the
	// access token ends (zero: nobody knows). Classes are OK, Retry and RetryAfter, which leave the old token in use, and
	// Reauth or Config, which pause the destination.
	Refresh(ctx context.Context, to Target) (fresh Settings, expires time.Time, o Outcome)
}

// Creator is a [Partner] at which audiences can be made, so that a marketer has only to name them. Its Limits say
// NeedsAudience.
type Creator interface {
	// Create makes an audience for a segment and returns the partner's id of it. It may be called again after a crash or
	// an outcome that is Unknown: where the partner can be asked for an audience that is there already, ask first. With OK,
	// Outcome.Wait has the audience left alone for so long. Retry and RetryAfter are tried again, whatever else pauses.
	Create(ctx context.Context, to Target, s Segment) (audience string, o Outcome)
}

// Poller is a [Partner] that takes messages in first and works on them later. An OK that carries a Receipt leaves its
// members accepted, until Poll tells what became of them.
type Poller interface {
	// Poll asks what became of a message. Limits.PollEvery and PollFor tell how often and for how long.
	Poll(ctx context.Context, to Target, receipt string) Polled
}

// Polled is what a [Poller] found out. As long as the partner is still at it, Done is false and Outcome is that of asking.
// Once it is done, Outcome is that of the message: OK, Partial (with Rows if the partner tells who, else with Counts alone,
// and the members count as sent), Retry to have the message sent again, Drop, or a class that pauses.
type Polled struct {
	Outcome
	Done   bool
	Counts []ReasonCount // how many were refused, and why, if the partner does not say who
	Match  string        // what the partner says of how many it recognised, in its own words: "61 to 70 %"
}

// ReasonCount is how many were refused for a reason.
type ReasonCount struct {
	Reason string `json:"reason"`
	Count  int64  `json:"count"`
}

// Mapper is a [Partner] that has to ask somebody for the names it knows people by, such as a UID2 operator. Map is given
// what Identify returned and its answer is what is sent, compared, and kept; it is remembered until it ends, and not asked
// for again before.
type Mapper interface {
	// Map translates, at most Limits.Map at once. Mapped[i] belongs to ids[i]. Mapped may be left out unless the class is
	// OK.
	Map(ctx context.Context, to Target, ids []Identifiers) ([]Mapped, Outcome)
}

// Mapped is what a [Mapper] knows of one person. No IDs mean that the person must not be there: opted out, for instance.
type Mapped struct {
	Identifiers
	Until time.Time // when it has to be asked for again; required
}

// Sizer is a [Partner] that tells how large an audience is by its own count.
type Sizer interface {
	Size(ctx context.Context, to Target, audience string) (Size, Outcome)
}

// Size is what a partner says of an audience.
type Size struct {
	Matched int64  // people that it recognised, or a lower bound; -1 if it does not tell
	State   string // in its own words: "READY"
}

// Validator is a [Partner] that checks a message without applying it.
type Validator interface {
	Validate(ctx context.Context, to Target, m Message) Outcome
}

// Drafter is a [Partner] that tells itself what Send would do. One that sends over a client of [NewClient] need not be: its
// first request is caught on the way out.
type Drafter interface {
	Draft(to Target, m Message) ([]Draft, error)
}

// Draft is a request that would be sent. It is redacted before it is shown.
type Draft struct {
	Method string
	URL    string
	Header http.Header
	Body   []byte
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
	Code    string // for programs, as in [CodeRequired]; "" is "invalid"
}

// What programs are told apart from other faults.
const (
	CodeRequired      = "required"
	CodeWrongType     = "wrong_type"
	CodeUnknownMember = "unknown_member"
)

func (e *FieldError) Error() string { return fmt.Sprintf("%s %s", e.Pointer, e.Detail) }

// Target is a destination as its partner sees it, its secrets opened.
type Target struct {
	ID        int64
	Workspace int32
	Key       string
	Name      string
	Settings
}

// DefaultLinger is how long partners that take many people at once are to wait for more of them.
const DefaultLinger = time.Second

// Limits tells how a destination wants to be spoken to.
type Limits struct {
	Members     int           // at most so many in one message
	Events      int           // of an [EventPartner]: at most so many in one message; as Members if 0
	Mixed       bool          // entering and leaving may share a message
	Concurrency int           // at most so many messages at once, from one process
	Timeout     time.Duration // of one attempt
	Linger      time.Duration // a change may wait so long for others to share its message: see [DefaultLinger]

	// ByProfile says that the partner knows people by our profile ids alone, which nobody shares. Then what Identify
	// returns is not kept or compared, and a changed e-mail address is nothing that the partner has to be told.
	ByProfile bool

	// NeedsAudience says that nothing can be sent about a segment before it has an audience at the partner, given by
	// somebody or made by a [Creator].
	NeedsAudience bool

	// Account is what the partner counts requests by, without anything secret: destinations of one workspace that say the
	// same share Rates, waits and Usage. Empty: each destination by itself.
	Account string
	Rates   []Rate // all of them hold

	// MaxAge is how old an event may be that the partner still takes, by the event's own time: what gets older before it
	// could be sent is given up. 0: any age.
	MaxAge time.Duration

	// OnePerson says that all events of a message have to be of one user id and anonymous id.
	OnePerson bool

	TTL       time.Duration // who is not sent again within it is forgotten by the partner; 0: nobody is
	PollEvery time.Duration // of a [Poller]: 1 min
	PollFor   time.Duration // then the message is sent again: 24 h
	Map       int           // of a [Mapper]: at most so many at once, 1000
}

// Rate is how many requests there may be in a period.
type Rate struct {
	Requests int
	Per      time.Duration
}

// Identifiers are what one partner is to know one person by: normalised and hashed as it wants it, in an order of its own.
type Identifiers struct {
	IDs     []Identifier `json:"ids"`              // each of them stands for the person by itself
	Details []Identifier `json:"details,omitzero"` // mean something only together with IDs: names, a postal code
	Reason  string       `json:"-"`                // why there are no IDs, in words for a marketer
}

// Get returns the first value of a kind, or "".
func (ids Identifiers) Get(kind string) string {
	for _, list := range [][]Identifier{ids.IDs, ids.Details} {
		for _, id := range list {
			if id.Kind == kind {
				return id.Value
			}
		}
	}
	return ""
}

// Batch is what one message is about: people who are to be added to or removed from one audience.
type Batch struct {
	ID       int64 // grows: of two batches about one person the later has the greater one
	Segment  Segment
	Audience string // the partner's id of it, if Limits.NeedsAudience
	Members  []Member
	At       time.Time
}

// Member is one person to be added or removed. Unless the partner allows Mixed, all of a batch are the same.
type Member struct {
	// Person has only an ID if nothing is known of the person any more, or if somebody is removed at a partner that does
	// not go ByProfile.
	Person Person

	Identifiers Identifiers // to add: those of now; to remove: of those that were sent, the ones nobody else there has
	Entered     bool        // to be added
	Version     int64       // grows with each change of this person in this segment
	At          time.Time
	MessageID   string
	Cause       string
}

// Message is a batch, encoded.
type Message struct {
	Key      string // the same for every attempt, and for no other message
	Batch    int64
	Segment  int64
	Audience string
	Since    time.Time // from when on the audience could be sent to; zero in a dry run
	Body     []byte
	Attempt  int // 1 for the first
	Members  []MemberRef
	Events   []EventRef // of a message about events, in the order of the batch; then there is no Segment and no Members
}

// MemberRef names one member of a message, in the order of the batch.
type MemberRef struct {
	Profile ProfileID
	Entered bool
	Version int64
}
