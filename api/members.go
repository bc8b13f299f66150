package api

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/profiles"
)

// The members of a segment as a file, written while it is read.

const maxExportTraits = 100

func exportCSV(_ *API, c *call, w *streamWriter) error {
	return c.export(w, "csv", "text/csv; charset=utf-8; header=present",
		func(b []byte, traits []string) []byte {
			return appendRecord(b, append([]string{"profile_id", "user_id", "anonymous_id", "email", "phone", "entered_at"}, traits...))
		},
		func(b []byte, m exported) ([]byte, error) {
			cells := []string{m.ID.String(), m.UserID, m.AnonymousID, m.Email, m.Phone, m.EnteredAt.UTC().Format(timeFormat)}
			for i, cell := range cells {
				cells[i] = harmless(cell)
			}
			for _, v := range m.traits {
				cells = append(cells, cellOf(v))
			}
			return appendRecord(b, cells), nil
		})
}

func exportNDJSON(_ *API, c *call, w *streamWriter) error {
	return c.export(w, "ndjson", "application/x-ndjson", nil, func(b []byte, m exported) ([]byte, error) {
		line := struct {
			ProfileID   profiles.Key              `json:"profile_id"`
			UserID      *string                   `json:"user_id"`
			AnonymousID *string                   `json:"anonymous_id"`
			Email       *string                   `json:"email"`
			Phone       *string                   `json:"phone"`
			EnteredAt   timestamp                 `json:"entered_at"`
			Traits      map[string]jsontext.Value `json:"traits"`
		}{
			m.ID, unlessEmpty(m.UserID), unlessEmpty(m.AnonymousID), unlessEmpty(m.Email), unlessEmpty(m.Phone),
			timestamp(m.EnteredAt),
			map[string]jsontext.Value{},
		}
		for i, name := range m.names {
			if m.traits[i] != nil {
				line.Traits[name] = m.traits[i]
			}
		}
		text, err := json.Marshal(line, json.Deterministic(true))
		if err != nil {
			return nil, err
		}
		return append(append(b, text...), '\n'), nil
	})
}

// exported is a member as a file has it.
type exported struct {
	ID                                profiles.Key
	UserID, AnonymousID, Email, Phone string
	EnteredAt                         time.Time
	names                             []string
	traits                            []jsontext.Value // nil: there is none
}

// export writes the members of the segment in the path, each with write, behind what begin writes.
func (c *call) export(w *streamWriter, ending, contentType string, begin func([]byte, []string) []byte, write func([]byte, exported) ([]byte, error)) error {
	q, err := c.query("traits")
	if err != nil {
		return err
	}
	var traits []string
	if q.Has("traits") {
		traits = strings.Split(q.Get("traits"), ",")
		slices.Sort(traits)
		switch distinct := len(slices.Compact(slices.Clone(traits))); {
		case distinct < len(traits):
			return badParameter("traits", "names a trait twice")
		case distinct > maxExportTraits:
			return badParameter("traits", "must name at most "+strconv.Itoa(maxExportTraits)+" traits")
		case traits[0] == "":
			return badParameter("traits", "must be names of traits with commas in between")
		}
		traits = strings.Split(q.Get("traits"), ",") // in the order in which they were asked for
	}
	ref, err := c.segmentRef()
	if err != nil {
		return err
	}
	seg, err := c.segments.Find(c.Context(), c.workspace(), ref)
	if err != nil {
		return err
	}
	asOf, err := c.people.AsOf(c.Context()) // before reading: what it says must be true
	if err != nil {
		return err
	}
	w.head(contentType)
	w.Header().Set("Content-Disposition", `attachment; filename="`+seg.Key+`-members.`+ending+`"`)
	if !asOf.IsZero() {
		w.Header().Set("Mubatch-As-Of", asOf.UTC().Format(timeFormat))
	}
	if c.Method == http.MethodHead {
		return nil
	}
	var b []byte
	if begin != nil {
		b = begin(b, traits)
	}
	err = c.people.EachMember(c.Context(), c.workspace(), seg.ID, func(list []profiles.FullMember) error {
		for _, m := range list {
			e := exported{ID: m.ID, EnteredAt: m.EnteredAt, names: traits, traits: make([]jsontext.Value, len(traits))}
			if p := m.Profile; p != nil {
				e.UserID, e.AnonymousID = p.Newest(profiles.UserID), p.Newest(profiles.AnonymousID)
				e.Email, e.Phone = p.Newest(profiles.Email), p.Newest(profiles.Phone)
				for i, name := range traits {
					e.traits[i], _ = p.Trait(name)
				}
			}
			if b, err = write(b, e); err != nil {
				return err
			}
		}
		err := w.send(b)
		b = b[:0]
		return err
	})
	if err != nil {
		return err
	}
	return w.send(b) // the header, if there is nobody
}

// cellOf returns a trait as a cell: a text as it is, but harmless; nothing if there is none; anything else as JSON.
func cellOf(v jsontext.Value) string {
	switch v.Kind() {
	case '"':
		s, err := jsontext.AppendUnquote(nil, v)
		if err != nil {
			return harmless(string(v))
		}
		return harmless(string(s))
	case jsontext.KindInvalid:
		return ""
	}
	return string(v) // a number may begin with a minus, and is no formula
}

// harmless puts an apostrophe before what a spreadsheet would take for a formula.
func harmless(s string) string {
	if s != "" && strings.ContainsRune("=+-@\t\r\n", rune(s[0])) {
		return "'" + s
	}
	return s
}

// appendRecord appends a line of CSV (RFC 4180). encoding/csv, which ends lines with CRLF only if it may change the line ends
// within cells as well, will not do.
func appendRecord(b []byte, cells []string) []byte {
	for i, cell := range cells {
		if i > 0 {
			b = append(b, ',')
		}
		if !strings.ContainsAny(cell, "\",\r\n") && strings.TrimSpace(cell) == cell {
			b = append(b, cell...)
			continue
		}
		b = append(b, '"')
		b = append(b, strings.ReplaceAll(cell, `"`, `""`)...)
		b = append(b, '"')
	}
	return append(b, "\r\n"...)
}

func unlessEmpty(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
