package profiles

import "time"

// MessageKind tells how the body of a [Message] is to be read.
type MessageKind uint8

// The kinds are stored in streams and outboxes: never renumber them.
const (
	KindEvent MessageKind = 1 // an event, cleaned JSON, from the collector
	KindClaim MessageKind = 2 // to an identifier's home lane: somebody claims it
	KindLink  MessageKind = 3 // to the workspace's family lane: one user claims another
	KindRoot  MessageKind = 4 // to a user's home lane: this is your root now
	KindRoute MessageKind = 5 // to the lane that held a fragment: it belongs elsewhere now
	KindPiece MessageKind = 6 // to the lane of a root: a part of a fragment, to be merged in

	KindReplay MessageKind = 7 // to the lane of a failed event: try it again

	KindVerdict     MessageKind = 8 // to a visitor's home lane: claims on it are void, or count again
	KindLinkVerdict MessageKind = 9 // to the workspace's family lane: the same of claims between users

	KindQuarantine MessageKind = 10 // an event that is to be kept out of profiles, from the collector
	KindRelease    MessageKind = 11 // to the lane of a quarantined event: apply what it has become
	KindMoved      MessageKind = 12 // to an identifier's home lane: an event that was quarantined in another
)

// Message is what a lane's stream carries: an event from the collector, or what one lane has to tell another.
type Message struct {
	Kind      MessageKind
	Workspace int32
	Source    int32     // the source of an event; 0 between lanes
	ID        Key       // with Workspace and Source, what makes the message distinct: see [MessageKey]
	Key       Key       // the identifier it is about
	Received  time.Time // when the collector took the event in, to the millisecond; between lanes the event it follows from
	Body      []byte
}

// betweenLanes tells whether messages of a kind come out of a lane's outbox.
func (k MessageKind) betweenLanes() bool { return k >= KindClaim && k <= KindPiece || k == KindMoved }
