package collector_test

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"

	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/collector/redistest"
	"github.com/mubatch/mubatch/profiles"
)

func newStream(t testing.TB) (*collector.Stream, *redis.Client, string) {
	t.Helper()
	rdb, prefix := redistest.New(t)
	return collector.NewStream(collector.StreamConfig{Prefix: prefix, Lanes: 4}, rdb), rdb, prefix
}

func message(id string, body []byte) profiles.Message {
	return profiles.Message{
		Kind: profiles.KindEvent, Workspace: 1, Source: 1, ID: profiles.MessageKey(id),
		Received: time.UnixMilli(1_790_000_000_000).UTC(), Body: body,
	}
}

func TestOffset(t *testing.T) {
	t.Parallel()
	o, err := collector.ParseOffset("1790000000123-7")
	if err != nil || o != (collector.Offset{Ms: 1790000000123, Seq: 7}) || o.String() != "1790000000123-7" {
		t.Errorf("got %v, %v", o, err)
	}
	for _, bad := range []string{"", "1", "1-", "-1", "a-1", "1-1-1", "+1-1", "18446744073709551616-0"} {
		if o, err := collector.ParseOffset(bad); err == nil {
			t.Errorf("%q is %v", bad, o)
		}
	}
	less := []collector.Offset{{}, {0, 1}, {1, 0}, {1, 1}, {2, 0}}
	for i, a := range less {
		for j, b := range less {
			if got := a.Compare(b); got < 0 != (i < j) || got > 0 != (i > j) {
				t.Errorf("%v.Compare(%v) = %d", a, b, got)
			}
		}
	}
}

func TestALaneIsReadInTheOrderItWasWritten(t *testing.T) {
	t.Parallel()
	s, _, _ := newStream(t)
	ctx := t.Context()
	var want []profiles.Message
	for i := range 10 {
		m := message(fmt.Sprint(i), []byte{byte(i)})
		want = append(want, m)
		err := s.Append(ctx, map[int][]profiles.Message{3: {m}, 1: {message("other", nil)}, 2: {}})
		if err != nil {
			t.Fatal(err)
		}
	}
	var got []profiles.Message
	var after collector.Offset
	for len(got) < 10 {
		entries, err := s.Read(ctx, 3, after, 3, 1<<20, time.Millisecond)
		if err != nil || len(entries) == 0 || len(entries) > 3 {
			t.Fatalf("%d entries, %v", len(entries), err)
		}
		for _, e := range entries {
			if e.Err != nil || e.Offset.Compare(after) <= 0 {
				t.Fatalf("entry %v after %v: %v", e.Offset, after, e.Err)
			}
			got, after = append(got, e.Messages...), e.Offset
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if entries, err := s.Read(ctx, 3, after, 3, 1<<20, 0); err != nil || len(entries) != 0 {
		t.Errorf("behind the end: %d entries, %v", len(entries), err)
	}
}

func TestAReadStaysWithinItsBytes(t *testing.T) {
	t.Parallel()
	s, _, _ := newStream(t)
	for i := range 20 {
		m := message(fmt.Sprint(i), bytes.Repeat([]byte("x"), 100<<10))
		if err := s.Append(t.Context(), map[int][]profiles.Message{0: {m}}); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct{ maxEntries, maxBytes, want int }{
		{100, 1 << 20, 10}, {100, 1, 1}, {4, 1 << 20, 4}, {100, 10 << 20, 20},
	} {
		entries, err := s.Read(t.Context(), 0, collector.Offset{}, tt.maxEntries, tt.maxBytes, time.Millisecond)
		if err != nil || len(entries) != tt.want {
			t.Errorf("at most %d entries and %d bytes: %d, %v; want %d", tt.maxEntries, tt.maxBytes, len(entries), err, tt.want)
		}
	}
}

func TestALargeAppendIsSplitIntoFrames(t *testing.T) {
	t.Parallel()
	s, _, _ := newStream(t)
	var msgs []profiles.Message
	for i := range 100 {
		msgs = append(msgs, message(fmt.Sprint(i), bytes.Repeat([]byte("x"), 30<<10)))
	}
	msgs = append(msgs, message("huge", bytes.Repeat([]byte("y"), 2<<20)), message("last", []byte("z")))
	if err := s.Append(t.Context(), map[int][]profiles.Message{0: msgs}); err != nil {
		t.Fatal(err)
	}
	entries, err := s.Read(t.Context(), 0, collector.Offset{}, 100, 100<<20, time.Millisecond)
	if err != nil || len(entries) != 5 {
		t.Fatalf("%d frames, %v; want 5", len(entries), err)
	}
	var got []profiles.Message
	for _, e := range entries {
		got = append(got, e.Messages...)
	}
	if !reflect.DeepEqual(msgs, got) {
		t.Errorf("read %d messages, not the %d written", len(got), len(msgs))
	}
}

func TestWhatIsNoFrameIsReadWithItsError(t *testing.T) {
	t.Parallel()
	s, rdb, prefix := newStream(t)
	for _, values := range [][]any{{"f", "not a frame"}, {"g", "no frame at all"}} {
		if err := rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: prefix + "{0}", Values: values}).Err(); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := s.Read(t.Context(), 0, collector.Offset{}, 10, 1<<20, time.Millisecond)
	if err != nil || len(entries) != 2 {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	for _, e := range entries {
		if !errors.Is(e.Err, collector.ErrFrame) || len(e.Raw) == 0 {
			t.Errorf("%v: %q, %v; want the bytes and ErrFrame", e.Offset, e.Raw, e.Err)
		}
	}
}

func TestALaneThatFailsIsNamed(t *testing.T) {
	t.Parallel()
	s, rdb, prefix := newStream(t)
	if err := rdb.Set(t.Context(), prefix+"{2}", "not a stream", 0).Err(); err != nil {
		t.Fatal(err)
	}
	err := s.Append(t.Context(), map[int][]profiles.Message{1: {message("a", nil)}, 2: {message("b", nil)}})
	var failed *collector.AppendError
	if !errors.As(err, &failed) || len(failed.Lanes) != 1 || !strings.Contains(failed.Lanes[2].Error(), "WRONGTYPE") {
		t.Errorf("got %v, want an error of lane 2 alone", err)
	}
	if entries, err := s.Read(t.Context(), 1, collector.Offset{}, 10, 1<<20, time.Millisecond); err != nil || len(entries) != 1 {
		t.Errorf("lane 1: %d entries, %v", len(entries), err)
	}
}

func TestTrimKeepsWhatIsNotBehind(t *testing.T) {
	t.Parallel()
	redistest.RequireReal(t)
	s, _, _ := newStream(t)
	ctx := t.Context()
	for i := range 500 { // more than fit into one node of the stream
		if err := s.Append(ctx, map[int][]profiles.Message{0: {message(fmt.Sprint(i), nil)}}); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := s.Read(ctx, 0, collector.Offset{}, 1000, 1<<20, time.Millisecond)
	if err != nil || len(entries) != 500 {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	if err := s.Trim(ctx, 0, entries[123].Offset); err != nil {
		t.Fatal(err)
	}
	left, err := s.Read(ctx, 0, collector.Offset{}, 1000, 1<<20, time.Millisecond)
	if err != nil || len(left) != 500-123 || left[0].Offset != entries[123].Offset {
		t.Errorf("%d entries left, %v", len(left), err)
	}
	st, err := s.State(ctx, 0)
	want := collector.State{Exists: true, Last: entries[499].Offset, Length: 500 - 123, RunID: st.RunID}
	if err != nil || st != want || st.RunID == "" {
		t.Errorf("state %+v, %v; want %+v with a run id", st, err, want)
	}
}

func TestEnsureAfter(t *testing.T) {
	t.Parallel()
	redistest.RequireReal(t)
	s, _, _ := newStream(t)
	ctx := t.Context()
	if st, err := s.State(ctx, 0); err != nil || st.Exists {
		t.Fatalf("a lane never written to: %+v, %v", st, err)
	}
	future := collector.Offset{Ms: uint64(time.Now().Add(time.Hour).UnixMilli()), Seq: 5}
	for range 2 { // the second time it is so already
		if err := s.EnsureAfter(ctx, 0, future); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.EnsureAfter(ctx, 0, collector.Offset{Ms: 1}); err != nil {
		t.Errorf("behind already: %v", err)
	}
	if err := s.Append(ctx, map[int][]profiles.Message{0: {message("a", nil)}}); err != nil {
		t.Fatal(err)
	}
	entries, err := s.Read(ctx, 0, future, 10, 1<<20, time.Millisecond)
	if err != nil || len(entries) != 1 || len(entries[0].Messages) != 1 {
		t.Errorf("after %v: %v, %v; want the one entry", future, entries, err)
	}
	entries, err = s.Read(ctx, 0, collector.Offset{}, 10, 1<<20, time.Millisecond)
	if err != nil || len(entries) != 2 || len(entries[0].Messages) != 0 || entries[0].Err != nil {
		t.Errorf("from the start: %v, %v; want an empty frame and the entry", entries, err)
	}
	if err := s.EnsureAfter(ctx, 1, collector.Offset{}); err != nil {
		t.Error(err)
	}
	if st, err := s.State(ctx, 1); err != nil || st.Exists {
		t.Errorf("after the start lies everything: %+v, %v", st, err)
	}
}

func TestCheckTellsADurableRedisFromOthers(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		args   []string
		reason string
	}{
		{"all settings right", nil, ""},
		{"fsync every second", []string{"--appendfsync", "everysec"}, `appendfsync is "everysec", must be "always"`},
		{"no append-only file", []string{"--appendonly", "no"}, `appendonly is "no"`},
		{"evicts keys", []string{"--maxmemory-policy", "allkeys-lru"}, `maxmemory-policy is "allkeys-lru"`},
		{"CONFIG is not known", []string{"--rename-command", "CONFIG", ""}, "does not tell its settings"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := startRedis(t, tt.args...)
			d, err := collector.NewStream(collector.StreamConfig{}, r.client()).Check(t.Context())
			if err != nil || d.Durable != (tt.reason == "") || !strings.Contains(d.Reason, tt.reason) || d.RunID == "" {
				t.Errorf("%+v, %v; want the reason %q", d, err, tt.reason)
			}
		})
	}
	t.Run("an in-process substitute", func(t *testing.T) {
		t.Parallel()
		rdb := redis.NewClient(&redis.Options{Addr: miniredis.RunT(t).Addr()})
		t.Cleanup(func() { rdb.Close() })
		d, err := collector.NewStream(collector.StreamConfig{}, rdb).Check(t.Context())
		if err != nil || d.Durable || !strings.Contains(d.Reason, "does not tell its settings") {
			t.Errorf("%+v, %v", d, err)
		}
	})
	t.Run("nobody there", func(t *testing.T) {
		t.Parallel()
		r := startRedis(t)
		rdb := r.client()
		r.kill()
		if d, err := collector.NewStream(collector.StreamConfig{}, rdb).Check(t.Context()); err == nil || d.Durable {
			t.Errorf("%+v, %v; want an error", d, err)
		}
	})
}

func BenchmarkRead(b *testing.B) {
	s, _, _ := newStream(b)
	msgs := make([]profiles.Message, 100)
	for i := range msgs {
		msgs[i] = message(fmt.Sprint(i), bytes.Repeat([]byte("x"), 700))
	}
	for range 100 {
		if err := s.Append(b.Context(), map[int][]profiles.Message{0: msgs}); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if e, err := s.Read(b.Context(), 0, collector.Offset{}, 1000, 64<<20, time.Millisecond); err != nil || len(e) != 100 {
			b.Fatal(len(e), err)
		}
	}
	b.ReportMetric(float64(b.N*100*len(msgs))/b.Elapsed().Seconds(), "messages/s")
}
