package profiles_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/profiles"
	"github.com/mubatch/mubatch/profiles/profilestest"
)

// hearer keeps what activation is told.
type hearer struct {
	*activation.Ledger
	heard []string
}

func (h *hearer) Enqueue(ctx context.Context, tx pgx.Tx, lane int, changes []activation.Change) (int, error) {
	for _, c := range changes {
		what := "left"
		if c.Entered {
			what = "entered"
		}
		h.heard = append(h.heard, fmt.Sprint(what, " ", c.Cause, " ", c.MessageID, " ", c.Consent))
	}
	return h.Ledger.Enqueue(ctx, tx, lane, changes)
}

// Activation hears of who enters and leaves, with the consent there is, and of who stays when consent changes or what
// identifies the person, and of nothing else.
func TestActivationHearsOfWhatPartnersMustKnow(t *testing.T) {
	t.Parallel()
	_, pool := newStore(t, 1)
	out := &hearer{Ledger: activation.NewLedger(prometheus.NewRegistry())}
	s := profiles.NewStore(pool, profiles.Config{Lanes: 1}, out, func() {}, slog.New(slog.DiscardHandler))
	segments := profiles.NewSegments(pool, 1)
	for key, rule := range map[string]string{"pro": `{"trait": "plan", "op": "eq", "value": "pro"}`, "buyers": `{"event": "Order"}`} {
		if _, err := segments.Create(t.Context(), 1, profiles.SegmentDefinition{Key: key, Rule: []byte(rule)}); err != nil {
			t.Fatal(err)
		}
	}
	lane, err := s.Open(t.Context(), claim(t, s, "one", time.Minute)[0])
	if err != nil {
		t.Fatal(err)
	}
	for lane.Building() {
		if _, _, err := lane.Build(t.Context(), time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	type traits = map[string]any
	n := 0
	for _, step := range []struct {
		does    string
		event   profilestest.Event
		consent string
		want    []string
	}{
		{"identifies without being in a segment", profilestest.Event{Type: "identify", Traits: traits{"email": "a@example.com"}}, "", nil},
		{"enters", profilestest.Event{Type: "identify", Traits: traits{"plan": "pro"}}, "", []string{"entered event m2 map[]"}},
		{"changes a trait that identifies nobody", profilestest.Event{Type: "identify", Traits: traits{"color": "red"}}, "", nil},
		{"does something", profilestest.Event{Type: "track", Event: "Viewed"}, "", nil},
		{"changes the e-mail address", profilestest.Event{Type: "identify", Traits: traits{"email": "b@example.com"}}, "", []string{"entered event m5 map[]"}},
		{"says the same again", profilestest.Event{Type: "identify", Traits: traits{"email": "b@example.com"}}, "", nil},
		{"decides", profilestest.Event{Type: "track", Event: "Viewed"}, `{"ad_user_data":true}`, []string{"entered event m7 map[ad_user_data:true]"}},
		{"decides the same again", profilestest.Event{Type: "track", Event: "Viewed"}, `{"ad_user_data":true}`, nil},
		{"enters another segment", profilestest.Event{Type: "track", Event: "Order"}, "", []string{"entered event m9 map[ad_user_data:true]"}},
		{"withdraws, and is in two", profilestest.Event{Type: "track", Event: "Viewed"}, `{"ad_user_data":false,"gpc":true}`, []string{
			"entered event m10 map[ad_user_data:false gpc:true]", "entered event m10 map[ad_user_data:false gpc:true]",
		}},
		{"removes the phone number that was never there", profilestest.Event{Type: "identify", Traits: traits{"phone": nil}}, "", nil},
		{"leaves, and has another address", profilestest.Event{Type: "identify", Traits: traits{"plan": "free", "email": "c@example.com"}}, "", []string{
			"entered event m12 map[ad_user_data:false gpc:true]", "left event m12 map[]",
		}},
	} {
		n++
		e := step.event
		e.ID, e.User, e.At = fmt.Sprint("m", n), "ada", profilestest.Start.Add(time.Duration(n)*time.Second)
		m := e.Message()
		if step.consent != "" {
			m.Body = append([]byte(`{"context":{"consent":`+step.consent+`},`), m.Body[1:]...)
		}
		out.heard = nil
		_, err := lane.Apply(t.Context(), profiles.Batch{Until: profiles.Offset{Ms: uint64(n)}, Messages: []profiles.Message{m}})
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(out.heard)
		if diff := gocmp.Diff(step.want, out.heard); diff != "" {
			t.Errorf("somebody %s (-want +got):\n%s", step.does, diff)
		}
	}
}
