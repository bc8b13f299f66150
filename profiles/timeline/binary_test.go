package timeline_test

import (
	"bytes"
	"encoding/hex"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/mubatch/mubatch/profiles/timeline"
)

func TestEncodingIsStable(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		give timeline.Timeline
		want string
	}{
		{"nothing", timeline.Timeline{}, "010000"},
		{"only the count", fold(0, []int64{10, 13}), "010002" + "1a" + "03"},
		{"everything is kept", fold(3, []int64{10, 13}), "010302" + "1a" + "03"},
		{"the newest are kept", fold(2, []int64{-1, 10, 13}), "010203" + "1a" + "03" + "0b"},
		{"a time of today", fold(1, []int64{1_760_000_000_000}), "010101" + "8080e682b966"},
		{
			"a sum of all time",
			timeline.Timeline{Kind: timeline.Sum, Count: 2, Buckets: []timeline.Bucket{{Count: 2, Value: decimal("139.12")}}},
			"0201" + "000002" + "01" + "02" + "0403" + "3658",
		},
		{
			"sums of two hours",
			timeline.Timeline{Kind: timeline.Sum, Keep: 722, Width: 3_600_000, Count: 3, Buckets: []timeline.Bucket{
				{Slot: 488_888, Count: 1, Value: decimal("-0.5")}, {Slot: 488_890, Count: 2},
			}},
			"0201" + "d205" + "80dddb01" + "03" + "02" + "f0d63b" + "01" + "030105" + "02" + "02" + "00",
		},
		{
			"a small number",
			timeline.Timeline{Kind: timeline.Min, Count: 1, Buckets: []timeline.Bucket{{Value: decimal("100")}}},
			"0202" + "000001" + "01" + "020401",
		},
		{
			"a first value",
			timeline.Timeline{Kind: timeline.First, Count: 1, Buckets: []timeline.Bucket{{At: -7, Text: `"a"`}}},
			"0204" + "000001" + "01" + "0d" + "03226122",
		},
		{
			"different values",
			timeline.Timeline{Kind: timeline.Distinct, Keep: 3, Count: 5, Times: []int64{9, 4}, Hashes: []uint64{1, 1 << 63}},
			"0206" + "030005" + "02" + "12" + "05" + "0000000000000001" + "8000000000000000",
		},
		{"nothing of a kind", timeline.Timeline{Kind: timeline.Last}, "0205" + "000000"},
		{"the extremes", fold(2, []int64{math.MinInt64, math.MaxInt64}), "010202" + "feffffffffffffffff01" + "ffffffffffffffffff01"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b, err := tt.give.AppendBinary(nil)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, hex.EncodeToString(b)); diff != "" {
				t.Errorf("bytes (-want +got):\n%s", diff)
			}
			got, rest, err := timeline.Decode(append(b, "rest"...))
			if err != nil || string(rest) != "rest" {
				t.Fatalf("decoded with rest %q, error %v", rest, err)
			}
			if diff := cmp.Diff(tt.give, got); diff != "" {
				t.Errorf("decoded (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAppendBinaryRefusesWhatCannotBe(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		give timeline.Timeline
	}{
		{"a keep below 0", timeline.Timeline{Keep: -1}},
		{"a keep above the maximum", timeline.Timeline{Keep: timeline.MaxKeep + 1}},
		{"a count below 0", timeline.Timeline{Count: -1}},
		{"a first time without a count", timeline.Timeline{First: 1}},
		{"more times than the keep", timeline.Timeline{Keep: 1, Count: 2, First: 1, Last: 2, Times: []int64{2, 1}}},
		{"fewer times than are known", timeline.Timeline{Keep: 2, Count: 2, First: 1, Last: 2, Times: []int64{2}}},
		{"times in ascending order", timeline.Timeline{Keep: 3, Count: 3, First: 1, Last: 3, Times: []int64{3, 1, 2}}},
		{"a last time that is not the newest", timeline.Timeline{Keep: 1, Count: 1, First: 1, Last: 2, Times: []int64{1}}},
		{"a first time after the oldest kept", timeline.Timeline{Keep: 1, Count: 2, First: 3, Last: 2, Times: []int64{2}}},
		{"a kind that is unknown", timeline.Timeline{Kind: 7}},
		{"buckets of times", timeline.Timeline{Count: 1, Buckets: []timeline.Bucket{{Count: 1}}}},
		{"times of a sum", timeline.Timeline{Kind: timeline.Sum, Count: 1, Times: []int64{1}, Buckets: []timeline.Bucket{{Count: 1}}}},
		{"two buckets of all time", timeline.Timeline{Kind: timeline.Sum, Count: 2, Buckets: []timeline.Bucket{{Count: 1}, {Slot: 1, Count: 1}}}},
		{"a width without a keep", timeline.Timeline{Kind: timeline.Sum, Width: 1}},
		{"buckets out of order", timeline.Timeline{Kind: timeline.Min, Keep: 5, Width: 1, Count: 2, Buckets: []timeline.Bucket{{Slot: 1}, {Slot: 0}}}},
		{"a bucket too old", timeline.Timeline{Kind: timeline.Min, Keep: 5, Width: 1, Count: 2, Buckets: []timeline.Bucket{{Slot: 1}, {Slot: 6}}}},
		{"a time outside its bucket", timeline.Timeline{Kind: timeline.First, Keep: 5, Width: 10, Count: 1, Buckets: []timeline.Bucket{{Slot: 1, At: 20}}}},
		{"a bucket with a text in a sum", timeline.Timeline{Kind: timeline.Sum, Count: 1, Buckets: []timeline.Bucket{{Count: 1, Text: "x"}}}},
		{"a bucket of a sum with nothing in it", timeline.Timeline{Kind: timeline.Sum, Count: 1, Buckets: []timeline.Bucket{{}}}},
		{"more counted than there were", timeline.Timeline{Kind: timeline.Sum, Count: 1, Buckets: []timeline.Bucket{{Count: 2}}}},
		{"a value twice", timeline.Timeline{Kind: timeline.Distinct, Keep: 3, Count: 2, Times: []int64{2, 1}, Hashes: []uint64{5, 5}}},
		{"values out of order", timeline.Timeline{Kind: timeline.Distinct, Keep: 3, Count: 2, Times: []int64{1, 1}, Hashes: []uint64{5, 6}}},
		{"a time of no value", timeline.Timeline{Kind: timeline.Distinct, Keep: 3, Count: 2, Times: []int64{2, 1}, Hashes: []uint64{5}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if b, err := tt.give.AppendBinary(nil); err == nil {
				t.Errorf("encoded as %x, want an error", b)
			}
		})
	}
}

func TestDecodeReadsWhatAppendBinaryWrites(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		want := anyShape().Draw(t, "shape")
		for _, o := range rapid.SliceOfN(anyOccurrence(), 0, 10).Draw(t, "occurrences") {
			add(&want, o)
		}
		rest := rapid.SliceOf(rapid.Byte()).Draw(t, "rest")
		b, err := want.AppendBinary([]byte("before"))
		if err != nil {
			t.Fatal(err)
		}
		got, after, err := timeline.Decode(append(b, rest...)[len("before"):])
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("timeline (-want +got):\n%s", diff)
		}
		if !bytes.Equal(rest, after) {
			t.Errorf("rest is %x, want %x", after, rest)
		}
		for cut := range len(b) - len("before") {
			if _, _, err := timeline.Decode(b[len("before"):][:cut]); err == nil {
				t.Errorf("%x, cut to %d bytes, was decoded", b, cut)
			}
		}
	})
}

func FuzzDecode(f *testing.F) {
	for _, seed := range []timeline.Timeline{
		{},
		fold(0, []int64{1, 2, 3}),
		fold(2, []int64{3, 2, 1}),
		fold(3, []int64{math.MinInt64, 0, math.MaxInt64}),
		{Keep: timeline.MaxKeep},
		{Kind: timeline.Sum, Count: 2, Buckets: []timeline.Bucket{{Count: 2, Value: decimal("9223372036854775808.5")}}},
		{Kind: timeline.First, Keep: 9, Width: 1000, Count: 2, Buckets: []timeline.Bucket{{Slot: -1, At: -5, Text: `"a"`}, {Slot: 2, At: 2000}}},
		{Kind: timeline.Distinct, Keep: 3, Count: 5, Times: []int64{9, 4}, Hashes: []uint64{1, 1 << 63}},
	} {
		b, err := seed.AppendBinary(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte("\x01\xe8\x07\xff\xff\xff\xff\xff\xff\xff\xff\x7f\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, rest, err := timeline.Decode(b)
		if err != nil {
			return
		}
		if !bytes.HasSuffix(b, rest) || len(got.Times)+len(got.Buckets) > len(b)-len(rest) {
			t.Fatalf("%x: decoded to %d times with %d bytes left", b, len(got.Times), len(rest))
		}
		encoded, err := got.AppendBinary(nil)
		if err != nil {
			t.Fatalf("%x: decoded to what cannot be encoded: %v", b, err)
		}
		again, _, err := timeline.Decode(encoded)
		if diff := cmp.Diff(got, again); err != nil || diff != "" {
			t.Fatalf("%x: error %v, decoded again (-first +second):\n%s", b, err, diff)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	var times []int64
	for i := range int64(10) {
		times = append(times, 1_760_000_000_000+i*86_400_000)
	}
	encoded, err := fold(10, times).AppendBinary(nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := timeline.Decode(encoded); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(encoded)), "bytes")
}
