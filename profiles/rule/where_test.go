package rule_test

import (
	"errors"
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/profiles/rule"
)

func TestWhere(t *testing.T) {
	t.Parallel()
	const conditions = `[{"property":"total","op":"gte","value":9007199254740993},{"property":"tier","op":"in","value":["gold","pro"]}]`
	w, err := rule.ParseWhere([]byte(conditions))
	if err != nil {
		t.Fatal(err)
	}
	if got := w.String(); got != conditions {
		t.Errorf("String = %s", got)
	}
	for properties, want := range map[string]bool{
		`{"total":9007199254740993,"tier":"gold"}`: true,
		`{"total":9007199254740992,"tier":"gold"}`: false, // the same as a float64
		`{"total":9007199254740993}`:               false,
		`{}`:                                       false,
		``:                                         false,
	} {
		if got := w.Matches(jsontext.Value(properties)); got != want {
			t.Errorf("Matches(%s) = %v, want %v", properties, got, want)
		}
	}
	if !(rule.Where{}).Matches(nil) {
		t.Error("no conditions are not true of an event without properties")
	}
}

func TestParseWhereSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	for conditions, pointer := range map[string]string{
		`{}`:                             "#",
		`[{"property":"a"}]`:             "#/0",
		`[{"property":"a","op":"like"}]`: "#/0/op",
		`[{"property":"a","op":"within_last","value":"1d"}]`:               "#/0/op",
		`[{"property":"a","op":"exists"},{"trait":"a","op":"not_exists"}]`: "#/1/trait",
	} {
		_, err := rule.ParseWhere([]byte(conditions))
		var wrong *rule.Error
		if !errors.As(err, &wrong) || wrong.Problems[0].Pointer != pointer {
			t.Errorf("ParseWhere(%s) = %v, want a problem at %s", conditions, err, pointer)
		}
	}
}
