package files

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/unicode"
)

// What a file can be.
const (
	NDJSON  = "ndjson"
	CSV     = "csv"
	Parquet = "parquet"
)

// Format says how a file is read. Its zero value is told by the name and the first bytes of the file.
type Format struct {
	Type      string   `json:"type,omitzero" validate:"omitempty,oneof=ndjson csv parquet"`
	Delimiter string   `json:"delimiter,omitzero" validate:"omitempty,len=1,ascii,excludesall=0x22"` // of CSV; the one that is most often in the first line
	Encoding  string   `json:"encoding,omitzero" validate:"omitempty,oneof=utf-8 utf-16le utf-16be windows-1252 iso-8859-1"`
	Columns   []string `json:"columns,omitzero" validate:"max=1000,unique,dive,min=1,max=256"` // of CSV without a header
}

// maxUnpacked bounds what a packed file may unpack to.
const maxUnpacked = 1 << 40

// content is the bytes of a file that does not change: reading one that does is an error.
type content interface {
	Size() int64
	From(ctx context.Context, offset int64) (io.ReadCloser, error)
	ReadAt(ctx context.Context, p []byte, offset int64) (int, error) // like io.ReaderAt
}

// opened is a file being read.
type opened struct {
	Reader
	read  *atomic.Int64 // bytes of the file, as it is stored
	close []func() error
}

func (o *opened) Close() error {
	var errs []error
	for i := len(o.close) - 1; i >= 0; i-- {
		errs = append(errs, o.close[i]())
	}
	return errors.Join(errs...)
}

// counted counts what is read.
type counted struct {
	io.Reader
	n *atomic.Int64
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// openRows reads the rows of a file from a position.
func openRows(ctx context.Context, c content, name string, f Format, at Position) (_ *opened, err error) {
	o := &opened{read: new(atomic.Int64)}
	defer func() {
		if err != nil {
			_ = o.Close() // err says more
		}
	}()
	var magic [4]byte
	n, err := c.ReadAt(ctx, magic[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read the file's beginning: %w", err)
	}
	packing, kind := packingOf(magic[:n]), f.Type
	if kind == "" {
		if kind, err = kindOf(name, magic[:n]); err != nil {
			return nil, err
		}
	}
	if kind == Parquet {
		p, err := newParquet(ctx, c, o.read, at)
		if err != nil {
			return nil, err
		}
		o.Reader = p
		o.close = append(o.close, p.Close)
		return o, nil
	}

	// stream returns the text from an offset. What is packed is unpacked from its beginning.
	stream := func(offset int64) (io.Reader, error) {
		from, plain := int64(0), packing == "" && !f.decoded(magic[:n])
		if plain {
			from = offset
		}
		body, err := c.From(ctx, from)
		if err != nil {
			return nil, err
		}
		o.close = append(o.close, body.Close)
		o.read.Store(from)
		var text io.Reader = counted{body, o.read}
		if plain {
			return text, nil
		}
		if text, err = o.unpack(text, packing); err != nil {
			return nil, err
		}
		text = f.decode(text)
		if _, err := io.CopyN(io.Discard, text, offset); err != nil {
			return nil, fmt.Errorf("go to byte %d: %w", offset, err)
		}
		return text, nil
	}
	switch kind {
	case NDJSON:
		text, err := stream(at.Offset)
		if err != nil {
			return nil, err
		}
		o.Reader = newNDJSON(text, at)
	default:
		text, err := stream(0)
		if err != nil {
			return nil, err
		}
		if o.Reader, err = newCSV(text, f, at, stream); errors.Is(err, io.EOF) {
			o.Reader, err = empty{}, nil
		} else if err != nil {
			return nil, err
		}
	}
	return o, nil
}

// empty is a file without rows.
type empty struct{}

func (empty) Next() (Row, error) { return Row{}, io.EOF }
func (empty) Position() Position { return Position{} }
func (empty) Close() error       { return nil }

func packingOf(magic []byte) string {
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		return "gzip"
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return "zstd"
	}
	return ""
}

// kindOf tells what a file is.
func kindOf(name string, magic []byte) (string, error) {
	switch {
	case string(magic) == "PAR1":
		return Parquet, nil
	case bytes.HasPrefix(magic, []byte("PK\x03\x04")):
		return "", badFile("unknown_format", "the file is a ZIP archive or a spreadsheet; save it as CSV, or unpack it first")
	}
	name = strings.ToLower(name)
	for _, packed := range []string{".gz", ".zst", ".zstd"} {
		name = strings.TrimSuffix(name, packed)
	}
	switch path.Ext(name) {
	case ".csv", ".tsv", ".tab":
		return CSV, nil
	case ".ndjson", ".jsonl", ".ldjson", ".json":
		return NDJSON, nil
	case ".parquet", ".pq":
		return Parquet, nil
	}
	return "", badFile("unknown_format", "neither the name nor the first bytes tell what the file is; say in format.type whether it is %s, %s or %s", NDJSON, CSV, Parquet)
}

// unpack returns what is packed. gzip members and zstd frames may follow one another.
func (o *opened) unpack(r io.Reader, packing string) (io.Reader, error) {
	switch packing {
	case "gzip":
		z, err := gzip.NewReader(bufio.NewReaderSize(r, 64<<10))
		if err != nil {
			return nil, badPacking(err)
		}
		r = z
	case "zstd":
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, badPacking(err)
		}
		o.close = append(o.close, func() error { z.Close(); return nil })
		r = z
	default:
		return r, nil
	}
	return &unpacked{from: r}, nil
}

// unpacked tells damage in a packed file from errors in reading it, and stops at its bound.
type unpacked struct {
	from io.Reader
	n    int64
}

func (u *unpacked) Read(p []byte) (int, error) {
	n, err := u.from.Read(p)
	if u.n += int64(n); u.n > maxUnpacked {
		return 0, badFile("too_large", "the file unpacks to more than %d GB", maxUnpacked>>30)
	}
	return n, badPacking(err)
}

func badPacking(err error) error {
	switch {
	case err == nil, errors.Is(err, io.EOF):
		return err
	case errors.Is(err, gzip.ErrHeader), errors.Is(err, gzip.ErrChecksum), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, zstd.ErrMagicMismatch), errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded),
		errors.Is(err, zstd.ErrCRCMismatch), errors.Is(err, zstd.ErrReservedBlockType), errors.Is(err, zstd.ErrUnknownDictionary):
		return badFile("damaged_archive", "the file is packed, but damaged or cut short: %v", err)
	}
	return err
}

// decoded tells whether the text is in another encoding than UTF-8.
func (f Format) decoded(magic []byte) bool { return f.encodingOf(magic) != nil }

func (f Format) encodingOf(magic []byte) encoding.Encoding {
	switch f.Encoding {
	case "windows-1252":
		return charmap.Windows1252
	case "iso-8859-1":
		return charmap.ISO8859_1
	case "utf-16le":
		return unicode.UTF16(unicode.LittleEndian, unicode.UseBOM)
	case "utf-16be":
		return unicode.UTF16(unicode.BigEndian, unicode.UseBOM)
	}
	switch {
	case f.Encoding != "":
	case bytes.HasPrefix(magic, []byte{0xff, 0xfe}), bytes.HasPrefix(magic, []byte{0xfe, 0xff}):
		return unicode.UTF16(unicode.LittleEndian, unicode.ExpectBOM)
	}
	return nil
}

// decode returns text in UTF-8.
func (f Format) decode(r io.Reader) io.Reader {
	b := bufio.NewReaderSize(r, 64<<10)
	magic, _ := b.Peek(2) // an error comes back with the next read
	if e := f.encodingOf(magic); e != nil {
		return e.NewDecoder().Reader(b)
	}
	return b
}
