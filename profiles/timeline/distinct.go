package timeline

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"slices"
)

// hash stands for a value. Among a thousand values two have the same one with a probability of 1 in 10¹³.
func hash(value []byte) uint64 {
	h := sha256.Sum256(value)
	return binary.BigEndian.Uint64(h[:8])
}

func (t *Timeline) addHash(at int64, hash uint64) {
	t.Count = sum(t.Count, 1)
	t.putHash(at, hash)
}

// putHash notes that a value occurred, and keeps the newest values.
func (t *Timeline) putHash(at int64, hash uint64) {
	if i := slices.Index(t.Hashes, hash); i >= 0 {
		if at <= t.Times[i] {
			return
		}
		t.Times, t.Hashes = slices.Delete(t.Times, i, i+1), slices.Delete(t.Hashes, i, i+1)
	}
	i := 0
	for i < len(t.Times) && compareSeen(t.Times[i], t.Hashes[i], at, hash) > 0 {
		i++
	}
	keep := t.keep()
	if i >= keep {
		return
	}
	t.Times, t.Hashes = slices.Insert(t.Times, i, at), slices.Insert(t.Hashes, i, hash)
	if len(t.Times) > keep {
		t.Times, t.Hashes = t.Times[:keep], t.Hashes[:keep]
	}
}

// mergeHashes takes in the values of o, after Keep has become what it is to be.
func (t *Timeline) mergeHashes(o Timeline) {
	keep := t.keep()
	if len(t.Times) > keep {
		t.Times, t.Hashes = t.Times[:keep], t.Hashes[:keep]
	}
	if len(o.Times) < 8 {
		for i, at := range o.Times {
			t.putHash(at, o.Hashes[i])
		}
	} else {
		t.Times, t.Hashes = newestSeen(keep, *t, o)
	}
	if len(t.Times) == 0 {
		t.Times, t.Hashes = nil, nil
	}
}

// newestSeen returns the keep newest values of a and b, each once, with its last time.
func newestSeen(keep int, a, b Timeline) (times []int64, hashes []uint64) {
	seen := make(map[uint64]bool, len(a.Times)+len(b.Times))
	for i, j := 0, 0; len(times) < keep && (i < len(a.Times) || j < len(b.Times)); {
		var at int64
		var hash uint64
		if j == len(b.Times) || i < len(a.Times) && compareSeen(a.Times[i], a.Hashes[i], b.Times[j], b.Hashes[j]) >= 0 {
			at, hash = a.Times[i], a.Hashes[i]
			i++
		} else {
			at, hash = b.Times[j], b.Hashes[j]
			j++
		}
		if !seen[hash] {
			seen[hash] = true
			times, hashes = append(times, at), append(hashes, hash)
		}
	}
	return times, hashes
}

func compareSeen(at int64, hash uint64, at2 int64, hash2 uint64) int {
	return cmp.Or(cmp.Compare(at, at2), cmp.Compare(hash, hash2))
}
