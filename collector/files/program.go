package files

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/collector/mapping"
)

// program makes events of the rows of one file. The messageId of an event that brings none follows from the file and the
// row, so that lanes recognize it when it is brought again.
type program struct {
	mapping *mapping.Program // nil: the rows are events
	prefix  string           // of messageIds
	meta    map[string]string
}

// newProgram returns the program of a file that identity tells from all others. What is read of a file depends on how it
// is read: a file that is imported anew, through a mapping that was put right, brings other events.
func newProgram(m *mapping.Program, source, file string, identity ...string) *program {
	h := sha256.New()
	for _, part := range identity {
		h.Write([]byte(part))
		h.Write([]byte{0})
	}
	return &program{
		mapping: m, prefix: "file_" + hex.EncodeToString(h.Sum(nil)[:12]) + "_",
		meta: map[string]string{"source": source, "file": file},
	}
}

// events returns what a row becomes. Of a row of which some events could be made and others not, it returns both.
func (p *program) events(row Row, received time.Time) (events [][]byte, fault *Fault) {
	if row.Fault != nil {
		return nil, row.Fault
	}
	if p.mapping == nil {
		return [][]byte{p.withID(row.Body, row.Number, 0)}, nil
	}
	p.meta["row"], p.meta["line"] = strconv.FormatInt(row.Number, 10), strconv.FormatInt(row.Line, 10)
	events, err := p.mapping.Map(mapping.Input{Body: row.Body, Meta: p.meta, ReceivedAt: received})
	var f *mapping.FaultError
	switch {
	case errors.As(err, &f):
		fault = &Fault{Code: f.Code, Reason: f.Detail}
		if f.Line > 0 {
			fault.Reason = "line " + strconv.Itoa(f.Line) + " of the mapping, " + f.Path + ": " + f.Detail
		}
	case err != nil:
		fault = &Fault{Code: "mapping", Reason: err.Error()}
	}
	for i, e := range events {
		events[i] = p.withID(e, row.Number, i)
	}
	return events, fault
}

// withID returns a copy of an event that has a messageId.
func (p *program) withID(event []byte, row int64, i int) []byte {
	event = bytes.TrimSpace(event)
	if len(event) == 0 || event[0] != '{' || hasMessageID(event) {
		return bytes.Clone(event)
	}
	b := make([]byte, 0, len(event)+len(p.prefix)+40)
	b = append(b, `{"messageId":"`...)
	b = append(b, p.prefix...)
	b = strconv.AppendInt(b, row, 10)
	if i > 0 {
		b = append(b, '_')
		b = strconv.AppendInt(b, int64(i), 10)
	}
	b = append(b, '"')
	if rest := bytes.TrimSpace(event[1:]); len(rest) > 0 && rest[0] != '}' {
		b = append(b, ',')
	}
	return append(b, event[1:]...)
}

var messageID = []byte(`"messageId"`)

// hasMessageID tells whether an event has that member.
func hasMessageID(event []byte) bool {
	if !bytes.Contains(event, messageID) {
		return false
	}
	dec := jsontext.NewDecoder(bytes.NewBuffer(event), lenient...)
	if _, err := dec.ReadToken(); err != nil {
		return false
	}
	for dec.PeekKind() == '"' {
		name, err := dec.ReadValue()
		if err != nil {
			return false
		}
		if bytes.Equal(name, messageID) {
			return true
		}
		if dec.SkipValue() != nil {
			return false
		}
	}
	return false
}
