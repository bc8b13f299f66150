package profiles

import (
	"fmt"
	"time"
)

// What lanes tell each other, packed into the bodies of messages.

func (p *packer) cause(c Cause) {
	p.string(c.Kind)
	p.int(int64(c.Source))
	p.string(c.MessageID)
}

func (u *unpacker) cause() Cause {
	return Cause{Kind: u.string(), Source: int32(u.int()), MessageID: u.string()}
}

func (u *unpacker) done(what string) error {
	if u.err == nil && len(u.b) > 0 {
		u.err = errCorrupt
	}
	if u.err != nil {
		return fmt.Errorf("decode %s: %w", what, u.err)
	}
	return nil
}

// claimMessage makes a claim. id is the claimed identifier itself, if the claimant knows it.
func claimMessage(workspace int32, child Key, id Identifier, c Claimed, cause Cause) Message {
	p := packer{codecVersion}
	p.string(id.Kind)
	p.string(id.Value)
	p.claimed(c)
	p.cause(cause)
	return Message{Kind: KindClaim, Workspace: workspace, Key: child, Body: p}
}

func readClaim(body []byte) (id Identifier, c Claimed, cause Cause, err error) {
	u := unpacker{b: body}
	u.version()
	id = Identifier{Kind: u.string(), Value: u.string()}
	c, cause = u.claimed(), u.cause()
	return id, c, cause, u.done("claim")
}

func (p *packer) claimed(c Claimed) {
	p.key(c.Parent)
	p.stamp(c.Stamp)
	p.key(c.Root)
	p.int(c.RootVersion)
}

func (u *unpacker) claimed() Claimed {
	return Claimed{Parent: u.key(), Stamp: u.stamp(), Root: u.key(), RootVersion: u.int()}
}

func linkMessage(workspace int32, child, parent Key, stamp Stamp, cause Cause) Message {
	p := packer{codecVersion}
	p.key(parent)
	p.stamp(stamp)
	p.cause(cause)
	return Message{Kind: KindLink, Workspace: workspace, Key: child, Body: p}
}

func readLink(body []byte) (parent Key, stamp Stamp, cause Cause, err error) {
	u := unpacker{b: body}
	u.version()
	parent, stamp, cause = u.key(), u.stamp(), u.cause()
	return parent, stamp, cause, u.done("link")
}

// routeMessage makes a [KindRoot] or a [KindRoute].
func routeMessage(kind MessageKind, workspace int32, key, root Key, version int64, cause Cause) Message {
	p := packer{codecVersion}
	p.key(root)
	p.int(version)
	p.cause(cause)
	return Message{Kind: kind, Workspace: workspace, Key: key, Body: p}
}

func readRoute(body []byte) (root Key, version int64, cause Cause, err error) {
	u := unpacker{b: body}
	u.version()
	root, version, cause = u.key(), u.int(), u.cause()
	return root, version, cause, u.done("route")
}

func pieceMessage(workspace int32, root Key, version int64, f Fragment, cause Cause) Message {
	p := packer{codecVersion}
	p.key(root)
	p.int(version)
	p.cause(cause)
	p.fragment(f)
	return Message{Kind: KindPiece, Workspace: workspace, Key: f.Key, Body: p}
}

func readPiece(body []byte) (root Key, version int64, f Fragment, cause Cause, err error) {
	u := unpacker{b: body}
	u.version()
	root, version, cause, f = u.key(), u.int(), u.cause(), u.fragment()
	return root, version, f, cause, u.done("piece")
}

// The versions that begin claims and families. What has no verdicts is written as it was before there were any.
const (
	withoutVerdicts = 1
	withVerdicts    = 2
)

func versionFor(vs verdicts) byte {
	if len(vs) == 0 {
		return withoutVerdicts
	}
	return withVerdicts
}

// claimsVersion reads the version of claims and families.
func (u *unpacker) claimsVersion() (v byte) {
	if b := u.bytes(1); len(b) == 1 {
		v = b[0]
	}
	if u.err == nil && v != withoutVerdicts && v != withVerdicts {
		u.b, u.err = nil, fmt.Errorf("packed claims have version %d, this program knows up to %d", v, withVerdicts)
	}
	return v
}

func (p *packer) pair(x Pair) {
	p.key(x.Parent)
	p.key(x.Child)
}

func (u *unpacker) pair() Pair { return Pair{Parent: u.key(), Child: u.key()} }

func (p *packer) verdicts(vs verdicts) {
	if len(vs) == 0 {
		return
	}
	p.uint(uint64(len(vs)))
	for _, v := range vs {
		p.pair(v.Pair)
		p.stamp(v.Stamp)
		p.bool(v.Void)
	}
}

func (u *unpacker) verdicts(version byte) (vs verdicts) {
	if version < withVerdicts {
		return nil
	}
	for range u.len() {
		vs = append(vs, Verdict{u.pair(), u.stamp(), u.bool()})
	}
	return vs
}

// appendClaims packs the claims and verdicts a route keeps at home; nil if there are none.
func appendClaims(r *Route) []byte {
	if len(r.Claims)+len(r.Verdicts) == 0 {
		return nil
	}
	p := packer{versionFor(r.Verdicts)}
	p.uint(uint64(len(r.Claims)))
	for _, c := range r.Claims {
		p.claimed(c)
	}
	p.verdicts(r.Verdicts)
	return p
}

// decodeClaims reads what appendClaims wrote into r.
func decodeClaims(r *Route, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	u := unpacker{b: b}
	version := u.claimsVersion()
	for range u.len() {
		r.Claims = append(r.Claims, u.claimed())
	}
	r.Verdicts = u.verdicts(version)
	return u.done("claims")
}

// appendDecision packs the body of a [KindVerdict] or a [KindLinkVerdict].
func appendDecision(d Decision) []byte {
	p := packer{codecVersion}
	p.string(d.MessageID)
	p.int(d.At.UnixMilli())
	p.bool(d.Void)
	p.uint(uint64(len(d.Pairs)))
	for _, pair := range d.Pairs {
		p.pair(pair)
	}
	return p
}

func readDecision(m *Message) (d Decision, err error) {
	d.Key, d.Users = m.Key, m.Kind == KindLinkVerdict
	u := unpacker{b: m.Body}
	u.version()
	d.MessageID = u.string()
	d.At = time.UnixMilli(u.int()).UTC()
	d.Void = u.bool()
	for range u.len() {
		d.Pairs = append(d.Pairs, u.pair())
	}
	return d, u.done("decision")
}

// appendFamily packs a family: all but its id and workspace, which are columns.
func appendFamily(f *Family) []byte {
	p := packer{versionFor(f.Verdicts)}
	p.int(f.Version)
	p.uint(uint64(len(f.Claims)))
	for _, c := range f.Claims {
		p.key(c.Child)
		p.key(c.Parent)
		p.stamp(c.Stamp)
	}
	p.uint(uint64(len(f.Roots)))
	for member, root := range f.Roots {
		p.key(member)
		p.key(root)
	}
	p.verdicts(f.Verdicts)
	return p
}

func decodeFamily(id Key, workspace int32, b []byte) (*Family, error) {
	f := &Family{ID: id, Workspace: workspace, Roots: map[Key]Key{}}
	u := unpacker{b: b}
	version := u.claimsVersion()
	f.Version = u.int()
	for range u.len() {
		f.Claims = append(f.Claims, Link{Child: u.key(), Parent: u.key(), Stamp: u.stamp()})
	}
	for range u.len() {
		member := u.key()
		f.Roots[member] = u.key()
	}
	f.Verdicts = u.verdicts(version)
	return f, u.done("family")
}

// AppendMessage packs a message for a table: the outbox, or the failed events.
func AppendMessage(dst []byte, m Message) []byte {
	p := packer(append(dst, codecVersion, byte(m.Kind)))
	p.int(int64(m.Workspace))
	p.int(int64(m.Source))
	p.key(m.ID)
	p.key(m.Key)
	p.int(m.Received.UnixMilli())
	p.string(string(m.Body))
	return p
}

// DecodeMessage reads what [AppendMessage] wrote.
func DecodeMessage(b []byte) (m Message, err error) {
	u := unpacker{b: b}
	u.version()
	if kind := u.bytes(1); len(kind) == 1 {
		m.Kind = MessageKind(kind[0])
	}
	m.Workspace, m.Source = int32(u.int()), int32(u.int())
	m.ID, m.Key = u.key(), u.key()
	m.Received = time.UnixMilli(u.int()).UTC()
	m.Body = u.bytes(u.len())
	return m, u.done("message")
}
