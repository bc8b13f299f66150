package collector

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mubatch/mubatch/profiles"
)

// What is kept of an event is one JSON object, canonical as the cleaner leaves it, with its members in this order and
// those absent that have nothing to say:
//
//	type, event, name, messageId, userId, anonymousId, previousId, groupId,
//	timestamp (corrected), originalTimestamp and sentAt (as they came), receivedAt,
//	category, context, properties, traits, integrations,
//	the members we do not know, as they came,
//	_blocked (the ids that identify nobody and were left out), _sanitized (how many characters were replaced),
//	_bot (which program sent it), _violations (what is not as the source's plan says)

type field int

const (
	fieldUnknown field = iota
	fieldType
	fieldEvent
	fieldName
	fieldMessageID
	fieldUserID
	fieldAnonymousID
	fieldPreviousID
	fieldGroupID
	fieldTimestamp
	fieldOriginalTimestamp
	fieldSentAt
	fieldCategory
	fieldContext
	fieldProperties
	fieldTraits
	fieldIntegrations
	fieldDropped // ours to set, or not for storage
	fields
)

var fieldNames = [fields]string{
	fieldType: "type", fieldEvent: "event", fieldName: "name", fieldMessageID: "messageId", fieldUserID: "userId",
	fieldAnonymousID: "anonymousId", fieldPreviousID: "previousId", fieldGroupID: "groupId", fieldTimestamp: "timestamp",
	fieldOriginalTimestamp: "originalTimestamp", fieldSentAt: "sentAt", fieldCategory: "category", fieldContext: "context",
	fieldProperties: "properties", fieldTraits: "traits", fieldIntegrations: "integrations",
}

// fieldOf returns the field of a name in quotes. Names match exactly: "userid" is one we do not know.
func fieldOf(quoted []byte) field {
	switch string(quoted) {
	case `"type"`:
		return fieldType
	case `"event"`:
		return fieldEvent
	case `"name"`:
		return fieldName
	case `"messageId"`:
		return fieldMessageID
	case `"userId"`:
		return fieldUserID
	case `"anonymousId"`:
		return fieldAnonymousID
	case `"previousId"`:
		return fieldPreviousID
	case `"groupId"`:
		return fieldGroupID
	case `"timestamp"`:
		return fieldTimestamp
	case `"originalTimestamp"`:
		return fieldOriginalTimestamp
	case `"sentAt"`:
		return fieldSentAt
	case `"category"`:
		return fieldCategory
	case `"context"`:
		return fieldContext
	case `"properties"`:
		return fieldProperties
	case `"traits"`:
		return fieldTraits
	case `"integrations"`:
		return fieldIntegrations
	case `"receivedAt"`, `"writeKey"`, `"_metadata"`, `"_blocked"`, `"_sanitized"`, `"_violations"`, `"_bot"`:
		return fieldDropped
	}
	return fieldUnknown
}

// maxIDBytes bounds an identifier.
const maxIDBytes = 255

// shared is what the events of one request have in common.
type shared struct {
	received     time.Time // in UTC, whole milliseconds
	ip           []byte    // for context.ip if it is absent; in quotes; nil if it is not to be set
	consent      []byte    // for context.consent if it is absent; nil if nothing is known
	context      []byte    // canonical object, or nil; the event's own members go before
	integrations []byte    // likewise
	sentAt       []byte    // canonical, or nil
	sanitized    int       // characters replaced in context, integrations and sentAt
	maxBytes     int       // of an event

	visitor *visitorClaim // nil: no token is asked for

	userAgent string // of the browser that sent it; an event's own goes before
	headless  bool   // so the browser says
	prefetch  bool   // likewise: nobody has looked at the page yet
}

// cleaned is an event that is fit to be kept.
type cleaned struct {
	body      []byte
	kind      string // track, identify, …
	messageID string
	generated bool                // the server made the messageId
	who       profiles.Identifier // whom it is about: the user, else the visitor
	blocked   []field
	sanitized int
	skew      time.Duration // by which its clock is behind ours, or its way took, if it says when it was sent
	skewed    bool          // it does
}

// eventCleaner turns what clients send into events. It may be used again, but not at once.
type eventCleaner struct {
	c        cleaner
	values   [fields]span
	unknowns []unknown
}

type unknown struct{ name, value span }

// clean returns the event in raw, valid JSON. kind is what the route says it is, or "" if the event has to say. Beside a
// fault it returns no more than the kind, if that is known.
func (ec *eventCleaner) clean(raw []byte, kind string, of *shared) (cleaned, *fault) {
	if len(raw) > of.maxBytes {
		return cleaned{}, &fault{code: "too_large", reason: fmt.Sprintf("is larger than %d bytes", of.maxBytes)}
	}
	c := &ec.c
	c.reset(raw)
	ec.values, ec.unknowns = [fields]span{}, ec.unknowns[:0]
	if c.space() != '{' {
		return cleaned{}, &fault{code: "wrong_type", reason: "must be an object"}
	}
	if f := c.object(1, ec.member); f != nil {
		return cleaned{}, f
	}

	e := cleaned{kind: kind, sanitized: c.sanitized + of.sanitized}
	if f := ec.check(&e); f != nil {
		return cleaned{kind: e.kind}, f
	}
	e.body = ec.assemble(&e, of)
	if len(e.body) > 2*of.maxBytes {
		return cleaned{kind: e.kind}, &fault{code: "too_large", reason: fmt.Sprintf("is larger than %d bytes with what the batch adds", 2*of.maxBytes)}
	}
	return e, nil
}

func (ec *eventCleaner) member(name, value span) {
	switch f := fieldOf(name.of(ec.c.out)); f {
	case fieldDropped:
	case fieldUnknown:
		ec.unknowns = append(ec.unknowns, unknown{name, value})
	default:
		if string(value.of(ec.c.out)) != "null" {
			ec.values[f] = value
		}
	}
}

// value returns the canonical value of a field, or nil if it is absent or null.
func (ec *eventCleaner) value(f field) []byte {
	if ec.values[f] == (span{}) {
		return nil
	}
	return ec.values[f].of(ec.c.out)
}

// check finds out what e is and whom it is about.
func (ec *eventCleaner) check(e *cleaned) *fault {
	if e.kind != "" {
		ec.values[fieldType] = span{}
	}
	for _, f := range []field{fieldType, fieldEvent, fieldName, fieldCategory} {
		if v := ec.value(f); v != nil && v[0] != '"' {
			return wrong(f, "wrong_type", "must be a string")
		} else if v != nil && len(v) == len(`""`) {
			ec.values[f] = span{}
		}
	}
	for _, f := range []field{fieldTimestamp, fieldOriginalTimestamp, fieldSentAt, fieldMessageID} {
		if v := ec.value(f); v != nil && v[0] != '"' && !isNumber(v) {
			return wrong(f, "wrong_type", "must be a string")
		}
	}
	for _, f := range []field{fieldContext, fieldProperties, fieldTraits, fieldIntegrations} {
		switch v := ec.value(f); {
		case v == nil || v[0] == '{':
		case string(v) == "[]": // an empty PHP array
			ec.values[f] = span{}
		default:
			return wrong(f, "wrong_type", "must be an object")
		}
	}

	if e.kind == "" {
		v := ec.value(fieldType)
		if v == nil {
			return wrong(fieldType, "missing_type", "is required in a batch: track, identify, page, screen, group or alias")
		}
		i := slices.Index(kinds, unquote(v))
		if i < 0 {
			return wrong(fieldType, "unknown_type", "must be track, identify, page, screen, group or alias")
		}
		e.kind = kinds[i]
	}
	if v := ec.value(fieldMessageID); v != nil {
		e.messageID = textOf(v)
	}
	if e.messageID == "" {
		e.messageID, e.generated = newMessageID(), true
	}

	userID, f1 := ec.id(e, fieldUserID)
	anonymousID, f2 := ec.id(e, fieldAnonymousID)
	_, f3 := ec.id(e, fieldPreviousID)
	_, f4 := ec.id(e, fieldGroupID)
	for _, f := range []*fault{f1, f2, f3, f4} {
		if f != nil {
			return f
		}
	}
	switch e.kind {
	case "track":
		if v := ec.value(fieldEvent); v == nil || strings.TrimSpace(unquote(v)) == "" {
			return wrong(fieldEvent, "missing_event", "is required in a track call")
		}
	case "alias":
		if ec.value(fieldUserID) == nil {
			return wrong(fieldUserID, "missing_user_id", "is required in an alias call, and must identify somebody")
		}
		if ec.value(fieldPreviousID) == nil {
			return wrong(fieldPreviousID, "missing_previous_id", "is required in an alias call, and must identify somebody")
		}
	case "group":
		if ec.value(fieldGroupID) == nil {
			return wrong(fieldGroupID, "missing_group_id", "is required in a group call, and must identify a group")
		}
	}
	switch {
	case userID != "":
		e.who = profiles.Identifier{Kind: profiles.UserID, Value: userID}
	case anonymousID != "":
		e.who = profiles.Identifier{Kind: profiles.AnonymousID, Value: anonymousID}
	default:
		return &fault{code: "missing_id", reason: "needs a userId or an anonymousId that identifies somebody"}
	}
	return nil
}

var kinds = []string{"track", "identify", "page", "screen", "group", "alias"}

func wrong(f field, code, reason string) *fault {
	return (&fault{code: code, reason: reason}).in(fieldNames[f])
}

// id returns the text of an identifier. One that identifies nobody is made absent, and noted.
func (ec *eventCleaner) id(e *cleaned, f field) (string, *fault) {
	v := ec.value(f)
	if v == nil {
		return "", nil
	}
	if v[0] == '{' || v[0] == '[' {
		return "", wrong(f, "wrong_type", "must be a string")
	}
	id := textOf(v)
	if Blocked(id) {
		ec.values[f] = span{}
		if id != "" {
			e.blocked = append(e.blocked, f)
		}
		return "", nil
	}
	if len(id) > maxIDBytes {
		return "", wrong(f, "id_too_long", fmt.Sprintf("is longer than %d bytes", maxIDBytes))
	}
	return id, nil
}

// Blocked tells whether an identifier is one of those that broken clients send for everybody.
func Blocked(id string) bool {
	id = strings.TrimSpace(id)
	if strings.Trim(id, "0-") == "" {
		return true
	}
	if len(id) > len("[object object]") {
		return false
	}
	switch strings.ToLower(id) {
	case "null", "undefined", "none", "nil", "-1", "anonymous", "guest", "unknown", "n/a", "nan", "[object object]", "true", "false":
		return true
	}
	return false
}

// textOf returns the text of a canonical scalar: numbers as they were written.
func textOf(v []byte) string {
	if v[0] == '"' {
		return unquote(v)
	}
	return string(v)
}

func isNumber(v []byte) bool { return v[0] == '-' || v[0] >= '0' && v[0] <= '9' }

// assemble returns the body of e.
func (ec *eventCleaner) assemble(e *cleaned, of *shared) []byte {
	const stamps = 2 * len(`,"originalTimestamp":"2006-01-02T15:04:05.000Z"`)
	size := len(ec.c.out) + stamps + 128 + len(of.context) + len(of.integrations) + len(of.sentAt) + len(of.ip) + len(of.consent)
	b := append(make([]byte, 0, size), `{"type":"`...)
	b = append(b, e.kind...)
	b = append(b, '"')
	put := func(f field, value []byte) {
		b = append(b, `,"`...)
		b = append(b, fieldNames[f]...)
		b = append(b, `":`...)
		b = append(b, value...)
	}
	for _, f := range []field{fieldEvent, fieldName} {
		if v := ec.value(f); v != nil {
			put(f, v)
		}
	}
	if e.generated {
		put(fieldMessageID, strconv.AppendQuote(nil, e.messageID))
	} else {
		put(fieldMessageID, asString(ec.value(fieldMessageID)))
	}
	for _, f := range []field{fieldUserID, fieldAnonymousID, fieldPreviousID, fieldGroupID} {
		if v := ec.value(f); v != nil {
			put(f, asString(v))
		}
	}

	original, sentAt := ec.value(fieldOriginalTimestamp), ec.value(fieldSentAt)
	if original == nil {
		original = ec.value(fieldTimestamp)
	}
	if sentAt == nil {
		sentAt = of.sentAt
	}
	b = append(b, `,"timestamp":`...)
	sent, ok := parseTime(sentAt)
	e.skew, e.skewed = of.received.Sub(sent), ok
	b = appendTime(b, eventTime(of.received, original, sent, ok))
	if original != nil {
		put(fieldOriginalTimestamp, original)
	}
	if sentAt != nil {
		put(fieldSentAt, sentAt)
	}
	b = append(b, `,"receivedAt":`...)
	b = appendTime(b, of.received)

	if v := ec.value(fieldCategory); v != nil {
		put(fieldCategory, v)
	}
	b = appendMerged(b, fieldContext, ec.value(fieldContext), of.context, named{ipName, of.ip}, named{consentName, of.consent})
	b = appendMerged(b, fieldProperties, ec.value(fieldProperties), nil)
	b = appendMerged(b, fieldTraits, ec.traits(e.kind), nil)
	b = appendMerged(b, fieldIntegrations, ec.value(fieldIntegrations), of.integrations)
	for _, u := range ec.unknowns {
		b = append(b, ',')
		b = append(b, u.name.of(ec.c.out)...)
		b = append(b, ':')
		b = append(b, u.value.of(ec.c.out)...)
	}
	for i, f := range e.blocked {
		if i == 0 {
			b = append(b, `,"_blocked":[`...)
		} else {
			b = append(b, ',')
		}
		b = append(b, '"')
		b = append(b, fieldNames[f]...)
		b = append(b, '"')
	}
	if len(e.blocked) > 0 {
		b = append(b, ']')
	}
	if e.sanitized > 0 {
		b = append(b, `,"_sanitized":`...)
		b = strconv.AppendInt(b, int64(e.sanitized), 10)
	}
	return append(b, '}')
}

// traits returns the traits of the event. RudderStack's libraries put those of an identify call into the context.
func (ec *eventCleaner) traits(kind string) (traits []byte) {
	traits = ec.value(fieldTraits)
	if context := ec.value(fieldContext); traits == nil && kind == "identify" && context != nil {
		members(context, func(name, value []byte) bool {
			found := string(name) == `"traits"`
			if found && value[0] == '{' {
				traits = value
			}
			return !found
		})
	}
	return traits
}

// asString returns a canonical scalar as a string: 17 becomes "17".
func asString(v []byte) []byte {
	if v[0] == '"' {
		return v
	}
	return slices.Concat([]byte{'"'}, v, []byte{'"'})
}

// named is a member of an object: its name in quotes and its canonical value, or nil if there is none.
type named struct{ name, value []byte }

// appendMerged appends an object field: its own members, those of the batch that it does not have, and of the rest what
// neither has. If that makes nothing, it appends nothing.
func appendMerged(b []byte, f field, own, batch []byte, rest ...named) []byte {
	if own == nil {
		own = []byte("{}")
	}
	start := len(b)
	b = append(b, `,"`...)
	b = append(b, fieldNames[f]...)
	b = append(b, `":`...)
	open := len(b)
	b = append(b, own[:len(own)-1]...)
	add := func(name, value []byte) bool {
		if !has(own, name) {
			if len(b) > open+1 {
				b = append(b, ',')
			}
			b = append(b, name...)
			b = append(b, ':')
			b = append(b, value...)
		}
		return true
	}
	if batch != nil {
		members(batch, add)
	}
	for _, m := range rest {
		if m.value != nil && (batch == nil || !has(batch, m.name)) {
			add(m.name, m.value)
		}
	}
	if len(b) == open+1 {
		return b[:start]
	}
	return append(b, '}')
}

var ipName, consentName = []byte(`"ip"`), []byte(`"consent"`)

// has tells whether a canonical object has a member of that name, in quotes.
func has(object, name []byte) (found bool) {
	if !bytes.Contains(object, name) {
		return false
	}
	members(object, func(n, _ []byte) bool {
		found = bytes.Equal(n, name)
		return !found
	})
	return found
}

// Bounds of an event's time.
const (
	maxClockSkew = 48 * time.Hour  // beyond it the client's clock says nothing
	maxAhead     = 5 * time.Minute // of the time of reception
)

var earliest = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// eventTime returns when it happened by our clock: the client's clock tells how long before sending. original is a canonical
// scalar or nil. If it is not known when it was sent, the client's clock is taken to be right; without a usable original time,
// it happened when it was received.
func eventTime(received time.Time, original []byte, sent time.Time, known bool) time.Time {
	at, ok := parseTime(original)
	if !ok {
		return received
	}
	if known {
		skew := received.Sub(sent)
		if skew > maxClockSkew || skew < -maxClockSkew {
			return received
		}
		at = at.Add(skew)
	}
	at = at.UTC().Truncate(time.Millisecond)
	if at.Before(earliest) {
		return earliest
	}
	if latest := received.Add(maxAhead); at.After(latest) {
		return latest
	}
	return at
}

var timeLayouts = []string{ // beside RFC 3339; without a zone it is UTC
	"2006-01-02T15:04:05.999999999Z0700",
	"2006-01-02T15:04:05.999999999",
	"2006-01-02 15:04:05.999999999Z07:00",
	"2006-01-02 15:04:05.999999999",
	"2006-01-02",
}

// parseTime reads a time as clients write it: ISO 8601, or the seconds, milliseconds or microseconds since 1970.
func parseTime(v []byte) (time.Time, bool) {
	if v == nil {
		return time.Time{}, false
	}
	s := textOf(v)
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, true
	}
	if n, err := strconv.ParseFloat(s, 64); err == nil {
		switch abs := math.Abs(n); {
		case !(abs < 1e17): // also NaN
			return time.Time{}, false
		case abs >= 1e14:
			return time.UnixMicro(int64(n)), true
		case abs >= 1e11:
			return time.UnixMilli(int64(n)), true
		default:
			return time.UnixMilli(int64(n * 1000)), true
		}
	}
	for _, layout := range timeLayouts {
		if t, err := time.Parse(layout, s); err == nil {
			return t, true
		}
	}
	return time.Time{}, false
}

func appendTime(b []byte, t time.Time) []byte {
	return t.AppendFormat(b, `"2006-01-02T15:04:05.000Z"`)
}

// newMessageID returns a version 7 UUID.
func newMessageID() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	binary.BigEndian.PutUint64(id[:8], uint64(time.Now().UnixMilli())<<16|uint64(binary.BigEndian.Uint16(id[6:8])))
	id[6] = id[6]&0x0f | 0x70
	id[8] = id[8]&0x3f | 0x80
	var s [36]byte
	hex.Encode(s[:8], id[:4])
	hex.Encode(s[9:13], id[4:6])
	hex.Encode(s[14:18], id[6:8])
	hex.Encode(s[19:23], id[8:10])
	hex.Encode(s[24:], id[10:])
	s[8], s[13], s[18], s[23] = '-', '-', '-', '-'
	return string(s[:])
}
