package timeline_test

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/mubatch/mubatch/profiles/timeline"
)

var kinds = []timeline.Kind{
	timeline.Times, timeline.Sum, timeline.Min, timeline.Max, timeline.First, timeline.Last, timeline.Distinct,
}

// occurrence is something to add to a timeline of any kind.
type occurrence struct {
	at     int64
	number string // of Sum, Min and Max; empty for none
	value  string // of First, Last and Distinct; empty for none
}

func add(t *timeline.Timeline, o occurrence) {
	switch {
	case t.Kind == timeline.Min || t.Kind == timeline.Max || t.Kind == timeline.Sum && o.number != "":
		t.AddNumber(o.at, decimal(cmp.Or(o.number, "0")))
	case t.Kind == timeline.Distinct || (t.Kind == timeline.First || t.Kind == timeline.Last) && o.value != "":
		t.AddValue(o.at, []byte(o.value))
	default:
		t.Add(o.at)
	}
}

func TestWhatEachKindKeeps(t *testing.T) {
	t.Parallel()
	occurrences := []occurrence{
		{1999, "0.1", `"b"`},
		{-1, "0.2", `"a"`},
		{2000, "9007199254740993", `"a"`},
		{0, "-1.5", `"c"`},
		{1000, "0.10", `"b"`},
		{1999, "3", `"c"`},
	}
	x := decimal
	tests := []struct {
		name string
		give timeline.Timeline
		want timeline.Timeline
	}{
		{
			"a sum of all time",
			timeline.Timeline{Kind: timeline.Sum},
			timeline.Timeline{Kind: timeline.Sum, Count: 6, Buckets: []timeline.Bucket{{Count: 6, Value: x("9007199254740994.9")}}},
		},
		{
			"sums of the last two seconds",
			timeline.Timeline{Kind: timeline.Sum, Keep: 2, Width: 1000},
			timeline.Timeline{Kind: timeline.Sum, Keep: 2, Width: 1000, Count: 6, Buckets: []timeline.Bucket{
				{Slot: 1, Count: 3, Value: x("3.2")},
				{Slot: 2, Count: 1, Value: x("9007199254740993")},
			}},
		},
		{
			"a bucket before 1970 begins at a full second",
			timeline.Timeline{Kind: timeline.Max, Keep: 9, Width: 1000},
			timeline.Timeline{Kind: timeline.Max, Keep: 9, Width: 1000, Count: 6, Buckets: []timeline.Bucket{
				{Slot: -1, Value: x("0.2")},
				{Slot: 0, Value: x("-1.5")},
				{Slot: 1, Value: x("3")},
				{Slot: 2, Value: x("9007199254740993")},
			}},
		},
		{
			"the smallest of all time",
			timeline.Timeline{Kind: timeline.Min},
			timeline.Timeline{Kind: timeline.Min, Count: 6, Buckets: []timeline.Bucket{{Value: x("-1.5")}}},
		},
		{
			"the first",
			timeline.Timeline{Kind: timeline.First},
			timeline.Timeline{Kind: timeline.First, Count: 6, Buckets: []timeline.Bucket{{At: -1, Text: `"a"`}}},
		},
		{
			"the first of each second, the lesser if there are two",
			timeline.Timeline{Kind: timeline.First, Keep: 2, Width: 1999},
			timeline.Timeline{Kind: timeline.First, Keep: 2, Width: 1999, Count: 6, Buckets: []timeline.Bucket{
				{Slot: 0, At: 0, Text: `"c"`},
				{Slot: 1, At: 1999, Text: `"b"`},
			}},
		},
		{
			"the last",
			timeline.Timeline{Kind: timeline.Last},
			timeline.Timeline{Kind: timeline.Last, Count: 6, Buckets: []timeline.Bucket{{At: 2000, Text: `"a"`}}},
		},
		{
			"different values, that with the greater hash if two are as new",
			timeline.Timeline{Kind: timeline.Distinct, Keep: 2},
			timeline.Timeline{
				Kind: timeline.Distinct, Keep: 2, Count: 6,
				Times: []int64{2000, 1999}, Hashes: []uint64{naiveHash(`"a"`), max(naiveHash(`"b"`), naiveHash(`"c"`))},
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := tt.give
			for _, o := range occurrences {
				add(&got, o)
			}
			if diff := gocmp.Diff(tt.want, got); diff != "" {
				t.Errorf("timeline (-want +got):\n%s", diff)
			}
		})
	}
}

// Of some kinds an occurrence counts without a value; what a kind has no use for does nothing.
func TestAddingWithoutAValue(t *testing.T) {
	t.Parallel()
	for kind, want := range map[timeline.Kind]timeline.Timeline{
		timeline.Sum:   {Kind: timeline.Sum, Count: 2, Buckets: []timeline.Bucket{{Count: 2}}},
		timeline.First: {Kind: timeline.First, Count: 2, Buckets: []timeline.Bucket{{At: 7}}},
		timeline.Last:  {Kind: timeline.Last, Count: 2, Buckets: []timeline.Bucket{{At: 8}}},
		timeline.Min:   {Kind: timeline.Min},
	} {
		got := timeline.Timeline{Kind: kind}
		got.Add(8)
		got.Add(7)
		if diff := gocmp.Diff(want, got); diff != "" {
			t.Errorf("kind %d (-want +got):\n%s", kind, diff)
		}
	}
	got := timeline.Timeline{}
	got.AddNumber(1, decimal("1"))
	got.AddValue(1, []byte(`1`))
	if diff := gocmp.Diff(timeline.Timeline{}, got); diff != "" {
		t.Errorf("times (-want +got):\n%s", diff)
	}
}

// However a history is ordered, cut into parts and put together again, its timeline is the same, of whatever kind.
func TestEveryKindMergesToTheFoldOfTheMultiset(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		shape := anyShape().Draw(t, "shape")
		occurrences := rapid.SliceOfN(anyOccurrence(), 0, 40).Draw(t, "occurrences")
		parts := make([]timeline.Timeline, rapid.IntRange(1, 6).Draw(t, "parts"))
		for i := range parts {
			parts[i] = shape
		}
		for _, o := range rapid.Permutation(occurrences).Draw(t, "order") {
			add(&parts[rapid.IntRange(0, len(parts)-1).Draw(t, "part")], o)
		}
		for len(parts) > 1 { // any tree of merges
			i := rapid.IntRange(0, len(parts)-1).Draw(t, "into")
			j := (i + rapid.IntRange(1, len(parts)-1).Draw(t, "from")) % len(parts)
			parts[i].Merge(parts[j])
			add(&parts[j], anyOccurrence().Draw(t, "after")) // must not reach into what was merged
			parts = slices.Delete(parts, j, j+1)
		}
		got := parts[0]
		if diff := gocmp.Diff(naiveKind(shape, occurrences), got); diff != "" {
			t.Fatalf("timeline (-want +got):\n%s", diff)
		}

		before := got.Clone()
		changed := got.Clone()
		for _, o := range rapid.SliceOfN(anyOccurrence(), 0, 3).Draw(t, "to a clone") {
			add(&changed, o)
		}
		if diff := gocmp.Diff(before, got); diff != "" {
			t.Fatalf("changed with its clone (-want +got):\n%s", diff)
		}
	})
}

// Merging is associative and commutative whatever the keeps, kinds and widths are.
func TestMergeOrderOfEveryKindDoesNotMatter(t *testing.T) {
	t.Parallel()
	merge := func(a, b timeline.Timeline) timeline.Timeline {
		a = a.Clone()
		a.Merge(b.Clone())
		return a
	}
	rapid.Check(t, func(t *rapid.T) {
		all := anyShape()
		if rapid.Bool().Draw(t, "of one shape but for the keep") {
			one := anyShape().Draw(t, "shape")
			all = rapid.Map(rapid.IntRange(1, 5), func(keep int) timeline.Timeline {
				one := one
				if one.Keep > 0 {
					one.Keep = keep
				}
				return one
			})
		}
		some := rapid.Custom(func(t *rapid.T) timeline.Timeline {
			s := all.Draw(t, "shape")
			for _, o := range rapid.SliceOfN(anyOccurrence(), 0, 10).Draw(t, "occurrences") {
				add(&s, o)
			}
			return s
		})
		a, b, c := some.Draw(t, "a"), some.Draw(t, "b"), some.Draw(t, "c")
		if diff := gocmp.Diff(merge(a, b), merge(b, a)); diff != "" {
			t.Errorf("not commutative (-ab +ba):\n%s", diff)
		}
		if diff := gocmp.Diff(merge(merge(a, b), c), merge(a, merge(b, c))); diff != "" {
			t.Errorf("not associative (-(ab)c +a(bc)):\n%s", diff)
		}
		if diff := gocmp.Diff(a, merge(a, timeline.Timeline{})); diff != "" {
			t.Errorf("the zero value is not neutral (-want +got):\n%s", diff)
		}
	})
}

func anyShape() *rapid.Generator[timeline.Timeline] {
	return rapid.Custom(func(t *rapid.T) timeline.Timeline {
		s := timeline.Timeline{Kind: rapid.SampledFrom(kinds).Draw(t, "kind")}
		switch {
		case s.Kind == timeline.Times || s.Kind == timeline.Distinct:
			s.Keep = rapid.IntRange(0, 6).Draw(t, "keep")
		case rapid.Bool().Draw(t, "in buckets"):
			s.Keep, s.Width = rapid.IntRange(1, 6).Draw(t, "keep"), rapid.Int64Range(1, 5).Draw(t, "width")
		}
		return s
	})
}

func anyOccurrence() *rapid.Generator[occurrence] {
	return rapid.Custom(func(t *rapid.T) occurrence {
		return occurrence{
			at:     anyTime().Draw(t, "at"),
			number: rapid.SampledFrom([]string{"", "0", "0.1", "-0.30", "7", "9007199254740993", "-12345678901234567890.5"}).Draw(t, "number"),
			value:  rapid.SampledFrom([]string{"", `"a"`, `"b"`, "1", "true", `"c"`, `"d"`}).Draw(t, "value"),
		}
	})
}

// naiveKind is what a timeline must be, from the whole history.
func naiveKind(shape timeline.Timeline, occurrences []occurrence) timeline.Timeline {
	t := shape
	var times []int64
	for _, o := range occurrences {
		times = append(times, o.at)
	}
	switch {
	case t.Kind == timeline.Times:
		return naive(t.Keep, times)
	case len(occurrences) == 0:
		return t
	case t.Kind == timeline.Distinct:
		return naiveDistinct(t, occurrences)
	}
	t.Count = int64(len(occurrences))
	slots := map[int64][]occurrence{}
	newest := int64(math.MinInt64)
	for _, o := range occurrences {
		slot := int64(0)
		if t.Width > 0 {
			slot = new(big.Int).Div(big.NewInt(o.at), big.NewInt(t.Width)).Int64() // rounds down
		}
		slots[slot] = append(slots[slot], o)
		newest = max(newest, slot)
	}
	for slot, in := range slots {
		age := new(big.Int).Sub(big.NewInt(newest), big.NewInt(slot))
		if t.Width == 0 || age.Cmp(big.NewInt(int64(t.Keep))) < 0 {
			t.Buckets = append(t.Buckets, naiveBucket(t.Kind, slot, in))
		}
	}
	slices.SortFunc(t.Buckets, func(a, b timeline.Bucket) int { return cmp.Compare(a.Slot, b.Slot) })
	return t
}

func naiveBucket(kind timeline.Kind, slot int64, in []occurrence) timeline.Bucket {
	b := timeline.Bucket{Slot: slot}
	number := func(o occurrence) *big.Rat {
		r, _ := new(big.Rat).SetString(cmp.Or(o.number, "0"))
		return r
	}
	switch kind {
	case timeline.Sum:
		total := new(big.Rat)
		for _, o := range in {
			total.Add(total, number(o))
		}
		b.Count, b.Value = int64(len(in)), decimal(total.FloatString(2))
		return b
	case timeline.Min, timeline.Max:
		slices.SortFunc(in, func(x, y occurrence) int { return number(x).Cmp(number(y)) })
	default:
		slices.SortFunc(in, func(x, y occurrence) int { return cmp.Or(cmp.Compare(x.at, y.at), cmp.Compare(x.value, y.value)) })
	}
	it := in[0]
	if kind == timeline.Max || kind == timeline.Last {
		it = in[len(in)-1]
	}
	if kind == timeline.Min || kind == timeline.Max {
		b.Value = decimal(cmp.Or(it.number, "0"))
	} else {
		b.At, b.Text = it.at, it.value
	}
	return b
}

func naiveDistinct(t timeline.Timeline, occurrences []occurrence) timeline.Timeline {
	t.Count = int64(len(occurrences))
	last := map[string]int64{}
	for _, o := range occurrences {
		if at, ok := last[o.value]; !ok || at < o.at {
			last[o.value] = o.at
		}
	}
	type seen struct {
		at   int64
		hash uint64
	}
	var list []seen
	for value, at := range last {
		list = append(list, seen{at, naiveHash(value)})
	}
	slices.SortFunc(list, func(a, b seen) int { return cmp.Or(cmp.Compare(b.at, a.at), cmp.Compare(b.hash, a.hash)) })
	for _, s := range list[:min(t.Keep, len(list))] {
		t.Times, t.Hashes = append(t.Times, s.at), append(t.Hashes, s.hash)
	}
	return t
}

func naiveHash(value string) uint64 {
	h := sha256.Sum256([]byte(value))
	return binary.BigEndian.Uint64(h[:8])
}

// What is kept is bounded, however much happens.
func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	for _, shape := range []timeline.Timeline{
		{Keep: timeline.MaxKeep},
		{Kind: timeline.Distinct, Keep: timeline.MaxKeep},
		{Kind: timeline.Sum, Keep: timeline.MaxBuckets, Width: 1000},
		{Kind: timeline.First, Keep: timeline.MaxBuckets, Width: 1000},
		{Kind: timeline.Sum},
		{Kind: timeline.Last},
	} {
		for i := range 20_000 {
			at := int64(i)*1500 - r.Int64N(10_000)
			add(&shape, occurrence{at: at, number: "0.1", value: fmt.Sprint(i)})
		}
		if n := max(len(shape.Times), len(shape.Hashes), len(shape.Buckets)); n > timeline.MaxBuckets {
			t.Errorf("kind %d keeps %d", shape.Kind, n)
		}
	}
}

func BenchmarkSums(b *testing.B) {
	for _, width := range []int64{0, 3_600_000} {
		b.Run(fmt.Sprintf("width %d", width), func(b *testing.B) {
			t := timeline.Timeline{Kind: timeline.Sum, Width: width}
			if width > 0 {
				t.Keep = 722
			}
			price := decimal("139.12")
			at := int64(1_700_000_000_000)
			b.ReportAllocs()
			for b.Loop() {
				at += 600_000
				t.AddNumber(at, price)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "occurrences/s")
		})
	}
}
