package profiles_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/profiles"
	"github.com/mubatch/mubatch/profiles/profilestest"
	"github.com/mubatch/mubatch/profiles/rule"
)

func parsed(t testing.TB, text string) *rule.Rule {
	t.Helper()
	r, err := rule.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// populate makes people who buy, tell of themselves, and are visitors before.
func (w *town) populate(rng *rand.Rand, people int) {
	w.t.Helper()
	var events []profiles.Message
	for i := range people {
		user, anon := fmt.Sprint("u", i), ""
		if i%3 == 0 {
			anon = fmt.Sprint("a", i)
		}
		for j := range rng.IntN(4) {
			e := profilestest.Event{
				ID: fmt.Sprintf("m%d-%d", i, j), Type: "track", Event: "Order", User: user, Anon: anon, Revenue: rng.IntN(100),
				At: time.Now().Add(-time.Duration(rng.IntN(20*24)) * time.Hour),
			}
			if anon != "" && j == 0 {
				e.User = ""
			}
			events = append(events, e.Message())
		}
		events = append(events, profilestest.Event{
			ID: fmt.Sprintf("i%d", i), Type: "identify", User: user, Anon: anon, At: time.Now(),
			Traits: map[string]any{"country": []string{"DE", "FR", "US"}[rng.IntN(3)]},
		}.Message())
	}
	for chunk := range slices.Chunk(events, 2000) {
		w.apply(chunk...)
	}
}

var previewed = []string{
	`{"trait": "country", "op": "eq", "value": "DE"}`,
	`{"event": "Order", "within": "10d"}`,
	`{"event": "Order", "where": [{"property": "revenue", "op": "gte", "value": 50}], "count": {"gte": 2}}`,
	`{"not": {"event": "Order"}}`,
	`{"all": [{"segment": "germans"}, {"event": "Order", "count": {"gte": 2}, "within": "12d"}]}`,
	`{"any": [{"event": "Refund"}, {"consent": "ad_storage", "is": "granted"}]}`,
	`{"event": "Order", "sum": {"property": "revenue", "gte": 80}, "within": "15d"}`,
	`{"event": "Order", "distinct": {"property": "revenue", "gte": 2}}`,
	`{"sequence": [{"event": "Order"}, {"event": "Order", "within": "6d"}], "then_not": {"event": "Order", "within": "2d"}}`,
}

// Whether what people did is in their profiles or only in the archive, a preview of everybody is what the segment's members
// are afterwards.
func TestAnExactPreviewIsWhatTheSegmentWillBe(t *testing.T) {
	t.Parallel()
	w := newTown(t, 3)
	w.populate(rand.New(rand.NewPCG(3, 4)), 150)
	german := w.segment("germans", previewed[0])
	all := one[int64](t, w.pool, `SELECT count(*) FROM profiles`)
	for i, text := range previewed {
		r := parsed(t, text)
		check := func(when string) map[profiles.Key]bool {
			t.Helper()
			for _, exact := range []bool{true, false} {
				p, err := w.reader.Preview(t.Context(), 1, r, profiles.PreviewOptions{Exact: exact, Sample: 1000, Patience: time.Minute})
				if err != nil {
					t.Fatal(err)
				}
				if !p.Exact || p.Profiles != all || p.Looked != all || p.Low != p.Estimate || p.High != p.Estimate || p.Estimate != int64(len(p.Sample)) {
					t.Errorf("%s, %s: %+v of %d", text, when, p, all)
				}
				if exact {
					continue
				}
				members := map[profiles.Key]bool{}
				for _, m := range p.Sample {
					members[m.ID] = true
				}
				return members
			}
			return nil
		}
		before := check("read from the archive")
		id := german
		if i > 0 {
			id = w.segment(fmt.Sprint("p", i), text)
		}
		real := map[profiles.Key]bool{}
		members, err := w.reader.Members(t.Context(), 1, id, profiles.Place{}, 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range members {
			real[m.Profile] = true
		}
		if diff := gocmp.Diff(real, before); diff != "" {
			t.Errorf("%s, read from the archive (-members +preview):\n%s", text, diff)
		}
		if diff := gocmp.Diff(real, check("folded")); diff != "" {
			t.Errorf("%s, folded (-members +preview):\n%s", text, diff)
		}
	}
}

// An estimate of 95 % confidence is right about that often.
func TestAnEstimateKnowsHowSureItIs(t *testing.T) {
	t.Parallel()
	w := newTown(t, 3)
	w.populate(rand.New(rand.NewPCG(5, 6)), 600)
	for _, text := range previewed[:3] {
		r := parsed(t, text)
		truth, err := w.reader.Preview(t.Context(), 1, r, profiles.PreviewOptions{Exact: true})
		if err != nil {
			t.Fatal(err)
		}
		const times = 60
		right, width := 0, int64(0)
		for range times {
			p, err := w.reader.Preview(t.Context(), 1, r, profiles.PreviewOptions{Most: 120, Sample: 5, Patience: time.Minute})
			if err != nil {
				t.Fatal(err)
			}
			if p.Exact || p.Looked < 120 || p.Looked > 123 || p.Profiles != truth.Profiles || p.Low > p.Estimate || p.High < p.Estimate || len(p.Sample) != 5 {
				t.Fatalf("%s: %+v", text, p)
			}
			if p.Low <= truth.Estimate && truth.Estimate <= p.High {
				right++
			}
			width += p.High - p.Low
		}
		if right < times*8/10 {
			t.Errorf("%s: %d of %d estimates are right", text, right, times)
		}
		if mean := width / times; mean > truth.Profiles/5 {
			t.Errorf("%s: estimates are within %d of %d", text, mean, truth.Profiles)
		}
	}
}

func TestAPreviewThatCannotBe(t *testing.T) {
	t.Parallel()
	w := newTown(t, 2)
	r := parsed(t, `{"all": [{"event": "Order"}, {"not": {"segment": "nothing"}}, {"any": [{"segment": "germans"}]}]}`)
	w.define("germans", previewed[0])
	_, err := w.reader.Preview(t.Context(), 1, r, profiles.PreviewOptions{})
	var wrong *rule.Error
	want := []rule.Problem{{Pointer: "#/all/1/not/segment", Detail: "no segment has this key"}}
	if !errors.As(err, &wrong) || !gocmp.Equal(want, wrong.Problems) {
		t.Errorf("a reference that leads nowhere: %v", err)
	}
	if _, err := w.reader.Preview(t.Context(), 2, parsed(t, `{"segment": "germans"}`), profiles.PreviewOptions{}); !errors.As(err, &wrong) {
		t.Errorf("a reference to another workspace: %v", err)
	}

	p, err := w.reader.Preview(t.Context(), 1, parsed(t, previewed[1]), profiles.PreviewOptions{})
	if diff := gocmp.Diff(profiles.Preview{Exact: true}, p); diff != "" || err != nil {
		t.Errorf("of nobody: %v (-want +got):\n%s", err, diff)
	}
	w.populate(rand.New(rand.NewPCG(7, 8)), 300)
	if _, err := w.reader.Preview(t.Context(), 1, parsed(t, previewed[1]), profiles.PreviewOptions{Exact: true, Patience: time.Millisecond}); !errors.Is(err, profiles.ErrTooSlow) {
		t.Errorf("of more than can be looked at: %v", err)
	}
}

// BenchmarkPreview tries rules on 100,000 profiles.
func BenchmarkPreview(b *testing.B) {
	const people = 100_000
	w := newTown(b, 16)
	w.populate(rand.New(rand.NewPCG(1, 1)), people)
	w.segment("folded", previewed[1])
	if _, err := w.pool.Exec(b.Context(), `ANALYZE`); err != nil {
		b.Fatal(err)
	}
	for _, bm := range []struct{ name, rule string }{
		{"trait", previewed[0]}, {"folded", previewed[1]}, {"archive", previewed[2]},
	} {
		for _, exact := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/exact=%v", bm.name, exact), func(b *testing.B) {
				r := parsed(b, bm.rule)
				var looked, width, n int64
				for b.Loop() {
					p, err := w.reader.Preview(b.Context(), 1, r, profiles.PreviewOptions{Exact: exact, Sample: 10})
					if err != nil {
						b.Fatal(err)
					}
					looked, width, n = looked+p.Looked, width+p.High-p.Low, n+1
				}
				b.ReportMetric(float64(looked)/float64(n), "profiles")
				b.ReportMetric(100*float64(width)/float64(2*n*people), "±%")
				b.ReportMetric(float64(looked)/b.Elapsed().Seconds(), "profiles/s")
			})
		}
	}
}
