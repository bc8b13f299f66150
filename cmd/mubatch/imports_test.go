package main

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/mubatch/mubatch"

// allowed says which of our packages a package may import, beside those below its own folder and the pure leaves. The
// folders are the flow: imports run the way data does.
var allowed = map[string][]string{
	"":           {},
	"cmd":        {"", "api", "collector", "profiles", "activation", "migrations"},
	"api":        {"", "collector", "profiles", "activation"},
	"collector":  {"profiles", "activation"}, // activation for the keys that seal secrets
	"profiles":   {"activation"},
	"activation": {},
	"migrations": {},
}

// leaves are pure: they import nothing of ours but each other, and anybody may import them.
var leaves = []string{"profiles/rule", "profiles/timeline", "collector/mapping", "api/problem"}

func TestImportsRunTheWayDataDoes(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, module+"/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for line := range strings.Lines(string(out)) {
		from, imports, _ := strings.Cut(strings.TrimSpace(line), " ")
		from = strings.TrimPrefix(strings.TrimPrefix(from, module), "/")
		room, _, _ := strings.Cut(from, "/")
		rooms, ok := allowed[room]
		if !ok {
			t.Errorf("package %q is in a folder that this test does not know", from)
		}
		for to := range strings.FieldsSeq(imports) {
			if to != module && !strings.HasPrefix(to, module+"/") {
				continue
			}
			checked++
			to = strings.TrimPrefix(strings.TrimPrefix(to, module), "/")
			toRoom, _, _ := strings.Cut(to, "/")
			switch {
			case slices.Contains(leaves, to):
			case slices.Contains(leaves, from):
				t.Errorf("%s is a leaf, yet imports %s", from, to)
			case toRoom == room:
			case strings.HasSuffix(from, "test") && strings.HasSuffix(to, "test"): // both are for tests
			case !slices.Contains(rooms, toRoom):
				t.Errorf("%s imports %s: imports run cmd → api → collector → profiles → activation", from, to)
			}
		}
	}
	if checked < 20 {
		t.Errorf("only %d imports were looked at", checked)
	}
}
