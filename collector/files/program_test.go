package files

import (
	"strings"
	"testing"
	"time"
)

// A row that is brought again brings the same event, also if it says that it has no messageId.
func TestARowIsTheSameEventEachTime(t *testing.T) {
	t.Parallel()
	p := newProgram(nil, "shop", "a.csv", "identity")
	for body, want := range map[string]string{
		`{"userId":"u"}`:                    `{"messageId":"` + p.prefix + `7","userId":"u"}`,
		`{"messageId":"","userId":"u"}`:     `{"messageId":"` + p.prefix + `7","userId":"u"}`,
		` {"userId":"u","messageId":null} `: `{"userId":"u","messageId":"` + p.prefix + `7"}`,
		`{"messageId":"own","userId":"u"}`:  `{"messageId":"own","userId":"u"}`,
		`{"messageId":12,"userId":"u"}`:     `{"messageId":12,"userId":"u"}`,
	} {
		row := Row{Number: 7, Body: []byte(body)}
		events, fault := p.events(row, time.Now())
		clear(row.Body) // the reader uses it for the next row
		if fault != nil || len(events) != 1 || strings.TrimSpace(string(events[0])) != want {
			t.Errorf("%s becomes %q, %v, want %s", body, events, fault, want)
		}
	}
}
