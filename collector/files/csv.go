package files

import (
	"bytes"
	"io"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// csvReader reads the rows of a file of separated values (RFC 4180) as objects from the names of the columns to the texts
// of the cells. An empty cell is no member at all. A quote within a cell that does not begin with one is a quote.
//
// A row whose quotes do not match is rejected, and the next line is a row again. Because that row may then be read to where
// the damage was noticed once more, and so on, rows that begin before that place may not go over more than one line: each
// byte is looked at twice at most.
type csvReader struct {
	w       *window
	comma   byte
	columns [][]byte // JSON, with the colon
	pos     Position
	cells   []cell
	body    []byte
	text    []byte
}

// cell is where the text of a cell lies in the window.
type cell struct {
	start, end int
	escaped    bool // has doubled quotes
	quoted     bool
}

// newCSV reads from, which begins with the header, from a position. skip is called to go to an offset of the stream.
func newCSV(from io.Reader, f Format, at Position, seek func(offset int64) (io.Reader, error)) (*csvReader, error) {
	r := &csvReader{w: newWindow(from, 0)}
	names := f.Columns
	if f.Delimiter != "" {
		r.comma = f.Delimiter[0]
	}
	for len(r.w.bytes()) < 3 && r.w.more() {
	}
	if bytes.HasPrefix(r.w.bytes(), utf8BOM) {
		r.advance(len(utf8BOM), 0)
	}
	if r.comma == 0 {
		r.comma = r.guessComma()
	}
	if len(names) == 0 {
		n, fault, err := r.record(false)
		if err != nil {
			return nil, err
		}
		if fault != nil {
			return nil, badFile("bad_header", "the first line cannot be read as the names of the columns: %s", fault.Reason)
		}
		for _, c := range r.cells {
			names = append(names, strings.TrimSpace(string(r.of(c))))
		}
		r.advance(n, bytes.Count(r.w.bytes()[:n], newline))
	}
	if err := r.name(names); err != nil {
		return nil, err
	}
	if at.Offset > r.pos.Offset {
		from, err := seek(at.Offset)
		if err != nil {
			return nil, err
		}
		r.w, r.pos = newWindow(from, at.Offset), at
	}
	return r, nil
}

var newline = []byte{'\n'}

func (r *csvReader) Close() error       { return nil }
func (r *csvReader) Position() Position { return r.pos }

// guessComma returns the separator that is most often in the first line.
func (r *csvReader) guessComma() byte {
	for bytes.IndexByte(r.w.bytes(), '\n') < 0 && r.w.more() {
	}
	line, _, _ := bytes.Cut(r.w.bytes(), newline)
	best, most := byte(','), 0
	for _, c := range []byte{',', ';', '\t', '|'} {
		if n := bytes.Count(line, []byte{c}); n > most {
			best, most = c, n
		}
	}
	return best
}

// name takes in the names of the columns.
func (r *csvReader) name(names []string) error {
	if len(names) > maxColumns {
		return badFile("too_many_columns", "there are %d columns; at most %d are read", len(names), maxColumns)
	}
	seen := map[string]bool{}
	for i, name := range names {
		if name == "" {
			name = "column_" + strconv.Itoa(i+1)
		}
		if seen[name] {
			return badFile("bad_header", "the column %q is there twice", name)
		}
		seen[name] = true
		quoted, _ := jsontext.AppendQuote(nil, name) // what is not UTF-8 becomes U+FFFD
		r.columns = append(r.columns, append(quoted, ':'))
	}
	return nil
}

func (r *csvReader) advance(n, lines int) {
	r.w.drop(n)
	r.pos.Offset += int64(n)
	r.pos.Line += int64(lines)
}

func (r *csvReader) Next() (Row, error) {
	for {
		n, fault, err := r.record(r.pos.Offset < r.pos.Damage)
		if err != nil {
			return Row{}, err
		}
		row := Row{Line: r.pos.Line + 1}
		switch {
		case fault != nil:
			if row.Body, err = r.recover(n); err != nil {
				return Row{}, err
			}
		case len(r.cells) == 1 && !r.cells[0].quoted && len(r.of(r.cells[0])) == 0:
			r.advance(n, 1) // an empty line
			continue
		case len(r.cells) != len(r.columns):
			fault = &Fault{Code: "wrong_columns", Reason: "the row has " + strconv.Itoa(len(r.cells)) + " cells, the header " + strconv.Itoa(len(r.columns))}
			row.Body = bytes.Clone(sampleOf(bytes.TrimSpace(r.w.bytes()[:n])))
			r.advance(n, bytes.Count(r.w.bytes()[:n], newline))
		default:
			row.Body = r.object()
			r.advance(n, bytes.Count(r.w.bytes()[:n], newline))
		}
		r.pos.Row++
		row.Number, row.Fault = r.pos.Row, fault
		return row, nil
	}
}

// recover goes to the next line after a row in which n bytes were read until it was found to be damaged, and returns the
// row's beginning.
func (r *csvReader) recover(n int) (sample []byte, err error) {
	r.pos.Damage = max(r.pos.Damage, r.pos.Offset+int64(n))
	b := r.w.bytes()
	if i := bytes.IndexByte(b, '\n'); i >= 0 {
		sample = bytes.Clone(sampleOf(bytes.TrimSpace(b[:i])))
		r.advance(i+1, 1)
		return sample, nil
	}
	sample = bytes.Clone(sampleOf(b))
	skipped, err := r.w.skipLine()
	r.pos.Offset += skipped
	r.pos.Line++
	return sample, err
}

const (
	atEnd   = -1 - iota // of the file
	atBound             // of a row
	atError             // w.failed
)

// at returns the byte at i of the row, or one of the constants above.
func (r *csvReader) at(i int) int {
	for {
		if at := r.w.start + i; at < r.w.end {
			return int(r.w.buf[at])
		}
		switch {
		case i > maxRow:
			return atBound
		case r.w.more():
		case r.w.failed() != nil:
			return atError
		case r.w.err != nil:
			return atEnd
		default:
			return atBound
		}
	}
}

// record finds the cells of the row that begins in the window, and how many bytes it takes with its end; of a damaged one,
// up to where that was noticed.
func (r *csvReader) record(oneLine bool) (n int, fault *Fault, err error) {
	r.cells = r.cells[:0]
	i := 0
	switch r.at(0) {
	case atEnd:
		return 0, nil, io.EOF
	case atError:
		return 0, nil, r.w.failed()
	}
	for {
		c := cell{start: i}
		b := r.at(i)
		if b == '"' {
			c.start, c.quoted = i+1, true
			for i++; ; i++ {
				if b = r.at(i); b == '"' {
					if r.at(i+1) != '"' {
						break
					}
					c.escaped = true
					i++
					continue
				}
				switch {
				case b == atError:
					return 0, nil, r.w.failed()
				case b == atBound:
					return i, tooLarge(), nil
				case b == atEnd, b == '\n' && oneLine:
					return i, &Fault{Code: "unclosed_quote", Reason: "a quote in the row is not closed"}, nil
				}
			}
			c.end = i
			i++
			b = r.at(i)
			if b == '\r' {
				if next := r.at(i + 1); next == '\n' || next == atEnd {
					i++
					b = next
				}
			}
			if b >= 0 && b != '\n' && b != int(r.comma) {
				return i, &Fault{Code: "bad_quote", Reason: "a cell goes on behind its closing quote; double a quote within a cell"}, nil
			}
		} else {
			for b >= 0 && b != '\n' && b != int(r.comma) {
				i++
				b = r.at(i)
			}
			c.end = i
			if b != int(r.comma) && c.end > c.start && r.at(c.end-1) == '\r' {
				c.end--
			}
		}
		r.cells = append(r.cells, c)
		switch b {
		case atError:
			return 0, nil, r.w.failed()
		case atBound:
			return i, tooLarge(), nil
		case atEnd:
			return i, nil, nil
		case '\n':
			if i >= maxRow {
				return i, tooLarge(), nil
			}
			return i + 1, nil, nil
		}
		if len(r.cells) > maxColumns {
			return i, &Fault{Code: "wrong_columns", Reason: "the row has more than " + strconv.Itoa(maxColumns) + " cells"}, nil
		}
		i++
	}
}

// of returns the text of a cell, until the next call.
func (r *csvReader) of(c cell) []byte {
	text := r.w.buf[r.w.start+c.start : r.w.start+c.end]
	if !c.escaped {
		return text
	}
	r.text = r.text[:0]
	for i := 0; i < len(text); i++ {
		r.text = append(r.text, text[i])
		if text[i] == '"' {
			i++ // it is doubled
		}
	}
	return r.text
}

// object returns the row as JSON.
func (r *csvReader) object() []byte {
	b := append(r.body[:0], '{')
	for i, c := range r.cells {
		text := r.of(c)
		if len(text) == 0 {
			continue
		}
		if len(b) > 1 {
			b = append(b, ',')
		}
		b = append(b, r.columns[i]...)
		b, _ = jsontext.AppendQuote(b, text) // what is not UTF-8 becomes U+FFFD
	}
	r.body = append(b, '}')
	return r.body
}
