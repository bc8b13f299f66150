package wire_test

import (
	"strings"
	"testing"

	"github.com/go-json-experiment/json"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/wire"
)

func TestAudienceNames(t *testing.T) {
	t.Parallel()
	to := activation.Target{ID: 3}
	for _, tt := range []struct {
		segment activation.Segment
		want    string
	}{
		{activation.Segment{ID: 7, Key: "vip", Name: " Big spenders "}, "Big spenders (mubatch dst_3 seg_7)"},
		{activation.Segment{ID: 7, Key: "vip"}, "vip (mubatch dst_3 seg_7)"},
		{activation.Segment{ID: 7, Name: strings.Repeat("ö ", 50)}, strings.Repeat("ö ", 9) + "ö (mubatch dst_3 seg_7)"},
	} {
		name, mark := wire.AudienceName(to, tt.segment, 41)
		if name != tt.want || mark != " (mubatch dst_3 seg_7)" || len([]rune(name)) > 41 {
			t.Errorf("AudienceName of %+v = %q, %q, want %q", tt.segment, name, mark, tt.want)
		}
	}
}

func TestIDs(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]wire.ID{`"814"`: "814", `9007199254740993`: "9007199254740993", `null`: "", `""`: ""} {
		got := wire.ID("before")
		if err := json.Unmarshal([]byte(text), &got); err != nil || got != want {
			t.Errorf("%s is %q, %v, want %q", text, got, err, want)
		}
	}
	for id, want := range map[wire.ID]int64{"1200": 1200, "0": 0, "": -1, "many": -1} {
		if got := id.Count(); got != want {
			t.Errorf("the count of %q is %d, want %d", id, got, want)
		}
	}
}

func TestAnswersOfSomebodyInBetween(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		status  int
		before  activation.Class
		class   activation.Class
		unknown bool
	}{
		{200, activation.OK, activation.Retry, true},
		{400, activation.Split, activation.Retry, false},
		{401, activation.Reauth, activation.Retry, false},
		{403, activation.Config, activation.Retry, false},
		{404, activation.Config, activation.Config, false},
		{413, activation.Split, activation.Split, false},
	} {
		o := wire.Answer{Status: tt.status}.Foreign(activation.Outcome{Class: tt.before, Reason: "as it was"})
		if o.Class != tt.class || o.Unknown != tt.unknown || o.Reason == "" {
			t.Errorf("%d: %+v, want %s", tt.status, o, tt.class)
		}
	}
}
