package demo

import (
	"fmt"
	"math"
	"slices"
	"sync"
	"time"
)

// clock notes when something happened to each message.
type clock struct {
	mu   sync.Mutex
	at   map[string]time.Time
	last time.Time
}

func newClock() *clock { return &clock{at: map[string]time.Time{}} }

// note keeps the first time of each.
func (c *clock) note(ids []string, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range ids {
		if _, ok := c.at[id]; !ok {
			c.at[id] = at
		}
	}
	c.last = at
}

func (c *clock) latest() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

// Latencies are how long it took from one to the other for each of some messages, the shortest first.
type Latencies []time.Duration

// between returns how long it took from one clock's times to the other's. Messages that only one has noted are left out.
func between(from, to *clock) Latencies {
	from.mu.Lock()
	defer from.mu.Unlock()
	to.mu.Lock()
	defer to.mu.Unlock()
	var list Latencies
	for id, at := range to.at {
		if begin, ok := from.at[id]; ok {
			list = append(list, at.Sub(begin))
		}
	}
	slices.Sort(list)
	return list
}

// quantile returns the smallest latency that the share q of all does not exceed.
func (l Latencies) quantile(q float64) time.Duration {
	if len(l) == 0 {
		return 0
	}
	return l[max(0, int(math.Ceil(q*float64(len(l))))-1)]
}

func (l Latencies) String() string {
	if len(l) == 0 {
		return "nothing to measure"
	}
	return fmt.Sprintf("p50 %s  p99 %s  max %s", short(l.quantile(0.5)), short(l.quantile(0.99)), short(l[len(l)-1]))
}

func short(d time.Duration) string {
	switch {
	case d.Abs() >= 10*time.Second:
		return fmt.Sprintf("%.0f s", d.Seconds())
	case d.Abs() >= time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d.Abs() >= 10*time.Millisecond:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}
