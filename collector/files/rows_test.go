package files

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/parquet-go/parquet-go"
)

// inMemory is a file for tests.
type inMemory []byte

func (m inMemory) Size() int64 { return int64(len(m)) }

func (m inMemory) From(_ context.Context, offset int64) (io.ReadCloser, error) {
	return io.NopCloser(iotest.HalfReader(bytes.NewReader(m[min(offset, m.Size()):]))), nil
}

func (m inMemory) ReadAt(_ context.Context, p []byte, offset int64) (int, error) {
	return bytes.NewReader(m).ReadAt(p, offset)
}

// read returns the rows of a file from a position, each as "number/line body" or "number/line !code body", and the
// positions behind them.
func read(t testing.TB, c content, name string, f Format, at Position) (rows []string, positions []Position, err error) {
	t.Helper()
	r, err := openRows(t.Context(), c, name, f, at)
	if err != nil {
		return nil, nil, err
	}
	defer r.Close()
	for {
		row, err := r.Next()
		if errors.Is(err, io.EOF) {
			return rows, positions, nil
		}
		if err != nil {
			return rows, positions, err
		}
		fault := ""
		if row.Fault != nil {
			fault = "!" + row.Fault.Code + " "
		}
		rows = append(rows, fmt.Sprintf("%d/%d %s%s", row.Number, row.Line, fault, row.Body))
		positions = append(positions, r.Position())
	}
}

func TestRows(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", maxRow+10)
	for _, tc := range []struct {
		name, file, text string
		format           Format
		want             []string
	}{
		{"a BOM, CRLF, quotes, a line break and an empty cell", "a.csv", "\ufeffid,name\r\n1,\"Ann \"\"A\"\" Bo\"\r\n2,\"two\nlines\"\r\n\r\n3,\r\n", Format{}, []string{
			`1/2 {"id":"1","name":"Ann \"A\" Bo"}`, `2/3 {"id":"2","name":"two\nlines"}`, `3/6 {"id":"3"}`,
		}},
		{"the last line needs no end", "a.csv", "id\n1", Format{}, []string{`1/2 {"id":"1"}`}},
		{"a separator that is found", "a.csv", "id;price\n1;2,50\n", Format{}, []string{`1/2 {"id":"1","price":"2,50"}`}},
		{"a separator that is given", "a.txt", "a|b,c\n1|2,3\n", Format{Type: CSV, Delimiter: "|"}, []string{`1/2 {"a":"1","b,c":"2,3"}`}},
		{"columns that are given", "a.csv", "1,2\n", Format{Columns: []string{"a", "b"}}, []string{`1/1 {"a":"1","b":"2"}`}},
		{"a column without a name", "a.csv", "a,\n1,2\n", Format{}, []string{`1/2 {"a":"1","column_2":"2"}`}},
		{"a quote within a cell", "a.csv", "a,b\n5\" pipe,x\n", Format{}, []string{`1/2 {"a":"5\" pipe","b":"x"}`}},
		{"what is wrong with a row does not concern the next", "a.csv", "a,b\n1,2,3\n1\n\"x\" y,2\n3,4\n", Format{}, []string{
			`1/2 !wrong_columns 1,2,3`, `2/3 !wrong_columns 1`, `3/4 !bad_quote "x" y,2`, `4/5 {"a":"3","b":"4"}`,
		}},
		{"a quote that is not closed spoils its own row", "a.csv", "a,b\n\"1,2\n3,4\n5,6\n", Format{}, []string{
			`1/2 !unclosed_quote "1,2`, `2/3 {"a":"3","b":"4"}`, `3/4 {"a":"5","b":"6"}`,
		}},
		{"a row that is too long", "a.csv", "a\n" + long + "\n2\n", Format{}, []string{`1/2 !row_too_large ` + long[:maxSample], `2/3 {"a":"2"}`}},
		{"Windows' letters", "a.csv", "n\nJos\xe9 \x80\n", Format{Encoding: "windows-1252"}, []string{`1/2 {"n":"José €"}`}},
		{"UTF-16", "a.csv", "\xff\xfen\x00\n\x00\xe9\x00\n\x00", Format{}, []string{`1/2 {"n":"é"}`}},
		{"bytes that are no text", "a.csv", "n\n\xff\n", Format{}, []string{"1/2 {\"n\":\"\ufffd\"}"}},
		{"no rows", "a.csv", "", Format{}, nil},

		{"NDJSON", "a.ndjson", "\ufeff{\"a\":1}\r\n\n {\"a\": 12345678901234567890.10} \n{\"a\":2}", Format{}, []string{
			`1/1 {"a":1}`, `2/3 {"a": 12345678901234567890.10}`, `3/4 {"a":2}`,
		}},
		{"lines that are no objects", "a.jsonl", "[1]\n{\"a\":\n{}\n", Format{}, []string{
			`1/1 !malformed_json [1]`, `2/2 !malformed_json {"a":`, `3/3 {}`,
		}},
		{"a line that is too long", "a.ndjson", `{"a":"` + long + "\"}\n{}\n", Format{}, []string{`1/1 !row_too_large {"a":"` + long[:maxSample-6], `2/2 {}`}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got, positions, err := read(t, inMemory(tc.text), tc.file, tc.format, Position{})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("rows (-want +got):\n%s", diff)
			}
			for i, at := range positions { // whoever goes on from there reads the same
				rest, _, err := read(t, inMemory(tc.text), tc.file, tc.format, at)
				if diff := cmp.Diff(got[i+1:], append([]string{}, rest...)); diff != "" || err != nil {
					t.Errorf("rows from %+v: %v (-want +got):\n%s", at, err, diff)
				}
			}
		})
	}
}

// However a file is packed, its rows and their positions are the same.
func TestPackedRows(t *testing.T) {
	t.Parallel()
	var text strings.Builder
	text.WriteString("id,name\n")
	for i := range 5000 {
		fmt.Fprintf(&text, "%d,\"name\n%d\"\n", i, i)
	}
	want, positions, err := read(t, inMemory(text.String()), "a.csv", Format{}, Position{})
	if err != nil || len(want) != 5000 {
		t.Fatal(len(want), err)
	}
	var gz, zst bytes.Buffer
	g := gzip.NewWriter(&gz)
	z, _ := zstd.NewWriter(&zst) // has no options that could be wrong
	for _, w := range []io.WriteCloser{g, z} {
		if _, err := io.WriteString(w, text.String()); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for name, packed := range map[string][]byte{"a.csv.gz": gz.Bytes(), "a.csv.zst": zst.Bytes(), "a.csv": gz.Bytes()} {
		got, at, err := read(t, inMemory(packed), name, Format{}, Position{})
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Fatalf("%s: %v (-want +got):\n%s", name, err, diff)
		}
		if diff := cmp.Diff(positions, at); diff != "" {
			t.Errorf("%s: positions (-want +got):\n%s", name, diff)
		}
		rest, _, err := read(t, inMemory(packed), name, Format{}, at[3000])
		if diff := cmp.Diff(want[3001:], rest); diff != "" || err != nil {
			t.Errorf("%s: from row 3001: %v (-want +got):\n%s", name, err, diff)
		}
		_, _, err = read(t, inMemory(packed[:len(packed)/2]), name, Format{}, Position{})
		if f := new(FileError); !errors.As(err, &f) || f.Code != "damaged_archive" {
			t.Errorf("%s, cut short: %v", name, err)
		}
	}
}

func TestFilesThatCannotBeRead(t *testing.T) {
	t.Parallel()
	wide := strings.Repeat("c,", maxColumns) + "c"
	for _, tc := range []struct{ name, text, want string }{
		{"a.xlsx", "PK\x03\x04…", "unknown_format"},
		{"a.dat", "what", "unknown_format"},
		{"a.csv", "a,a\n", "bad_header"},
		{"a.csv", "\"a\nb\n", "bad_header"},
		{"a.csv", wide + "\n", "too_many_columns"},
		{"a.parquet", "PAR1", "damaged_parquet"},
		{"a.parquet", "PAR1" + strings.Repeat("\xff", 40) + "\x20\x00\x00\x00PAR1", "damaged_parquet"},
		{"a.parquet", "PAR1\xff\xff\xff\x7fPAR1", "too_large"},
		{"a.csv.gz", "\x1f\x8b\x08", "damaged_archive"},
	} {
		_, _, err := read(t, inMemory(tc.text), tc.name, Format{}, Position{})
		if f := new(FileError); !errors.As(err, &f) || f.Code != tc.want {
			t.Errorf("%s %.20q: %v, want %s", tc.name, tc.text, err, tc.want)
		}
	}
}

func TestParquetRows(t *testing.T) {
	t.Parallel()
	type item struct {
		ID    string   `parquet:"id"`
		Price *float64 `parquet:"price,optional"`
		Tags  []string `parquet:"tags,list"`
	}
	type row struct {
		S     string           `parquet:"s"`
		O     *string          `parquet:"o,optional"`
		I     int64            `parquet:"i"`
		U     uint64           `parquet:"u"`
		F     float32          `parquet:"f"`
		B     bool             `parquet:"b"`
		T     time.Time        `parquet:"t,timestamp(microsecond)"`
		D     int32            `parquet:"d,date"`
		Price int64            `parquet:"price,decimal(2:18)"`
		L     []string         `parquet:"l,list"`
		R     []int32          `parquet:"r"`
		M     map[string]int64 `parquet:"m"`
		Items []item           `parquet:"items,list"`
		Raw   []byte           `parquet:"raw"`
		UUID  [16]byte         `parquet:"uuid,uuid"`
	}
	text, price := "here", 1.5
	rows := []row{
		{
			S: "a\"b", O: &text, I: 1<<60 + 1, U: 1 << 63, F: 0.1, B: true, T: time.UnixMicro(1700000000000001), D: 19000, Price: -1205,
			L: []string{"x", "y"}, R: []int32{1, 2}, M: map[string]int64{"k": 7},
			Items: []item{{"p", &price, []string{"t", "u"}}, {"q", nil, nil}}, Raw: []byte{0xff}, UUID: [16]byte{15: 1},
		},
		{T: time.Unix(0, 0), Price: 5},
	}
	want := []string{
		`1/0 {"s":"a\"b","o":"here","i":1152921504606846977,"u":9223372036854775808,"f":0.1,"b":true,"t":"2023-11-14T22:13:20.000001Z",` +
			`"d":"2022-01-08","price":-12.05,"l":["x","y"],"r":[1,2],"m":{"k":7},` +
			`"items":[{"id":"p","price":1.5,"tags":["t","u"]},{"id":"q","tags":[]}],"raw":"/w==","uuid":"00000000-0000-0000-0000-000000000001"}`,
		`2/0 {"s":"","i":0,"u":0,"f":0,"b":false,"t":"1970-01-01T00:00:00Z","d":"1970-01-01","price":0.05,"l":[],"r":[],"m":{},` +
			`"items":[],"raw":"","uuid":"00000000-0000-0000-0000-000000000000"}`,
	}
	var file bytes.Buffer
	w := parquet.NewGenericWriter[row](&file, parquet.SchemaOf(row{}))
	for range 100 { // more than are read at once
		if _, err := w.Write(rows); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	got, at, err := read(t, inMemory(file.Bytes()), "x", Format{}, Position{})
	if err != nil || len(got) != 200 {
		t.Fatal(len(got), err)
	}
	if diff := cmp.Diff(want, got[:2]); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
	rest, _, err := read(t, inMemory(file.Bytes()), "x", Format{}, at[149])
	if diff := cmp.Diff(got[150:], rest); diff != "" || err != nil {
		t.Errorf("from row 151: %v (-want +got):\n%s", err, diff)
	}
	for cut := 1; cut < file.Len()/2; cut += 97 { // damage is found, and is not a crash
		damaged := bytes.Clone(file.Bytes())
		damaged[len(damaged)/2+cut] ^= 0xff
		if _, _, err := read(t, inMemory(damaged), "x", Format{}, Position{}); err != nil {
			if f := new(FileError); !errors.As(err, &f) {
				t.Errorf("damaged at %d: %v", cut, err)
			}
		}
	}
}

// FuzzRows: whatever is in a file, each byte is looked at about twice, and whoever goes on from a position reads the same.
func FuzzRows(f *testing.F) {
	for _, seed := range []string{"a,b\n1,2\n", "a\n\"1\n2\n\"3\"x\n", "a\n\"\"\"\n,\"\n", "{\"a\":1}\n{", "a\r\n\"x\"\r\n\r\n"} {
		f.Add([]byte(seed), uint8(0))
	}
	f.Fuzz(func(t *testing.T, text []byte, which uint8) {
		format := Format{Type: []string{CSV, NDJSON}[which%2]}
		rows, at, err := read(t, inMemory(text), "", format, Position{})
		if err != nil {
			if f := new(FileError); !errors.As(err, &f) {
				t.Fatal(err)
			}
			return
		}
		if len(rows) == 0 {
			return
		}
		cut := int(which/2) % len(rows)
		rest, _, err := read(t, inMemory(text), "", format, at[cut])
		if diff := cmp.Diff(rows[cut+1:], append([]string{}, rest...)); diff != "" || err != nil {
			t.Errorf("from %+v: %v (-want +got):\n%s", at[cut], err, diff)
		}
	})
}

// cut is a packed file in a bucket whose connection ends early, as net/http tells of it.
type cut struct {
	inMemory
	at int64
}

func (c cut) From(_ context.Context, offset int64) (io.ReadCloser, error) {
	body := io.MultiReader(bytes.NewReader(c.inMemory[offset:c.at]), iotest.ErrReader(io.ErrUnexpectedEOF))
	return &whole{io.NopCloser(body), c.Size() - offset}, nil
}

// A connection that is cut is not a file that is damaged: it is read again.
func TestACutConnectionIsNoDamage(t *testing.T) {
	t.Parallel()
	text := "id,name\n" + strings.Repeat("1,Ann\n", 1000)
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	if _, err := z.Write([]byte(text)); err != nil || z.Close() != nil {
		t.Fatal(err)
	}
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, packed := range map[string][]byte{"a.csv.gz": zipped.Bytes(), "a.csv.zst": enc.EncodeAll([]byte(text), nil), "a.csv": []byte(text)} {
		_, _, err := read(t, cut{packed, int64(len(packed)) * 2 / 3}, name, Format{}, Position{})
		var bad *FileError
		if err == nil || errors.As(err, &bad) {
			t.Errorf("%s: %v, want an error that passes", name, err)
		}
	}
}
