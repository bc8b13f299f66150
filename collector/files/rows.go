package files

import (
	"errors"
	"fmt"
	"io"
)

// Row is one row of a file.
type Row struct {
	Number int64  // of the row in its file, from 1; the header is none
	Line   int64  // where it begins, from 1; 0 in a file that has no lines
	Body   []byte // a JSON object; good until the next row is read
	Fault  *Fault // or what is wrong with it; Body is then its beginning, as it is in the file
}

// Fault is why a row is rejected.
type Fault struct {
	Code    string
	Reason  string // a sentence for whoever has the file
	Pointer string // into the row or the event that was made of it, if it is known
}

func (f *Fault) Error() string { return f.Code + ": " + f.Reason }

// Position is a place between two rows of a file, from which a reader can go on.
type Position struct {
	Row    int64 `json:"row"`             // rows before it
	Line   int64 `json:"line,omitzero"`   // lines before it
	Offset int64 `json:"offset,omitzero"` // bytes before it, unpacked
	Damage int64 `json:"damage,omitzero"` // up to this offset, rows are of one line: see csvReader
}

// Reader reads the rows of a file in their order. Next returns io.EOF behind the last one. Any other error concerns the
// whole file: a [*FileError] stays, others may pass.
type Reader interface {
	Next() (Row, error)
	Position() Position // behind the row that Next returned
	Close() error
}

// FileError is what is wrong with a file as a whole, in words for whoever has it. Reading it again does not help.
type FileError struct {
	Code   string
	Reason string
}

func (e *FileError) Error() string { return e.Code + ": " + e.Reason }

func badFile(code, format string, args ...any) error {
	return &FileError{Code: code, Reason: fmt.Sprintf(format, args...)}
}

// Bounds of what is read, whatever a file says of itself.
const (
	maxRow     = 1 << 20 // bytes of a row
	maxColumns = 1000
	maxSample  = 2 << 10 // bytes of a rejected row that are kept
)

// window is the part of a stream that is being looked at. It holds at most a row and what was read along with it.
type window struct {
	from       io.Reader
	buf        []byte
	start, end int
	offset     int64 // of buf[start] in the stream
	err        error // of from; io.EOF at the end
}

func newWindow(from io.Reader, offset int64) *window {
	return &window{from: from, buf: make([]byte, 64<<10), offset: offset}
}

// bytes returns what is in the window.
func (w *window) bytes() []byte { return w.buf[w.start:w.end] }

// more reads on, and returns false if there is nothing more or the window has grown beyond a row.
func (w *window) more() bool {
	if w.err != nil || w.end-w.start > maxRow {
		return false
	}
	if w.end == len(w.buf) {
		if w.start >= len(w.buf)/2 {
			w.end = copy(w.buf, w.buf[w.start:w.end])
		} else {
			grown := make([]byte, 2*len(w.buf))
			w.end = copy(grown, w.buf[w.start:w.end])
			w.buf = grown
		}
		w.start = 0
	}
	for range 100 {
		n, err := w.from.Read(w.buf[w.end:])
		w.end += n
		w.err = err
		if n > 0 || err != nil {
			return n > 0
		}
	}
	w.err = io.ErrNoProgress
	return false
}

// failed returns why there is nothing more, unless that is the end of the file.
func (w *window) failed() error {
	if w.err == nil || errors.Is(w.err, io.EOF) {
		return nil
	}
	return w.err
}

// drop takes n bytes out of the window.
func (w *window) drop(n int) {
	w.start += n
	w.offset += int64(n)
}
