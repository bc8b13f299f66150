package bots

import (
	"container/list"
	"hash/maphash"
	"sync"
)

// The answers that were given last, in shards so that requests do not wait for each other. Of each shard the one that was
// not asked for longest makes room.

const (
	shards      = 16
	shardAnswer = 256 // user agents
)

var (
	answers   [shards]recent
	shardSeed = maphash.MakeSeed()
)

func shardOf(userAgent string) int { return int(maphash.String(shardSeed, userAgent) % shards) }

type recent struct {
	mu    sync.Mutex
	known map[string]*list.Element // of an answer
	order list.List                // the one asked for last is in front
}

type answer struct{ userAgent, name string }

func (r *recent) get(userAgent string) (name string, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.known[userAgent]
	if e == nil {
		return "", false
	}
	r.order.MoveToFront(e)
	return e.Value.(*answer).name, true
}

func (r *recent) put(userAgent, name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known == nil {
		r.known = make(map[string]*list.Element, shardAnswer)
	}
	if r.known[userAgent] != nil {
		return // somebody else was first
	}
	if len(r.known) >= shardAnswer {
		oldest := r.order.Back()
		delete(r.known, oldest.Value.(*answer).userAgent)
		r.order.Remove(oldest)
	}
	r.known[userAgent] = r.order.PushFront(&answer{userAgent, name})
}
