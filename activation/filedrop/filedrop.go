// Package filedrop puts files about who entered and left a segment where others pick them up: into a bucket of S3 or of a
// store that is compatible with it, or into a folder of an SFTP server.
//
//	Batch ──► Encode ──► run ──► S3.Send   ──► PUT data, PUT manifest
//	          CSV, gzip          SFTP.Send ──► write .part, rename; data, then manifest
//
// A message is a run. It writes one file of rows, then a manifest that names it with its size and checksum: whoever waits for
// manifests never sees half a run. Names follow from the message, so that a retry overwrites what it wrote before.
//
//	audiences/seg_7/2026/08/22/000000008812-k5…-0001.csv.gz     action,email_sha256,phone_sha256,external_id
//	audiences/seg_7/2026/08/22/000000008812-k5….manifest.json   add,5f0d1df1…,7e25b784…,cust-42
//
// A row says that each identifier in it is to be added to the audience, or to be removed from it. Somebody with two addresses
// has two rows. Runs are to be applied in the order in which they appear, by the store's own clock, and each of them once:
// no other run about the same identifiers is written before one has been, for certain. Of two runs about one person the one
// with the greater sequence, with which names begin, is the later.
//
// Hashes are SHA-256 of UTF-8 text, in lower-case hexadecimal digits: of e-mail addresses without space around them and in
// lower case; of phone numbers with their country, as digits (phone_sha256) or with a + (phone_e164_sha256).
package filedrop

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/mubatch/mubatch/activation"
)

// The two forms of files.
const (
	standard = "standard"
	// liveRamp is what LiveRamp takes in: a key of each person first, every cell in quotes, no column for the action. Files
	// are of people to be added, or of people to be removed, which their path tells, and there is no manifest.
	liveRamp = "liveramp"
)

// File is what a destination's config says of its files.
type File struct {
	Profile         string   `json:"profile,omitzero" validate:"omitempty,oneof=standard liveramp"`
	Path            string   `json:"path,omitzero" validate:"max=500"`
	Columns         []string `json:"columns,omitzero" validate:"max=30"`
	Compression     string   `json:"compression,omitzero" validate:"omitempty,oneof=gzip none"`
	LineEnding      string   `json:"line_ending,omitzero" validate:"omitempty,oneof=lf crlf"`
	Rows            int      `json:"rows,omitzero" validate:"omitempty,min=1,max=50000"`             // in one file, at most
	IntervalSeconds int      `json:"interval_seconds,omitzero" validate:"omitempty,min=1,max=3600"`  // for which changes are gathered
	DefaultCountry  string   `json:"default_country,omitzero" validate:"omitempty,iso3166_1_alpha2"` // of phone numbers that do not say theirs
	WithoutManifest bool     `json:"without_manifest,omitzero"`
}

// withDefaults returns f with what it leaves open.
func (f File) withDefaults() File {
	f.Profile = cmp.Or(f.Profile, standard)
	path, columns, interval := "audiences/{segment_id}/{yyyy}/{mm}/{dd}/{run_id}", []string{"email_sha256", "phone_sha256", "external_id"}, 60
	if f.Profile == liveRamp {
		path, columns, interval = "audiences/{segment_key}/{action}/{run_id}", []string{"email_sha256", "phone_us_sha1"}, 3600
		f.WithoutManifest = true
	}
	f.Path = cmp.Or(f.Path, path)
	if len(f.Columns) == 0 {
		f.Columns = columns
	}
	f.Compression = cmp.Or(f.Compression, "gzip")
	f.LineEnding = cmp.Or(f.LineEnding, "lf")
	f.Rows = cmp.Or(f.Rows, 10_000)
	f.IntervalSeconds = cmp.Or(f.IntervalSeconds, interval)
	return f
}

// paths is what a path may consist of, besides placeholders.
var (
	paths        = regexp.MustCompile(`^[A-Za-z0-9._=/-]*$`)
	placeholders = regexp.MustCompile(`\{[^{}]*\}`)
	known        = []string{"{segment_id}", "{segment_key}", "{action}", "{yyyy}", "{mm}", "{dd}", "{run_id}"}
)

// check tells what is wrong with f, which has its defaults, beyond what its tags say.
func (f File) check() error {
	var errs []error
	wrong := func(at, detail string) {
		errs = append(errs, &activation.FieldError{Pointer: "/config/file/" + at, Detail: detail})
	}
	var names []string
	for _, c := range columns {
		names = append(names, c.name)
	}
	people := false
	for i, name := range f.Columns {
		c, ok := columnOf(name)
		switch {
		case !ok:
			wrong(fmt.Sprintf("columns/%d", i), "must be one of "+strings.Join(names, ", "))
		case slices.Contains(f.Columns[:i], name):
			wrong(fmt.Sprintf("columns/%d", i), "is there twice")
		}
		people = people || !c.detail
	}
	if !people {
		wrong("columns", "must hold at least one by which people are known, such as email_sha256")
	}
	var (
		rest  = placeholders.ReplaceAllString(f.Path, "")
		found = placeholders.FindAllString(f.Path, -1)
		parts = strings.Split(strings.TrimPrefix(f.Path, "/"), "/")
	)
	switch {
	case slices.ContainsFunc(found, func(p string) bool { return !slices.Contains(known, p) }):
		wrong("path", "knows these placeholders: "+strings.Join(known, ", "))
	case !paths.MatchString(rest):
		wrong("path", "may hold letters, digits, and . _ = / -")
	case slices.ContainsFunc(parts, func(p string) bool { return p == "" || strings.Trim(p, ".") == "" }):
		wrong("path", "has a part that is empty, or only full stops")
	case strings.Count(parts[len(parts)-1], "{run_id}") != 1 || slices.ContainsFunc(parts[:len(parts)-1], func(p string) bool {
		return strings.Contains(p, "{run_id}")
	}):
		wrong("path", "must have {run_id} once, in its last part, or files would overwrite each other")
	case f.Profile == liveRamp && !slices.Contains(found, "{action}"):
		wrong("path", "must have {action}: the rows of this profile do not tell who is to be removed")
	case (f.Profile == liveRamp || f.WithoutManifest) && !strings.Contains(f.Path, "{segment_"):
		wrong("path", "must have {segment_id} or {segment_key}: without a manifest nothing else tells the audience")
	case f.Profile != liveRamp && slices.Contains(found, "{action}"):
		wrong("path", "must not have {action}: rows of both kinds share a file")
	}
	return errors.Join(errs...)
}

// folder is the part of the path that is the same for all files, with a slash behind it, or "".
func (f File) folder() string {
	fixed, _, _ := strings.Cut(f.Path, "{")
	return fixed[:strings.LastIndexByte(fixed, '/')+1]
}

// drop is what the types of destinations have in common: all but where files go.
type drop struct{}

// fileOf reads what both types' config says of files.
func fileOf(t activation.Target) (File, error) {
	var cfg struct {
		File File `json:"file"`
	}
	if err := json.Unmarshal(t.Config, &cfg); err != nil {
		return File{}, fmt.Errorf("read a file drop's config: %w", err)
	}
	return cfg.File.withDefaults(), nil
}

// Gate implements [activation.Partner].
func (drop) Gate() activation.Gate { return activation.AdGate() }

func (drop) limits(t activation.Target, atOnce int) activation.Limits {
	f, _ := fileOf(t) // what does not decode is reported when a message is made
	return activation.Limits{
		Members: f.Rows, Mixed: f.Profile != liveRamp, Concurrency: atOnce, Timeout: time.Minute,
		Linger: time.Duration(f.IntervalSeconds) * time.Second,
	}
}
