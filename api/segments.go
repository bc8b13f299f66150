package api

import (
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/api/problem"
	"github.com/mubatch/mubatch/profiles"
	"github.com/mubatch/mubatch/profiles/rule"
)

type segmentJSON struct {
	ID          string         `json:"id"`
	Key         string         `json:"key"`
	Name        string         `json:"name"`
	Description string         `json:"description"`
	Rule        jsontext.Value `json:"rule"`
	Version     int            `json:"version"`
	Revision    int            `json:"revision"`
	Status      string         `json:"status"`
	Progress    float64        `json:"progress"`
	Build       *buildJSON     `json:"build"`
	Members     int64          `json:"members"`
	Public      bool           `json:"public"`
	CreatedAt   timestamp      `json:"created_at"`
	UpdatedAt   timestamp      `json:"updated_at"`
	AsOf        *timestamp     `json:"as_of"`
}

type buildJSON struct {
	Version   int       `json:"version"`
	Phase     string    `json:"phase"`
	Progress  float64   `json:"progress"`
	LanesDone int       `json:"lanes_done"`
	Lanes     int       `json:"lanes"`
	StartedAt timestamp `json:"started_at"`
}

func showSegment(s profiles.StoredSegment) segmentJSON {
	status := "building"
	switch {
	case s.Deleting:
		status = "deleting"
	case s.Live():
		status = "live"
	}
	var build *buildJSON
	if b := s.Build; b != nil {
		build = &buildJSON{b.Version, b.Phase, b.Progress, b.LanesDone, b.Lanes, timestamp(b.StartedAt)}
	}
	return segmentJSON{
		formatID(segmentID, s.ID), s.Key, s.Name, s.Description, s.Rule, s.Version, s.Revision, status, s.Progress, build, s.Members,
		s.Public, timestamp(s.CreatedAt), timestamp(s.UpdatedAt), unlessZero(s.AsOf),
	}
}

func replySegment(status int, s profiles.StoredSegment, err error) (answer, error) {
	if err != nil {
		return answer{}, err
	}
	ans, err := reply(status, showSegment(s))
	ans.ETag = etag(s.Revision)
	return ans, err
}

// segmentRef reads the key or id of a segment in the path.
func (c *call) segmentRef() (profiles.SegmentRef, error) {
	ref, ok := readSegmentRef(c.param("segment"))
	if !ok {
		return profiles.SegmentRef{}, errNotFound()
	}
	return ref, nil
}

// readSegmentRef reads the key or id of a segment.
func readSegmentRef(s string) (ref profiles.SegmentRef, ok bool) {
	if id, ok := parseID(segmentID, s); ok {
		return profiles.SegmentRef{ID: id}, true
	}
	return profiles.SegmentRef{Key: s}, humanKey.MatchString(s)
}

func etag[T int | int64](revision T) string {
	return strconv.Quote(strconv.FormatInt(int64(revision), 10))
}

// ifMatch returns the revision that If-Match asks for: 0 for any. What is no revision of ours was never current.
func (c *call) ifMatch() (revision int, err error) {
	h := c.Header.Values("If-Match")
	if len(h) == 0 || len(h) == 1 && strings.TrimSpace(h[0]) == "*" {
		return 0, nil
	}
	if len(h) == 1 {
		if quoted, err := strconv.Unquote(strings.TrimSpace(h[0])); err == nil {
			if n, err := strconv.Atoi(quoted); err == nil && n > 0 && n <= 1<<31-1 && etag(n) == strings.TrimSpace(h[0]) {
				return n, nil
			}
		}
	}
	return 0, errChanged()
}

func errChanged() *problem.Problem {
	p := problem.New(http.StatusPreconditionFailed, "changed", "It has been changed in the meantime.")
	p.Detail = "Get it again, look at what is different, and send the change with the new ETag."
	return p
}

func listSegments(c *call) (answer, error) {
	var after int64
	limit, _, err := c.paging(&after)
	if err != nil {
		return answer{}, err
	}
	asOf, err := c.people.AsOf(c.Context()) // before counting: what it says must be true
	if err != nil {
		return answer{}, err
	}
	found, err := c.segments.List(c.Context(), c.workspace(), after, limit+1)
	if err != nil {
		return answer{}, err
	}
	p, err := pageOf(c, found, limit, func(s profiles.StoredSegment) any { return s.ID }, showSegment)
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusOK, freshPage[segmentJSON]{p, unlessZero(asOf)})
}

func createSegment(c *call) (answer, error) {
	var in struct {
		Key         string         `json:"key" validate:"required,key"`
		Name        string         `json:"name" validate:"required,max=200"`
		Description string         `json:"description" validate:"max=2000"`
		Rule        jsontext.Value `json:"rule" validate:"required"`
		Public      bool           `json:"public"`
	}
	if err := c.decode(&in); err != nil {
		return answer{}, err
	}
	s, err := c.segments.Create(c.Context(), c.workspace(), profiles.SegmentDefinition{
		Key: in.Key, Name: in.Name, Description: in.Description, Rule: in.Rule, Public: in.Public,
	})
	return replySegment(http.StatusCreated, s, err)
}

func getSegment(c *call) (answer, error) {
	if _, err := c.query(); err != nil {
		return answer{}, err
	}
	ref, err := c.segmentRef()
	if err != nil {
		return answer{}, err
	}
	s, err := c.segments.Get(c.Context(), c.workspace(), ref)
	return replySegment(http.StatusOK, s, err)
}

func replaceSegment(c *call) (answer, error) {
	var in struct {
		Name        string         `json:"name" validate:"required,max=200"`
		Description string         `json:"description" validate:"max=2000"`
		Rule        jsontext.Value `json:"rule" validate:"required"`
		Public      bool           `json:"public"`
	}
	if err := c.decode(&in); err != nil {
		return answer{}, err
	}
	return c.changeSegment(profiles.SegmentChange{Name: &in.Name, Description: &in.Description, Rule: in.Rule, Public: &in.Public})
}

func updateSegment(c *call) (answer, error) {
	var in struct {
		Name        *string        `json:"name" validate:"omitnil,min=1,max=200"`
		Description *string        `json:"description" validate:"omitnil,max=2000"`
		Rule        jsontext.Value `json:"rule"`
		Public      *bool          `json:"public"`
	}
	if err := c.decode(&in); err != nil {
		return answer{}, err
	}
	return c.changeSegment(profiles.SegmentChange{Name: in.Name, Description: in.Description, Rule: in.Rule, Public: in.Public})
}

func (c *call) changeSegment(change profiles.SegmentChange) (answer, error) {
	ref, err := c.segmentRef()
	if err != nil {
		return answer{}, err
	}
	change.IfRevision, err = c.ifMatch()
	if err != nil {
		return answer{}, err
	}
	s, err := c.segments.Update(c.Context(), c.workspace(), ref, change)
	return replySegment(http.StatusOK, s, err)
}

func deleteSegment(c *call) (answer, error) {
	ref, err := c.segmentRef()
	if err != nil {
		return answer{}, err
	}
	revision, err := c.ifMatch()
	if err != nil {
		return answer{}, err
	}
	s, err := c.segments.Delete(c.Context(), c.workspace(), ref, revision)
	return replySegment(http.StatusAccepted, s, err)
}

func cancelSegment(c *call) (answer, error) {
	if err := c.noBody(); err != nil {
		return answer{}, err
	}
	ref, err := c.segmentRef()
	if err != nil {
		return answer{}, err
	}
	revision, err := c.ifMatch()
	if err != nil {
		return answer{}, err
	}
	s, err := c.segments.Cancel(c.Context(), c.workspace(), ref, revision)
	var notRule *rule.Error
	if errors.As(err, &notRule) { // nothing that the request says is wrong
		p := problem.New(http.StatusConflict, "circle", "There is no way back to the rule that is live.")
		p.Detail = "Other segments have been edited: going back " + notRule.Problems[0].Detail + "."
		return answer{}, p
	}
	return replySegment(http.StatusOK, s, err)
}

type memberJSON struct {
	ProfileID   profiles.Key          `json:"profile_id"`
	Identifiers []profiles.Identifier `json:"identifiers"`
	EnteredAt   timestamp             `json:"entered_at"`
}

func listMembers(c *call) (answer, error) {
	var after profiles.Place
	limit, _, err := c.paging(&after)
	if err != nil {
		return answer{}, err
	}
	ref, err := c.segmentRef()
	if err != nil {
		return answer{}, err
	}
	s, err := c.segments.Get(c.Context(), c.workspace(), ref)
	if err != nil {
		return answer{}, err
	}
	found, err := c.people.Members(c.Context(), c.workspace(), s.ID, after, limit+1)
	if err != nil {
		return answer{}, err
	}
	p, err := pageOf(c, found, limit, func(m profiles.Member) any {
		return profiles.Place{Lane: m.Profile.Lane(c.lanes), ID: m.Profile}
	}, func(m profiles.Member) memberJSON {
		return memberJSON{m.Profile, m.Identifiers, timestamp(m.EnteredAt)}
	})
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusOK, freshPage[memberJSON]{p, unlessZero(s.AsOf)})
}

// aboutRule turns what is wrong with a rule into what is wrong with the body of which it was a member.
func aboutRule(member string, faults []rule.Problem) *problem.Problem {
	list := make([]problem.FieldError, len(faults))
	for i, f := range faults {
		list[i] = problem.FieldError{
			Pointer: "#/" + member + strings.TrimPrefix(f.Pointer, "#"), Code: "rule", Detail: f.Detail,
		}
	}
	return invalid(list...)
}
