package activation

import "time"

// Class is what an answer means for the queue.
type Class string

// The classes of outcomes. What a partner's answers mean is that partner's to know; what follows is the same for all.
const (
	OK         Class = "ok"          // accepted, all of it; with a Receipt it is still to be worked on
	Partial    Class = "partial"     // some members refused: see Rows
	RetryAfter Class = "retry_after" // rate limited: nothing goes to this account for Wait
	Retry      Class = "retry"       // will heal by itself
	Refresh    Class = "refresh"     // the access token ended: see [Refresher]
	Reauth     Class = "reauth"      // the credential was revoked: paused until somebody mends it
	Config     Class = "config"      // the other side is not set up for this: paused until somebody mends it
	Gone       Class = "gone"        // the other side wants no more of this, ever: disabled
	Split      Class = "split"       // too large, or some member nobody knows spoils it: halved, until those stand alone
	Drop       Class = "drop"        // this can never be accepted
)

// Classes are all of them.
var Classes = []Class{OK, Partial, RetryAfter, Retry, Refresh, Reauth, Config, Gone, Split, Drop}

// Outcome is how an attempt ended.
type Outcome struct {
	Class   Class
	Wait    time.Duration // for RetryAfter
	Unknown bool          // it was not accepted as far as we know, but may have been applied
	Status  int           // of HTTP; 0 if there was no answer
	Reason  string        // a few words of ours, without personal data or addresses
	Excerpt string        // of the answer: see [Redact]
	Rows    []RowOutcome  // for Partial, one for each member of the message; those left out are sent again
	Receipt string        // for OK, of a [Poller]: what to ask for

	// Usage is how much of what the account may ask is used up, from 0 to 1, as the partner says with any answer. From
	// 0.75 on the account is slowed down, from 0.95 on nothing is sent for Wait, or a minute.
	Usage float64
}

// RowOutcome is what became of one member of a message: OK, Retry or Drop.
type RowOutcome struct {
	Class  Class
	Reason string
}

// row returns what became of member i.
func (o Outcome) row(i int) RowOutcome {
	if o.Class == Partial {
		if i < len(o.Rows) {
			return o.Rows[i]
		}
		return RowOutcome{Class: Retry, Reason: o.Reason}
	}
	return RowOutcome{Class: o.Class, Reason: o.Reason}
}
