package activation

import (
	"strings"
	"testing"
)

func TestDraftsShowTheMessageAndNobody(t *testing.T) {
	t.Parallel()
	hash := strings.Repeat("ab", 32)
	for body, want := range map[string]string{
		`{"productDestinationId":"4799999999","validateOnly":true}`:                 `{"productDestinationId":"4799999999","validateOnly":true}`,
		`{"audience_ids":["7012345678901234"],"at":"2026-01-02T03:04:05.678Z"}`:     `{"audience_ids":["7012345678901234"],"at":"2026-01-02T03:04:05.678Z"}`,
		`{"AudienceId":7012345678901234,"value":49.90,"day":"2026-01-02"}`:          `{"AudienceId":7012345678901234,"value":49.90,"day":"2026-01-02"}`,
		`{"data":{"user_id":"eve","event":"Order Completed"}}`:                      `{"data":{"user_id":"…","event":"Order Completed"}}`,
		`{"context":{"traits":{"name":"Eve","age":37,"on":true,"x":null}}}`:         `{"context":{"traits":{"name":"…","age":"…","on":"…","x":null}}}`,
		`{"user":{"identifiers":[{"kind":"crm","value":"17"}]}}`:                    `{"user":{"identifiers":[{"kind":"crm","value":"…"}]}}`,
		`{"schema":["EMAIL_SHA256"],"data":[["` + hash + `"]]}`:                     `{"schema":["EMAIL_SHA256"],"data":[["abab…"]]}`,
		`{"a_member_with_a_name_of_some_length":"ada@example.com +49 170 1234567"}`: `{"a_member_with_a_name_of_some_length":"… …"}`,
		`{"other":"4799999998"}`:               `{"other":"…"}`,
		"{\"email\":\"x\"}\n{\"event\":\"x\"}": "{\"email\":\"…\"}\n{\"event\":\"x\"}",
		"email,when\nada@example.com,soon":     "email,when\n…,soon",
	} {
		d := Draft{URL: "https://example.com", Body: []byte(body)}.redacted([]string{"4799999999", "7012345678901234"})
		if string(d.Body) != want {
			t.Errorf("of %s is shown\n%s, want\n%s", body, d.Body, want)
		}
	}
}
