package api

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mubatch/mubatch/api/problem"
)

// guard tells who asks. It remembers keys that work for less than a second, so that a revoked one is refused everywhere
// within a second, and it never remembers one that does not, so a new one works at once.
type guard struct {
	keys *KeyStore
	mu   sync.Mutex
	seen map[[32]byte]sighting // by the hash of the secret
}

type sighting struct {
	identity
	at time.Time
}

const (
	remember    = 900 * time.Millisecond
	maxSighting = 10_000
)

func newGuard(keys *KeyStore) *guard {
	return &guard{keys: keys, seen: map[[32]byte]sighting{}}
}

// identify returns who sent r, or a problem.
func (g *guard) identify(ctx context.Context, r *http.Request) (identity, error) {
	scheme, secret, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	secret = strings.TrimSpace(secret)
	if !strings.EqualFold(scheme, "Bearer") || !wellFormed(secret) {
		return identity{}, errUnauthorized()
	}
	hash := [32]byte(hash(secret))
	g.mu.Lock()
	s, ok := g.seen[hash]
	g.mu.Unlock()
	if ok && time.Since(s.at) < remember && !s.expired() {
		return s.identity, nil
	}

	asked := time.Now()
	id, err := g.keys.find(ctx, secret)
	if errors.Is(err, ErrNoKey) {
		g.forget(hash)
		return identity{}, errUnauthorized()
	}
	if err != nil {
		return identity{}, err
	}
	if id.key.LastUsedAt == nil || time.Since(*id.key.LastUsedAt) > time.Minute {
		if err := g.keys.touch(ctx, id.key.ID); err != nil {
			return identity{}, err
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.seen) >= maxSighting {
		clear(g.seen)
	}
	g.seen[hash] = sighting{id, asked}
	return id, nil
}

func (g *guard) forget(hash [32]byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.seen, hash)
}

func (s sighting) expired() bool {
	return s.key.ExpiresAt != nil && !time.Now().Before(*s.key.ExpiresAt)
}

// may tells whether id has the scope. Nobody has the empty one.
func (id identity) may(scope Scope) bool {
	return scope != "" && slices.Contains(id.key.Scopes, scope)
}

// stillMay tells whether whoever sent a request that is being answered for long has the scope by now.
func (g *guard) stillMay(ctx context.Context, r *http.Request, scope Scope) (bool, error) {
	id, err := g.identify(ctx, r)
	if err != nil && toProblem(err).Status == http.StatusUnauthorized {
		return false, nil
	}
	return id.may(scope), err
}

func errUnauthorized() *problem.Problem {
	p := problem.New(http.StatusUnauthorized, "unauthorized", "A secret key is required.")
	p.Detail = "Send a key that is neither revoked nor expired as Authorization: Bearer mub_sk_…"
	return p
}

func errMissingScope(scope Scope) *problem.Problem {
	p := problem.New(http.StatusForbidden, "missing_scope", "The key lacks a scope.")
	p.Detail = "This operation needs a key with the scope " + string(scope) + "."
	return p
}
