package activation

import (
	"math/rand/v2"
	"time"
)

// DefaultSchedule is how long to wait after the first, second, … failed attempt, each time give or take a fifth. It ends
// after about 76 hours: then what was to be added is parked, and what was to be removed is tried once a day, for ever.
var DefaultSchedule = []time.Duration{
	5 * time.Second, 30 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour,
	5 * time.Hour, 10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 24 * time.Hour,
}

const (
	expiry      = 72 * time.Hour // of a batch that was only ever told to wait
	removeEvery = 24 * time.Hour // after the schedule's end
	longestWait = 24 * time.Hour // that a partner may ask for
)

// delay returns how long to wait after the given number of failed attempts, and false if the schedule has ended.
func delay(schedule []time.Duration, attempts int) (time.Duration, bool) {
	if attempts > len(schedule) {
		return 0, false
	}
	return jitter(schedule[max(attempts, 1)-1]), true
}

// jitter returns d, give or take a fifth.
func jitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.8 + 0.4*rand.Float64()))
}
