package rule

import (
	"fmt"
	"net/url"
	"strings"
)

// Problem is one thing wrong with a rule.
type Problem struct {
	Pointer string // to where, as the fragment of a URI: "#/all/2/where/0/op"
	Detail  string // what, for its author
}

// Error lists everything that is wrong with a rule, at most 100 things.
type Error struct {
	Problems []Problem
}

func (e *Error) Error() string {
	parts := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		parts[i] = p.Pointer + ": " + p.Detail
	}
	return strings.Join(parts, "; ")
}

const maxProblems = 100

// problem notes what is wrong at a JSON Pointer.
func (p *parser) problem(at, format string, args ...any) {
	if len(p.problems) < maxProblems {
		p.problems = append(p.problems, Problem{fragment(at), fmt.Sprintf(format, args...)})
	}
}

// fragment returns a JSON Pointer as the fragment of a URI.
func fragment(at string) string { return "#" + (&url.URL{Fragment: at}).EscapedFragment() }

func (p *parser) err() error {
	if len(p.problems) == 0 {
		return nil
	}
	return &Error{p.problems}
}

var escape = strings.NewReplacer("~", "~0", "/", "~1")

// child returns the pointer to a member of what at points to.
func child(at, name string) string {
	return at + "/" + escape.Replace(name)
}
