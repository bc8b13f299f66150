package files

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"strconv"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/format"
)

// parquetReader reads rows of a Parquet file. Decimals and integers stay exact, dates and times become RFC 3339, lists
// arrays, maps objects, and bytes that are no text base64. What is null is no member at all.
type parquetReader struct {
	file  *parquet.File
	rows  *parquet.GenericReader[any]
	from  *ranges
	root  *parquetNode
	size  int64
	pos   Position
	read  *atomic.Int64
	buf   []parquet.Row
	ready []parquet.Row // of buf
	cols  [][]parquet.Value
	body  []byte
}

const (
	maxFooter        = 16 << 20
	maxParquetValues = 100_000 // of a row
	parquetRows      = 64      // read at once
)

// ranges is content as Parquet's reader wants it. It remembers that it failed, so that damage can be told from outages.
type ranges struct {
	ctx context.Context // of the reader, as io.ReaderAt has none
	content
	err error
}

func (r *ranges) ReadAt(p []byte, offset int64) (int, error) {
	if offset < 0 || offset > r.Size() {
		return 0, errors.New("it leads to places outside of itself")
	}
	n, err := r.content.ReadAt(r.ctx, p, offset)
	if err != nil && !errors.Is(err, io.EOF) {
		r.err = err
	}
	return n, err
}

// damaged returns what an error of the library, or a panic on bytes that it did not expect, says of the file.
func (r *ranges) damaged(err any) error {
	if r.err != nil {
		return r.err
	}
	return badFile("damaged_parquet", "the Parquet file is damaged: %v", err)
}

func newParquet(ctx context.Context, c content, read *atomic.Int64, at Position) (_ *parquetReader, err error) {
	from := &ranges{ctx: ctx, content: c}
	defer func() {
		if v := recover(); v != nil {
			err = from.damaged(v)
		}
	}()
	var tail [8]byte
	if n, err := from.ReadAt(tail[:], max(c.Size()-8, 0)); n < len(tail) || string(tail[4:]) != "PAR1" {
		return nil, from.damaged(errors.Join(errors.New("it does not end as one"), err))
	}
	if n := binary.LittleEndian.Uint32(tail[:]); n > maxFooter {
		return nil, badFile("too_large", "the Parquet file's description of itself has %d MB", n>>20)
	}
	f, err := parquet.OpenFile(from, c.Size(), parquet.SkipPageIndex(true), parquet.SkipBloomFilters(true))
	if err != nil {
		return nil, from.damaged(err)
	}
	p := &parquetReader{file: f, from: from, size: c.Size(), pos: at, read: read, buf: make([]parquet.Row, parquetRows)}
	columns := 0
	p.root = newParquetNode(f.Schema(), &columns, 0)
	if columns == 0 || columns > maxColumns {
		return nil, badFile("too_many_columns", "there are %d columns; from 1 to %d are read", columns, maxColumns)
	}
	p.cols = make([][]parquet.Value, columns)
	p.rows = parquet.NewGenericReader[any](f)
	if err := p.rows.SeekToRow(at.Row); err != nil {
		return nil, from.damaged(err)
	}
	return p, nil
}

func (p *parquetReader) Close() error       { return p.rows.Close() }
func (p *parquetReader) Position() Position { return p.pos }

func (p *parquetReader) Next() (row Row, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = p.from.damaged(v)
		}
	}()
	if len(p.ready) == 0 {
		n, err := p.rows.ReadRows(p.buf)
		if n == 0 {
			if errors.Is(err, io.EOF) && p.from.err == nil {
				p.read.Store(p.size)
				return Row{}, io.EOF
			}
			return Row{}, p.from.damaged(err)
		}
		p.ready = p.buf[:n]
	}
	values := p.ready[0]
	p.ready = p.ready[1:]
	p.pos.Row++
	p.read.Store(int64(float64(p.size) * float64(p.pos.Row) / float64(max(p.file.NumRows(), 1))))
	row.Number = p.pos.Row
	if len(values) > maxParquetValues {
		row.Fault = tooLarge()
		return row, nil
	}
	clear(p.cols)
	for column, v := range values.Range {
		p.cols[column] = v
	}
	p.body = p.root.object(p.body[:0], 0, 0, p.cols)
	row.Body = p.body
	if len(p.body) > maxRow {
		row.Body, row.Fault = sampleOf(p.body), tooLarge()
	}
	return row, nil
}

// parquetNode is a part of a schema, over as many of the columns as it has leaves.
type parquetNode struct {
	parquet.Node
	name     []byte // JSON, with the colon
	columns  int
	children []*parquetNode
	logical  format.LogicalTypeValue // or nil
}

func newParquetNode(n parquet.Node, columns *int, depth int) *parquetNode {
	if depth > 64 {
		panic("the schema is too deep")
	}
	first := *columns
	node := &parquetNode{Node: n}
	if t := n.Type().LogicalType(); t != nil {
		node.logical = t.Value
	}
	if n.Leaf() {
		*columns++
	} else {
		for _, f := range n.Fields() {
			child := newParquetNode(f, columns, depth+1)
			child.name, _ = jsontext.AppendQuote(nil, f.Name()) // what is not UTF-8 becomes U+FFFD
			child.name = append(child.name, ':')
			node.children = append(node.children, child)
		}
	}
	node.columns = *columns - first
	return node
}

var null = []byte("null")

// append appends the values of a node: cols are those of its leaves, and levels of repetition and definition are those of
// what it is in (Dremel's record assembly).
func (n *parquetNode) append(b []byte, repetition, definition int, cols [][]parquet.Value) []byte {
	switch {
	case n.Repeated():
		return n.list(b, repetition, definition, cols, n.body)
	case n.Optional():
		if cols[0][0].DefinitionLevel() <= definition {
			return append(b, null...)
		}
		definition++
	}
	return n.body(b, repetition, definition, cols)
}

type appender func(b []byte, repetition, definition int, cols [][]parquet.Value) []byte

// list appends what is repeated, each as one appends it.
func (n *parquetNode) list(b []byte, repetition, definition int, cols [][]parquet.Value, one appender) []byte {
	b = append(b, '[')
	for i, item := range n.items(repetition, definition, cols) {
		if i > 0 {
			b = append(b, ',')
		}
		b = one(b, repetition+1, definition+1, item)
	}
	return append(b, ']')
}

// items cuts the values of a repeated node into those of each repetition.
func (n *parquetNode) items(repetition, definition int, cols [][]parquet.Value) (items [][][]parquet.Value) {
	if cols[0][0].DefinitionLevel() <= definition {
		return nil
	}
	rest := append([][]parquet.Value(nil), cols...)
	for len(rest[0]) > 0 {
		item := make([][]parquet.Value, len(rest))
		for i, values := range rest {
			end := 1
			for end < len(values) && values[end].RepetitionLevel() > repetition+1 {
				end++
			}
			item[i], rest[i] = values[:end], values[end:]
		}
		items = append(items, item)
	}
	return items
}

func (n *parquetNode) body(b []byte, repetition, definition int, cols [][]parquet.Value) []byte {
	_, isList := n.logical.(*format.ListType)
	_, isMap := n.logical.(*format.MapType)
	switch {
	case n.Leaf():
		return n.leaf(b, cols[0][0])
	case isList && len(n.children) == 1 && n.children[0].Repeated():
		each := n.children[0]
		one := each.body
		if !each.Leaf() && len(each.children) == 1 {
			one = each.children[0].append
		}
		return each.list(b, repetition, definition, cols, one)
	case isMap && len(n.children) == 1 && n.children[0].Repeated() && len(n.children[0].children) == 2:
		return n.children[0].mapped(b, repetition, definition, cols)
	default:
		return n.object(b, repetition, definition, cols)
	}
}

// object appends the children of a node as members.
func (n *parquetNode) object(b []byte, repetition, definition int, cols [][]parquet.Value) []byte {
	b = append(b, '{')
	open := len(b)
	for _, child := range n.children {
		before := len(b)
		if before > open {
			b = append(b, ',')
		}
		b = append(b, child.name...)
		at := len(b)
		b = child.append(b, repetition, definition, cols[:child.columns])
		if string(b[at:]) == "null" {
			b = b[:before]
		}
		cols = cols[child.columns:]
	}
	return append(b, '}')
}

// mapped appends pairs of a key and a value as members.
func (n *parquetNode) mapped(b []byte, repetition, definition int, cols [][]parquet.Value) []byte {
	key, value := n.children[0], n.children[1]
	b = append(b, '{')
	for i, item := range n.items(repetition, definition, cols) {
		if i > 0 {
			b = append(b, ',')
		}
		at := len(b)
		b = key.append(b, repetition+1, definition+1, item[:key.columns])
		if len(b) == at || b[at] != '"' {
			name := string(b[at:])
			b, _ = jsontext.AppendQuote(b[:at], name)
		}
		b = append(b, ':')
		b = value.append(b, repetition+1, definition+1, item[key.columns:])
	}
	return append(b, '}')
}

// leaf appends a value.
func (n *parquetNode) leaf(b []byte, v parquet.Value) []byte {
	if v.IsNull() {
		return append(b, null...)
	}
	quote := func(text string) []byte { b, _ = jsontext.AppendQuote(b, text); return b }
	clock := func(t time.Time) []byte { return quote(t.UTC().Format(time.RFC3339Nano)) }
	switch kind := v.Kind(); kind {
	case parquet.Boolean:
		return strconv.AppendBool(b, v.Boolean())
	case parquet.Int32, parquet.Int64:
		i := v.Int64()
		if kind == parquet.Int32 {
			i = int64(v.Int32())
		}
		switch l := n.logical.(type) {
		case *format.DecimalType:
			return appendDecimal(b, big.NewInt(i), int(l.Scale))
		case *format.DateType:
			return quote(time.Unix(0, 0).UTC().AddDate(0, 0, int(i)).Format(time.DateOnly))
		case *format.TimestampType:
			switch l.Unit.Value.(type) {
			case *format.MilliSeconds:
				return clock(time.UnixMilli(i))
			case *format.MicroSeconds:
				return clock(time.UnixMicro(i))
			}
			return clock(time.Unix(0, i))
		case *format.IntType:
			switch {
			case l.IsSigned:
			case kind == parquet.Int32:
				return strconv.AppendUint(b, uint64(v.Uint32()), 10)
			default:
				return strconv.AppendUint(b, v.Uint64(), 10)
			}
		}
		return strconv.AppendInt(b, i, 10)
	case parquet.Int96:
		const julian1970 = 2440588 // days; an Int96 is nanoseconds of a day and the day
		i := v.Int96()
		return clock(time.Unix((int64(i[2])-julian1970)*24*60*60, int64(i[0])|int64(i[1])<<32))
	case parquet.Float:
		return appendFloat(b, float64(v.Float()), 32)
	case parquet.Double:
		return appendFloat(b, v.Double(), 64)
	}
	raw := v.ByteArray()
	switch l := n.logical.(type) {
	case *format.DecimalType:
		unscaled := new(big.Int).SetBytes(raw)
		if len(raw) > 0 && raw[0]&0x80 != 0 {
			unscaled.Sub(unscaled, new(big.Int).Lsh(big.NewInt(1), uint(8*len(raw))))
		}
		return appendDecimal(b, unscaled, int(l.Scale))
	case *format.UUIDType:
		if len(raw) == 16 {
			h := hex.EncodeToString(raw)
			return quote(fmt.Sprintf("%s-%s-%s-%s-%s", h[:8], h[8:12], h[12:16], h[16:20], h[20:]))
		}
	case *format.JsonType:
		if jsontext.Value(raw).IsValid(lenient...) {
			return append(b, raw...)
		}
	case *format.StringType, *format.EnumType:
		return quote(string(raw))
	}
	if utf8.Valid(raw) {
		return quote(string(raw))
	}
	return quote(base64.StdEncoding.EncodeToString(raw))
}

func appendFloat(b []byte, f float64, bits int) []byte {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return append(b, null...)
	}
	return strconv.AppendFloat(b, f, 'g', -1, bits)
}

// appendDecimal appends unscaled / 10^scale, exactly.
func appendDecimal(b []byte, unscaled *big.Int, scale int) []byte {
	if scale <= 0 {
		return unscaled.Append(b, 10)
	}
	if unscaled.Sign() < 0 {
		b = append(b, '-')
	}
	digits := new(big.Int).Abs(unscaled).String()
	for len(digits) <= scale {
		digits = "0" + digits
	}
	b = append(b, digits[:len(digits)-scale]...)
	b = append(b, '.')
	return append(b, digits[len(digits)-scale:]...)
}
