package collector_test

import (
	"testing"

	"github.com/mubatch/mubatch/collector"
)

func TestAnEventWithoutAMessageIDGetsOne(t *testing.T) {
	t.Parallel()
	for event, want := range map[string]string{
		`{}`:                    `{"messageId":"a\"b"}`,
		` { "type" : "track" }`: ` {"messageId":"a\"b", "type" : "track" }`,
		`{"properties":{"messageId":"x"},"type":"track"}`: `{"messageId":"a\"b","properties":{"messageId":"x"},"type":"track"}`,
		`{"messageId":null,"type":"track"}`:               `{"messageId":"a\"b","type":"track"}`,
		`{"type":"track","messageId" : "" }`:              `{"type":"track","messageId" : "a\"b" }`,
		`{"message\u0049d":null}`:                         `{"message\u0049d":"a\"b"}`,
		`{"messageId":"own"}`:                             `{"messageId":"own"}`,
		`{"messageId":12345678901234567890}`:              `{"messageId":12345678901234567890}`,
		`[1]`:                                             `[1]`,
		`{"type":`:                                        `{"type":`,
	} {
		before := event
		if got := collector.WithMessageID([]byte(event), `a"b`); string(got) != want {
			t.Errorf("%s became %s, want %s", event, got, want)
		}
		if event != before {
			t.Errorf("%s was changed", before)
		}
	}
}
