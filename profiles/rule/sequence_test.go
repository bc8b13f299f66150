package rule_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestEvalOfSequences(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	// History is like "A-30 B-20": A happened 30 seconds before noon, B 20 seconds before.
	events := func(history string) (list []naiveEvent) {
		for _, word := range strings.Fields(history) {
			var ago float64
			if _, err := fmt.Sscanf(word[1:], "%g", &ago); err != nil {
				t.Fatal(err)
			}
			list = append(list, naiveEvent{word[:1], `{}`, noon.UnixMilli() + int64(ago*1000)})
		}
		return list
	}
	const (
		ab       = `{"sequence":[{"event":"A"},{"event":"B"}]}`
		abSoon   = `{"sequence":[{"event":"A"},{"event":"B","within":"10s"}]}`
		abWindow = `{"sequence":[{"event":"A"},{"event":"B","within":"10s"}],"within":"60s"}`
		aNotB    = `{"sequence":[{"event":"A"}],"then_not":{"event":"B","within":"30s"}}`
		aNeverB  = `{"sequence":[{"event":"A"}],"then_not":{"event":"B"}}`
		cart     = `{"sequence":[{"event":"A"},{"event":"B","within":"10s"}],"then_not":{"event":"C","within":"30s"},"within":"60s"}`
		aa       = `{"sequence":[{"event":"A"},{"event":"A","within":"10s"}]}`
		abc      = `{"sequence":[{"event":"A"},{"event":"B","within":"10s"},{"event":"C","within":"10s"}],"within":"60s"}`
	)
	tests := []struct {
		name          string
		rule, history string
		want          bool
		in            time.Duration
	}{
		{"one after the other", ab, "A-9 B-8", true, 0},
		{"the other way round", ab, "B-9 A-8", false, 0},
		{"at the same time is not after", ab, "A-8 B-8", false, 0},
		{"one without the other", ab, "A-8", false, 0},
		{"soon after", abSoon, "A-20 B-10", true, 0},
		{"not soon enough after", abSoon, "A-20.001 B-10", false, 0},
		{"soon after the second", abSoon, "A-30 A-19 B-10", true, 0},
		{"dated after now", abSoon, "A-1 B5", true, 0},
		{"until the first leaves the window", abWindow, "A-20 B-15", true, 40 * time.Second},
		{"the first that is latest counts", abWindow, "A-20 A-16 B-15", true, 44 * time.Second},
		{"the first that is latest in time counts", abWindow, "A-20 A-14 B-15", true, 40 * time.Second},
		{"chains follow each other", abWindow, "A-50 B-45 A-10 B-5", true, 50 * time.Second},
		{"the window is over", abWindow, "A-60 B-55", false, 0},
		{"A and not B in 30 s: not yet", aNotB, "A-20", false, 10*time.Second + ms},
		{"A and not B in 30 s: still to come", aNotB, "A-30", false, ms},
		{"A and not B in 30 s", aNotB, "A-30.001", true, 0},
		{"A and B in 30 s", aNotB, "A-50 B-20", false, 0},
		{"A and B a little later", aNotB, "A-50 B-19.999", true, 0},
		{"A and B at the same time is not B after A", aNotB, "A-50 B-50", true, 0},
		{"A and B, then A without B", aNotB, "A-90 B-80 A-40", true, 0},
		{"A and B, then A perhaps without B", aNotB, "A-90 B-80 A-10", false, 20*time.Second + ms},
		{"A and never B after it", aNeverB, "B-20 A-10", true, 0},
		{"A and B long after", aNeverB, "A-1000 B-1", false, 0},
		{"B dated after now ends it, too", aNeverB, "A-10 B100", false, 0},
		{"an abandoned cart, for a while", cart, "A-45 B-40", true, 15 * time.Second},
		{"a cart that may become abandoned", cart, "A-15 B-10", false, 20*time.Second + ms},
		{"a cart that was bought", cart, "A-45 B-40 C-20", false, 0},
		{"a cart so old that it can no longer become abandoned", cart, "A-39 B-29.5 C-0.5", false, 0},
		{"one abandoned cart runs out, a second has not begun", cart, "A-59 B-49 A-29 B-28", true, time.Second},
		{"one abandoned cart goes over into the next", cart, "A-59.9 B-59 A-50 B-40", true, 10 * time.Second},
		{"a step twice needs two occurrences", aa, "A-5", false, 0},
		{"a step twice", aa, "A-5 A-4", true, 0},
		{"a step twice at the same time", aa, "A-5 A-5", false, 0},
		{"three steps", abc, "A-25 B-20 C-15", true, 35 * time.Second},
		{"three steps, the nearest one is of no use", abc, "A-45 B-36 B-20 C-15", false, 0},
		{"three steps, the latest beginning", abc, "A-26 A-25 B-24 A-20 B-16 C-15", true, 40 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := parse(t, tt.rule)
			got, until := r.Eval(remember(r, nil, events(tt.history)), noon)
			want := time.Time{}
			if tt.in > 0 {
				want = noon.Add(tt.in)
			}
			if got != tt.want || !until.Equal(want) {
				t.Errorf("%v until %v, want %v until %v", got, until, tt.want, want)
			}
		})
	}
}

// Of each step only the newest 100 occurrences are looked at, however many another condition needs.
func TestSequencesLookAtTheNewest100(t *testing.T) {
	t.Parallel()
	const (
		aThenB = `{"sequence":[{"event":"A"},{"event":"B"}]}`
		aNotC  = `{"sequence":[{"event":"A"}],"then_not":{"event":"C","within":"1s"}}`
	)
	times := func(name string, n int, ago float64) (list []naiveEvent) {
		for range n {
			list = append(list, naiveEvent{name, `{}`, noon.UnixMilli() - int64(ago*1000)})
		}
		return list
	}
	for _, tt := range []struct {
		name, rule string
		events     [][]naiveEvent
		want       bool
	}{
		{"the first of 100", aThenB, [][]naiveEvent{times("A", 1, 300), times("B", 1, 200), times("A", 99, 100)}, true},
		{"the first of 101", aThenB, [][]naiveEvent{times("A", 1, 300), times("B", 1, 200), times("A", 100, 100)}, false},
		{"before the first of 100 that would end it", aNotC, [][]naiveEvent{times("A", 1, 502), times("C", 1, 500), times("C", 99, 1)}, true},
		{"before all that is known of what would end it", aNotC, [][]naiveEvent{times("A", 1, 502), times("C", 1, 900), times("C", 1, 500), times("C", 99, 1)}, false},
		{"with the first that is known of what would end it", aNotC, [][]naiveEvent{times("A", 1, 500), times("C", 1, 900), times("C", 1, 500), times("C", 99, 1)}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			never := `{"event":"%s","count":{"gte":1000},"within":"1s"}`
			r := parse(t, fmt.Sprintf(`{"any":[%s,`+never+`,`+never+`]}`, tt.rule, "A", "C"))
			if got, _ := r.Eval(remember(r, nil, slices.Concat(tt.events...)), noon); got != tt.want {
				t.Errorf("%v, want %v", got, tt.want)
			}
		})
	}
}

// However much happens, a sequence is what trying every chain of the newest occurrences says.
func TestSequencesOfMuch(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		n := naive{now: epoch + 3000}
		for range rng.IntN(400) {
			n.events = append(n.events, naiveEvent{[]string{"A", "B", "C"}[rng.IntN(3)], `{}`, epoch + rng.Int64N(4000)})
		}
		text := pick(t, "rule",
			`{"sequence":[{"event":"A"},{"event":"B","within":"1s"}],"then_not":{"event":"C","within":"2s"}}`,
			`{"sequence":[{"event":"A"}],"then_not":{"event":"C","within":"1s"},"within":"3s"}`,
			`{"sequence":[{"event":"A"}],"then_not":{"event":"C"}}`,
			`{"sequence":[{"event":"A"},{"event":"B"}],"within":"1s"}`,
		)
		others := `{"event":"%s","count":{"gte":1000},"within":"1s"}`
		r := parse(t, fmt.Sprintf(`{"any":[%s,`+others+`,`+others+`,`+others+`]}`, text, "A", "B", "C"))
		tree := decode(t, text).(map[string]any)
		state := remember(r, nil, n.events)
		for range 10 {
			want := n.holds(t, tree)
			holds, until := r.Eval(state, time.UnixMilli(n.now))
			if holds != want {
				t.Fatalf("%s at %d: %v, want %v", text, n.now, holds, want)
			}
			if until.IsZero() {
				return
			}
			n.now = until.UnixMilli() - 1
			if n.holds(t, tree) != want {
				t.Fatalf("%s: %v until %v, but not so just before", text, want, until)
			}
			if n.now++; n.holds(t, tree) == want {
				t.Fatalf("%s: %v until %v, and still then", text, want, until)
			}
		}
	})
}
