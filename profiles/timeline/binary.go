package timeline

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/big"
	"slices"
)

// The encodings begin with their version byte. All numbers are varints, zigzag ones if they may be negative.
//
// Version 1 is of the kind Times: Keep and Count. If Count is not 0 there follow Last, the gaps from each kept time to the
// next older one and, if some occurrences are not kept, the gap from the oldest known time to First.
//
// Version 2 is of all other kinds: Kind, Keep, Width and Count. If Count is not 0 there follow how many values or buckets
// are kept, and then these. Of Distinct: Last, the gaps, and the hashes, of 8 bytes each. Of the others, the oldest bucket
// first, all buckets one after the other: its slot, as the gap from the one before if there is one, unless the bucket is of
// all time; then of Sum its Count and Value, of Min and Max its Value, of First and Last the time, as the gap from the
// beginning of the slot unless the bucket is of all time, and Text after its length.
//
// A decimal is the length of its coefficient's magnitude in bytes, times 2, plus 1 if it is negative. If that is not 0 there
// follow the exponent and the magnitude, the highest byte first.
const (
	version1 = 1
	version2 = 2
)

// AppendBinary appends t in a compact form that [Decode] reads, and that tells where it ends. It refuses a timeline that
// Add and Merge cannot have made.
func (t Timeline) AppendBinary(b []byte) ([]byte, error) {
	if err := t.check(); err != nil {
		return b, err
	}
	if t.Kind == Times {
		return t.appendTimes(b), nil
	}
	b = append(b, version2, byte(t.Kind))
	b = binary.AppendUvarint(b, uint64(t.Keep))
	b = binary.AppendUvarint(b, uint64(t.Width))
	b = binary.AppendUvarint(b, uint64(t.Count))
	switch {
	case t.Count == 0:
		return b, nil
	case t.Kind == Distinct:
		return t.appendHashes(b), nil
	}
	return t.appendBuckets(b), nil
}

func (t Timeline) appendTimes(b []byte) []byte {
	b = append(b, version1)
	b = binary.AppendUvarint(b, uint64(t.Keep))
	b = binary.AppendUvarint(b, uint64(t.Count))
	if t.Count == 0 {
		return b
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
	return b
}

func (t Timeline) appendHashes(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(t.Times)))
	for i, at := range t.Times {
		if i == 0 {
			b = binary.AppendVarint(b, at)
		} else {
			b = binary.AppendUvarint(b, gap(t.Times[i-1], at))
		}
	}
	for _, h := range t.Hashes {
		b = binary.BigEndian.AppendUint64(b, h)
	}
	return b
}

func (t Timeline) appendBuckets(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(t.Buckets)))
	for i, k := range t.Buckets {
		switch {
		case t.Width == 0:
		case i == 0:
			b = binary.AppendVarint(b, k.Slot)
		default:
			b = binary.AppendUvarint(b, gap(k.Slot, t.Buckets[i-1].Slot))
		}
		switch t.Kind {
		case Sum:
			b = k.Value.appendBinary(binary.AppendUvarint(b, uint64(k.Count)))
		case Min, Max:
			b = k.Value.appendBinary(b)
		default:
			if t.Width == 0 {
				b = binary.AppendVarint(b, k.At)
			} else {
				b = binary.AppendUvarint(b, gap(k.At, k.Slot*t.Width))
			}
			b = append(binary.AppendUvarint(b, uint64(len(k.Text))), k.Text...)
		}
	}
	return b
}

func (d Decimal) appendBinary(b []byte) []byte {
	c := d.coefficient()
	header := uint64(c.BitLen()+7) / 8 * 2
	if header == 0 {
		return append(b, 0)
	}
	if c.Sign() < 0 {
		header++
	}
	b = binary.AppendVarint(binary.AppendUvarint(b, header), int64(d.exponent))
	return append(b, c.Bytes()...)
}

// Decode reads one timeline from the beginning of b and returns what follows it. It accepts any bytes: what is not a
// timeline is an error, and no more memory is taken than b has bytes for.
func Decode(b []byte) (t Timeline, rest []byte, err error) {
	d := decoder{rest: b}
	switch v := d.byte(); {
	case d.err != nil:
	case v == version1:
		t = d.times()
	case v == version2:
		t = d.measured()
	default:
		d.err = fmt.Errorf("timeline: version %d is unknown", v)
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
	switch {
	case t.Count < 0:
		return fmt.Errorf("timeline: count is %d", t.Count)
	case t.Width == 0 && (t.Keep < 0 || t.Keep > MaxKeep):
		return fmt.Errorf("timeline: keep is %d, must be from 0 to %d", t.Keep, MaxKeep)
	case t.Kind == Times && (t.Width != 0 || t.Buckets != nil || t.Hashes != nil),
		t.Kind == Distinct && (t.Width != 0 || t.Buckets != nil),
		Times < t.Kind && t.Kind < Distinct && (t.Times != nil || t.Hashes != nil),
		t.Kind != Times && (t.First != 0 || t.Last != 0):
		return errors.New("timeline: holds what is not of its kind")
	case t.Kind == Times:
		return t.checkTimes()
	case t.Kind == Distinct:
		return t.checkHashes()
	case t.Kind > Distinct:
		return fmt.Errorf("timeline: kind %d is unknown", t.Kind)
	}
	return t.checkBuckets()
}

func (t Timeline) checkTimes() error {
	switch n := len(t.Times); {
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

func (t Timeline) checkHashes() error {
	n := len(t.Times)
	if n != len(t.Hashes) || n > t.Keep || int64(n) > t.Count || n == 0 && t.Count > 0 && t.Keep > 0 {
		return fmt.Errorf("timeline: holds %d times of %d values, for a keep of %d and a count of %d", n, len(t.Hashes), t.Keep, t.Count)
	}
	for i := 1; i < n; i++ {
		if compareSeen(t.Times[i-1], t.Hashes[i-1], t.Times[i], t.Hashes[i]) <= 0 {
			return errors.New("timeline: values are not in descending order")
		}
	}
	hashes := slices.Sorted(slices.Values(t.Hashes))
	if len(slices.Compact(hashes)) < n {
		return errors.New("timeline: holds a value twice")
	}
	return nil
}

func (t Timeline) checkBuckets() error {
	n := len(t.Buckets)
	switch {
	case t.Width < 0:
		return fmt.Errorf("timeline: width is %d", t.Width)
	case t.Width == 0 && n > 1 || t.Width > 0 && (t.Keep < 1 || t.Keep > MaxBuckets):
		return fmt.Errorf("timeline: holds %d buckets, for a keep of %d", n, t.Keep)
	case int64(n) > t.Count || n == 0 && t.Count > 0:
		return fmt.Errorf("timeline: holds %d buckets, for a count of %d", n, t.Count)
	}
	counted := int64(0)
	for i, b := range t.Buckets {
		switch {
		case b.Slot < t.slot(math.MinInt64) || b.Slot > t.slot(math.MaxInt64):
			return errors.New("timeline: a slot is out of range")
		case i > 0 && b.Slot <= t.Buckets[i-1].Slot:
			return errors.New("timeline: buckets are not in ascending order")
		case t.Width > 0 && gap(t.Buckets[n-1].Slot, b.Slot) >= uint64(t.Keep):
			return errors.New("timeline: holds a bucket too far behind the newest")
		case (t.Kind == Sum) != (b.Count > 0):
			return errors.New("timeline: the count of a bucket does not fit the kind")
		case (t.Kind == First || t.Kind == Last) && b.Value != Decimal{},
			t.Kind != First && t.Kind != Last && (b.At != 0 || b.Text != ""):
			return errors.New("timeline: a bucket holds what is not of its kind")
		case (t.Kind == First || t.Kind == Last) && t.slot(b.At) != b.Slot:
			return errors.New("timeline: a time is not in its bucket")
		}
		counted = sum(counted, b.Count)
	}
	if counted > t.Count {
		return errors.New("timeline: counts of buckets do not fit the count")
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

func (d *decoder) times() (t Timeline) {
	keep, count := d.uvarint(), d.uvarint()
	switch {
	case d.err != nil:
		return t
	case keep > MaxKeep:
		d.err = fmt.Errorf("timeline: keep is %d, at most %d", keep, MaxKeep)
		return t
	case int64(count) < 0:
		d.err = fmt.Errorf("timeline: count is %d, too large", count)
		return t
	}
	t = Timeline{Keep: int(keep), Count: int64(count)}
	if t.Count == 0 {
		return t
	}
	t.Last = d.varint()
	t.First = t.Last
	n := int(min(keep, count))
	if n-1 > len(d.rest) {
		d.err = errShort
		return t
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
	return t
}

func (d *decoder) measured() (t Timeline) {
	t.Kind = Kind(d.byte())
	keep, width, count := d.uvarint(), d.uvarint(), d.uvarint()
	if d.err == nil && (t.Kind == Times || t.Kind > Distinct) {
		d.err = fmt.Errorf("timeline: kind %d is unknown", t.Kind)
	}
	if d.err == nil && (keep > MaxBuckets || int64(width) < 0 || int64(count) < 0) {
		d.err = errShort
	}
	if d.err != nil {
		return t
	}
	t.Keep, t.Width, t.Count = int(keep), int64(width), int64(count)
	if t.Count == 0 {
		return t
	}
	n := d.uvarint()
	if n > uint64(len(d.rest)) || n > MaxBuckets {
		d.err = errShort
	}
	switch {
	case n == 0 || d.err != nil:
	case t.Kind == Distinct:
		d.hashes(&t, int(n))
	default:
		d.buckets(&t, int(n))
	}
	return t
}

func (d *decoder) hashes(t *Timeline, n int) {
	t.Times, t.Hashes = make([]int64, 0, n), make([]uint64, 0, n)
	for i := range n {
		if i == 0 {
			t.Times = append(t.Times, d.varint())
		} else {
			t.Times = append(t.Times, d.before(t.Times[i-1]))
		}
	}
	for range n {
		h := d.bytes(8)
		if d.err != nil {
			return
		}
		t.Hashes = append(t.Hashes, binary.BigEndian.Uint64(h))
	}
}

func (d *decoder) buckets(t *Timeline, n int) {
	t.Buckets = make([]Bucket, 0, n)
	for i := range n {
		var b Bucket
		switch {
		case t.Width == 0:
		case i == 0:
			b.Slot = d.varint()
		default:
			before := t.Buckets[i-1].Slot
			if b.Slot = int64(uint64(before) + d.uvarint()); b.Slot < before {
				d.err = errShort
			}
		}
		switch t.Kind {
		case Sum:
			b.Count, b.Value = int64(d.uvarint()), d.decimal()
		case Min, Max:
			b.Value = d.decimal()
		default:
			if t.Width == 0 {
				b.At = d.varint()
			} else {
				b.At = int64(uint64(b.Slot*t.Width) + d.uvarint())
			}
			b.Text = string(d.bytes(d.uvarint()))
		}
		if d.err != nil {
			return
		}
		t.Buckets = append(t.Buckets, b)
	}
}

func (d *decoder) decimal() Decimal {
	header := d.uvarint()
	if header == 0 || d.err != nil {
		return Decimal{}
	}
	exponent := d.varint()
	c := new(big.Int).SetBytes(d.bytes(header / 2))
	if header%2 == 1 {
		c.Neg(c)
	}
	if d.err != nil || exponent > maxExponent || exponent < -maxExponent || c.Sign() == 0 || c.BitLen() > maxBits {
		d.err = errShort
		return Decimal{}
	}
	return newLarge(c, int(exponent))
}

// Limits of decimals, far beyond what sums of allowed numbers reach.
const (
	maxExponent = 10_000
	maxBits     = 10_000
)

func (d *decoder) byte() byte {
	if len(d.rest) == 0 {
		d.err = errShort
		return 0
	}
	v := d.rest[0]
	d.rest = d.rest[1:]
	return v
}

func (d *decoder) bytes(n uint64) []byte {
	if d.err != nil || n > uint64(len(d.rest)) {
		d.err = errShort
		return nil
	}
	b := d.rest[:n]
	d.rest = d.rest[n:]
	return b
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
