package timeline

import (
	"cmp"
	"slices"
)

// Bucket is what is kept of the occurrences from Slot × Width up to, without, (Slot + 1) × Width.
type Bucket struct {
	Slot  int64   // 0 if the bucket is of all time
	Count int64   // of Sum: how many numbers
	Value Decimal // of Sum, Min and Max
	At    int64   // of First and Last: when
	Text  string  // of First and Last: what, as it was added
}

// Join returns what is kept of the occurrences of two buckets together. It is commutative and associative, but for Slot,
// which is that of one of them.
func (k Kind) Join(a, b Bucket) Bucket {
	switch k {
	case Sum:
		a.Count = sum(a.Count, b.Count)
		a.Value = a.Value.Add(b.Value)
		return a
	case Min, Max:
		if (a.Value.Compare(b.Value) > 0) == (k == Max) {
			return a
		}
	case First, Last:
		if (cmp.Or(cmp.Compare(a.At, b.At), cmp.Compare(a.Text, b.Text)) > 0) == (k == Last) {
			return a
		}
	}
	return b
}

// slot returns the slot of an instant.
func (t *Timeline) slot(at int64) int64 {
	if t.Width <= 0 {
		return 0
	}
	slot := at / t.Width
	if at%t.Width < 0 {
		slot--
	}
	return slot
}

// add takes in a bucket of one occurrence.
func (t *Timeline) add(b Bucket) {
	t.Count = sum(t.Count, 1)
	t.put(b)
	t.trim()
}

// put joins a bucket with those there are.
func (t *Timeline) put(b Bucket) {
	i := len(t.Buckets) // events mostly arrive in order
	for i > 0 && t.Buckets[i-1].Slot > b.Slot {
		i--
	}
	if i > 0 && t.Buckets[i-1].Slot == b.Slot {
		t.Buckets[i-1] = t.Kind.Join(t.Buckets[i-1], b)
		return
	}
	t.Buckets = slices.Insert(t.Buckets, i, b)
}

// trim forgets the buckets that are too far behind the newest one.
func (t *Timeline) trim() {
	if t.Width <= 0 || len(t.Buckets) == 0 {
		return
	}
	newest := t.Buckets[len(t.Buckets)-1].Slot
	gone := 0
	for gone < len(t.Buckets) && gap(newest, t.Buckets[gone].Slot) >= uint64(t.keep()) {
		gone++
	}
	t.Buckets = t.Buckets[gone:]
}

// mergeBuckets takes in more buckets, which are in order, after Keep has become what it is to be.
func (t *Timeline) mergeBuckets(more []Bucket) {
	if len(more) == 1 {
		t.put(more[0])
		t.trim()
		return
	}
	a, b := t.Buckets, more
	t.Buckets = make([]Bucket, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		switch order := cmp.Compare(a[0].Slot, b[0].Slot); {
		case order < 0:
			t.Buckets, a = append(t.Buckets, a[0]), a[1:]
		case order > 0:
			t.Buckets, b = append(t.Buckets, b[0]), b[1:]
		default:
			t.Buckets = append(t.Buckets, t.Kind.Join(a[0], b[0]))
			a, b = a[1:], b[1:]
		}
	}
	t.Buckets = append(append(t.Buckets, a...), b...)
	t.trim()
}
