package partnertest

import (
	"bytes"
	"compress/gzip"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	stdjson "encoding/json"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/mubatch/mubatch/activation"
)

// FileOptions are what destinations of [S3] and [SFTP] may ask of files.
type FileOptions struct {
	LiveRamp bool     // the profile of that name
	Columns  []string // those of the profile if empty
	CRLF     bool
	Plain    bool // files are not compressed
	Rows     int  // in a file, at most: 10
}

func (o FileOptions) columns() []string {
	switch {
	case len(o.Columns) > 0:
		return o.Columns
	case o.LiveRamp:
		return []string{"email_sha256", "phone_us_sha1"}
	default:
		return []string{"email_sha256", "phone_sha256", "external_id"}
	}
}

func (o FileOptions) rows() int {
	if o.Rows == 0 {
		return 10
	}
	return o.Rows
}

// config is what a destination's config says of files.
func (o FileOptions) config() map[string]any {
	c := map[string]any{"rows": o.rows(), "interval_seconds": 1}
	if o.LiveRamp {
		c["profile"], c["path"] = "liveramp", "in/{segment_id}/{action}/{run_id}"
	}
	if len(o.Columns) > 0 {
		c["columns"] = o.Columns
	}
	if o.CRLF {
		c["line_ending"] = "crlf"
	}
	if o.Plain {
		c["compression"] = "none"
	}
	return c
}

// inbox reads files as somebody does who was told of the format, and checks everything about them. The audience of a segment
// is called seg_ and its number.
type inbox struct {
	Faults
	crowd   *Crowd
	options FileOptions

	door    sync.Mutex
	revoked bool

	mu    sync.Mutex
	files map[string][]byte // those that are there, under their final names
	runs  map[int64]string  // sequence → name of the run, with its folder
	read  map[string]bool   // runs that have counted
}

func newInbox(o FileOptions) *inbox {
	in := &inbox{
		options: o, files: map[string][]byte{}, runs: map[int64]string{}, read: map[string]bool{},
	}
	in.crowd = NewCrowd(in.Violate, in.derive)
	return in
}

// Seed implements [Fake].
func (in *inbox) Seed(people ...activation.Person) { in.crowd.Seed(people...) }

// Members implements [Fake].
func (in *inbox) Members(a Audience) []activation.ProfileID { return in.crowd.Members(audienceName(a)) }

// Leftovers implements [Fake].
func (in *inbox) Leftovers(a Audience) []string { return in.crowd.Leftovers(audienceName(a)) }

// Refuse does nothing: where files are put, nobody looks at people.
func (*inbox) Refuse(activation.ProfileID, bool) {}

// Revoke implements [Fake].
func (in *inbox) Revoke() { in.open(false) }

// Heal implements [Fake].
func (in *inbox) Heal() {
	in.Faults.Heal()
	in.open(true)
}

// open has whoever brings files let in, or not.
func (in *inbox) open(open bool) {
	in.door.Lock()
	defer in.door.Unlock()
	in.revoked = !open
}

// closed tells whether nobody is let in.
func (in *inbox) closed() bool {
	in.door.Lock()
	defer in.door.Unlock()
	return in.revoked
}

func audienceName(a Audience) string { return fmt.Sprintf("seg_%d", a.Segment) }

// Files returns the names of the files that are there, sorted.
func (in *inbox) Files() []string {
	in.mu.Lock()
	defer in.mu.Unlock()
	var names []string
	for name := range in.files {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// derive says by what cells people are recognised.
func (in *inbox) derive(p activation.Person) Recognised {
	is := Recognised{Mistakes: map[Key]string{}}
	for _, column := range in.options.columns() {
		for _, raw := range rawOf(column, p) {
			switch {
			case strings.HasSuffix(column, "_sha256") && !strings.Contains(column, "name"):
				is.Keys = append(is.Keys, Key{column, Hex(raw)})
				others := map[string]string{}
				for _, other := range slices.Concat(p.Identified("email"), p.Identified("phone")) {
					if other != raw {
						others[other] = "is the hash of a text that was not normalised"
					}
				}
				for k, mistake := range HexMistakes(column, raw, others) {
					is.Mistakes[k] = mistake
				}
			case strings.HasSuffix(column, "_sha256"):
				is.Details = append(is.Details, Key{column, Hex(strings.ToLower(raw))})
			case column == "phone_us_sha1":
				sum := sha1.Sum([]byte(raw))
				is.Keys = append(is.Keys, Key{column, hex.EncodeToString(sum[:])})
			case column == "external_id" || column == "maid" || column == "profile_id":
				is.Keys = append(is.Keys, Key{column, raw})
			case strings.ContainsAny(raw[:1], "=+-@"): // what a spreadsheet would reckon with
				is.Details = append(is.Details, Key{column, "'" + raw})
				is.Mistakes[Key{column, raw}] = "is a formula to a spreadsheet"
			default:
				is.Details = append(is.Details, Key{column, raw})
			}
		}
	}
	if in.options.LiveRamp {
		for _, id := range p.Identified("user_id") {
			is.Details = append(is.Details, Key{"audience_key", id})
		}
		is.Details = append(is.Details, Key{"audience_key", profileText(p.ID)})
	}
	return is
}

// rawOf returns what of a person is in a column before it is hashed.
func rawOf(column string, p activation.Person) (raw []string) {
	for _, id := range p.Identifiers {
		switch {
		case id.Kind == "email" && column == "email_sha256":
			raw = append(raw, strings.ToLower(strings.TrimSpace(id.Value)))
		case id.Kind == "phone" && column == "phone_e164_sha256":
			raw = append(raw, id.Value)
		case id.Kind == "phone" && column == "phone_sha256":
			raw = append(raw, strings.TrimPrefix(id.Value, "+"))
		case id.Kind == "phone" && column == "phone_us_sha1" && strings.HasPrefix(id.Value, "+1"):
			raw = append(raw, id.Value[2:])
		case id.Kind == "user_id" && strings.HasPrefix(column, "external_id"):
			raw = append(raw, id.Value)
		case id.Kind == "idfa" && strings.HasPrefix(column, "maid"):
			raw = append(raw, strings.ToLower(id.Value))
		}
	}
	trait := map[string]string{"postal_code": "zip"}[strings.TrimSuffix(column, "_sha256")]
	if trait == "" {
		trait = strings.TrimSuffix(column, "_sha256")
	}
	var text string
	if v, ok := p.Traits[trait]; ok && stdjson.Unmarshal(v, &text) == nil {
		if text = strings.TrimSpace(strings.NewReplacer("\n", " ", "\r", " ", "\t", " ", "\x00", " ").Replace(text)); text != "" {
			raw = append(raw, strings.Join(strings.Fields(text), " "))
		}
	}
	if column == "profile_id" {
		raw = append(raw, profileText(p.ID))
	}
	return raw
}

// runFile matches the name of a file of a run.
var runFile = regexp.MustCompile(`^(.+/)?(([0-9]{12})-[a-z0-9]+)(?:-([0-9]{4})\.csv(\.gz)?(\.done)?|\.manifest\.json)$`)

// hit tells whether faults that name no files happen to this one: of some runs to the data, of others to the manifest.
func (in *inbox) hit(name string) bool {
	found := runFile.FindStringSubmatch(strings.TrimPrefix(name, "/"))
	if found == nil {
		return false
	}
	isManifest, run := found[4] == "", found[2]
	return found[6] == "" && (in.options.LiveRamp || isManifest == (run[len(run)-1]%2 == 0))
}

// Put takes a file in that has become visible under its name, complete.
func (in *inbox) Put(name string, data []byte) {
	in.mu.Lock()
	before, there := in.files[name]
	if there && !bytes.Equal(before, data) {
		in.Violate("%s was written again, as another", name)
	}
	in.files[name] = data
	found := runFile.FindStringSubmatch(name)
	if found == nil {
		in.Violate("%s is not the name of a file that was agreed upon", name)
		in.mu.Unlock()
		return
	}
	sequence, _ := strconv.ParseInt(found[3], 10, 64)
	run := found[1] + found[2]
	if other, ok := in.runs[sequence]; ok && other != run {
		in.Violate("run %d has files as %s and as %s", sequence, path.Base(other), path.Base(run))
	}
	in.runs[sequence] = run
	in.mu.Unlock()
	switch isData := found[4] != ""; {
	case found[6] != "":
		if in.file(strings.TrimSuffix(name, ".done")) == nil || len(data) > 0 {
			in.Violate("%s came before what it marks, or is not empty", name)
		}
	case isData && in.options.LiveRamp:
		parts := strings.Split(found[1], "/")
		if len(parts) != 4 || parts[0] != "in" || parts[2] != "add" && parts[2] != "remove" {
			in.Violate("%s is in a folder that nobody reads", name)
			return
		}
		if _, rows, ok := in.rows(name, data); ok {
			in.apply(parts[1], run, rows, parts[2])
		}
	case !isData:
		in.manifest(name, found[1], found[2], sequence, data)
	}
}

func (in *inbox) file(name string) []byte {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.files[name]
}

// manifest reads one, and the file that it names.
func (in *inbox) manifest(name, folder, run string, sequence int64, data []byte) {
	var m struct {
		RunID       string `json:"run_id"`
		Audience    string `json:"audience"`
		SegmentKey  string `json:"segment_key"`
		SegmentName string `json:"segment_name"`
		Mode        string `json:"mode"`
		Sequence    int64  `json:"sequence"`
		Files       []struct {
			Key    string `json:"key"`
			Rows   int    `json:"rows"`
			Bytes  int    `json:"bytes"`
			SHA256 string `json:"sha256"`
		} `json:"files"`
		Columns   []string  `json:"columns"`
		CreatedAt time.Time `json:"created_at"`
	}
	if in.options.LiveRamp {
		in.Violate("%s: a manifest is taken for data", name)
		return
	}
	if err := json.Unmarshal(data, &m, json.RejectUnknownMembers(true)); err != nil {
		in.Violate("%s cannot be read: %v", name, err)
		return
	}
	day := fmt.Sprintf("audiences/%s/%s/", m.Audience, m.CreatedAt.UTC().Format("2006/01/02"))
	if m.RunID != run || m.Mode != "delta" || m.Sequence != sequence || folder != day || len(m.Files) != 1 {
		in.Violate("%s does not go with its name: %s", name, data)
		return
	}
	f := m.Files[0]
	content := in.file(f.Key)
	if content == nil {
		in.Violate("%s is there before %s", name, f.Key)
		return
	}
	sum := sha256.Sum256(content)
	if f.Bytes != len(content) || f.SHA256 != hex.EncodeToString(sum[:]) {
		in.Violate("%s has another size or checksum than its file", name)
	}
	header, rows, ok := in.rows(f.Key, content)
	if !ok {
		return
	}
	if len(rows) != f.Rows || !slices.Equal(header, m.Columns) {
		in.Violate("%s tells of %d rows of %v, its file has %d of %v", name, f.Rows, m.Columns, len(rows), header)
	}
	in.apply(m.Audience, run, rows, "")
}

// rows reads a file of data.
func (in *inbox) rows(name string, data []byte) (header []string, rows []map[string]string, ok bool) {
	if strings.HasSuffix(name, ".gz") == in.options.Plain {
		in.Violate("%s is not compressed as it was agreed upon", name)
	}
	if strings.HasSuffix(name, ".gz") {
		z, err := gzip.NewReader(bytes.NewReader(data))
		if err != nil {
			in.Violate("%s is not compressed: %v", name, err)
			return nil, nil, false
		}
		if !z.ModTime.IsZero() || z.Name != "" {
			in.Violate("%s is compressed with a name or a time", name)
		}
		if data, err = io.ReadAll(z); err != nil {
			in.Violate("%s cannot be read: %v", name, err)
			return nil, nil, false
		}
	}
	ending := "\n"
	if in.options.CRLF {
		ending = "\r\n"
	}
	if !bytes.HasSuffix(data, []byte(ending)) || bytes.HasPrefix(data, []byte("\ufeff")) ||
		bytes.Count(data, []byte("\n")) != bytes.Count(data, []byte(ending)) || !in.options.CRLF && bytes.ContainsRune(data, '\r') {
		in.Violate("%s has the wrong line endings, or a byte order mark", name)
	}
	if bytes.ContainsRune(data, '@') {
		in.Violate("%s holds an e-mail address", name)
	}
	all, err := csv.NewReader(bytes.NewReader(data)).ReadAll()
	if err != nil || len(all) < 2 {
		in.Violate("%s has %d rows, %v", name, len(all), err)
		return nil, nil, false
	}
	if in.options.LiveRamp {
		for line := range strings.SplitSeq(strings.TrimSuffix(string(data), ending), ending) {
			if !strings.HasPrefix(line, `"`) || strings.Count(line, `","`) != len(all[0])-1 || !strings.HasSuffix(line, `"`) {
				in.Violate("%s has a cell that is not in quotes", name)
			}
		}
	}
	header, first := all[0], "action"
	if in.options.LiveRamp {
		first = "audience_key"
	}
	if header[0] != first || len(header) < len(in.options.columns())+1 ||
		!slices.Equal(header[1:len(in.options.columns())+1], in.options.columns()) {
		in.Violate("%s has columns %v, want %s and %v", name, header, first, in.options.columns())
	}
	if len(all)-1 > in.options.rows() {
		in.Violate("%s has %d rows, want at most %d", name, len(all)-1, in.options.rows())
	}
	for _, cells := range all[1:] {
		row := map[string]string{}
		for i, cell := range cells {
			row[header[i]] = cell
		}
		rows = append(rows, row)
	}
	return header, rows, true
}

// digests are what hashes look like.
var digests = map[string]*regexp.Regexp{
	"_sha256": regexp.MustCompile(`^[0-9a-f]{64}$`), "_sha1": regexp.MustCompile(`^[0-9a-f]{40}$`),
}

// apply has the rows of a run count, unless they have: runs count once, in the order in which they appear.
func (in *inbox) apply(audience, run string, rows []map[string]string, action string) {
	in.crowd.Make(audience)
	type step struct {
		add  bool
		keys []Key
	}
	var steps []step
	for i, row := range rows {
		where := fmt.Sprintf("%s, row %d", path.Base(run), i+1)
		s := step{}
		var all []Key
		does := action
		for column, cell := range row {
			for ending, form := range digests {
				if strings.HasSuffix(column, ending) && cell != "" && !form.MatchString(cell) {
					in.Violate("%s: %s is %q, want a hash in lower-case digits", where, column, cell)
				}
			}
			switch {
			case column == "action":
				does = cell
			case cell == "":
			case strings.Contains(column, "sha") && !strings.Contains(column, "name"),
				column == "external_id", column == "maid", column == "profile_id":
				s.keys = append(s.keys, Key{column, cell})
				all = append(all, Key{column, cell})
			default:
				all = append(all, Key{column, cell})
			}
		}
		if does != "add" && does != "remove" || len(s.keys) == 0 {
			in.Violate("%s is to %q %d identifiers", where, does, len(s.keys))
			continue
		}
		if does == "remove" { // of whom nothing is known but what is to be removed
			all = s.keys
		}
		in.crowd.Check(where, all...)
		s.add = does == "add"
		steps = append(steps, s)
	}
	for _, s := range steps {
		defer in.crowd.Occupy(audience, s.add, s.keys...)()
	}
	time.Sleep(time.Millisecond) // for whoever comes too early
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.read[run] {
		return
	}
	in.read[run] = true
	for _, s := range steps {
		in.crowd.Apply(audience, s.add, time.Now(), s.keys...)
	}
}
