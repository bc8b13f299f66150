package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mubatch/mubatch/collector/files"
)

// rowsRejected is the exit code of an import that ended, but not with all rows.
const rowsRejected = 3

// runImport imports files over the REST API of a mubatch that is served: whoever has a file and a key needs nothing else,
// and the server goes on when this program does not.
func runImport(ctx context.Context, args []string, std stdio) error {
	var im importer
	flags := flag.NewFlagSet("mubatch import", flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), "usage: mubatch import -source KEY [-mapping FILE] [FLAGS] FILE…\n\n"+
			"FILE is a file of this machine, s3://bucket/prefix/ or, in the folder that the server's operator allows,\n"+
			"file:folder/*.csv. Interrupted, it goes on when it is started again.")
		flags.PrintDefaults()
	}
	flags.StringVar(&im.url, "url", "", "the `URL` of mubatch; MUBATCH_URL, else that of dev.json if not given")
	flags.StringVar(&im.key, "secret-key", "", "a secret `key` with the scopes read and write; MUBATCH_SECRET_KEY, else that of dev.json if not given")
	flags.StringVar(&im.ask.Source, "source", "", "the `key` of the source that the events are of")
	mapping := flags.String("mapping", "", "the `file` of the mapping from rows to events; without one, the rows are events")
	flags.StringVar(&im.ask.Format.Type, "format", "", "ndjson, csv or parquet; told by the name if not given")
	flags.StringVar(&im.ask.Format.Delimiter, "delimiter", "", "the `character` between the cells of CSV; told by the first line if not given")
	flags.StringVar(&im.ask.Format.Encoding, "encoding", "", "utf-8, utf-16le, utf-16be, windows-1252 or iso-8859-1")
	flags.IntVar(&im.ask.Rate, "rate", 0, "the most `rows` to import a second; 0: as many as live traffic leaves room for")
	flags.BoolVar(&im.ask.Again, "again", false, "import a file again that was imported before")
	rejected := flags.String("rejected", "", "write the rejected rows, up to 1,000 a file, to a CSV `file`")
	every := flags.Duration("watch", 0, "go on looking for new files at a URL, this often")
	data := flags.String("data", ".mubatch", "the `folder` of the dev mode that has dev.json")
	if err := parseFlags(flags, args, std); err != nil {
		return err
	}
	at, err := readInfo(filepath.Join(*data, infoFile))
	if err != nil {
		return err
	}
	im.url = strings.TrimSuffix(cmp.Or(im.url, std.getenv("MUBATCH_URL"), at.URL), "/")
	im.key = cmp.Or(im.key, std.getenv("MUBATCH_SECRET_KEY"), at.SecretKey)
	switch {
	case im.url == "" || im.key == "":
		return &exitError{2, errors.New("set MUBATCH_URL and MUBATCH_SECRET_KEY, or -url and -secret-key")}
	case im.ask.Source == "":
		return &exitError{2, errors.New("-source is required")}
	case flags.NArg() == 0:
		return &exitError{2, errors.New("name the files to import")}
	}
	if *mapping != "" {
		text, err := os.ReadFile(*mapping)
		if err != nil {
			return err
		}
		im.ask.Mapping = string(text)
	}
	if *every > 0 {
		im.ask.Watch = &importWatch{Every: every.String()}
	}
	im.bar = newBar(std.out)
	im.s3 = files.S3{
		Endpoint: cmp.Or(std.getenv("AWS_ENDPOINT_URL_S3"), std.getenv("AWS_ENDPOINT_URL")),
		Region:   cmp.Or(std.getenv("AWS_REGION"), std.getenv("AWS_DEFAULT_REGION")), AccessKeyID: std.getenv("AWS_ACCESS_KEY_ID"),
		SecretAccessKey: std.getenv("AWS_SECRET_ACCESS_KEY"), SessionToken: std.getenv("AWS_SESSION_TOKEN"),
	}
	return im.all(ctx, flags.Args(), *rejected)
}

// importer imports files one after the other.
type importer struct {
	url, key string
	ask      importRequest
	s3       files.S3
	bar      *bar
}

type importRequest struct {
	Source  string        `json:"source"`
	URL     string        `json:"url,omitzero"`
	Upload  *importUpload `json:"upload,omitzero"`
	Format  files.Format  `json:"format"`
	Mapping string        `json:"mapping,omitzero"`
	S3      *files.S3     `json:"s3,omitzero"`
	Rate    int           `json:"rate,omitzero"`
	Watch   *importWatch  `json:"watch,omitzero"`
	Again   bool          `json:"again,omitzero"`
}

type importUpload struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

type importWatch struct {
	Every string `json:"every"`
}

// importState is what the importer reads of an import.
type importState struct {
	ID     string  `json:"id"`
	State  string  `json:"state"`
	Reason *string `json:"reason"`
	Upload *struct {
		Size     int64 `json:"size"`
		Uploaded int64 `json:"uploaded"`
	} `json:"upload"`
	Progress struct {
		Files            int64            `json:"files"`
		Bytes            int64            `json:"bytes"`
		BytesRead        int64            `json:"bytes_read"`
		Rows             int64            `json:"rows"`
		Events           int64            `json:"events"`
		Skipped          int64            `json:"skipped"`
		Rejected         int64            `json:"rejected"`
		RejectedByReason map[string]int64 `json:"rejected_by_reason"`
		RowsPerSecond    float64          `json:"rows_per_second"`
		ETASeconds       *float64         `json:"eta_seconds"`
	} `json:"progress"`
	FinishedAt *time.Time `json:"finished_at"`
}

func (im *importer) all(ctx context.Context, names []string, rejected string) error {
	var keep *os.File
	if rejected != "" {
		var err error
		if keep, err = os.Create(rejected); err != nil {
			return err
		}
		defer keep.Close()
	}
	code, kept := 0, false
	for _, name := range names {
		s, err := im.one(ctx, name)
		im.bar.finish()
		var signalled signalError
		switch {
		case errors.As(context.Cause(ctx), &signalled):
			im.bar.say("interrupted; start it again to go on")
			return &exitError{code: 128 + int(signalled.signal)}
		case err != nil:
			return fmt.Errorf("%s: %w", name, err)
		}
		im.report(name, s)
		switch {
		case s.State != files.Done && im.ask.Watch == nil:
			code = 1
		case s.Progress.Rejected > 0 && code == 0:
			code = rowsRejected
		}
		if keep != nil && s.Progress.Rejected > 0 {
			list, err := im.do(ctx, http.MethodGet, "/api/v1/imports/"+s.ID+"/rejected.csv", "", nil)
			if err != nil {
				return err
			}
			if kept { // its header is there
				_, list, _ = bytes.Cut(list, []byte("\r\n"))
			}
			kept = true
			if _, err := keep.Write(list); err != nil {
				return err
			}
		}
	}
	if keep != nil {
		if err := keep.Close(); err != nil {
			return err
		}
	}
	if code != 0 {
		return &exitError{code: code}
	}
	return nil
}

// one imports what a name stands for, and returns how that ended.
func (im *importer) one(ctx context.Context, name string) (s importState, err error) {
	if strings.HasPrefix(name, "s3:") || strings.HasPrefix(name, "file:") {
		ask := im.ask
		ask.URL = name
		if strings.HasPrefix(name, "s3:") {
			ask.S3 = &im.s3
		}
		if s, err = im.create(ctx, ask); err != nil || ask.Watch != nil {
			return s, err
		}
		return im.follow(ctx, name, s)
	}
	file, err := os.Open(name)
	if err != nil {
		return s, err
	}
	defer file.Close()
	hash := sha256.New()
	size, err := io.Copy(hash, file)
	if err != nil {
		return s, err
	}
	ask := im.ask
	ask.Upload = &importUpload{filepath.Base(name), size, hex.EncodeToString(hash.Sum(nil))}
	if s, err = im.create(ctx, ask); err != nil {
		return s, err
	}
	switch s.State {
	case files.Done:
		im.bar.say("%s was imported before, as %s; -again imports it again", name, s.ID)
		return s, nil
	case files.Paused:
		im.bar.say("%s is paused, as %s: resume it with POST /api/v1/imports/%s/resume", name, s.ID, s.ID)
		return s, nil
	}
	if s, err = im.upload(ctx, file, s); err != nil {
		return s, err
	}
	return im.follow(ctx, name, s)
}

func (im *importer) create(ctx context.Context, ask importRequest) (s importState, err error) {
	body, err := json.Marshal(ask)
	if err != nil {
		return s, err
	}
	return im.state(ctx, http.MethodPost, "/api/v1/imports", "application/json", body)
}

// uploadPart is how much of a file is sent at once.
const uploadPart = 4 << 20

// upload sends what the server does not have of a file.
func (im *importer) upload(ctx context.Context, file io.ReaderAt, s importState) (importState, error) {
	part := make([]byte, uploadPart)
	for s.State == files.Uploading {
		at := s.Upload.Uploaded
		n, err := file.ReadAt(part[:min(uploadPart, s.Upload.Size-at)], at)
		if n == 0 {
			return s, fmt.Errorf("read at %d: %w", at, err)
		}
		path := "/api/v1/imports/" + s.ID + "/content?offset=" + strconv.FormatInt(at, 10)
		if s, err = im.state(ctx, http.MethodPut, path, "application/octet-stream", part[:n]); err != nil {
			return s, err
		}
		im.bar.show(float64(s.Upload.Uploaded)/float64(s.Upload.Size), "uploaded")
	}
	return s, nil
}

// follow shows how an import gets on until it ends.
func (im *importer) follow(ctx context.Context, name string, s importState) (importState, error) {
	im.bar.say("%s: %s", name, s.ID)
	for {
		p := s.Progress
		switch s.State {
		case files.Queued, files.Running:
		default:
			return s, nil
		}
		what := fmt.Sprintf("%d rows, %.0f a second", p.Rows, p.RowsPerSecond)
		if p.ETASeconds != nil {
			what += ", " + time.Duration(*p.ETASeconds*float64(time.Second)).Round(time.Second).String() + " left"
		}
		if p.Rejected > 0 {
			what += fmt.Sprintf(", %d rejected", p.Rejected)
		}
		if s.Reason != nil {
			what += "; waits: " + *s.Reason
		}
		im.bar.show(float64(p.BytesRead)/float64(max(p.Bytes, 1)), what)
		if err := sleep(ctx, 500*time.Millisecond); err != nil {
			return s, err
		}
		var err error
		if s, err = im.state(ctx, http.MethodGet, "/api/v1/imports/"+s.ID, "", nil); err != nil {
			return s, err
		}
	}
}

// report says how an import has ended.
func (im *importer) report(name string, s importState) {
	p := s.Progress
	im.bar.say("%s: %s %s: %d rows, %d events, %d rows that the mapping leaves out, %d rejected",
		name, s.ID, s.State, p.Rows, p.Events, p.Skipped, p.Rejected)
	if s.Reason != nil {
		im.bar.say("  %s", *s.Reason)
	}
	codes := slices.SortedFunc(maps.Keys(p.RejectedByReason), func(a, b string) int {
		return cmp.Or(cmp.Compare(p.RejectedByReason[b], p.RejectedByReason[a]), cmp.Compare(a, b))
	})
	for _, code := range codes {
		im.bar.say("  %8d  %s", p.RejectedByReason[code], code)
	}
}

func (im *importer) state(ctx context.Context, method, path, contentType string, body []byte) (s importState, err error) {
	answer, err := im.do(ctx, method, path, contentType, body)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(answer, &s); err != nil {
		return s, fmt.Errorf("%s %s: %w", method, path, err)
	}
	return s, nil
}

// importPatience is how long the importer tries to reach a server.
const importPatience = 5 * time.Minute

// do makes a request until it is answered. All that it asks for may be asked for twice: a file whose import was asked for
// is found again, and a part of it that is there is not written again.
func (im *importer) do(ctx context.Context, method, path, contentType string, body []byte) ([]byte, error) {
	until := time.Now().Add(importPatience)
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		answer, again, err := im.once(ctx, method, path, contentType, body)
		if err == nil || !again || ctx.Err() != nil || time.Now().After(until) {
			return answer, err
		}
		im.bar.show(-1, "the server does not answer, trying again")
		if err := sleep(ctx, pause); err != nil {
			return nil, err
		}
	}
}

func (im *importer) once(ctx context.Context, method, path, contentType string, body []byte) (answer []byte, again bool, err error) {
	req, err := http.NewRequestWithContext(ctx, method, im.url+path, bytes.NewReader(body))
	if err != nil {
		return nil, false, err
	}
	req.Header.Set("Authorization", "Bearer "+im.key)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, true, err
	}
	defer res.Body.Close()
	if answer, err = io.ReadAll(res.Body); err != nil {
		return nil, true, err
	}
	if res.StatusCode < 300 {
		return answer, false, nil
	}
	var p struct {
		Title, Detail string
		Errors        []struct{ Pointer, Detail string }
	}
	_ = json.Unmarshal(answer, &p) // what is no problem has no title
	text := strings.TrimSpace(p.Title + " " + p.Detail)
	for _, e := range p.Errors {
		text += "\n  " + e.Pointer + " " + e.Detail
	}
	return nil, res.StatusCode >= 500 || res.StatusCode == http.StatusTooManyRequests, fmt.Errorf("the server answers %d: %s", res.StatusCode, text)
}

// bar shows progress in one line of a terminal, or elsewhere in a line every now and then.
type bar struct {
	out      io.Writer
	terminal bool
	last     time.Time
	shown    bool
}

func newBar(out io.Writer) *bar {
	b := &bar{out: out}
	if f, ok := out.(*os.File); ok {
		info, err := f.Stat()
		b.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return b
}

// show shows how much of something is done, from 0 to 1, or less than 0 if that is not the point.
func (b *bar) show(done float64, what string) {
	if !b.terminal {
		if time.Since(b.last) < 10*time.Second {
			return
		}
		b.last = time.Now()
		fmt.Fprintf(b.out, "%3.0f %% %s\n", 100*max(done, 0), what)
		return
	}
	const width = 30
	line := ""
	if done >= 0 {
		full := int(width * min(done, 1))
		line = fmt.Sprintf("[%s%s] %3.0f %% ", strings.Repeat("#", full), strings.Repeat("-", width-full), 100*done)
	}
	fmt.Fprintf(b.out, "\r\x1b[K%s%s", line, what)
	b.shown = true
}

func (b *bar) finish() {
	if b.shown {
		fmt.Fprint(b.out, "\r\x1b[K")
		b.shown = false
	}
}

func (b *bar) say(format string, args ...any) {
	b.finish()
	fmt.Fprintf(b.out, format+"\n", args...)
}
