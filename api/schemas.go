package api

import (
	"errors"
	"net/http"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/api/problem"
	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/collector/plan"
)

const schemaID = "sch_"

type schemaJSON struct {
	ID        string         `json:"id"`
	SourceID  string         `json:"source_id"`
	Type      string         `json:"type"`
	Event     *string        `json:"event"`
	Schema    jsontext.Value `json:"schema"`
	Action    string         `json:"action"`
	Version   int            `json:"version"`
	CreatedAt timestamp      `json:"created_at"`
	UpdatedAt timestamp      `json:"updated_at"`
}

func showSchema(s collector.SourceSchema) schemaJSON {
	out := schemaJSON{
		ID: formatID(schemaID, s.ID), SourceID: formatID(sourceID, s.SourceID), Type: s.Type, Schema: s.Schema, Action: s.Action,
		Version: s.Version, CreatedAt: timestamp(s.CreatedAt), UpdatedAt: timestamp(s.UpdatedAt),
	}
	if s.Event != "" {
		out.Event = &s.Event
	}
	return out
}

// document is a member of a body that is an object, as it is written.
type document struct{ text jsontext.Value }

// UnmarshalJSON takes any object.
func (d *document) UnmarshalJSON(b []byte) error {
	if jsontext.Value(b).Kind() != '{' {
		return errors.New("not an object")
	}
	d.text = jsontext.Value(b).Clone()
	return nil
}

type schemaVersionJSON struct {
	Version   int            `json:"version"`
	Schema    jsontext.Value `json:"schema"`
	Action    string         `json:"action"`
	CreatedAt timestamp      `json:"created_at"`
}

func showSchemaVersion(v collector.SchemaVersion) schemaVersionJSON {
	return schemaVersionJSON{v.Version, v.Schema, v.Action, timestamp(v.CreatedAt)}
}

// schemaFault returns what is wrong with a schema as a problem. Other errors stay as they are.
func schemaFault(err error) error {
	var fault *plan.Fault
	switch {
	case errors.As(err, &fault):
		return invalid(problem.FieldError{Pointer: "#/schema" + fault.Pointer, Code: "schema", Detail: fault.Reason})
	case errors.Is(err, collector.ErrInvalid):
		return invalid(problem.FieldError{Pointer: "#", Code: "too_many", Detail: "is one more than the source may have"})
	case errors.Is(err, collector.ErrConflict):
		p := problem.New(http.StatusConflict, "already_exists", "The source has a schema for that already.")
		p.Detail = "Replace that one instead."
		return p
	}
	return err
}

func createSchema(c *call) (answer, error) {
	var in struct {
		Type   string   `json:"type" validate:"omitempty,oneof=track identify page screen group alias"`
		Event  string   `json:"event" validate:"max=200"`
		Schema document `json:"schema" validate:"required"`
		Action string   `json:"action" validate:"required,oneof=allow flag quarantine"`
	}
	if err := c.decode(&in); err != nil {
		return answer{}, err
	}
	if in.Type == "" {
		in.Type = "track"
	}
	if track := in.Type == "track"; track != (strings.TrimSpace(in.Event) != "") {
		detail := "is required for track calls"
		if !track {
			detail = "must be left out: only track calls have names"
		}
		return answer{}, invalid(problem.FieldError{Pointer: "#/event", Code: "event", Detail: detail})
	}
	source, err := c.source(c.param("source"))
	if err != nil {
		return answer{}, err
	}
	s, err := c.sources.CreateSchema(c.Context(), c.workspace(), collector.SourceSchema{
		SourceID: source.ID, Type: in.Type, Event: in.Event, Schema: in.Schema.text, Action: in.Action,
	})
	if err != nil {
		return answer{}, schemaFault(err)
	}
	return reply(http.StatusCreated, showSchema(s))
}

func listSchemas(c *call) (answer, error) {
	var after int32
	limit, _, err := c.paging(&after)
	if err != nil {
		return answer{}, err
	}
	source, err := c.source(c.param("source"))
	if err != nil {
		return answer{}, err
	}
	found, err := c.sources.ListSchemas(c.Context(), c.workspace(), source.ID, after, limit+1)
	if err != nil {
		return answer{}, err
	}
	p, err := pageOf(c, found, limit, func(s collector.SourceSchema) any { return s.ID }, showSchema)
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusOK, p)
}

// schemaOf returns the ids of the source and the schema that a path names.
func (c *call) schemaOf() (source, schema int32, err error) {
	id, ok := parseID(schemaID, c.param("schema"))
	if !ok || id > 1<<31-1 {
		return 0, 0, errNotFound()
	}
	s, err := c.source(c.param("source"))
	return s.ID, int32(id), err
}

func getSchema(c *call) (answer, error) {
	if _, err := c.query(); err != nil {
		return answer{}, err
	}
	source, id, err := c.schemaOf()
	if err != nil {
		return answer{}, err
	}
	s, err := c.sources.GetSchema(c.Context(), c.workspace(), source, id)
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusOK, showSchema(s))
}

func replaceSchema(c *call) (answer, error) {
	var in struct {
		Schema document `json:"schema" validate:"required"`
		Action string   `json:"action" validate:"required,oneof=allow flag quarantine"`
	}
	if err := c.decode(&in); err != nil {
		return answer{}, err
	}
	source, id, err := c.schemaOf()
	if err != nil {
		return answer{}, err
	}
	s, err := c.sources.ReplaceSchema(c.Context(), c.workspace(), source, id, in.Schema.text, in.Action)
	if err != nil {
		return answer{}, schemaFault(err)
	}
	return reply(http.StatusOK, showSchema(s))
}

func deleteSchema(c *call) (answer, error) {
	source, id, err := c.schemaOf()
	if err != nil {
		return answer{}, err
	}
	c.subject = formatID(schemaID, id)
	if err := c.sources.DeleteSchema(c.Context(), c.workspace(), source, id); err != nil {
		return answer{}, err
	}
	return answer{Status: http.StatusNoContent}, nil
}

func listSchemaVersions(c *call) (answer, error) {
	var before int
	limit, _, err := c.paging(&before)
	if err != nil {
		return answer{}, err
	}
	source, id, err := c.schemaOf()
	if err != nil {
		return answer{}, err
	}
	found, err := c.sources.ListSchemaVersions(c.Context(), c.workspace(), source, id, before, limit+1)
	if err != nil {
		return answer{}, err
	}
	p, err := pageOf(c, found, limit, func(v collector.SchemaVersion) any { return v.Version }, showSchemaVersion)
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusOK, p)
}
