package main

import (
	"cmp"
	"encoding/hex"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/partnertest"
	"github.com/mubatch/mubatch/cmd/mubatch/demo"
	"github.com/mubatch/mubatch/collector/redistest"
	"github.com/mubatch/mubatch/migrations/pgtest"
)

var demoPartners = flag.Bool("demo.partners", false, "print what TestTheShopReachesItsPartners shows")

// TestTheShopReachesItsPartners replays the shop's sales, tells who its customers are and that they consent, attaches all
// segments to a fake of every partner, and then has some withdraw their consent and others change their e-mail address.
// Each time every partner must hold exactly those members who consent. `make demo-partners` prints the ledger's summary.
func TestTheShopReachesItsPartners(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes half a minute")
	}
	t.Parallel()
	redistest.RequireReal(t)
	_, prefix := redistest.New(t)
	database := pgtest.NewURL(t)
	s := &shop{fleet: &fleet{
		at: serveForTest(t, database, prefix), fakes: outlets(t), forgetful: func(fn func()) { fn() }, logs: func() string { return "" },
	}}
	pool, err := pgxpool.New(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	s.pool = pool

	out := &begun{begun: make(chan struct{})}
	_, err = demo.Run(t.Context(), demo.Config{
		URL: s.at.URL, WriteKey: s.at.WriteKey, SecretKey: s.at.SecretKey, File: *sales, Live: -1, Out: out,
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, out.text())
	}
	s.say("The shop's sales are replayed: %s", strings.TrimSpace(strings.SplitN(out.text(), "\n", 2)[0]))
	s.meet(t)
	s.attach(t, s.segments...)
	s.settle(t)
	s.compare(t, s.wanted, s.name)
	s.summary(t, "Every segment is attached to every partner")

	changed := 0
	for i, c := range s.customers {
		switch {
		case i%5 == 0:
			c.consent = map[string]bool{activation.AdUserData: false}
		case i%5 == 1:
			c.as += 5000
		default:
			continue
		}
		changed++
		s.identify(t, c)
	}
	s.settle(t)
	s.compare(t, s.wanted, s.name)
	s.summary(t, fmt.Sprintf("Of %d customers every fifth withdraws consent, and another fifth has a new e-mail address and phone number (%d events)", len(s.customers), changed))
}

// shop is the demo's shop with all that partners know people by.
type shop struct {
	*fleet
	segments  []string
	members   map[string][]*buyer
	customers []*buyer
}

type buyer struct {
	id      activation.ProfileID
	user    string
	as      int
	country string
	consent map[string]bool
}

// countries are the codes of those that the sample spells out.
var countries = map[string]string{
	"Finland": "FI", "France": "FR", "Germany": "DE", "Greece": "GR", "Hong Kong": "HK", "Israel": "IL", "Poland": "PL", "Portugal": "PT",
	"Sweden": "SE", "Switzerland": "CH", "United Kingdom": "GB",
}

// meet tells who the members of the shop's segments are.
func (s *shop) meet(t *testing.T) {
	t.Helper()
	var list struct{ Data []struct{ Key string } }
	s.ask(t, http.MethodGet, "segments?limit=100", nil, &list)
	s.members = map[string][]*buyer{}
	known := map[string]*buyer{}
	for _, segment := range list.Data {
		s.segments = append(s.segments, segment.Key)
		for next := "members?limit=100"; next != ""; {
			var page struct {
				Data []struct {
					ProfileID   string `json:"profile_id"`
					Identifiers []struct{ Kind, Value string }
				}
				NextCursor string `json:"next_cursor"`
			}
			s.ask(t, http.MethodGet, "segments/"+segment.Key+"/"+next, nil, &page)
			for _, m := range page.Data {
				c := known[m.ProfileID]
				if c == nil {
					c = &buyer{id: profileID(t, m.ProfileID), as: len(known)}
					for _, i := range m.Identifiers {
						if i.Kind == "user_id" {
							c.user, c.consent = i.Value, map[string]bool{activation.AdUserData: true, activation.AdPersonalization: true}
						}
					}
					known[m.ProfileID] = c
					if c.user != "" { // else a guest, of whom nothing is known
						s.customers = append(s.customers, c)
					}
				}
				s.members[segment.Key] = append(s.members[segment.Key], c)
			}
			if next = ""; page.NextCursor != "" {
				next = "members?limit=100&cursor=" + url.QueryEscape(page.NextCursor)
			}
		}
	}
	for _, c := range s.customers {
		var p struct{ Traits struct{ Country string } }
		s.ask(t, http.MethodGet, "profiles/user_id:"+c.user, nil, &p)
		c.country = p.Traits.Country
		s.identify(t, c)
	}
}

// identify tells who a customer is, to us and to the partners, who are to know.
func (s *shop) identify(t *testing.T, c *buyer) {
	t.Helper()
	p := partnertest.Known(0, c.as)
	p.ID, p.Consent = c.id, c.consent
	p.Identifiers[2].Value = c.user
	delete(p.Traits, "country") // that is what the sales say
	traits := maps.Clone(p.Traits)
	if code := countries[c.country]; code != "" {
		p.Traits["country"] = jsontext.Value(strconv.Quote(code))
	}
	for _, fake := range s.fakes {
		fake.Seed(p)
	}
	s.serial++
	s.send(t, map[string]any{
		"type": "identify", "userId": c.user, "traits": traits, "context": map[string]any{"consent": c.consent},
		"messageId": fmt.Sprintf("met-%d", s.serial),
	})
}

func (s *shop) wanted(kind, segment string) (want []activation.ProfileID) {
	for _, c := range s.members[segment] {
		if gate(kind).Allows(c.consent) {
			want = append(want, c.id)
		}
	}
	return want
}

func (s *shop) name(id activation.ProfileID) string { return hex.EncodeToString(id[:]) }

// say prints a line of the demo.
func (s *shop) say(format string, args ...any) {
	if *demoPartners {
		fmt.Fprintf(os.Stdout, format+"\n", args...)
	}
}

// summary prints what the ledger and the partners say.
func (s *shop) summary(t *testing.T, title string) {
	t.Helper()
	s.say("\n%s:\n", title)
	s.say("  %-22s %7s %7s %7s %11s %7s %6s %9s %10s", "destination", "wanted", "sent", "denied", "unreachable", "failed", "drift", "requests", "violations")
	kinds := make([]string, 0, len(s.fakes))
	for kind := range s.fakes {
		kinds = append(kinds, kind)
	}
	slices.SortFunc(kinds, cmp.Compare)
	for _, kind := range kinds {
		var sum struct{ Wanted, Sent, Denied, Unreachable, Failed, Drift int }
		s.ask(t, http.MethodGet, "destinations/"+kind+"/summary", nil, &sum)
		if sum.Drift != 0 || sum.Failed != 0 || sum.Wanted == 0 {
			t.Errorf("%s: at rest the ledger says %+v", kind, sum)
		}
		s.say("  %-22s %7d %7d %7d %11d %7d %6d %9d %10d", kind, sum.Wanted, sum.Sent, sum.Denied, sum.Unreachable, sum.Failed, sum.Drift,
			s.fakes[kind].Requests(), len(s.fakes[kind].Violations()))
	}
	var first struct {
		Data []struct {
			Entered bool
			Outcome string
			At      time.Time
		}
	}
	s.ask(t, http.MethodGet, "destinations/webhook/deliveries?limit=1", nil, &first)
	if len(first.Data) == 0 {
		t.Error("the ledger is empty")
	}
}
