package partnertest

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mubatch/mubatch/activation"
)

// Key is an identifier as a partner wants it, under the partner's own name for its kind.
type Key struct{ Kind, Value string }

func (k Key) String() string { return fmt.Sprintf("%s %.12s", k.Kind, k.Value) }

// Crowd is whom a fake knows, by which keys, and who is in its audiences: what Seed, Members, Leftovers and Refuse of a
// [Fake] need. It is safe for use by several goroutines.
type Crowd struct {
	violate func(format string, args ...any)
	derive  func(activation.Person) Recognised

	mu        sync.Mutex
	people    map[activation.ProfileID][]Key        // → those of now by which the person is recognised
	owners    map[Key]map[activation.ProfileID]bool // → whom it has ever been right for
	mistakes  map[Key]string
	refused   map[activation.ProfileID]bool
	audiences map[string]map[Key]time.Time // → when it was added last
	busy      map[string]map[Key]bool      // → what is being added (true) or removed
}

// Recognised says what a partner knows a person by.
type Recognised struct {
	Keys     []Key          // by each of which the person is recognised
	Details  []Key          // which say something of the person only together with those
	Mistakes map[Key]string // values that somebody may take for one of those, and what is wrong with them
}

// NewCrowd returns a crowd of which the fake derives by itself what people are known by. What is wrong is told to violate.
func NewCrowd(violate func(format string, args ...any), derive func(activation.Person) Recognised) *Crowd {
	return &Crowd{
		violate: violate, derive: derive,
		people:    map[activation.ProfileID][]Key{},
		owners:    map[Key]map[activation.ProfileID]bool{},
		mistakes:  map[Key]string{},
		refused:   map[activation.ProfileID]bool{},
		audiences: map[string]map[Key]time.Time{},
		busy:      map[string]map[Key]bool{},
	}
}

// Seed is that of a [Fake].
func (c *Crowd) Seed(people ...activation.Person) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range people {
		is := c.derive(p)
		c.people[p.ID] = is.Keys
		for _, k := range slices.Concat(is.Keys, is.Details) {
			if c.owners[k] == nil {
				c.owners[k] = map[activation.ProfileID]bool{}
			}
			c.owners[k][p.ID] = true
		}
		maps.Copy(c.mistakes, is.Mistakes)
	}
}

// Refuse is that of a [Fake].
func (c *Crowd) Refuse(id activation.ProfileID, refuse bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refused[id] = refuse
}

// Make makes an audience. One that is there stays as it is.
func (c *Crowd) Make(audience string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.audiences[audience] == nil {
		c.audiences[audience] = map[Key]time.Time{}
	}
}

// Has tells whether an audience is there.
func (c *Crowd) Has(audience string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.audiences[audience] != nil
}

// Check notes what is wrong with the keys and details of one row: a value that was never right for anybody, and values of
// different people. where names the row. It tells whether the row is that of somebody who is refused.
func (c *Crowd) Check(where string, keys ...Key) (refused bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all map[activation.ProfileID]bool // whom the whole row may be about
	for _, k := range keys {
		owners := c.owners[k]
		if len(owners) == 0 {
			mistake := c.mistakes[k]
			if mistake == "" {
				mistake = "is not right for anybody"
			}
			c.violate("%s: %s %s", where, k, mistake)
			return false
		}
		if all == nil {
			all = maps.Clone(owners)
			continue
		}
		maps.DeleteFunc(all, func(id activation.ProfileID, _ bool) bool { return !owners[id] })
	}
	if len(keys) > 0 && len(all) == 0 {
		c.violate("%s mixes the identifiers of different people", where)
	}
	for id := range all {
		refused = refused || c.refused[id]
	}
	return refused
}

// Occupy notes that a request is adding or removing keys until the returned function is called. Two requests at once that do
// not want the same of one key are a violation: they may be applied in any order. Call it before the fake's own lock is
// taken, and stay a moment for whoever comes too early.
func (c *Crowd) Occupy(audience string, add bool, keys ...Key) (done func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.busy[audience] == nil {
		c.busy[audience] = map[Key]bool{}
	}
	busy := c.busy[audience]
	var mine []Key
	for _, k := range keys {
		switch other, ok := busy[k]; {
		case ok && other != add:
			c.violate("%s is added and removed by two requests at once", k)
		case !ok:
			busy[k] = add
			mine = append(mine, k)
		}
	}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, k := range mine {
			delete(busy, k)
		}
	}
}

// Apply adds keys to an audience, or removes them.
func (c *Crowd) Apply(audience string, add bool, at time.Time, keys ...Key) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range keys {
		if add {
			c.audiences[audience][k] = at
		} else {
			delete(c.audiences[audience], k)
		}
	}
}

// Forget removes keys that were added before a time and not again since, each of which is a violation.
func (c *Crowd) Forget(before time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, audience := range c.audiences {
		maps.DeleteFunc(audience, func(k Key, at time.Time) bool {
			if at.Before(before) {
				c.violate("%s was forgotten: it was not sent again in time", k)
			}
			return at.Before(before)
		})
	}
}

// Empty removes from an audience all keys that were added before a time.
func (c *Crowd) Empty(audience string, before time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.audiences[audience], func(_ Key, at time.Time) bool { return at.Before(before) })
}

// Size returns how many of the seeded people an audience has.
func (c *Crowd) Size(audience string) int { return len(c.Members(audience)) }

// Members is that of a [Fake].
func (c *Crowd) Members(audience string) []activation.ProfileID {
	c.mu.Lock()
	defer c.mu.Unlock()
	in := map[activation.ProfileID]bool{}
	for id, keys := range c.people {
		for _, k := range keys {
			if _, ok := c.audiences[audience][k]; ok {
				in[id] = true
			}
		}
	}
	return sorted(in)
}

// Leftovers is that of a [Fake].
func (c *Crowd) Leftovers(audience string) (left []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	current := map[Key]bool{}
	for _, keys := range c.people {
		for _, k := range keys {
			current[k] = true
		}
	}
	for k := range c.audiences[audience] {
		if !current[k] {
			left = append(left, fmt.Sprintf("%s of %d former owners", k, len(c.owners[k])))
		}
	}
	return left
}

// Hex is the SHA-256 of a text in lower-case hexadecimal digits, as the fakes compute it.
func Hex(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// HexMistakes returns values that somebody may take for the SHA-256 of a text in hexadecimal digits, and what is wrong with
// them. Others are texts that were not normalised as this partner wants it, with what is wrong with those.
func HexMistakes(kind, text string, others map[string]string) map[Key]string {
	sum, five, one := sha256.Sum256([]byte(text)), md5.Sum([]byte(text)), sha1.Sum([]byte(text))
	wrong := map[Key]string{
		{kind, text}:                                      "is not hashed",
		{kind, strings.ToUpper(Hex(text))}:                "is in upper case",
		{kind, Hex(Hex(text))}:                            "is hashed twice",
		{kind, Hex(text + "\n")}:                          "is the hash of a text with a line break",
		{kind, Hex(" " + text)}:                           "is the hash of a text with a space before it",
		{kind, base64.StdEncoding.EncodeToString(sum[:])}: "is in base64",
		{kind, hex.EncodeToString(five[:])}:               "is an MD5",
		{kind, hex.EncodeToString(one[:])}:                "is a SHA-1",
		{kind, Hex("")}:                                   "is the hash of nothing",
		{kind, Hex("null")}:                               "is the hash of null",
		{kind, Hex("undefined")}:                          "is the hash of undefined",
	}
	for other, mistake := range others {
		wrong[Key{kind, Hex(other)}] = mistake
	}
	return wrong
}
