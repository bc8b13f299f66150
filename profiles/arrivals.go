package profiles

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"hash/fnv"
	"slices"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
)

// The tag numbers its events from 1 within a stream, which is what one tab sends in one day: context.mub is
// {"s": the stream, "n": the number}. A number that is missing below one that is there is an event that was made and has not
// arrived. Which numbers have arrived is a set, so it does not matter in which order, how often, or at which lanes.

const (
	streamDay    = 3                   // characters in front of a stream's name: its day, in base 36 since 1970
	maxNumber    = 100_000             // beyond it no tab has sent that much in a day
	arrivalLate  = 35 * 24 * time.Hour // later, or earlier than a day ahead, the browser's clock tells no day
	arrivalEarly = 24 * time.Hour
)

// arrivalKey is what numbers are kept under.
type arrivalKey struct {
	workspace, source int32
	day               int32 // since 1970
}

func (k arrivalKey) date() time.Time { return time.Unix(int64(k.day)*24*3600, 0).UTC() }

// arrived is what a transaction adds under a key.
type arrived struct {
	runs       []run
	duplicates int64
}

// run is numbers of a stream, from first to last, the earliest of which arrived in a minute since the beginning of the day
// before the one before the stream's.
type run struct {
	stream      uint64
	first, last uint32
	minute      uint32
}

// numbered returns the number of the event in a message, if it has one that can be believed.
func numbered(m *Message) (arrivalKey, run, bool) {
	body, ok := m.event() // also of what is quarantined: it has arrived
	if !ok || !bytes.Contains(body, []byte(`"mub":{`)) {
		return arrivalKey{}, run{}, false
	}
	var e struct {
		Context struct {
			Mub struct {
				Stream string `json:"s"`
				Number uint32 `json:"n"`
			} `json:"mub"`
		} `json:"context"`
	}
	if json.Unmarshal(body, &e) != nil {
		return arrivalKey{}, run{}, false
	}
	stream, n := e.Context.Mub.Stream, e.Context.Mub.Number
	if len(stream) <= streamDay || len(stream) > 64 || n == 0 || n > maxNumber {
		return arrivalKey{}, run{}, false
	}
	day, err := strconv.ParseUint(stream[:streamDay], 36, 16)
	if err != nil {
		return arrivalKey{}, run{}, false
	}
	k := arrivalKey{m.Workspace, m.Source, int32(day)}
	since := m.Received.Sub(k.date())
	if since > arrivalLate || since < -arrivalEarly {
		return arrivalKey{}, run{}, false
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(stream))
	return k, run{h.Sum64(), n, n, uint32((since + 2*arrivalEarly) / time.Minute)}, true
}

// union returns the same numbers in as few runs as there can be, by stream and number. It reuses runs.
func union(runs []run) []run {
	slices.SortFunc(runs, func(a, b run) int {
		return cmp.Or(cmp.Compare(a.stream, b.stream), cmp.Compare(a.first, b.first))
	})
	merged := runs[:0]
	for _, r := range runs {
		if n := len(merged); n > 0 && merged[n-1].stream == r.stream && r.first <= merged[n-1].last+1 {
			before := &merged[n-1]
			before.last, before.minute = max(before.last, r.last), min(before.minute, r.minute)
			continue
		}
		merged = append(merged, r)
	}
	return merged
}

// appendRuns encodes runs as [union] leaves them: for each stream its 8 bytes, how many runs it has, and of each how many
// numbers lie between it and the one before, how many it has itself, and its minute.
func appendRuns(b []byte, runs []run) []byte {
	for len(runs) > 0 {
		n := 1
		for n < len(runs) && runs[n].stream == runs[0].stream {
			n++
		}
		b = binary.BigEndian.AppendUint64(b, runs[0].stream)
		b = binary.AppendUvarint(b, uint64(n))
		next := uint32(1)
		for _, r := range runs[:n] {
			b = binary.AppendUvarint(b, uint64(r.first-next))
			b = binary.AppendUvarint(b, uint64(r.last-r.first))
			b = binary.AppendUvarint(b, uint64(r.minute))
			next = r.last + 1
		}
		runs = runs[n:]
	}
	return b
}

var errArrivals = errors.New("numbers of events cannot be read")

// decodeRuns appends the runs of records one behind the other.
func decodeRuns(runs []run, b []byte) ([]run, error) {
	uvarint := func() uint32 {
		v, n := binary.Uvarint(b)
		if n <= 0 || v > 1<<31 {
			b = nil
			return 0
		}
		b = b[n:]
		return uint32(v)
	}
	for len(b) > 0 {
		if len(b) < 9 {
			return nil, errArrivals
		}
		stream := binary.BigEndian.Uint64(b)
		b = b[8:]
		next := uint32(1)
		for n := uvarint(); n > 0; n-- {
			if len(b) < 3 {
				return nil, errArrivals
			}
			r := run{stream: stream, first: next + uvarint()}
			r.last = r.first + uvarint()
			r.minute = uvarint()
			if r.last > maxNumber {
				return nil, errArrivals
			}
			runs, next = append(runs, r), r.last+1
		}
	}
	return runs, nil
}

// Arrivals are how many events were made in a day and what became of them: Sent = Received + Missing + InFlight.
type Arrivals struct {
	Day        time.Time
	Streams    int64
	Sent       int64 // as far as the highest number of each stream tells
	Received   int64
	Missing    int64
	InFlight   int64 // missing, but noticed so late that they may still come
	Duplicates int64 // came again, and are not in Received
}

// arrivalPatience is for how long an event that is missing may still be on its way.
const arrivalPatience = time.Hour

// count returns what runs, as [union] leaves them, tell of their day.
func (k arrivalKey) count(runs []run, now time.Time) Arrivals {
	a := Arrivals{Day: k.date()}
	base := k.date().Add(-2 * arrivalEarly)
	for len(runs) > 0 {
		n := 1
		for n < len(runs) && runs[n].stream == runs[0].stream {
			n++
		}
		a.Streams++
		a.Sent += int64(runs[n-1].last)
		noticed := runs[n-1].minute // by the first that came of those behind the gap
		for i := n - 1; i >= 0; i-- {
			r := runs[i]
			noticed = min(noticed, r.minute)
			before := uint32(0)
			if i > 0 {
				before = runs[i-1].last
			}
			a.Received += int64(r.last - r.first + 1)
			gap := int64(r.first - before - 1)
			if now.Sub(base.Add(time.Duration(noticed)*time.Minute)) < arrivalPatience {
				a.InFlight += gap
			} else {
				a.Missing += gap
			}
		}
		runs = runs[n:]
	}
	return a
}
