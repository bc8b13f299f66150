package timeline_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/mubatch/mubatch/profiles/timeline"
)

func TestAdd(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		keep int
		add  []int64
		want timeline.Timeline
	}{
		{
			name: "nothing added is nothing kept",
			keep: 2,
			want: timeline.Timeline{Keep: 2},
		},
		{
			name: "the newest are kept, newest first",
			keep: 2, add: []int64{30, 10, 20},
			want: timeline.Timeline{Keep: 2, Count: 3, First: 10, Last: 30, Times: []int64{30, 20}},
		},
		{
			name: "ties are kept",
			keep: 3, add: []int64{10, 20, 20, 20, 20},
			want: timeline.Timeline{Keep: 3, Count: 5, First: 10, Last: 20, Times: []int64{20, 20, 20}},
		},
		{
			name: "a keep of 0 has only count, first and last",
			keep: 0, add: []int64{-5, 7},
			want: timeline.Timeline{Count: 2, First: -5, Last: 7},
		},
		{
			name: "an occurrence at the epoch is one",
			keep: 1, add: []int64{0},
			want: timeline.Timeline{Keep: 1, Count: 1, Times: []int64{0}},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tt.want, fold(tt.keep, tt.add)); diff != "" {
				t.Errorf("timeline (-want +got):\n%s", diff)
			}
		})
	}
}

func TestMergeOfDifferentKeeps(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		a, b timeline.Timeline
		want timeline.Timeline
	}{
		{
			name: "only as many times are kept as both know of",
			a:    fold(1, []int64{10, 20}), b: fold(3, []int64{5, 6, 7}),
			want: timeline.Timeline{Keep: 1, Count: 5, First: 5, Last: 20, Times: []int64{20}},
		},
		{
			name: "the zero value takes the other's keep",
			b:    fold(2, []int64{10, 20}),
			want: timeline.Timeline{Keep: 2, Count: 2, First: 10, Last: 20, Times: []int64{20, 10}},
		},
		{
			name: "of two empty ones the larger keep stays",
			a:    timeline.Timeline{Keep: 3}, b: timeline.Timeline{Keep: 2},
			want: timeline.Timeline{Keep: 3},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for _, pair := range [][2]timeline.Timeline{{tt.a, tt.b}, {tt.b, tt.a}} {
				got := pair[0].Clone()
				got.Merge(pair[1])
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Errorf("merged (-want +got):\n%s", diff)
				}
			}
		})
	}
}

// However a history is ordered, cut into parts and put together again, its timeline is the same.
func TestMergeEqualsTheFoldOfTheMultiset(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		keep := rapid.IntRange(0, 6).Draw(t, "keep")
		times := rapid.SliceOfN(anyTime(), 0, 40).Draw(t, "times")

		parts := make([]timeline.Timeline, rapid.IntRange(1, 6).Draw(t, "parts"))
		for i := range parts {
			parts[i].Keep = keep
		}
		for _, at := range rapid.Permutation(times).Draw(t, "order") {
			parts[rapid.IntRange(0, len(parts)-1).Draw(t, "part")].Add(at)
		}
		for len(parts) > 1 { // any tree of merges
			i := rapid.IntRange(0, len(parts)-1).Draw(t, "into")
			j := (i + rapid.IntRange(1, len(parts)-1).Draw(t, "from")) % len(parts)
			parts[i].Merge(parts[j])
			parts[j].Add(rapid.Int64().Draw(t, "after")) // must not reach into what was merged
			parts = slices.Delete(parts, j, j+1)
		}
		if diff := cmp.Diff(naive(keep, times), parts[0]); diff != "" {
			t.Errorf("timeline (-want +got):\n%s", diff)
		}
	})
}

// Merging is associative and commutative whatever the keeps are.
func TestMergeOrderDoesNotMatter(t *testing.T) {
	t.Parallel()
	merge := func(a, b timeline.Timeline) timeline.Timeline {
		a = a.Clone()
		a.Merge(b)
		return a
	}
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := anyTimeline().Draw(t, "a"), anyTimeline().Draw(t, "b"), anyTimeline().Draw(t, "c")
		if diff := cmp.Diff(merge(a, b), merge(b, a)); diff != "" {
			t.Errorf("not commutative (-ab +ba):\n%s", diff)
		}
		if diff := cmp.Diff(merge(merge(a, b), c), merge(a, merge(b, c))); diff != "" {
			t.Errorf("not associative (-(ab)c +a(bc)):\n%s", diff)
		}
		if diff := cmp.Diff(a, merge(a, timeline.Timeline{})); diff != "" {
			t.Errorf("the zero value is not neutral (-want +got):\n%s", diff)
		}
	})
}

func anyTime() *rapid.Generator[int64] {
	return rapid.OneOf(rapid.Int64Range(-3, 12), rapid.Int64()) // few, so that there are ties, and the extremes
}

func anyTimeline() *rapid.Generator[timeline.Timeline] {
	return rapid.Custom(func(t *rapid.T) timeline.Timeline {
		return fold(rapid.IntRange(0, 5).Draw(t, "keep"), rapid.SliceOfN(anyTime(), 0, 10).Draw(t, "times"))
	})
}

func fold(keep int, times []int64) timeline.Timeline {
	t := timeline.Timeline{Keep: keep}
	for _, at := range times {
		t.Add(at)
	}
	return t
}

// naive is what a timeline must be, from the whole history.
func naive(keep int, times []int64) timeline.Timeline {
	t := timeline.Timeline{Keep: keep, Count: int64(len(times))}
	if len(times) == 0 {
		return t
	}
	sorted := slices.Sorted(slices.Values(times))
	slices.Reverse(sorted)
	t.First, t.Last = sorted[len(sorted)-1], sorted[0]
	if n := min(keep, len(sorted)); n > 0 {
		t.Times = sorted[:n]
	}
	return t
}

func BenchmarkAdd(b *testing.B) {
	for _, order := range []string{"in order", "shuffled"} {
		b.Run(order, func(b *testing.B) {
			t := timeline.Timeline{Keep: 100}
			r := rand.New(rand.NewPCG(1, 2))
			at := int64(1_700_000_000_000)
			b.ReportAllocs()
			for b.Loop() {
				at += 1000
				if order == "shuffled" {
					t.Add(at - r.Int64N(100_000))
				} else {
					t.Add(at)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "occurrences/s")
		})
	}
}

func BenchmarkMerge(b *testing.B) {
	for _, size := range []struct {
		name string
		keep int
	}{{"keep 1", 1}, {"keep 10", 10}, {"keep 1000", 1000}} {
		b.Run(size.name, func(b *testing.B) {
			var even, odd []int64
			for i := range int64(size.keep) {
				even, odd = append(even, 2*i), append(odd, 2*i+1)
			}
			x, y := fold(size.keep, even), fold(size.keep, odd)
			b.ReportAllocs()
			for b.Loop() {
				t := x
				t.Merge(y)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "merges/s")
		})
	}
}
