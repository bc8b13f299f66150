package files

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strconv"
	"time"

	"github.com/mubatch/mubatch/collector"
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
	id := p.prefix + strconv.FormatInt(row, 10)
	if i > 0 {
		id += "_" + strconv.Itoa(i)
	}
	return collector.WithMessageID(bytes.Clone(event), id)
}
