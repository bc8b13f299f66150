package filedrop

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/mubatch/mubatch/activation"
)

// maxFile is how large the rows of one file may be before they are compressed, in bytes.
const maxFile = 32 << 20

// run is what is written for one message. A message's body is its head, as JSON on one line, and then the data as the file
// has it: what settings say of files counts when the body is made, and not again when it is sent.
type run struct {
	head
	data []byte
}

type head struct {
	Path     string    `json:"path"` // of which {run_id} is left to be filled in
	Ending   string    `json:"ending"`
	Manifest bool      `json:"manifest"`
	Segment  string    `json:"segment"`
	Key      string    `json:"key,omitzero"`
	Name     string    `json:"name,omitzero"`
	Columns  []string  `json:"columns"`
	Rows     int       `json:"rows"`
	At       time.Time `json:"at"`
}

// Encode implements [activation.AudiencePartner].
func (drop) Encode(t activation.Target, b activation.Batch) (body []byte, took int, err error) {
	f, err := fileOf(t)
	if err != nil {
		return nil, 0, err
	}
	members := b.Members
	action := "add"
	if f.Profile == liveRamp {
		if !members[0].Entered {
			action = "remove"
		}
		if i := slices.IndexFunc(members, func(m activation.Member) bool { return m.Entered != members[0].Entered }); i > 0 {
			members = members[:i]
		}
	}
	h := head{
		Segment: "seg_" + strconv.FormatInt(b.Segment.ID, 10), Key: b.Segment.Key, Name: b.Segment.Name, At: b.At.UTC(),
		Ending: ".csv", Manifest: !f.WithoutManifest, Columns: header(f, members),
	}
	h.Path = strings.NewReplacer(
		"{segment_id}", h.Segment, "{segment_key}", pathPart(b.Segment.Key, h.Segment), "{action}", action,
		"{yyyy}", h.At.Format("2006"), "{mm}", h.At.Format("01"), "{dd}", h.At.Format("02"),
	).Replace(f.Path)

	var text bytes.Buffer
	w := newWriter(&text, f)
	if err := w.write(h.Columns); err != nil {
		return nil, 0, err
	}
	for _, m := range members {
		all := rows(h.Columns, m)
		before := text.Len()
		for _, row := range all {
			if err := w.write(row); err != nil {
				return nil, 0, err
			}
		}
		if took > 0 && (h.Rows+len(all) > f.Rows || text.Len() > maxFile) {
			text.Truncate(before)
			break
		}
		h.Rows += len(all)
		took++
	}
	data := text.Bytes()
	if f.Compression == "gzip" {
		h.Ending += ".gz"
		var packed bytes.Buffer
		z := gzip.NewWriter(&packed) // with no name and no time, so that the same rows are the same bytes
		if _, err := z.Write(data); err != nil {
			return nil, 0, err
		}
		if err := z.Close(); err != nil {
			return nil, 0, err
		}
		data = packed.Bytes()
	}
	first, err := json.Marshal(h)
	if err != nil {
		return nil, 0, err
	}
	return slices.Concat(first, []byte("\n"), data), took, nil
}

// header returns the columns of a file: those that the destination asks for, and those of what was sent when it asked for
// others and is to be removed now.
func header(f File, members []activation.Member) []string {
	names := slices.Clone(f.Columns)
	for _, c := range columns {
		is := func(id activation.Identifier) bool { return id.Kind == c.name }
		if !c.detail && !slices.Contains(names, c.name) && slices.ContainsFunc(members, func(m activation.Member) bool {
			return slices.ContainsFunc(m.Identifiers.IDs, is)
		}) {
			names = append(names, c.name)
		}
	}
	first := "action"
	if f.Profile == liveRamp {
		first = "audience_key"
		names = slices.DeleteFunc(names, func(name string) bool { return name == first })
	}
	return slices.Insert(names, 0, first)
}

// rows returns those of a member: as many as there are values in the column that has most of them. What is of the person as
// a whole is on each of them.
func rows(header []string, m activation.Member) (list [][]string) {
	values := map[string][]string{"action": {"add"}, "audience_key": {profileID(m.Person.ID)}}
	if !m.Entered {
		values["action"] = []string{"remove"}
	}
	if key := m.Identifiers.Get("audience_key"); key != "" {
		values["audience_key"] = []string{key}
	}
	for _, id := range slices.Concat(m.Identifiers.IDs, m.Identifiers.Details) {
		if id.Kind != "audience_key" {
			values[id.Kind] = append(values[id.Kind], id.Value)
		}
	}
	most := 1
	for _, name := range header {
		most = max(most, len(values[name]))
	}
	for i := range most {
		row := make([]string, len(header))
		for at, name := range header {
			c, _ := columnOf(name)
			switch list := values[name]; {
			case i < len(list):
				row[at] = list[i]
			case len(list) > 0 && (c.whole || name == "action"):
				row[at] = list[0]
			}
			if c.text {
				row[at] = harmless(row[at])
			}
		}
		list = append(list, row)
	}
	return list
}

// harmless returns text that no spreadsheet takes for a formula.
func harmless(text string) string {
	if text != "" && strings.ContainsRune("=+-@\t\r", rune(text[0])) {
		return "'" + text
	}
	return text
}

// pathPart returns a text as a part of a path, or another if nothing of it may be in one.
func pathPart(text, other string) string {
	text = strings.Trim(strings.Map(func(r rune) rune {
		if r == '/' || !paths.MatchString(string(r)) {
			return '_'
		}
		return r
	}, text), "._")
	if text == "" {
		return other
	}
	return text
}

// writer writes rows as RFC 4180 says.
type writer struct {
	to     *bytes.Buffer
	csv    *csv.Writer
	quoted bool // every cell is in quotes
	ending string
}

func newWriter(to *bytes.Buffer, f File) *writer {
	w := &writer{to: to, csv: csv.NewWriter(to), quoted: f.Profile == liveRamp, ending: "\n"}
	if f.LineEnding == "crlf" {
		w.csv.UseCRLF, w.ending = true, "\r\n"
	}
	return w
}

func (w *writer) write(row []string) error {
	if !w.quoted {
		if err := w.csv.Write(row); err != nil {
			return err
		}
		w.csv.Flush()
		return w.csv.Error()
	}
	for i, cell := range row {
		if i > 0 {
			w.to.WriteByte(',')
		}
		w.to.WriteString(`"` + strings.ReplaceAll(cell, `"`, `""`) + `"`)
	}
	w.to.WriteString(w.ending)
	return nil
}

// readRun reads what Encode made.
func readRun(body []byte) (r run, err error) {
	first, data, ok := bytes.Cut(body, []byte("\n"))
	if !ok {
		return r, fmt.Errorf("read a run: it has no head")
	}
	r.data = data
	if err := json.Unmarshal(first, &r.head); err != nil {
		return r, fmt.Errorf("read a run's head: %w", err)
	}
	return r, nil
}

// file is one that a run writes.
type file struct {
	name string
	kind string // of its content
	data []byte
}

// manifest is what a run's last file says.
type manifest struct {
	RunID       string    `json:"run_id"`
	Audience    string    `json:"audience"`
	SegmentKey  string    `json:"segment_key,omitzero"`
	SegmentName string    `json:"segment_name,omitzero"`
	Mode        string    `json:"mode"`
	Sequence    int64     `json:"sequence"`
	Files       []listed  `json:"files"`
	Columns     []string  `json:"columns"`
	CreatedAt   time.Time `json:"created_at"`
}

// listed is a file in a manifest.
type listed struct {
	Key    string `json:"key"`
	Rows   int    `json:"rows"`
	Bytes  int    `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// files returns those of a run, in the order in which they are to be written. They are the same for every attempt at a
// message.
func (r run) files(m activation.Message) ([]file, error) {
	id := fmt.Sprintf("%012d-%s", m.Batch, strings.TrimPrefix(m.Key, "msg_"))
	base := strings.ReplaceAll(r.Path, "{run_id}", id)
	data := file{name: base + "-0001" + r.Ending, kind: "text/csv; charset=utf-8", data: r.data}
	if strings.HasSuffix(r.Ending, ".gz") {
		data.kind = "application/gzip"
	}
	if !r.Manifest {
		return []file{data}, nil
	}
	sum := sha256.Sum256(data.data)
	text, err := json.Marshal(manifest{
		RunID: id, Audience: r.Segment, SegmentKey: r.Key, SegmentName: r.Name, Mode: "delta", Sequence: m.Batch,
		Files:   []listed{{Key: data.name, Rows: r.Rows, Bytes: len(data.data), SHA256: hex.EncodeToString(sum[:])}},
		Columns: r.Columns, CreatedAt: r.At,
	})
	if err != nil {
		return nil, fmt.Errorf("make a manifest: %w", err)
	}
	return []file{data, {name: base + ".manifest.json", kind: "application/json", data: text}}, nil
}

// drafts returns what would be written, with the data readable, but for names and places.
func drafts(m activation.Message, at func(file) activation.Draft) ([]activation.Draft, error) {
	r, err := readRun(m.Body)
	if err != nil {
		return nil, err
	}
	list, err := r.files(m)
	if err != nil {
		return nil, err
	}
	var out []activation.Draft
	for i, f := range list {
		d := at(f)
		if d.Body = f.data; i == 0 {
			if d.Body, err = r.shown(); err != nil {
				return nil, err
			}
		}
		out = append(out, d)
	}
	return out, nil
}

// shown returns the data of a run as it may be shown.
func (r run) shown() ([]byte, error) {
	text := io.Reader(bytes.NewReader(r.data))
	if strings.HasSuffix(r.Ending, ".gz") {
		z, err := gzip.NewReader(text)
		if err != nil {
			return nil, fmt.Errorf("show a run: %w", err)
		}
		text = z
	}
	rows, err := csv.NewReader(text).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("show a run: %w", err)
	}
	for _, row := range rows[1:] {
		for i := range row {
			if c, _ := columnOf(r.Columns[i]); c.text && row[i] != "" {
				row[i] = "…"
			}
		}
	}
	var out bytes.Buffer
	if err := csv.NewWriter(&out).WriteAll(rows); err != nil {
		return nil, fmt.Errorf("show a run: %w", err)
	}
	return out.Bytes(), nil
}
