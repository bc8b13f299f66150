package activation

import (
	"slices"
	"time"
)

// What a row may be after an attempt.
const (
	pending = "pending" // to be sent at next_at
	settled = "settled" // the partner holds what is wanted
	parked  = "parked"  // given up after the schedule's end, until somebody asks for it
	failed  = "failed"  // refused for good, until it changes or somebody asks for it

	accepted    = "accepted"    // the partner has it, and works on it
	unreachable = "unreachable" // the partner cannot know the person by anything
)

// What else may be found out about a row.
const (
	same    = "same"    // the partner knows just what it should: settled, without a message
	void    = "void"    // the partner holds nothing because of it: settled, or to be added
	demoted = "demoted" // it may not be sent, for want of consent
)

// What else may become of an event.
const (
	doubted = "doubted"    // to be looked at again: its person is not there, or may not be sent, as far as is known
	denied  = eventDenied  // its person may not be sent
	expired = eventExpired // older than the partner takes
)

// result is what an attempt means for one row, if the row has not changed in the meantime.
type result struct {
	claimed
	status string
	group  int // for pending: 1 + the index in decision.again; 0 to wait in no batch
	wait   time.Duration
	reason string
}

// group is some of a batch's members that are to be sent again together.
type group struct {
	members  []claimed
	attempts int
	untried  int  // 1 if the claim was given back without an attempt
	same     bool // all of them: the batch remains what it is, with its key and its bytes
}

// decision is what follows from an outcome.
type decision struct {
	rows   []result
	again  []group
	status Status // what the destination becomes; "" to leave it as it is
	reason string
	block  time.Duration // send nothing to the destination for so long

	receipt   string // what the partner gave for what it will work on later
	pollEvery time.Duration
	pollFor   time.Duration
}

// decide tells what follows from the outcome of an attempt. It is the whole of our retry policy.
func decide(c *claim, o Outcome, schedule []time.Duration, now time.Time) decision {
	d := decision{}
	switch o.Class {
	case OK:
		status := settled
		if d.receipt = o.Receipt; d.receipt != "" {
			status = accepted
		}
		for _, m := range c.members {
			d.rows = append(d.rows, result{claimed: m, status: status})
		}
	case Partial, Drop:
		d.each(c, o, schedule)
	case RetryAfter:
		wait := min(max(o.Wait, time.Second), longestWait)
		d.block = wait
		if now.Sub(c.created) > expiry {
			d.exhaust(c.members, len(c.members), c.attempts, o.Reason)
		} else {
			d.retry(c.members, len(c.members), c.attempts, wait, o.Reason)
		}
	case Split:
		if len(c.members) == 1 {
			d.each(c, Outcome{Class: Drop, Reason: o.Reason}, schedule)
			break
		}
		half := len(c.members) / 2
		d.retry(c.members[:half], len(c.members), c.attempts, 0, o.Reason)
		d.retry(c.members[half:], len(c.members), c.attempts, 0, o.Reason)
	case Refresh, Reauth, Config:
		d.status, d.reason = Paused, o.Reason
		d.retry(c.members, len(c.members), c.attempts, 0, o.Reason)
	case Gone:
		d.status, d.reason = Disabled, o.Reason
		d.retry(c.members, len(c.members), c.attempts, 0, o.Reason)
	default: // Retry, and whatever a partner makes up
		d.fail(c.members, len(c.members), c.attempts+1, schedule, o.Reason)
	}
	return d
}

// fail has members wait as long as the schedule says after so many failed attempts.
func (d *decision) fail(members []claimed, of, attempts int, schedule []time.Duration, reason string) {
	if wait, ok := delay(schedule, attempts); ok {
		d.retry(members, of, attempts, wait, reason)
	} else {
		d.exhaust(members, of, attempts, reason)
	}
}

// retry has some members of a batch, of so many in all, sent again together.
func (d *decision) retry(members []claimed, of, attempts int, wait time.Duration, reason string) {
	if len(members) == 0 {
		return
	}
	d.again = append(d.again, group{members: members, attempts: attempts, same: len(members) == of})
	for _, m := range members {
		d.rows = append(d.rows, result{claimed: m, status: pending, group: len(d.again), wait: wait, reason: reason})
	}
}

// exhaust gives up on adds. A remove is owed to the person who left: it is tried every day, for ever.
func (d *decision) exhaust(members []claimed, of, attempts int, reason string) {
	d.giveUp(members, of, attempts, parked, reason)
}

func (d *decision) giveUp(members []claimed, of, attempts int, status, reason string) {
	var removes []claimed
	for _, m := range members {
		if m.Entered {
			d.rows = append(d.rows, result{claimed: m, status: status, reason: reason})
		} else {
			removes = append(removes, m)
		}
	}
	d.retry(removes, of, attempts, jitter(removeEvery), reason)
}

// each treats members by what became of each of them.
func (d *decision) each(c *claim, o Outcome, schedule []time.Duration) {
	var again []claimed
	refused := map[string][]claimed{}
	for i, m := range c.members {
		switch r := o.row(i); r.Class {
		case OK:
			d.rows = append(d.rows, result{claimed: m, status: settled})
		case Drop:
			refused[r.Reason] = append(refused[r.Reason], m)
		default:
			again = append(again, m)
		}
	}
	d.fail(again, len(c.members), c.attempts+1, schedule, o.Reason)
	reasons := make([]string, 0, len(refused))
	for reason := range refused {
		reasons = append(reasons, reason)
	}
	slices.Sort(reasons)
	for _, reason := range reasons {
		d.giveUp(refused[reason], len(c.members), max(c.attempts, len(schedule)), failed, reason)
	}
}
