// Package bots tells crawlers, headless browsers and other programs from people by their user agent.
//
// What it knows is the list of crawler-user-agents, under the MIT licence that is beside it in LICENSE. The texts of the
// list are sought all at once (Aho and Corasick, Efficient string matching: an aid to bibliographic search, 1975), since
// trying them one by one would let anybody keep a server busy.
package bots

import (
	_ "embed"
	"regexp"
	"strings"
	"sync"
)

//go:generate go run ./gen -version 1.60.0

//go:embed patterns.txt
var patterns string

// maxUserAgent is how much of a user agent is looked at.
const maxUserAgent = 1024

// Name returns what a user agent is called on the list, or "" if it is not on it. It may be called at once.
func Name(userAgent string) string {
	if len(userAgent) > maxUserAgent {
		userAgent = userAgent[:maxUserAgent]
	}
	if userAgent == "" {
		return ""
	}
	s := &answers[shardOf(userAgent)]
	if name, ok := s.get(userAgent); ok {
		return name
	}
	name := theList().find(userAgent)
	s.put(strings.Clone(userAgent), name)
	return name
}

// where a text of the list has to be.
type where uint8

const (
	anywhere where = iota
	begin
	end
	regular // a regular expression decides, which begins with the text
)

type pattern struct {
	where where
	name  string
	size  int32 // of the text
	re    *regexp.Regexp
}

// matcher is the automaton. Node 0 is its root.
type matcher struct {
	nodes    []node
	patterns []pattern
}

type node struct {
	bytes string  // by which it goes on, in order
	next  []int32 // where to, for each of them
	fail  int32   // the node of the longest proper suffix
	hit   int32   // the nearest node on the way of fail, or itself, at which patterns end; 0: none
	ends  []int32 // patterns that end here
}

var theList = sync.OnceValue(func() *matcher { return compile(patterns) })

func compile(text string) *matcher {
	l := &matcher{nodes: make([]node, 1)}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.Split(line, "\t")
		p := pattern{name: fields[2], size: int32(len(fields[1]))}
		switch fields[0] {
		case "begin":
			p.where = begin
		case "end":
			p.where = end
		case "regexp":
			p.where, p.re = regular, regexp.MustCompile(fields[3])
		}
		l.add(fields[1], p)
	}
	l.link()
	return l
}

func (l *matcher) add(text string, p pattern) {
	at := int32(0)
	for i := range len(text) {
		next, ok := l.nodes[at].child(text[i])
		if !ok {
			next = int32(len(l.nodes))
			l.nodes = append(l.nodes, node{})
			l.nodes[at].grow(text[i], next)
		}
		at = next
	}
	l.nodes[at].ends = append(l.nodes[at].ends, int32(len(l.patterns)))
	l.patterns = append(l.patterns, p)
}

func (n *node) child(b byte) (int32, bool) {
	if i := strings.IndexByte(n.bytes, b); i >= 0 {
		return n.next[i], true
	}
	return 0, false
}

func (n *node) grow(b byte, to int32) {
	n.bytes += string([]byte{b})
	n.next = append(n.next, to)
}

// link finds for each node where to go on when it goes no further, from the shortest texts to the longest.
func (l *matcher) link() {
	queue := append([]int32(nil), l.nodes[0].next...)
	for len(queue) > 0 {
		at := queue[0]
		queue = queue[1:]
		n := &l.nodes[at]
		if n.hit = l.nodes[n.fail].hit; len(n.ends) > 0 {
			n.hit = at
		}
		for i, child := range n.next {
			if to := l.step(n.fail, n.bytes[i]); to != child {
				l.nodes[child].fail = to
			}
			queue = append(queue, child)
		}
	}
}

func (l *matcher) step(at int32, b byte) int32 {
	for {
		if next, ok := l.nodes[at].child(b); ok {
			return next
		}
		if at == 0 {
			return 0
		}
		at = l.nodes[at].fail
	}
}

// find returns the name of the first pattern of the list among those that match.
func (l *matcher) find(userAgent string) string {
	best := int32(len(l.patterns))
	at := int32(0)
	for i := range len(userAgent) {
		at = l.step(at, userAgent[i])
		for hit := l.nodes[at].hit; hit != 0; hit = l.nodes[l.nodes[hit].fail].hit {
			for _, p := range l.nodes[hit].ends {
				if p < best && l.patterns[p].holds(userAgent, i+1) {
					best = p
				}
			}
		}
	}
	if int(best) == len(l.patterns) {
		return ""
	}
	return l.patterns[best].name
}

// holds tells whether a pattern matches whose text was found, up to a place.
func (p *pattern) holds(userAgent string, upTo int) bool {
	switch p.where {
	case begin:
		return upTo == int(p.size)
	case end:
		return upTo == len(userAgent)
	case regular:
		return p.re.MatchString(userAgent)
	}
	return true
}
