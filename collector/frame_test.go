package collector_test

import (
	"bytes"
	"errors"
	"math"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/profiles"
)

func frameMessages() []profiles.Message {
	return []profiles.Message{
		{
			Kind: profiles.KindEvent, Workspace: 1, Source: 7, ID: profiles.MessageKey("m1"), Key: profiles.MessageKey("k1"),
			Received: time.UnixMilli(1_790_000_000_123).UTC(), Body: []byte(`{"type":"track"}`),
		},
		{
			Kind: profiles.KindClaim, Workspace: math.MaxInt32, ID: profiles.MessageKey("m2"), Key: profiles.MessageKey("k2"),
			Received: time.UnixMilli(-5).UTC(), Body: []byte{0, 1, 2, 255},
		},
		{Kind: 255, Workspace: -1, Source: math.MinInt32, Received: time.UnixMilli(0).UTC()},
	}
}

func TestFrameRoundTrip(t *testing.T) {
	t.Parallel()
	for _, want := range [][]profiles.Message{{}, frameMessages()[:1], frameMessages()} {
		got, err := collector.DecodeFrame(collector.AppendFrame(nil, want))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}

func TestFrameOfAnyPrefixIsRefused(t *testing.T) {
	t.Parallel()
	frame := collector.AppendFrame(nil, frameMessages())
	for n := range frame {
		if _, err := collector.DecodeFrame(frame[:n]); !errors.Is(err, collector.ErrFrame) {
			t.Errorf("the first %d of %d bytes: %v, want ErrFrame", n, len(frame), err)
		}
	}
	if _, err := collector.DecodeFrame(append(frame, 0)); !errors.Is(err, collector.ErrFrame) {
		t.Errorf("a byte too many: %v, want ErrFrame", err)
	}
	frame[0] = 9
	if _, err := collector.DecodeFrame(frame); !errors.Is(err, collector.ErrFrame) {
		t.Errorf("an unknown version: %v, want ErrFrame", err)
	}
}

func TestFrameAllocatesInProportion(t *testing.T) {
	// Not parallel: it looks at what the whole process allocates.
	frame := []byte{1, 0xff, 0xff, 0xff, 0xff, 0x0f} // 4,294,967,295 messages
	frame = append(frame, make([]byte, 1000)...)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := collector.DecodeFrame(frame); !errors.Is(err, collector.ErrFrame) {
		t.Errorf("%v, want ErrFrame", err)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
		t.Errorf("allocated %d bytes for a frame of %d", n, len(frame))
	}
}

// What decodes, encodes to a frame that decodes to the same.
func FuzzDecodeFrame(f *testing.F) {
	f.Add([]byte{})
	f.Add(collector.AppendFrame(nil, nil))
	f.Add(collector.AppendFrame(nil, frameMessages()))
	f.Fuzz(func(t *testing.T, frame []byte) {
		msgs, err := collector.DecodeFrame(frame)
		if err != nil {
			if msgs != nil || !errors.Is(err, collector.ErrFrame) {
				t.Errorf("%d messages, %v", len(msgs), err)
			}
			return
		}
		again, err := collector.DecodeFrame(collector.AppendFrame(nil, msgs))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(msgs, again); diff != "" {
			t.Errorf("(-first +second):\n%s", diff)
		}
	})
}

func BenchmarkFrame(b *testing.B) {
	msgs := make([]profiles.Message, 500)
	for i := range msgs {
		msgs[i] = frameMessages()[0]
		msgs[i].Body = bytes.Repeat([]byte("x"), 700)
	}
	frame := collector.AppendFrame(nil, msgs)
	b.Run("append", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			frame = collector.AppendFrame(frame[:0], msgs)
		}
		b.ReportMetric(float64(b.N*len(msgs))/b.Elapsed().Seconds(), "messages/s")
	})
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := collector.DecodeFrame(frame); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.N*len(msgs))/b.Elapsed().Seconds(), "messages/s")
	})
}
