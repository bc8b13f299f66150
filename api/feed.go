package api

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"net/http"

	"github.com/mubatch/mubatch/api/problem"
	"github.com/mubatch/mubatch/profiles"
)

// A feed is a segment's transitions from the oldest on. Its cursors are good for as long as the segment is there, for the
// pages and for the live feed alike.

// feedVersion begins every cursor of a feed. Consumers keep them: a version that was ever sent is understood for ever.
const feedVersion = 1

// sealPosition makes the cursor of a position in a segment's feed:
//
//	mac      16 bytes
//	version  byte, 1
//	segment  uvarint
//	lanes    uvarint
//	lanes times:
//	  seq    uvarint
func (c *call) sealPosition(segment int64, p profiles.Position) string {
	b := make([]byte, macSize, macSize+3*len(p)+8)
	b = append(b, feedVersion)
	b = binary.AppendUvarint(b, uint64(segment))
	b = binary.AppendUvarint(b, uint64(len(p)))
	for _, seq := range p {
		b = binary.AppendUvarint(b, uint64(seq))
	}
	copy(b, c.feedMAC(b[macSize:]))
	return base64.RawURLEncoding.EncodeToString(b)
}

// openPosition reads what sealPosition has made, "now", or "" for the beginning.
func (c *call) openPosition(segment int64, cursor string) (profiles.Position, error) {
	present, err := c.people.Present(c.Context())
	if err != nil {
		return nil, err
	}
	switch cursor {
	case "":
		return c.people.Start(), nil
	case "now":
		return present, nil
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(cursor)
	if err != nil || len(b) < macSize+1 || !hmac.Equal(b[:macSize], c.feedMAC(b[macSize:])) || b[macSize] != feedVersion {
		return nil, errFeedCursor("Send the cursor as it was, to the feed that it came from; or leave it empty to start with the first transition, or send now.")
	}
	b = b[macSize+1:]
	next := func() int64 {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			return -1
		}
		b = b[n:]
		return int64(v)
	}
	if next() != segment || next() != int64(c.lanes) {
		return nil, errFeedCursor("It is the cursor of another segment.")
	}
	p := make(profiles.Position, c.lanes)
	for lane := range p {
		p[lane] = next()
	}
	switch {
	case !p.Valid(c.lanes) || len(b) > 0:
		return nil, errFeedCursor("It is not whole.")
	case p.Beyond(present):
		return nil, errFeedCursor("It is ahead of all that is known here, as after the database was set back. Start anew, and read the members again.")
	}
	return p, nil
}

func (c *call) feedMAC(b []byte) []byte {
	mac := hmac.New(sha256.New, c.id.workspace)
	mac.Write([]byte("\x00feed\x00")) // no identifier's kind starts with a NUL
	mac.Write(b)
	return mac.Sum(nil)[:macSize]
}

func errFeedCursor(detail string) *problem.Problem {
	p := problem.New(http.StatusBadRequest, "bad_cursor", "The cursor is not one of this list.")
	p.Detail = detail
	return p
}

// listSegmentTransitions answers with the feed if asked for what comes after something, and otherwise with the newest first.
func listSegmentTransitions(c *call) (answer, error) {
	var upTo profiles.Position
	limit, q, err := c.paging(&upTo, "after")
	if err != nil {
		return answer{}, err
	}
	if q.Has("after") && q.Has("cursor") {
		return answer{}, badParameter("after", "cannot be given with cursor")
	}
	ref, err := c.segmentRef()
	if err != nil {
		return answer{}, err
	}
	seg, err := c.segments.Find(c.Context(), c.workspace(), ref)
	if err != nil {
		return answer{}, err
	}
	if q.Has("after") {
		return c.feedPage(seg.ID, q.Get("after"), limit)
	}
	if upTo == nil {
		if upTo, err = c.people.Present(c.Context()); err != nil {
			return answer{}, err
		}
	}
	return c.transitionPage(limit, func(limit int) ([]profiles.Recorded, error) {
		return c.people.Before(c.Context(), c.workspace(), seg.ID, upTo, limit)
	}, func(shown []profiles.Recorded) any { return upTo.Back(shown) })
}

func (c *call) feedPage(segment int64, cursor string, limit int) (answer, error) {
	after, err := c.openPosition(segment, cursor)
	if err != nil {
		return answer{}, err
	}
	asOf, err := c.people.AsOf(c.Context()) // before reading: what it says must be true
	if err != nil {
		return answer{}, err
	}
	found, err := c.people.After(c.Context(), c.workspace(), segment, after, limit+1)
	if err != nil {
		return answer{}, err
	}
	var p page[transitionJSON]
	if p.HasMore = len(found) > limit; p.HasMore {
		found = found[:limit]
	}
	if p.Data, err = c.showTransitions(found); err != nil {
		return answer{}, err
	}
	next := c.sealPosition(segment, after.Through(found))
	p.NextCursor = &next
	return reply(http.StatusOK, freshPage[transitionJSON]{p, unlessZero(asOf)})
}
