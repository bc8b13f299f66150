package api

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/api/problem"
	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/collector/files"
	"github.com/mubatch/mubatch/collector/mapping"
)

// uploadPatience is how long a part of a file may take to arrive.
const uploadPatience = 2 * time.Minute

type importJSON struct {
	ID         string       `json:"id"`
	SourceID   string       `json:"source_id"`
	URL        *string      `json:"url"`
	Upload     *uploadJSON  `json:"upload"`
	Format     files.Format `json:"format"`
	Mapping    *string      `json:"mapping"`
	S3         *s3JSON      `json:"s3"`
	Rate       int          `json:"rate"`
	Watch      *watchJSON   `json:"watch"`
	State      string       `json:"state"`
	Reason     *string      `json:"reason"`
	Progress   progressJSON `json:"progress"`
	CreatedAt  timestamp    `json:"created_at"`
	StartedAt  *timestamp   `json:"started_at"`
	FinishedAt *timestamp   `json:"finished_at"`
}

type uploadJSON struct {
	Size     int64 `json:"size"`
	Uploaded int64 `json:"uploaded"`
}

type s3JSON struct {
	Endpoint    *string `json:"endpoint"`
	Region      *string `json:"region"`
	AccessKeyID *string `json:"access_key_id"`
}

type watchJSON struct {
	Every  string `json:"every"`
	Settle string `json:"settle"`
}

type progressJSON struct {
	Files            int64            `json:"files"`
	FilesDone        int64            `json:"files_done"`
	FilesFailed      int64            `json:"files_failed"`
	Bytes            int64            `json:"bytes"`
	BytesRead        int64            `json:"bytes_read"`
	Rows             int64            `json:"rows"`
	Events           int64            `json:"events"`
	Skipped          int64            `json:"skipped"`
	Rejected         int64            `json:"rejected"`
	RejectedByReason map[string]int64 `json:"rejected_by_reason"`
	RowsPerSecond    float32          `json:"rows_per_second"`
	ETASeconds       *float64         `json:"eta_seconds"`
}

func showImport(i files.Import) importJSON {
	out := importJSON{
		ID: formatID(importID, i.ID), SourceID: formatID(sourceID, i.SourceID), URL: unlessEmpty(i.URL), Format: i.Format,
		Mapping: unlessEmpty(i.Mapping), Rate: i.Rate, State: i.State, Reason: unlessEmpty(i.Reason),
		Progress: progressJSON{
			Files: i.Files, FilesDone: i.FilesDone, FilesFailed: i.FilesFailed, Bytes: i.Bytes, BytesRead: i.BytesRead,
			Rows: i.Rows, Events: i.Events, Skipped: i.Skipped, Rejected: i.Rejected, RejectedByReason: i.Reasons,
			RowsPerSecond: i.RowsPerSecond,
		},
		CreatedAt: timestamp(i.CreatedAt), StartedAt: maybe(i.StartedAt), FinishedAt: maybe(i.FinishedAt),
	}
	if i.URL == "" {
		out.Upload = &uploadJSON{i.Size, i.Uploaded}
	}
	if i.S3.AccessKeyID != "" || i.S3.Endpoint != "" || i.S3.Region != "" {
		out.S3 = &s3JSON{unlessEmpty(i.S3.Endpoint), unlessEmpty(i.S3.Region), unlessEmpty(i.S3.AccessKeyID)}
	}
	if i.Watch != nil {
		out.Watch = &watchJSON{i.Watch.Every.String(), i.Watch.Settle.String()}
	}
	if i.BytesRead > 0 && i.RowsPerSecond > 0 {
		eta := float64(i.Bytes-i.BytesRead) * float64(i.Rows) / float64(i.BytesRead) / float64(i.RowsPerSecond)
		out.Progress.ETASeconds = &eta
	}
	return out
}

// importError says of an error of the store of imports what a client may know.
func importError(err error) error {
	var invalidImport *files.InvalidError
	switch {
	case errors.As(err, &invalidImport):
		return invalid(problem.FieldError{
			Pointer: problem.Pointer(strings.Split(invalidImport.Member, "/")...), Code: "invalid", Detail: invalidImport.Detail,
		})
	case errors.Is(err, files.ErrState):
		p := problem.New(http.StatusConflict, "wrong_state", "The import is in a state in which that cannot be done.")
		p.Detail = "Get the import to see its state and how much of its file has been uploaded."
		return p
	}
	return err
}

func (c *call) importID() (int64, error) {
	id, ok := parseID(importID, c.param("import"))
	if !ok {
		return 0, errNotFound()
	}
	return id, nil
}

// newImport is how an import is asked for.
type newImport struct {
	Source string `json:"source" validate:"required,max=100"`
	URL    string `json:"url" validate:"max=2000"`
	Upload *struct {
		Name   string `json:"name" validate:"required,max=1000"`
		Size   int64  `json:"size" validate:"min=1"`
		SHA256 string `json:"sha256" validate:"omitempty,len=64,hexadecimal"`
	} `json:"upload"`
	Format  files.Format   `json:"format"`
	Mapping jsontext.Value `json:"mapping"`
	S3      *files.S3      `json:"s3"`
	Rate    int            `json:"rate" validate:"min=0,max=10000000"`
	Watch   *struct {
		Every  string `json:"every" validate:"max=20"`
		Settle string `json:"settle" validate:"max=20"`
	} `json:"watch"`
	Again bool `json:"again"`
}

func createImport(c *call) (answer, error) {
	var in newImport
	err := c.decode(&in)
	document, fault := mappingOf(in.Mapping)
	var p *problem.Problem
	switch {
	case fault == nil:
	case err == nil:
		err = invalid(*fault)
	case errors.As(err, &p) && p.Status == http.StatusUnprocessableEntity:
		p.Errors = append(p.Errors, *fault)
	}
	if err != nil {
		return answer{}, err
	}
	n := files.New{URL: in.URL, Format: in.Format, Mapping: document, S3: in.S3, Rate: in.Rate, Again: in.Again}
	if (in.URL == "") == (in.Upload == nil) {
		return answer{}, invalid(problem.FieldError{Pointer: "#/url", Code: "required", Detail: "is required, or upload, but not both"})
	}
	if u := in.Upload; u != nil {
		n.Name, n.Size, n.SHA256 = u.Name, u.Size, strings.ToLower(u.SHA256)
	}
	if w := in.Watch; w != nil {
		n.Watch = &files.Watch{}
		for _, d := range []struct {
			member, text, otherwise string
			to                      *time.Duration
		}{{"every", w.Every, "10s", &n.Watch.Every}, {"settle", w.Settle, "10s", &n.Watch.Settle}} {
			if *d.to, err = time.ParseDuration(cmp.Or(d.text, d.otherwise)); err != nil {
				return answer{}, invalid(problem.FieldError{Pointer: problem.Pointer("watch", d.member), Code: "invalid", Detail: "must be a duration such as 10s or 5m"})
			}
		}
	}
	if n.Source, err = c.source(in.Source); err != nil {
		if errors.Is(err, collector.ErrNotFound) || missing(err) {
			return answer{}, invalid(problem.FieldError{Pointer: "#/source", Code: "not_found", Detail: "is no source of this workspace"})
		}
		return answer{}, err
	}
	made, found, err := c.imports.Create(c.Context(), c.workspace(), n)
	if err != nil {
		return answer{}, importError(err)
	}
	if found {
		return reply(http.StatusOK, showImport(made))
	}
	return reply(http.StatusCreated, showImport(made))
}

// mappingOf returns the document in a body, which is an object or text, or what is wrong with it.
func mappingOf(v jsontext.Value) (document string, _ *problem.FieldError) {
	switch v.Kind() {
	case jsontext.KindInvalid: // there is none
		return "", nil
	case '"':
		if err := json.Unmarshal(v, &document); err != nil {
			return "", &problem.FieldError{Pointer: "#/mapping", Code: "invalid", Detail: "is no text"}
		}
	case '{':
		document = string(v)
	default:
		return "", &problem.FieldError{Pointer: "#/mapping", Code: "wrong_type", Detail: "must be a mapping, as an object or as text"}
	}
	if _, err := mapping.Compile([]byte(document)); err != nil {
		return "", &problem.FieldError{Pointer: "#/mapping", Code: "invalid", Detail: "is not valid: " + err.Error()}
	}
	return document, nil
}

func listImports(c *call) (answer, error) {
	var before int64
	limit, _, err := c.paging(&before)
	if err != nil {
		return answer{}, err
	}
	found, err := c.imports.List(c.Context(), c.workspace(), before, limit+1)
	if err != nil {
		return answer{}, err
	}
	p, err := pageOf(c, found, limit, func(i files.Import) any { return i.ID }, showImport)
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusOK, p)
}

func getImport(c *call) (answer, error) {
	if _, err := c.query(); err != nil {
		return answer{}, err
	}
	return c.onImport((*files.Store).Get)
}

// onImport answers with the import of the path after do.
func (c *call) onImport(do func(*files.Store, context.Context, int32, int64) (files.Import, error)) (answer, error) {
	id, err := c.importID()
	if err != nil {
		return answer{}, err
	}
	i, err := do(c.imports, c.Context(), c.workspace(), id)
	if err != nil {
		return answer{}, importError(err)
	}
	return reply(http.StatusOK, showImport(i))
}

type importFileJSON struct {
	Name             string           `json:"name"`
	Version          string           `json:"version"`
	Size             int64            `json:"size"`
	State            string           `json:"state"`
	Reason           *string          `json:"reason"`
	BytesRead        int64            `json:"bytes_read"`
	Rows             int64            `json:"rows"`
	Events           int64            `json:"events"`
	Skipped          int64            `json:"skipped"`
	Rejected         int64            `json:"rejected"`
	RejectedByReason map[string]int64 `json:"rejected_by_reason"`
	FoundAt          timestamp        `json:"found_at"`
	FinishedAt       *timestamp       `json:"finished_at"`
}

func showImportFile(f files.File) importFileJSON {
	return importFileJSON{
		Name: f.Name, Version: f.Version, Size: f.Size, State: f.State, Reason: unlessEmpty(f.Reason), BytesRead: f.BytesRead, Rows: f.Rows,
		Events: f.Events, Skipped: f.Skipped, Rejected: f.Rejected, RejectedByReason: f.Reasons, FoundAt: timestamp(f.FoundAt),
		FinishedAt: maybe(f.FinishedAt),
	}
}

func listImportFiles(c *call) (answer, error) {
	var after int64
	limit, _, err := c.paging(&after)
	if err != nil {
		return answer{}, err
	}
	id, err := c.importID()
	if err != nil {
		return answer{}, err
	}
	if _, err := c.imports.Get(c.Context(), c.workspace(), id); err != nil {
		return answer{}, err
	}
	found, err := c.imports.Files(c.Context(), c.workspace(), id, after, limit+1)
	if err != nil {
		return answer{}, err
	}
	p, err := pageOf(c, found, limit, func(f files.File) any { return f.ID }, showImportFile)
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusOK, p)
}

// uploadImport takes in a part of a file: what comes behind the first offset bytes.
func uploadImport(c *call) (answer, error) {
	data := c.body
	c.body = nil // is nothing for the audit log
	q, err := c.query("offset")
	if err != nil {
		return answer{}, err
	}
	offset := int64(0)
	if q.Has("offset") {
		if offset, err = strconv.ParseInt(q.Get("offset"), 10, 64); err != nil || offset < 0 {
			return answer{}, badParameter("offset", "must be a whole number from 0")
		}
	}
	id, err := c.importID()
	if err != nil {
		return answer{}, err
	}
	if len(data) == 0 {
		return answer{}, malformed("The body is empty; send a part of the file.")
	}
	i, err := c.imports.Upload(c.Context(), c.workspace(), id, offset, data)
	if err != nil {
		return answer{}, importError(err)
	}
	return reply(http.StatusOK, showImport(i))
}

func pauseImport(c *call) (answer, error)  { return c.changeImport((*files.Store).Pause) }
func resumeImport(c *call) (answer, error) { return c.changeImport((*files.Store).Resume) }
func cancelImport(c *call) (answer, error) { return c.changeImport((*files.Store).Cancel) }

func (c *call) changeImport(do func(*files.Store, context.Context, int32, int64) (files.Import, error)) (answer, error) {
	if err := c.noBody(); err != nil {
		return answer{}, err
	}
	return c.onImport(do)
}

type rejectJSON struct {
	File    string  `json:"file"`
	Row     int64   `json:"row"`
	Line    *int64  `json:"line"`
	Code    string  `json:"code"`
	Reason  string  `json:"reason"`
	Pointer *string `json:"pointer"`
	Sample  string  `json:"sample"`
}

func exportRejectedNDJSON(_ *API, c *call, w *streamWriter) error {
	return c.exportRejected(w, "ndjson", "application/x-ndjson", nil, func(b []byte, r files.Reject) ([]byte, error) {
		out := rejectJSON{r.File, r.Row, nil, r.Code, r.Reason, unlessEmpty(r.Pointer), r.Sample}
		if r.Line > 0 {
			out.Line = &r.Line
		}
		text, err := json.Marshal(out)
		return append(append(b, text...), '\n'), err
	})
}

func exportRejectedCSV(_ *API, c *call, w *streamWriter) error {
	begin := appendRecord(nil, []string{"file", "row", "line", "code", "reason", "pointer", "sample"})
	return c.exportRejected(w, "csv", "text/csv; charset=utf-8; header=present", begin, func(b []byte, r files.Reject) ([]byte, error) {
		line := ""
		if r.Line > 0 {
			line = strconv.FormatInt(r.Line, 10)
		}
		return appendRecord(b, []string{
			harmless(r.File), strconv.FormatInt(r.Row, 10), line, r.Code, harmless(r.Reason), harmless(r.Pointer), harmless(r.Sample),
		}), nil
	})
}

// exportRejected writes the rejected rows that are kept, behind what begin is.
func (c *call) exportRejected(w *streamWriter, ending, contentType string, begin []byte, write func([]byte, files.Reject) ([]byte, error)) error {
	if _, err := c.query(); err != nil {
		return err
	}
	id, err := c.importID()
	if err != nil {
		return err
	}
	if _, err := c.imports.Get(c.Context(), c.workspace(), id); err != nil {
		return err
	}
	list, err := c.imports.Rejected(c.Context(), c.workspace(), id)
	if err != nil {
		return err
	}
	b := begin
	for _, r := range list {
		if b, err = write(b, r); err != nil {
			return err
		}
	}
	w.head(contentType)
	w.Header().Set("Content-Disposition", `attachment; filename="`+formatID(importID, id)+`-rejected.`+ending+`"`)
	if c.Method == http.MethodHead {
		return nil
	}
	return w.send(b)
}
