// Command cut makes the sample that the demo brings along from the full data set.
//
//	go run ./cmd/mubatch/demo/cut online-retail.csv.gz cmd/mubatch/demo/sample.csv.gz
//
// It takes all invoices of the customers that demo.InSample chooses, and the invoices of guests that it chooses, line by
// line as they are.
package main

import (
	"bufio"
	"compress/gzip"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/mubatch/mubatch/cmd/mubatch/demo"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: cut FULL SAMPLE")
		os.Exit(2)
	}
	if err := cut(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "cut:", err)
		os.Exit(1)
	}
}

func cut(from, to string) error {
	full, err := demo.Open(from)
	if err != nil {
		return err
	}
	defer full.Close()
	file, err := os.Create(to)
	if err != nil {
		return err
	}
	defer file.Close()
	packed, err := gzip.NewWriterLevel(file, gzip.BestCompression)
	if err != nil {
		return err
	}
	text := bufio.NewReader(full)
	head, err := text.ReadString('\n')
	if err != nil {
		return err
	}
	if _, err := io.WriteString(packed, head); err != nil {
		return err
	}
	for {
		line, err := text.ReadString('\n')
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		fields, err := csv.NewReader(strings.NewReader(line)).Read()
		if err != nil {
			return fmt.Errorf("%q: %w", line, err)
		}
		if !demo.InSample(strings.TrimSuffix(fields[6], ".0"), fields[0]) {
			continue
		}
		if _, err := io.WriteString(packed, line); err != nil {
			return err
		}
	}
	if err := packed.Close(); err != nil {
		return err
	}
	return file.Close()
}
