package mapping_test

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/collector/mapping"
)

var update = flag.Bool("update", false, "write the golden files anew")

// Every template has inputs in testdata/<its name>, each {"headers", "query", "body"}, and beside each the events that it
// becomes.
func TestTemplates(t *testing.T) {
	t.Parallel()
	for _, name := range mapping.Templates() {
		document, _ := mapping.Template(name)
		p, err := mapping.Compile(document)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		inputs, err := filepath.Glob(filepath.Join("testdata", name, "*.json"))
		if err != nil || len(inputs) == 0 {
			t.Errorf("the template %s has no inputs", name)
		}
		for _, file := range inputs {
			t.Run(file, func(t *testing.T) {
				t.Parallel()
				events, err := p.Map(readInput(t, file))
				if err != nil {
					t.Fatal(err)
				}
				var got bytes.Buffer
				for _, e := range events {
					if err := (*jsontext.Value)(&e).Indent(); err != nil {
						t.Fatalf("%s: %v", e, err)
					}
					got.Write(append(e, '\n'))
				}
				golden := strings.TrimSuffix(file, ".json") + ".golden"
				if *update {
					if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(golden)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(string(want), got.String()); diff != "" {
					t.Errorf("events (-want +got):\n%s", diff)
				}
			})
		}
	}
}

func readInput(tb testing.TB, file string) mapping.Input {
	tb.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		tb.Fatal(err)
	}
	var in struct {
		Headers map[string]string `json:"headers"`
		Query   map[string]string `json:"query"`
		Body    jsontext.Value    `json:"body"`
	}
	if err := json.Unmarshal(b, &in, json.RejectUnknownMembers(true)); err != nil {
		tb.Fatalf("%s: %v", file, err)
	}
	return mapping.Input{
		Body: in.Body, Headers: in.Headers, Query: in.Query, Meta: map[string]string{"source": "test"},
		ReceivedAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}
}
