package activation

import (
	"sync"
	"time"
)

const (
	breakerFailures = 5
	breakerFirst    = time.Second
	breakerLongest  = 5 * time.Minute
)

// breaker keeps one destination that fails from being asked again and again. After five failures in a row it lets nobody
// through for a second, then one to try, and twice as long whenever that one fails too. Its zero value is closed.
type breaker struct {
	mu       sync.Mutex
	failures int
	wait     time.Duration
	until    time.Time
	probing  bool
}

// allow tells whether somebody may try now. Each true is to be followed by one call of succeed, fail or cancel.
func (b *breaker) allow() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failures < breakerFailures {
		return true
	}
	if b.probing || time.Now().Before(b.until) {
		return false
	}
	b.probing = true
	return true
}

// open tells whether allow would refuse.
func (b *breaker) open() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.failures >= breakerFailures && (b.probing || time.Now().Before(b.until))
}

// succeed closes the breaker and tells whether it was open.
func (b *breaker) succeed() (healed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	healed = b.failures >= breakerFailures
	b.failures, b.wait, b.probing = 0, 0, false
	return healed
}

func (b *breaker) fail() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.probing = false
	b.failures++
	if b.failures >= breakerFailures && !time.Now().Before(b.until) {
		b.wait = min(max(2*b.wait, breakerFirst), breakerLongest)
		b.until = time.Now().Add(jitter(b.wait))
	}
}

// cancel takes an allowance back that was not used.
func (b *breaker) cancel() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.probing = false
}
