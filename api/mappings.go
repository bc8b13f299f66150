package api

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/api/problem"
	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/collector/mapping"
)

type mappingJSON struct {
	ID        string    `json:"id"`
	Key       string    `json:"key"`
	Name      string    `json:"name"`
	Document  string    `json:"document"`
	Version   int       `json:"version"`
	CreatedAt timestamp `json:"created_at"`
	UpdatedAt timestamp `json:"updated_at"`
}

func showMapping(m collector.Mapping) mappingJSON {
	return mappingJSON{
		formatID(mappingID, m.ID), m.Key, m.Name, m.Document, m.Version, timestamp(m.CreatedAt), timestamp(m.UpdatedAt),
	}
}

func replyMapping(status int, m collector.Mapping, err error) (answer, error) {
	if err != nil {
		return answer{}, err
	}
	ans, err := reply(status, showMapping(m))
	ans.ETag = etag(m.Version)
	return ans, err
}

// aboutMapping tells what is wrong with a document, by line and path.
func aboutMapping(faults []mapping.Fault) *problem.Problem {
	list := make([]problem.FieldError, len(faults))
	for i, f := range faults {
		list[i] = problem.FieldError{Pointer: "#/document", Code: f.Code, Detail: f.String()}
	}
	return invalid(list...)
}

// documentText returns the document in a body: a text in YAML or JSON as it is, an object as it is written.
func documentText(v jsontext.Value) (string, error) {
	switch v.Kind() {
	case '"':
		var text string
		err := json.Unmarshal(v, &text)
		return text, err
	case '{':
		return string(v), nil
	}
	return "", invalid(problem.FieldError{Pointer: "#/document", Code: "wrong_type", Detail: "must be a string or an object"})
}

// reservedKey refuses the words that paths have where keys of mappings are.
func reservedKey(key string) error {
	if key != "templates" && key != "try" {
		return nil
	}
	return invalid(problem.FieldError{Pointer: "#/key", Code: "key", Detail: "must not be templates or try"})
}

// mappingRef returns the key or id of a mapping in the path, if it can be one.
func (c *call) mappingRef() (string, error) {
	s := c.param("mapping")
	if _, ok := parseID(mappingID, s); !ok && !humanKey.MatchString(s) {
		return "", errNotFound()
	}
	return s, nil
}

func listMappings(c *call) (answer, error) {
	var after int32
	limit, _, err := c.paging(&after)
	if err != nil {
		return answer{}, err
	}
	found, err := c.mappings.List(c.Context(), c.workspace(), after, limit+1)
	if err != nil {
		return answer{}, err
	}
	p, err := pageOf(c, found, limit, func(m collector.Mapping) any { return m.ID }, showMapping)
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusOK, p)
}

func createMapping(c *call) (answer, error) {
	var in struct {
		Key      string         `json:"key" validate:"required,key"`
		Name     string         `json:"name" validate:"max=200"`
		Document jsontext.Value `json:"document" validate:"required"`
	}
	if err := c.decode(&in); err != nil {
		return answer{}, err
	}
	if err := reservedKey(in.Key); err != nil {
		return answer{}, err
	}
	document, err := documentText(in.Document)
	if err != nil {
		return answer{}, err
	}
	m, err := c.mappings.Create(c.Context(), c.workspace(), collector.Mapping{Key: in.Key, Name: in.Name, Document: document})
	return replyMapping(http.StatusCreated, m, err)
}

func getMapping(c *call) (answer, error) {
	if _, err := c.query(); err != nil {
		return answer{}, err
	}
	ref, err := c.mappingRef()
	if err != nil {
		return answer{}, err
	}
	m, err := c.mappings.Get(c.Context(), c.workspace(), ref)
	return replyMapping(http.StatusOK, m, err)
}

func updateMapping(c *call) (answer, error) {
	var in struct {
		Name     *string        `json:"name" validate:"omitnil,min=1,max=200"`
		Document jsontext.Value `json:"document"`
	}
	if err := c.decode(&in); err != nil {
		return answer{}, err
	}
	ref, err := c.mappingRef()
	if err != nil {
		return answer{}, err
	}
	change := collector.MappingUpdate{Name: in.Name}
	if in.Document != nil {
		document, err := documentText(in.Document)
		if err != nil {
			return answer{}, err
		}
		change.Document = &document
	}
	if change.IfVersion, err = c.ifMatch(); err != nil {
		return answer{}, err
	}
	m, err := c.mappings.Update(c.Context(), c.workspace(), ref, change)
	return replyMapping(http.StatusOK, m, err)
}

func deleteMapping(c *call) (answer, error) {
	ref, err := c.mappingRef()
	if err != nil {
		return answer{}, err
	}
	version, err := c.ifMatch()
	if err != nil {
		return answer{}, err
	}
	m, err := c.mappings.Get(c.Context(), c.workspace(), ref)
	if err != nil {
		return answer{}, err
	}
	c.subject = formatID(mappingID, m.ID)
	if err := c.mappings.Delete(c.Context(), c.workspace(), ref, version); err != nil {
		return answer{}, err
	}
	return answer{Status: http.StatusNoContent}, nil
}

func listTemplates(c *call) (answer, error) {
	if _, err := c.query(); err != nil {
		return answer{}, err
	}
	type templateJSON struct {
		Name     string `json:"name"`
		Document string `json:"document"`
	}
	var out struct {
		Data []templateJSON `json:"data"`
	}
	for _, name := range mapping.Templates() {
		document, _ := mapping.Template(name)
		out.Data = append(out.Data, templateJSON{name, string(document)})
	}
	return reply(http.StatusOK, out)
}

// triedEvent is an event that would come out, and what intake would say of it.
type triedEvent struct {
	Event   jsontext.Value `json:"event"`
	Status  string         `json:"status"`
	Code    string         `json:"code,omitzero"`
	Reason  string         `json:"reason,omitzero"`
	Pointer string         `json:"pointer,omitzero"`
}

// mapFault is why an event could not be made.
type mapFault struct {
	Rule   string `json:"rule"`
	Line   int    `json:"line"`
	Path   string `json:"path"`
	Index  int    `json:"index"`
	Code   string `json:"code"`
	Detail string `json:"detail"`
	More   int    `json:"more"`
}

// tryMapping shows what would become of an input, and stores nothing.
func tryMapping(c *call) (answer, error) {
	var in struct {
		Document jsontext.Value `json:"document"`
		Mapping  string         `json:"mapping"`
		Template string         `json:"template"`
		Input    struct {
			Body       jsontext.Value    `json:"body"`
			Headers    map[string]string `json:"headers"`
			Query      map[string]string `json:"query"`
			Meta       map[string]string `json:"meta"`
			ReceivedAt time.Time         `json:"received_at"`
		} `json:"input"`
	}
	if err := c.decode(&in); err != nil {
		return answer{}, err
	}
	document, err := c.tried(in.Document, in.Mapping, in.Template)
	if err != nil {
		return answer{}, err
	}
	program, err := mapping.Compile([]byte(document))
	if err != nil {
		return answer{}, err
	}
	headers := make(map[string]string, len(in.Input.Headers))
	for name, text := range in.Input.Headers {
		headers[strings.ToLower(name)] = text
	}
	if in.Input.ReceivedAt.IsZero() {
		in.Input.ReceivedAt = time.Now()
	}
	events, err := program.Map(mapping.Input{
		Body: in.Input.Body, Headers: headers, Query: in.Input.Query, Meta: in.Input.Meta, ReceivedAt: in.Input.ReceivedAt,
	})
	out := struct {
		Events []triedEvent `json:"events"`
		Fault  *mapFault    `json:"fault"`
	}{Events: []triedEvent{}}
	var fault *mapping.FaultError
	switch {
	case errors.As(err, &fault):
		out.Fault = &mapFault{fault.Rule, fault.Line, fault.Path, fault.Index, fault.Code, fault.Detail, fault.More}
	case err != nil:
		return answer{}, fmt.Errorf("try mapping: %w", err)
	}
	for i, r := range collector.Judge(in.Input.ReceivedAt, events) {
		out.Events = append(out.Events, triedEvent{events[i], r.Status, r.Code, r.Reason, r.Pointer})
	}
	return reply(http.StatusOK, out)
}

// tried returns the document that is to be tried: one that is given, or that of a mapping or a template.
func (c *call) tried(document jsontext.Value, ref, template string) (string, error) {
	given := 0
	for _, is := range []bool{document != nil, ref != "", template != ""} {
		if is {
			given++
		}
	}
	switch {
	case given != 1:
		return "", invalid(problem.FieldError{Pointer: "#", Code: "required", Detail: "needs either document, mapping or template"})
	case document != nil:
		return documentText(document)
	case ref != "":
		m, err := c.mappings.Get(c.Context(), c.workspace(), ref)
		if errors.Is(err, collector.ErrNotFound) {
			return "", invalid(problem.FieldError{Pointer: "#/mapping", Code: "not_found", Detail: "is no mapping of this workspace"})
		}
		return m.Document, err
	}
	text, ok := mapping.Template(template)
	if !ok {
		return "", invalid(problem.FieldError{Pointer: "#/template", Code: "not_found", Detail: "is no template; there are " + strings.Join(mapping.Templates(), ", ")})
	}
	return string(text), nil
}
