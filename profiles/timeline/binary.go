package timeline

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// The encoding, version 1: the version byte, then Keep and Count as unsigned varints. If Count is not 0 there follow Last
// as a zigzag varint, the gaps from each kept time to the next older one and, if some occurrences are not kept, the gap
// from the oldest known time to First, all as unsigned varints.
const version1 = 1

// AppendBinary appends t in a compact form that [Decode] reads, and that tells where it ends. It refuses a timeline that
// Add and Merge cannot have made.
func (t Timeline) AppendBinary(b []byte) ([]byte, error) {
	if err := t.check(); err != nil {
		return b, err
	}
	b = append(b, version1)
	b = binary.AppendUvarint(b, uint64(t.Keep))
	b = binary.AppendUvarint(b, uint64(t.Count))
	if t.Count == 0 {
		return b, nil
	}
	b = binary.AppendVarint(b, t.Last)
	oldest := t.Last
	for _, at := range t.Times[min(1, len(t.Times)):] { // the first one is Last
		b = binary.AppendUvarint(b, gap(oldest, at))
		oldest = at
	}
	if t.Count > int64(len(t.Times)) {
		b = binary.AppendUvarint(b, gap(oldest, t.First))
	}
	return b, nil
}

// Decode reads one timeline from the beginning of b and returns what follows it. It accepts any bytes: what is not a
// timeline is an error, and no more memory is taken than b has bytes for.
func Decode(b []byte) (t Timeline, rest []byte, err error) {
	d := decoder{rest: b}
	if v := d.byte(); d.err == nil && v != version1 {
		return Timeline{}, b, fmt.Errorf("timeline: version %d is unknown", v)
	}
	keep, count := d.uvarint(), d.uvarint()
	switch {
	case d.err != nil:
		return Timeline{}, b, d.err
	case keep > MaxKeep:
		return Timeline{}, b, fmt.Errorf("timeline: keep is %d, at most %d", keep, MaxKeep)
	case int64(count) < 0:
		return Timeline{}, b, fmt.Errorf("timeline: count is %d, too large", count)
	}
	t = Timeline{Keep: int(keep), Count: int64(count)}
	if t.Count == 0 {
		return t, d.rest, nil
	}
	t.Last = d.varint()
	t.First = t.Last
	n := int(min(keep, count))
	if n-1 > len(d.rest) {
		return Timeline{}, b, errShort
	}
	if n > 0 {
		t.Times = append(make([]int64, 0, n), t.Last)
	}
	for len(t.Times) < n {
		t.First = d.before(t.First)
		t.Times = append(t.Times, t.First)
	}
	if t.Count > int64(n) {
		t.First = d.before(t.First)
	}
	if d.err == nil {
		d.err = t.check()
	}
	if d.err != nil {
		return Timeline{}, b, d.err
	}
	return t, d.rest, nil
}

// check returns an error for what Add and Merge cannot have made.
func (t Timeline) check() error {
	switch n := len(t.Times); {
	case t.Keep < 0 || t.Keep > MaxKeep:
		return fmt.Errorf("timeline: keep is %d, must be from 0 to %d", t.Keep, MaxKeep)
	case t.Count < 0:
		return fmt.Errorf("timeline: count is %d", t.Count)
	case int64(n) != min(int64(t.Keep), t.Count):
		return fmt.Errorf("timeline: holds %d times, for a keep of %d and a count of %d", n, t.Keep, t.Count)
	case t.Count == 0 && (t.First != 0 || t.Last != 0):
		return errors.New("timeline: has a first or last time, but no occurrences")
	case t.Count == 1 && t.First != t.Last || t.First > t.Last:
		return errors.New("timeline: first and last time do not fit the count")
	case n > 0 && (t.Times[0] != t.Last || t.Times[n-1] < t.First || int64(n) == t.Count && t.Times[n-1] != t.First):
		return errors.New("timeline: first and last time do not fit the times")
	case !slices.IsSortedFunc(t.Times, func(a, b int64) int { return cmp.Compare(b, a) }):
		return errors.New("timeline: times are not in descending order")
	}
	return nil
}

// gap returns how far earlier is before later. It holds for any two times, however far apart.
func gap(later, earlier int64) uint64 { return uint64(later) - uint64(earlier) }

var errShort = errors.New("timeline: cut short or out of range")

// decoder reads from rest until the first error, and only zeros after it.
type decoder struct {
	rest []byte
	err  error
}

func (d *decoder) byte() byte {
	if len(d.rest) == 0 {
		d.err = errShort
		return 0
	}
	v := d.rest[0]
	d.rest = d.rest[1:]
	return v
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.rest)
	return taken(d, v, n)
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.rest)
	return taken(d, v, n)
}

func taken[T any](d *decoder, v T, n int) (zero T) {
	if n <= 0 || d.err != nil {
		d.err = errShort
		return zero
	}
	d.rest = d.rest[n:]
	return v
}

// before reads a gap and returns the time that lies so far before later.
func (d *decoder) before(later int64) int64 {
	earlier := int64(uint64(later) - d.uvarint())
	if earlier > later {
		d.err = errShort
	}
	return earlier
}
