package api

import (
	"errors"
	"net/http"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/profiles"
	"github.com/mubatch/mubatch/profiles/rule"
)

type computedJSON struct {
	ID          string         `json:"id"`
	Key         string         `json:"key"`
	Name        string         `json:"name"`
	Description string         `json:"description"`
	Value       jsontext.Value `json:"value"`
	Version     int            `json:"version"`
	Revision    int            `json:"revision"`
	Status      string         `json:"status"`
	Progress    float64        `json:"progress"`
	Public      bool           `json:"public"`
	CreatedAt   timestamp      `json:"created_at"`
	UpdatedAt   timestamp      `json:"updated_at"`
}

func showComputed(t profiles.ComputedTrait) computedJSON {
	status := "building"
	if t.Live() {
		status = "live"
	}
	return computedJSON{
		formatID(computedID, t.ID), t.Key, t.Name, t.Description, t.Value, t.Version, t.Revision, status, t.Progress,
		t.Public, timestamp(t.CreatedAt), timestamp(t.UpdatedAt),
	}
}

func replyComputed(status int, t profiles.ComputedTrait, err error) (answer, error) {
	var notValue *rule.Error
	if errors.As(err, &notValue) {
		return answer{}, aboutRule("value", notValue.Problems)
	}
	if err != nil {
		return answer{}, err
	}
	ans, err := reply(status, showComputed(t))
	ans.ETag = etag(t.Revision)
	return ans, err
}

// computedRef reads the key or id of a computed trait in the path.
func (c *call) computedRef() (profiles.ComputedRef, error) {
	s := c.param("computed_trait")
	if id, ok := parseID(computedID, s); ok {
		return profiles.ComputedRef{ID: id}, nil
	}
	if !humanKey.MatchString(s) {
		return profiles.ComputedRef{}, errNotFound()
	}
	return profiles.ComputedRef{Key: s}, nil
}

func listComputed(c *call) (answer, error) {
	var after int64
	limit, _, err := c.paging(&after)
	if err != nil {
		return answer{}, err
	}
	found, err := c.computed.List(c.Context(), c.workspace(), after, limit+1)
	if err != nil {
		return answer{}, err
	}
	p, err := pageOf(c, found, limit, func(t profiles.ComputedTrait) any { return t.ID }, showComputed)
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusOK, p)
}

func createComputed(c *call) (answer, error) {
	var in struct {
		Key         string         `json:"key" validate:"required,key"`
		Name        string         `json:"name" validate:"required,max=200"`
		Description string         `json:"description" validate:"max=2000"`
		Value       jsontext.Value `json:"value" validate:"required"`
		Public      bool           `json:"public"`
	}
	if err := c.decode(&in); err != nil {
		return answer{}, err
	}
	t, err := c.computed.Create(c.Context(), c.workspace(), profiles.ComputedDefinition{
		Key: in.Key, Name: in.Name, Description: in.Description, Value: in.Value, Public: in.Public,
	})
	return replyComputed(http.StatusCreated, t, err)
}

func getComputed(c *call) (answer, error) {
	if _, err := c.query(); err != nil {
		return answer{}, err
	}
	ref, err := c.computedRef()
	if err != nil {
		return answer{}, err
	}
	t, err := c.computed.Get(c.Context(), c.workspace(), ref)
	return replyComputed(http.StatusOK, t, err)
}

func updateComputed(c *call) (answer, error) {
	var in struct {
		Name        *string        `json:"name" validate:"omitnil,min=1,max=200"`
		Description *string        `json:"description" validate:"omitnil,max=2000"`
		Value       jsontext.Value `json:"value"`
		Public      *bool          `json:"public"`
	}
	if err := c.decode(&in); err != nil {
		return answer{}, err
	}
	ref, err := c.computedRef()
	if err != nil {
		return answer{}, err
	}
	change := profiles.ComputedChange{Name: in.Name, Description: in.Description, Value: in.Value, Public: in.Public}
	if change.IfRevision, err = c.ifMatch(); err != nil {
		return answer{}, err
	}
	t, err := c.computed.Update(c.Context(), c.workspace(), ref, change)
	return replyComputed(http.StatusOK, t, err)
}

func deleteComputed(c *call) (answer, error) {
	ref, err := c.computedRef()
	if err != nil {
		return answer{}, err
	}
	revision, err := c.ifMatch()
	if err != nil {
		return answer{}, err
	}
	t, err := c.computed.Get(c.Context(), c.workspace(), ref)
	if err != nil {
		return answer{}, err
	}
	c.subject = formatID(computedID, t.ID)
	if err := c.computed.Delete(c.Context(), c.workspace(), ref, revision); err != nil {
		return answer{}, err
	}
	return answer{Status: http.StatusNoContent}, nil
}
