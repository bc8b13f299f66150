package collector

import (
	"runtime"
	"sync/atomic"
	"time"
)

// chores are what lanes do of their own accord: timers and builds. They keep out of the way of events. While events come,
// few lanes of a process do chores at the same moment, and little at once; while none come, all lanes do.
type chores struct {
	turns   chan struct{} // one for each lane that may do chores while events come; whoever waits longest has the next
	waiting atomic.Int64  // lanes that have some to do
	last    atomic.Int64  // nanoseconds that those of a turn took
	event   atomic.Int64  // when the last one came, in unix nanoseconds
}

const (
	calmAfter       = 2 * time.Second       // without an event
	choreInCalm     = 20 * time.Millisecond // may take about so long
	choreAmidEvents = 5 * time.Millisecond  // because then a few may have to wait for it
)

func newChores() *chores {
	c := &chores{turns: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/4))}
	for range cap(c.turns) {
		c.turns <- struct{}{}
	}
	return c
}

// eventsCame says that they do.
func (c *chores) eventsCame() { c.event.Store(time.Now().UnixNano()) }

func (c *chores) calm() bool { return time.Since(time.Unix(0, c.event.Load())) > calmAfter }

// allowed is how long a chore may take.
func (c *chores) allowed() time.Duration {
	if c.calm() {
		return choreInCalm
	}
	return choreAmidEvents
}

// rest gives a turn back after as long as it took: half of the time while events come is theirs alone.
func (c *chores) rest(turn chan<- struct{}, took time.Duration) {
	time.AfterFunc(took, func() { turn <- struct{}{} })
}

// patience is how long a lane waits for its turn: for two rounds of all lanes and a little more, but longer than a timer
// may take only if the rounds do. A lane loses its place whenever messages come for it, so its turn may never come.
func (c *chores) patience() time.Duration {
	round := time.Duration(2 * c.last.Load() * c.waiting.Load() / int64(cap(c.turns))) // with the rests
	return 500*time.Millisecond + 2*round
}
