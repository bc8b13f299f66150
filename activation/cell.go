package activation

import (
	"errors"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/collector/mapping"
)

// compiled are the cells of fields that were used lately, by their JSON: the events of a subscription share them, and to
// compile an expression takes longer than to send a small batch.
var compiled = struct {
	sync.Mutex
	objects map[string]*mapping.Object
}{objects: map[string]*mapping.Object{}}

// maxCompiled is with how many of them the memory is emptied.
const maxCompiled = 200

// wrongCell says what is wrong with a cell, or nothing.
func wrongCell(cell jsontext.Value) string {
	if kind := cell.Kind(); kind != '"' && kind != '{' && kind != '[' {
		return "must be a text, an object or a list; what is always the same is a value"
	}
	document, err := cellsObject(map[string]jsontext.Value{"cell": cell})
	if err == nil {
		_, err = mapping.CompileObject(document)
	}
	var invalid *mapping.InvalidError
	switch {
	case err == nil:
		return ""
	case !errors.As(err, &invalid):
		return "must be JSON"
	case invalid.Faults[0].Path == "cell":
		return invalid.Faults[0].Detail
	}
	return "has a fault: " + invalid.Faults[0].Path + " " + invalid.Faults[0].Detail
}

func cellsObject(cells map[string]jsontext.Value) ([]byte, error) {
	literal := make(map[string]jsontext.Value, len(cells))
	for name, cell := range cells {
		if name != "" && name[0] == '$' {
			name = "$" + name // it is a name, not a directive
		}
		literal[name] = cell
	}
	return json.Marshal(literal, json.Deterministic(true))
}

// compute returns what cells make of an event, or why one of them cannot be made.
func compute(cells map[string]jsontext.Value, body []byte, received time.Time) (fields map[string]jsontext.Value, reason string) {
	document, err := cellsObject(cells)
	if err != nil {
		return nil, "the mapping cannot be read"
	}
	compiled.Lock()
	object, ok := compiled.objects[string(document)]
	compiled.Unlock()
	if !ok {
		if object, err = mapping.CompileObject(document); err != nil {
			return nil, "the mapping cannot be read"
		}
		compiled.Lock()
		if len(compiled.objects) >= maxCompiled {
			clear(compiled.objects)
		}
		compiled.objects[string(document)] = object
		compiled.Unlock()
	}
	made, err := object.Map(mapping.Input{Body: body, ReceivedAt: received})
	var fault *mapping.FaultError
	if errors.As(err, &fault) {
		return nil, "a field of the mapping cannot be made: " + fault.Path + ": " + fault.Detail
	}
	if err != nil {
		return nil, "the mapping cannot be applied"
	}
	return membersOf(made), ""
}
