package profiles

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mubatch/mubatch/profiles/timeline"
)

// The version that begins every packed profile, fragment and route. A reader knows all that were ever written.
const codecVersion = 1

var errCorrupt = errors.New("packed state is corrupt")

// packer appends the parts of a packed value. Integers are varints, strings carry their length.
type packer []byte

func (p *packer) uint(v uint64)   { *p = binary.AppendUvarint(*p, v) }
func (p *packer) int(v int64)     { *p = binary.AppendVarint(*p, v) }
func (p *packer) key(k Key)       { *p = append(*p, k[:]...) }
func (p *packer) string(s string) { p.uint(uint64(len(s))); *p = append(*p, s...) }
func (p *packer) stamp(s Stamp)   { p.int(s.At); *p = binary.BigEndian.AppendUint64(*p, s.ID) }
func (p *packer) bool(b bool) {
	if b {
		*p = append(*p, 1)
	} else {
		*p = append(*p, 0)
	}
}

// unpacker takes the parts off again. After the first error every part is zero and err says what was wrong.
type unpacker struct {
	b   []byte
	err error
}

func (u *unpacker) fail() {
	u.b, u.err = nil, errCorrupt
}

func (u *unpacker) uint() uint64 {
	v, n := binary.Uvarint(u.b)
	if n <= 0 {
		u.fail()
		return 0
	}
	u.b = u.b[n:]
	return v
}

func (u *unpacker) int() int64 {
	v, n := binary.Varint(u.b)
	if n <= 0 {
		u.fail()
		return 0
	}
	u.b = u.b[n:]
	return v
}

func (u *unpacker) key() (k Key) {
	copy(k[:], u.bytes(len(k)))
	return k
}

func (u *unpacker) bytes(n int) []byte {
	if n < 0 || n > len(u.b) {
		u.fail()
		return nil
	}
	b := u.b[:n:n]
	u.b = u.b[n:]
	return b
}

func (u *unpacker) string() string { return string(u.bytes(u.len())) }

func (u *unpacker) stamp() (s Stamp) {
	s.At = u.int()
	if b := u.bytes(8); len(b) == 8 {
		s.ID = binary.BigEndian.Uint64(b)
	}
	return s
}

func (u *unpacker) bool() bool {
	b := u.bytes(1)
	return len(b) == 1 && b[0] != 0
}

// len reads a length or a count; what is counted takes at least a byte each.
func (u *unpacker) len() int {
	n := u.uint()
	if n > uint64(len(u.b)) {
		u.fail()
		return 0
	}
	return int(n)
}

func (u *unpacker) version() {
	if v := u.bytes(1); u.err == nil && v[0] != codecVersion {
		u.b, u.err = nil, fmt.Errorf("packed state has version %d, this program knows up to %d", v[0], codecVersion)
	}
}

func (p *packer) fragment(f Fragment) {
	p.key(f.Key)
	p.string(f.Identifier.Kind)
	p.string(f.Identifier.Value)
	p.int(f.FirstSeen)
	p.int(f.LastSeen)
	p.uint(uint64(len(f.Traits)))
	for _, t := range f.Traits {
		p.string(t.Name)
		p.string(string(t.Value))
		p.stamp(t.Stamp)
	}
	p.uint(uint64(len(f.Identifiers)))
	for _, k := range f.Identifiers {
		p.string(k.Kind)
		p.string(k.Value)
		p.stamp(k.Last)
	}
	p.uint(uint64(len(f.Consent)))
	for _, c := range f.Consent {
		p.string(c.Purpose)
		p.bool(c.Granted)
		p.stamp(c.Stamp)
	}
	p.uint(uint64(len(f.Timelines)))
	for _, b := range f.Timelines {
		p.int(int64(b.Behaviour))
		packed, err := b.Timeline.AppendBinary(*p)
		if err != nil {
			panic(err) // Add and Merge make no such timeline
		}
		*p = packed
	}
}

func (u *unpacker) fragment() (f Fragment) {
	f.Key = u.key()
	f.Identifier = Identifier{Kind: u.string(), Value: u.string()}
	f.FirstSeen = u.int()
	f.LastSeen = u.int()
	if n := u.len(); n > 0 {
		f.Traits = make([]Trait, 0, n)
		for range n {
			f.Traits = append(f.Traits, Trait{Name: u.string(), Value: u.bytes(u.len()), Stamp: u.stamp()})
		}
	}
	if n := u.len(); n > 0 {
		f.Identifiers = make([]Known, 0, n)
		for range n {
			f.Identifiers = append(f.Identifiers, Known{Identifier{u.string(), u.string()}, u.stamp()})
		}
	}
	if n := u.len(); n > 0 {
		f.Consent = make([]Consent, 0, n)
		for range n {
			f.Consent = append(f.Consent, Consent{Purpose: u.string(), Granted: u.bool(), Stamp: u.stamp()})
		}
	}
	if n := u.len(); n > 0 {
		f.Timelines = make([]Behaved, 0, n)
		for range n {
			b := Behaved{Behaviour: int32(u.int())}
			if u.err != nil {
				return f
			}
			var err error
			if b.Timeline, u.b, err = timeline.Decode(u.b); err != nil {
				u.b, u.err = nil, fmt.Errorf("%w: %w", errCorrupt, err)
				return f
			}
			f.Timelines = append(f.Timelines, b)
		}
	}
	return f
}

// AppendProfile appends p in packed form: all but its id and workspace, which are columns.
func AppendProfile(dst []byte, p *Profile) []byte {
	k := packer(append(dst, codecVersion))
	k.uint(uint64(len(p.Fragments)))
	for _, f := range p.Fragments {
		k.fragment(f)
	}
	k.uint(uint64(len(p.Standings)))
	for _, s := range p.Standings {
		k.int(s.Segment)
		k.bool(s.Member)
		k.int(s.Since)
		k.int(s.Due)
	}
	return k
}

// DecodeProfile reads what [AppendProfile] wrote. It keeps parts of b.
func DecodeProfile(id Key, workspace int32, b []byte) (*Profile, error) {
	p := &Profile{ID: id, Workspace: workspace}
	u := unpacker{b: b}
	u.version()
	for range u.len() {
		p.Fragments = append(p.Fragments, u.fragment())
	}
	for range u.len() {
		p.Standings = append(p.Standings, Standing{Segment: u.int(), Member: u.bool(), Since: u.int(), Due: u.int()})
	}
	if err := u.done("profile " + id.String()); err != nil {
		return nil, err
	}
	return p, nil
}
