package mapping

import (
	"bytes"
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	"go.yaml.in/yaml/v3"
)

// Bounds of a document.
const (
	maxDocument = 256 << 10 // bytes
	maxNesting  = 64        // of a document, and of an input
	maxValues   = 10_000    // in a document, of any kind
	maxName     = 256       // bytes of a member's name, as intake has it
	maxPath     = 1024      // bytes: every value keeps its path
	maxDetail   = 400       // bytes, of what a fault says
	maxFaults   = 100       // that are told
)

// Fault is what is wrong with a document at one place.
type Fault struct {
	Line   int    // from 1; 0 if it is the document as a whole
	Path   string // such as rules[0].event.userId
	Code   string
	Detail string // a sentence that says what to do, without its subject
}

func (f Fault) String() string {
	return fmt.Sprintf("line %d: %s %s", f.Line, cmp.Or(f.Path, "the document"), f.Detail)
}

// InvalidError says all that is wrong with a document, in the order of its lines.
type InvalidError struct{ Faults []Fault }

func (e *InvalidError) Error() string {
	list := make([]string, len(e.Faults))
	for i, f := range e.Faults {
		list[i] = f.String()
	}
	return "invalid mapping: " + strings.Join(list, "; ")
}

// entry is a value in a document, and where it is.
type entry struct {
	line    int
	path    string
	kind    kind
	text    string // as in a value
	members []namedEntry
	items   []*entry
}

type namedEntry struct {
	name string
	line int
	*entry
}

func (e *entry) member(name string) *entry {
	for _, m := range e.members {
		if m.name == name {
			return m.entry
		}
	}
	return nil
}

// reader reads a document and gathers what is wrong with it.
type reader struct {
	faults []Fault
	values int
}

// enter counts a value, and tells whether to read it: not what is nested too deep, nor one too many.
func (r *reader) enter(e *entry, depth int) bool {
	r.values++
	if r.values == maxValues+1 {
		r.faultAt(e, "too_many_values", "is one value too many; there can be %d", maxValues)
	}
	if depth > maxNesting {
		r.faultAt(e, "too_deep", "is nested deeper than %d levels", maxNesting)
	}
	if len(e.path) > maxPath {
		r.fault(e.line, "", "path_too_long", "has a value with a path of more than %d bytes; shorten the names of members", maxPath)
		return false
	}
	return depth <= maxNesting && r.values <= maxValues
}

// named tells whether a member may have that name, which is known before anything is built from it.
func (r *reader) named(line int, path, name string) bool {
	if len(name) > maxName {
		r.fault(line, path, "name_too_long", "has a member with a name of more than %d bytes", maxName)
	}
	return len(name) <= maxName
}

func (r *reader) fault(line int, path, code, format string, args ...any) {
	detail := fmt.Sprintf(format, args...)
	if len(detail) > maxDetail { // there may be a part of the document in it
		detail = strings.ToValidUTF8(detail[:maxDetail], "") + "…"
	}
	r.faults = append(r.faults, Fault{line, path, code, detail})
}

func (r *reader) faultAt(e *entry, code, format string, args ...any) {
	r.fault(e.line, e.path, code, format, args...)
}

// err returns the faults, or nil if there are none.
func (r *reader) err() error {
	if len(r.faults) == 0 {
		return nil
	}
	slices.SortStableFunc(r.faults, func(a, b Fault) int { return cmp.Compare(a.Line, b.Line) })
	r.faults = slices.Compact(r.faults) // what is wrong with the defaults is found with every rule
	return &InvalidError{Faults: r.faults[:min(len(r.faults), maxFaults)]}
}

// read returns what is in a document, or nil if it cannot be read.
func (r *reader) read(document []byte) *entry {
	switch {
	case len(document) > maxDocument:
		r.fault(0, "", "too_large", "is larger than %d bytes", maxDocument)
		return nil
	case !utf8.Valid(document):
		r.fault(0, "", "malformed", "is not in UTF-8")
		return nil
	case bytes.IndexByte(document, 0) >= 0:
		r.fault(0, "", "malformed", "must not contain U+0000")
		return nil
	}
	if text := bytes.TrimSpace(document); len(text) > 0 && text[0] == '{' && jsontext.Value(text).IsValid(jsontext.AllowDuplicateNames(true)) {
		j := jsonReader{reader: r, dec: jsontext.NewDecoder(bytes.NewReader(document), jsontext.AllowDuplicateNames(true)), text: document, line: 1}
		return j.entry("", 1)
	}
	var root yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(document))
	if err := dec.Decode(&root); err != nil || len(root.Content) == 0 {
		line, detail := yamlFault(err)
		r.fault(line, "", "malformed", "%s", detail)
		return nil
	}
	if dec.Decode(new(yaml.Node)) == nil {
		r.fault(0, "", "malformed", "has more than one YAML document; leave one")
		return nil
	}
	return r.yaml(root.Content[0], "", 1)
}

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)

// yamlFault takes the line out of what the parser says.
func yamlFault(err error) (line int, detail string) {
	if err == nil || err.Error() == "EOF" {
		return 0, "is empty"
	}
	m := yamlLine.FindStringSubmatch(strings.ReplaceAll(err.Error(), "\n", " "))
	if m == nil {
		return 0, "is neither JSON nor YAML"
	}
	line, _ = strconv.Atoi(m[1]) // 0 if there is none
	return line, "is neither JSON nor YAML: " + m[2]
}

// inside returns the path of a member.
func inside(path, name string) string {
	switch {
	case !plainName.MatchString(name):
		return path + "[" + strconv.Quote(name) + "]"
	case path == "":
		return name
	}
	return path + "." + name
}

var plainName = regexp.MustCompile(`^[\pL\pN_$-]+$`)

func (r *reader) yaml(n *yaml.Node, path string, depth int) *entry {
	e := &entry{line: n.Line, path: path}
	if !r.enter(e, depth) {
		return e
	}
	if n.Anchor != "" {
		r.faultAt(e, "unsupported", "has an anchor; write out what it stands for")
	}
	switch n.Kind {
	case yaml.MappingNode:
		e.kind = object
		for i := 0; i+1 < len(n.Content) && r.values <= maxValues; i += 2 {
			name := n.Content[i]
			if name.Kind != yaml.ScalarNode || name.Tag == "!!merge" {
				r.fault(name.Line, path, "unsupported", "has a member whose name is not text")
				continue
			}
			if !r.named(name.Line, path, name.Value) {
				continue
			}
			r.add(e, name.Value, name.Line, r.yaml(n.Content[i+1], inside(path, name.Value), depth+1))
		}
	case yaml.SequenceNode:
		e.kind = list
		for i, item := range n.Content {
			if r.values > maxValues {
				break
			}
			e.items = append(e.items, r.yaml(item, path+"["+strconv.Itoa(i)+"]", depth+1))
		}
	case yaml.ScalarNode:
		r.scalar(e, n)
	default:
		r.faultAt(e, "unsupported", "is an alias; write out what it stands for")
	}
	return e
}

// scalar reads a YAML scalar. Numbers stay as they are written if JSON writes them so.
func (r *reader) scalar(e *entry, n *yaml.Node) {
	e.text = n.Value
	switch n.ShortTag() {
	case "!!str", "!!timestamp":
		e.kind = text
	case "!!null":
		e.kind, e.text = null, "null"
	case "!!bool":
		var is bool
		if n.Decode(&is) != nil {
			r.faultAt(e, "unsupported", "is neither true nor false")
		}
		e.kind, e.text = boolean, strconv.FormatBool(is)
	case "!!int", "!!float":
		e.kind = number
		if _, ok := parseDecimal(n.Value); ok && jsontext.Value(n.Value).IsValid() {
			return
		}
		r.faultAt(e, "unsupported", "is not a number as JSON writes it; put it in quotes, or write it so")
	default:
		r.faultAt(e, "unsupported", "has the tag %s; leave it out", n.ShortTag())
	}
}

// add puts a member into an object, unless there is one of that name.
func (r *reader) add(e *entry, name string, line int, value *entry) {
	if e.member(name) != nil {
		r.fault(line, inside(e.path, name), "duplicate_member", "is there twice")
		return
	}
	e.members = append(e.members, namedEntry{name, line, value})
}

// jsonReader reads a document that is known to be valid JSON.
type jsonReader struct {
	*reader
	dec  *jsontext.Decoder
	text []byte
	upTo int // where line was counted
	line int
}

// at returns the line in which the token ends that was read last.
func (j *jsonReader) at() int {
	offset := int(j.dec.InputOffset())
	j.line += bytes.Count(j.text[j.upTo:offset], []byte("\n"))
	j.upTo = offset
	return j.line
}

func (j *jsonReader) entry(path string, depth int) *entry {
	e := &entry{path: path}
	t, err := j.dec.ReadToken()
	if err != nil {
		panic(fmt.Errorf("read valid JSON: %w", err))
	}
	token := t.String()
	e.line = j.at()
	if !j.enter(e, depth) {
		for parent := j.dec.StackDepth() - 1; (t.Kind() == '{' || t.Kind() == '[') && j.dec.StackDepth() > parent; {
			_, _ = j.dec.ReadToken()
		}
		return e
	}
	switch t.Kind() {
	case '{':
		e.kind = object
		for j.dec.PeekKind() != '}' {
			name, _ := j.dec.ReadToken()
			text := name.String()
			line := j.at()
			if j.values > maxValues || !j.named(line, path, text) {
				_ = j.dec.SkipValue()
				continue
			}
			j.add(e, text, line, j.entry(inside(path, text), depth+1))
		}
		_, _ = j.dec.ReadToken()
	case '[':
		e.kind = list
		for i := 0; j.dec.PeekKind() != ']'; i++ {
			if j.values > maxValues {
				_ = j.dec.SkipValue()
				continue
			}
			e.items = append(e.items, j.entry(path+"["+strconv.Itoa(i)+"]", depth+1))
		}
		_, _ = j.dec.ReadToken()
	case '"':
		e.kind, e.text = text, token
	case '0':
		e.kind, e.text = number, token
		if _, ok := parseDecimal(token); !ok {
			j.faultAt(e, "number_out_of_range", "is a number out of all proportion; put it in quotes")
		}
	case 'n':
		e.kind, e.text = null, "null"
	default:
		e.kind, e.text = boolean, token
	}
	return e
}
