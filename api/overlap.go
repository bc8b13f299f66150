package api

import (
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/profiles"
)

type overlapJSON struct {
	Segments     []overlappingJSON `json:"segments"`
	Intersection int64             `json:"intersection"`
	Union        int64             `json:"union"`
	AsOf         *timestamp        `json:"as_of"`
}

type overlappingJSON struct {
	SegmentID   string  `json:"segment_id"`
	SegmentKey  string  `json:"segment_key"`
	SegmentName string  `json:"segment_name"`
	Members     int64   `json:"members"`
	Only        int64   `json:"only"`
	Share       float64 `json:"share"`
}

func getOverlap(c *call) (answer, error) {
	q, err := c.query("with")
	if err != nil {
		return answer{}, err
	}
	ref, err := c.segmentRef()
	if err != nil {
		return answer{}, err
	}
	seg, err := c.segments.Find(c.Context(), c.workspace(), ref)
	if err != nil {
		return answer{}, err
	}
	names := strings.Split(q.Get("with"), ",")
	if len(names) >= profiles.MaxOverlap {
		return answer{}, badParameter("with", "must name at most "+strconv.Itoa(profiles.MaxOverlap-1)+" segments")
	}
	list, ids := []activation.Segment{seg}, []int64{seg.ID}
	for _, name := range names {
		ref, ok := readSegmentRef(name)
		if !ok {
			return answer{}, badParameter("with", "must be keys or ids of other segments, with commas in between")
		}
		other, err := c.segments.Find(c.Context(), c.workspace(), ref)
		switch {
		case missing(err):
			return answer{}, badParameter("with", "names a segment that is not there: "+name)
		case err != nil:
			return answer{}, err
		case slices.Contains(ids, other.ID):
			return answer{}, badParameter("with", "names a segment twice: "+name)
		}
		list, ids = append(list, other), append(ids, other.ID)
	}

	asOf, err := c.people.AsOf(c.Context()) // before counting: what it says must be true
	if err != nil {
		return answer{}, err
	}
	found, err := c.people.Overlap(c.Context(), c.workspace(), ids)
	if err != nil {
		return answer{}, err
	}
	out := overlapJSON{Intersection: found.All, Union: found.Union, AsOf: unlessZero(asOf)}
	for i, s := range list {
		share := 0.0
		if found.Members[i] > 0 {
			share = float64(found.All) / float64(found.Members[i])
		}
		out.Segments = append(out.Segments, overlappingJSON{formatID(segmentID, s.ID), s.Key, s.Name, found.Members[i], found.Only[i], share})
	}
	return reply(http.StatusOK, out)
}
