package partnertest

import (
	"testing"
	"time"

	"github.com/mubatch/mubatch/activation"
)

// EventFake is a stand-in for a partner that takes events, stricter than the partner.
//
// It is written as a [Fake] is: see the package comment. What it holds are events, each known by the id that the partner
// knows duplicates by. It embeds [Faults]; requests that bring events are those that [Faults.Changes] is told of.
type EventFake interface {
	// Settings returns those of a destination that reaches the fake.
	Settings() activation.Settings

	// Seed makes people known, so that the fake can tell a right identifier from a wrong one. Who is seeded again is known
	// by what is given last.
	Seed(people ...activation.Person)

	// Expect makes events known that may come, so that the fake can hold what a message says of them against what is true.
	// As and Fields are not set.
	Expect(events ...activation.Event)

	// Received returns the message ids of the events that the partner counts once it has dropped those it knows already,
	// sorted.
	Received() []string

	// RefuseEvent has the fake refuse an event, in the partner's own way, or not any more.
	RefuseEvent(messageID string, refuse bool)

	// Revoke has the fake refuse our credentials until Heal.
	Revoke()

	// Words returns how the partner says what other partners say by status.
	Words() Words

	Script(faults ...Fault)
	Heal()
	Scripted() int
	Requests() int
	Violations() []string
	Advance(d time.Duration)
}

// EventSubject is a partner under test.
type EventSubject struct {
	// New returns the partner and a fake for it, which live as long as the test.
	New func(t testing.TB) (activation.EventPartner, EventFake)

	// Steps is how long the random history of RunEvents is: 60 by default.
	Steps int

	// Brief leaves out the list of faults: for variants of a partner that passes them all otherwise.
	Brief bool

	// Silent says that the partner never tells that anything is wrong: it takes everything, under any credential.
	Silent bool
}
