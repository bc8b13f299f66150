package files

import (
	"bytes"
	"fmt"
	"io"

	"github.com/go-json-experiment/json/jsontext"
)

// ndjsonReader reads one JSON object a line.
type ndjsonReader struct {
	w   *window
	pos Position
}

func newNDJSON(from io.Reader, at Position) *ndjsonReader {
	return &ndjsonReader{w: newWindow(from, at.Offset), pos: at}
}

func (r *ndjsonReader) Close() error       { return nil }
func (r *ndjsonReader) Position() Position { return r.pos }

func (r *ndjsonReader) Next() (Row, error) {
	for {
		line, n, fault, err := r.line()
		if err != nil {
			return Row{}, err
		}
		r.w.drop(n)
		r.pos.Offset += int64(n)
		r.pos.Line++
		if r.pos.Line == 1 {
			line = bytes.TrimPrefix(line, utf8BOM)
		}
		line = bytes.TrimSpace(line)
		if len(line) == 0 && fault == nil {
			continue
		}
		r.pos.Row++
		row := Row{Number: r.pos.Row, Line: r.pos.Line, Body: line, Fault: fault}
		if fault == nil && (line[0] != '{' || !jsontext.Value(line).IsValid(lenient...)) {
			row.Fault = &Fault{Code: "malformed_json", Reason: "the line is not a JSON object"}
		}
		if row.Fault != nil {
			row.Body = sampleOf(line)
		}
		return row, nil
	}
}

// lenient lets pass what the intake repairs or rejects with a better reason.
var lenient = []jsontext.Options{jsontext.AllowInvalidUTF8(true), jsontext.AllowDuplicateNames(true)}

// line returns the next line and how many bytes it takes with its end. Of one that is too long it returns the beginning.
func (r *ndjsonReader) line() (line []byte, n int, fault *Fault, err error) {
	searched := 0
	for {
		b := r.w.bytes()
		if i := bytes.IndexByte(b[searched:], '\n'); i >= 0 {
			n = searched + i + 1
			if n > maxRow {
				return b[:maxSample], n, tooLarge(), nil
			}
			return b[:n], n, nil, nil
		}
		searched = len(b)
		if r.w.more() {
			continue
		}
		if err := r.w.failed(); err != nil {
			return nil, 0, nil, err
		}
		if len(b) > maxRow {
			line = bytes.Clone(b[:maxSample])
			skipped, err := r.w.skipLine()
			r.pos.Offset += skipped
			return line, 0, tooLarge(), err
		}
		if len(b) == 0 {
			return nil, 0, nil, io.EOF
		}
		return b, len(b), nil, nil
	}
}

func tooLarge() *Fault {
	return &Fault{Code: "row_too_large", Reason: fmt.Sprintf("the row is longer than %d KB", maxRow>>10)}
}

// skipLine drops everything up to the end of the line, however far that is, and returns how much it was.
func (w *window) skipLine() (skipped int64, err error) {
	for {
		b := w.bytes()
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			w.drop(i + 1)
			return skipped + int64(i+1), nil
		}
		w.drop(len(b))
		skipped += int64(len(b))
		if !w.more() {
			return skipped, w.failed()
		}
	}
}

var utf8BOM = []byte("\xef\xbb\xbf")

// sampleOf returns the beginning of a row for whoever asks why it was rejected.
func sampleOf(row []byte) []byte { return row[:min(len(row), maxSample)] }
