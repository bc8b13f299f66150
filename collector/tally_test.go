package collector

import (
	"fmt"
	"sync"
	"testing"
	"time"
)

func TestASkewIsToldToWithinItsBucket(t *testing.T) {
	t.Parallel()
	for _, d := range []time.Duration{0, time.Millisecond, 7 * time.Millisecond, time.Second, 10 * time.Second, time.Hour, 48 * time.Hour, 24 * 30 * time.Hour} {
		for _, sign := range []time.Duration{1, -1} {
			want := sign * d
			got := bucketSkew(skewBucket(want))
			if d > 0 && (float64(got)/float64(want) < 0.6 || float64(got)/float64(want) > 1.6) || d == 0 && got != 0 {
				t.Errorf("%v is told as %v", want, got)
			}
		}
	}
	for _, d := range []time.Duration{1<<63 - 1, -1 << 63} {
		if b := skewBucket(d); b < 0 || b >= skewBuckets {
			t.Errorf("%v is in bucket %d", d, b)
		}
	}
	var buckets [skewBuckets]int64
	for i := range 100 {
		d := 100 * time.Millisecond
		if i >= 90 {
			d = -time.Hour
		}
		buckets[skewBucket(d)]++
	}
	s := summarize(buckets)
	if s.Events != 100 || s.Median < 60*time.Millisecond || s.Median > 160*time.Millisecond || s.P95 < 36*time.Minute || s.P95 > 96*time.Minute {
		t.Errorf("%+v", s)
	}
}

func TestNothingThatIsAddedIsLostWhileItIsTaken(t *testing.T) {
	t.Parallel()
	ts := newTallies()
	const workers, each = 8, 500
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				var tl tally
				tl.accepted(&cleaned{kind: "track"}, &finding{}, "x")
				tl.rejected("track", &fault{code: fmt.Sprint("c", i)})
				ts.add(Grant{SourceID: int32(w % 3), WorkspaceID: 1}, &tl, i%10 != 0)
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	var sum [tallyCounts]int64
	collect := func(taken map[int32]*sourceTally) {
		for _, s := range taken {
			for i, n := range s.counts {
				sum[i] += n
			}
			if len(s.faults) > maxFaults+1 || len(s.samples) > maxSamples {
				t.Errorf("%d faults and %d samples are kept", len(s.faults), len(s.samples))
			}
		}
	}
	for n := 0; ; n++ {
		taken := ts.take()
		if n%2 == 0 {
			ts.giveBack(taken) // could not be written
		} else {
			collect(taken)
		}
		select {
		case <-done:
			collect(ts.take())
			if want := int64(workers * each); sum[countAccepted] != want*9/10 || sum[countUnavailable] != want/10 || sum[countRejected] != want*9/10 {
				t.Errorf("%v of %d", sum, want)
			}
			return
		default:
		}
	}
}

func TestASampleOfARejectedEventNamesNobody(t *testing.T) {
	t.Parallel()
	for want, path := range map[string][]string{
		"/properties/price":        {"price", "properties"},
		"/traits/…":                {"ada@example.com", "traits"},
		"/properties/items/3/…":    {"+491701234567", "3", "items", "properties"},
		"/properties/…":            {"491701234567", "properties"},
		"/context/first name/last": {"last", "first name", "context"},
	} {
		if got := impersonal(&fault{path: path}); got != want {
			t.Errorf("%v is told as %s, want %s", path, got, want)
		}
	}
}
