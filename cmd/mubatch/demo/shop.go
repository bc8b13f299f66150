package demo

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	_ "embed"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

//go:embed sample.csv.gz
var sample []byte

// Open returns the lines of a file of sales, unpacked if it is packed, and those of the sample if path is empty.
func Open(path string) (io.ReadCloser, error) {
	if path == "" {
		return gzip.NewReader(bytes.NewReader(sample))
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	text := bufio.NewReaderSize(file, 64<<10)
	if magic, _ := text.Peek(2); string(magic) != "\x1f\x8b" {
		return readCloser{text, file}, nil
	}
	unpacked, err := gzip.NewReader(text)
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("unpack %s: %w", path, err)
	}
	return readCloser{unpacked, file}, nil
}

type readCloser struct {
	io.Reader
	io.Closer
}

// invoice is one purchase, or one cancellation.
type invoice struct {
	number   string
	refund   bool
	customer string // empty for a guest
	country  string
	at       time.Time // by the shop's clock, taken as UTC
	lines    []line
	total    money // what was paid; less than nothing for a refund
}

type line struct {
	stockCode   string
	description string
	quantity    int64
	price       string // as it is written
}

// person is whom an invoice is about.
func (in *invoice) person() (userID, anonymousID string) {
	if in.customer != "" {
		return in.customer, ""
	}
	return "", "guest-" + in.number
}

var header = []string{
	"InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country",
}

// readInvoices returns all invoices, the earliest first. An invoice whose lines were entered over more than one minute
// was made in the first of them.
func readInvoices(r io.Reader) ([]*invoice, error) {
	lines := csv.NewReader(r)
	lines.ReuseRecord = true
	lines.FieldsPerRecord = len(header)
	head, err := lines.Read()
	if err != nil {
		return nil, fmt.Errorf("read the sales: %w", err)
	}
	head[0] = strings.TrimPrefix(head[0], "\ufeff")
	if !slices.Equal(head, header) {
		return nil, fmt.Errorf("read the sales: the columns are %q, want %q", head, header)
	}

	byNumber := map[string]*invoice{}
	var all []*invoice
	texts := interned{}
	for {
		record, err := lines.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read the sales: %w", err)
		}
		in := byNumber[record[0]]
		if in == nil {
			in = &invoice{
				number:   strings.Clone(record[0]),
				refund:   strings.HasPrefix(record[0], "C"),
				customer: texts.of(strings.TrimSuffix(record[6], ".0")), // they went through a spreadsheet
				country:  texts.of(record[7]),
			}
			byNumber[in.number] = in
			all = append(all, in)
		}
		if err := in.add(record, texts); err != nil {
			row, _ := lines.FieldPos(0)
			return nil, fmt.Errorf("read the sales, line %d: %w", row, err)
		}
	}
	if len(all) == 0 {
		return nil, errors.New("read the sales: there are none")
	}
	slices.SortFunc(all, func(a, b *invoice) int {
		return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.number, b.number))
	})
	return all, nil
}

func (in *invoice) add(record []string, texts interned) error {
	quantity, err := strconv.ParseInt(record[3], 10, 32)
	if err != nil {
		return fmt.Errorf("the quantity: %w", err)
	}
	price, err := parseMoney(record[5])
	if err != nil {
		return err
	}
	at, err := time.Parse(time.DateTime, record[4])
	if err != nil {
		return fmt.Errorf("the date: %w", err)
	}
	if in.at.IsZero() || at.Before(in.at) {
		in.at = at
	}
	in.total += money(quantity) * price
	in.lines = append(in.lines, line{
		stockCode: texts.of(record[1]), description: texts.of(strings.TrimSpace(record[2])),
		quantity: quantity, price: texts.of(record[5]),
	})
	return nil
}

// interned keeps one copy of each text: there are half a million lines, and a few thousand products.
type interned map[string]string

func (m interned) of(s string) string {
	if kept, ok := m[s]; ok {
		return kept
	}
	s = strings.Clone(s)
	m[s] = s
	return s
}
