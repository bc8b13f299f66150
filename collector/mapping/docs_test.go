package mapping_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/collector/mapping"
)

const docs = "../../docs/mapping.md"

// blocks returns the fenced blocks of the documentation that are in a language.
func blocks(t *testing.T, language string) []string {
	t.Helper()
	text, err := os.ReadFile(docs)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, m := range regexp.MustCompile("(?ms)^```"+language+"\n(.*?)^```$").FindAllStringSubmatch(string(text), -1) {
		found = append(found, m[1])
	}
	return found
}

func TestTheDocumentedMapping(t *testing.T) {
	t.Parallel()
	documents, inputs := blocks(t, "yaml"), blocks(t, "json")
	if len(documents) != 1 || len(inputs) < 2 {
		t.Fatalf("%s has %d mappings and %d blocks of JSON, want a mapping, its input and the event", docs, len(documents), len(inputs))
	}
	p, err := mapping.Compile([]byte(documents[0]))
	if err != nil {
		t.Fatal(err)
	}
	var in struct {
		Headers map[string]string `json:"headers"`
		Body    jsontext.Value    `json:"body"`
	}
	if err := json.Unmarshal([]byte(inputs[0]), &in); err != nil {
		t.Fatal(err)
	}
	events, err := p.Map(mapping.Input{Headers: in.Headers, Body: in.Body})
	if err != nil || len(events) != 1 {
		t.Fatalf("%d events, %v", len(events), err)
	}
	want := jsontext.Value(inputs[1])
	if err := want.Compact(); err != nil {
		t.Fatal(err)
	}
	if string(events[0]) != string(want) {
		t.Errorf("got  %s\nwant %s", events[0], want)
	}
}

func TestTheDocumentedFieldsOfDestinations(t *testing.T) {
	t.Parallel()
	var subscription struct {
		Mapping struct {
			Fields map[string]struct{ Cell jsontext.Value } `json:"fields"`
		} `json:"mapping"`
	}
	all := blocks(t, "json")
	if err := json.Unmarshal([]byte(all[len(all)-1]), &subscription, json.MatchCaseInsensitiveNames(true)); err != nil {
		t.Fatal(err)
	}
	if len(subscription.Mapping.Fields) == 0 {
		t.Error("there are none")
	}
	for name, f := range subscription.Mapping.Fields {
		if _, err := mapping.CompileObject([]byte(`{"x": ` + string(f.Cell) + `}`)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTheDocumentedCells(t *testing.T) {
	t.Parallel()
	for _, block := range blocks(t, "cells") {
		body, cells, _ := strings.Cut(block, "\n")
		in := mapping.Input{
			Body: []byte(body), Headers: map[string]string{"x-topic": "order.paid"}, Query: map[string]string{"shop": "one"},
			Meta: map[string]string{"source": "shop"}, ReceivedAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		}
		tried := 0
		for line := range strings.Lines(cells) {
			cell, want, ok := strings.Cut(strings.TrimSpace(line), "→")
			if !ok {
				t.Fatalf("%q has no result", line)
			}
			cell, want = strings.TrimSpace(cell), strings.TrimSpace(want)
			if got, err := properties(t, cell, in); err != nil || got != want {
				t.Errorf("%s became %s, %v, want %s", cell, got, err, want)
			}
			tried++
		}
		if tried < 20 {
			t.Errorf("only %d cells were tried", tried)
		}
	}
}

func TestEveryFunctionIsDocumented(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(docs)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range mapping.Functions() {
		if !regexp.MustCompile("\\| .*`" + name + "[`(]").Match(text) {
			t.Errorf("%s does not have the function %s in its table", docs, name)
		}
	}
}
