package api_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/partnertest"
	"github.com/mubatch/mubatch/activation/webhook"
	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/profiles"
)

// live has everything run: lanes that trim what they have applied, erasures, and a dispatcher to a webhook and to a partner
// that knows people by hashes.
func (w *world) live() (start, stop func()) {
	w.t.Helper()
	log := slog.New(slog.NewTextHandler(w.t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	outbound := activation.Outbound{AllowPrivate: true}
	client := activation.NewClient(outbound)
	w.destinations = activation.NewStore(w.pool, w.ring, lanes, webhook.New(client, outbound), partnertest.NewSample(http.DefaultClient))
	store := profiles.NewStore(w.pool, profiles.Config{Lanes: lanes, Keys: w.ring}, activation.NewLedger(prometheus.NewRegistry()), func() {}, log)
	dispatcher, err := activation.NewDispatcher(activation.DispatchConfig{Lanes: lanes, Poll: 50 * time.Millisecond}, w.destinations, store,
		profiles.NewSegments(w.pool, lanes), store, prometheus.NewRegistry(), log)
	if err != nil {
		w.t.Fatal(err)
	}
	run(w.t, dispatcher.Run)
	run(w.t, func(ctx context.Context) error { return store.Maintain(ctx, profiles.Retention{}) })
	n, end := 0, func() {}
	start = func() {
		n++
		flush := collector.FlushConfig{Node: fmt.Sprint("node ", n), Lease: time.Second, TrimLag: 50 * time.Millisecond}
		end = run(w.t, collector.NewFlusher(flush, w.stream, w.committer, store, prometheus.NewRegistry(), log).Run)
	}
	w.exec(`TRUNCATE profiles, routes, lookups, events, memberships, segment_counts, transitions, failed_events, counters`)
	w.exec(`DELETE FROM destination_segments`)
	start()
	return start, func() { end() }
}

// destination makes a destination that everybody in a segment is sent to.
func (w *world) destination(key, kind, segment string, settings activation.Settings) {
	w.t.Helper()
	_, _, err := w.destinations.Create(w.t.Context(), w.acme.ID, activation.NewDestination{
		Key: key, Type: kind, Settings: settings, Consent: &activation.Gate{Mode: activation.Granted},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	id, _ := strconv.ParseInt(strings.TrimPrefix(segment, "seg_"), 10, 64)
	if err := w.destinations.Attach(w.t.Context(), w.acme.ID, key, id); err != nil {
		w.t.Fatal(err)
	}
}

// residues looks through every table for something, in clear, in hexadecimal and as the hash that partners want.
func (w *world) residues(of ...string) (found []string) {
	w.t.Helper()
	rows, _ := w.pool.Query(w.t.Context(), `
		SELECT c.relname FROM pg_class AS c WHERE c.relkind IN ('r', 'p') AND c.relnamespace = 'public'::regnamespace AND NOT c.relispartition`)
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(tables) < 30 {
		w.t.Fatalf("%d tables, %v", len(tables), err)
	}
	for _, table := range tables {
		rows, _ := w.pool.Query(w.t.Context(), `SELECT t::text FROM `+pgx.Identifier{table}.Sanitize()+` AS t`)
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			w.t.Fatal(err)
		}
		for _, what := range of {
			sum := sha256.Sum256([]byte(what))
			hash := hex.EncodeToString(sum[:])
			for _, form := range []string{what, hex.EncodeToString([]byte(what)), hash, hex.EncodeToString([]byte(hash))} {
				for _, line := range lines {
					if strings.Contains(strings.ToLower(line), strings.ToLower(form)) {
						found = append(found, table+" has "+what)
					}
				}
			}
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

func (w *world) ask(kind, value string) (erasure string) {
	w.t.Helper()
	body := fmt.Sprintf(`{"identifier":{"kind":%q,"value":%q},"reason":"4711"}`, kind, value)
	got := w.as(w.acme, "POST", "/api/v1/privacy/erasures", body).want(202)
	if want := "/api/v1/privacy/erasures/" + got.str("id"); got.Header.Get("Location") != want {
		w.t.Errorf("Location is %q, want %q", got.Header.Get("Location"), want)
	}
	return got.str("id")
}

func (w *world) complete(erasure string) (proof answer) {
	w.t.Helper()
	w.eventually(erasure+" to be complete", func() bool {
		proof = w.as(w.acme, "GET", "/api/v1/privacy/erasures/"+erasure, "").want(200)
		return proof.str("status") == "complete"
	})
	return proof
}

func TestWhoIsForgottenIsNowhereAnyMore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	start, stop := w.live()
	shoppers := w.segment("shoppers", `{"event":"Order Completed"}`)
	hook, ads := partnertest.NewReceiver(t), partnertest.NewSampleFake(t, partnertest.SampleOptions{})
	w.destination("hook", "webhook", shoppers, hook.Settings())
	w.destination("ads", "sample", shoppers, ads.Settings())

	// One for each kind of identifier that somebody can be forgotten by.
	kinds := []string{"user_id", "anonymous_id", "email", "phone", "crm", "profile_id"}
	value := func(i int, kind string) string {
		switch kind {
		case "email":
			return fmt.Sprintf("canary-%d@example.com", i)
		case "phone":
			return fmt.Sprintf("+4917012345%02d", i)
		case "profile_id":
			return w.acme.Secret.Key(profiles.Identifier{Kind: profiles.UserID, Value: fmt.Sprintf("canary-user-%d", i)}).String()
		}
		return map[string]string{"user_id": "canary-user-", "anonymous_id": "canary-visitor-", "crm": "canary-crm-", "name": "Canary Bird "}[kind] + fmt.Sprint(i)
	}
	live := func(i, minute int) []string {
		return []string{
			event("track", minute, fmt.Sprintf(`"event":"Order Completed","anonymousId":%q,"properties":{"revenue":12.5}`, value(i, "anonymous_id"))),
			event("identify", minute+1, fmt.Sprintf(
				`"userId":%q,"anonymousId":%q,"traits":{"email":%q,"phone":%q,"name":%q},"context":{"consent":{"ad_storage":true,"ad_user_data":true},"externalIds":[{"id":%q,"type":"crm","collection":"users"}]}`,
				value(i, "user_id"), value(i, "anonymous_id"), value(i, "email"), value(i, "phone"), value(i, "name"), value(i, "crm"))),
			event("track", minute+2, fmt.Sprintf(`"event":"Order Completed","userId":%q,"properties":{"revenue":12.5}`, value(i, "user_id"))),
		}
	}
	for i := range kinds {
		w.send(w.acme, live(i, 1)...)
		w.failed(w.acme, 1, fmt.Sprint("broken-", i), "decode", profiles.AppendMessage(nil, profiles.Message{
			Kind: profiles.KindEvent, Workspace: w.acme.ID, Source: 1, Key: profiles.MessageKey("somewhere"), Received: time.Now(),
			Body: fmt.Appendf(nil, `{"traits":{"email":%q}}`, value(i, "email")),
		}))
	}
	w.send(w.acme, event("track", 1, `"event":"Order Completed","userId":"bob"`),
		event("identify", 2, `"userId":"bob","traits":{"email":"bob@example.com"},"context":{"consent":{"ad_storage":true,"ad_user_data":true}}`))
	bob := w.acme.Secret.Key(profiles.Identifier{Kind: profiles.UserID, Value: "bob"})
	ads.Seed(activation.Person{ID: activation.ProfileID(bob), Identifiers: []activation.Identifier{{Kind: "email", Value: "bob@example.com"}}})
	sent := func() int {
		var n int
		err := w.pool.QueryRow(t.Context(), `SELECT count(*) FROM activations WHERE wanted AND sent AND status = 'settled'`).Scan(&n)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	w.eventually("everybody to be everywhere", func() bool { return sent() == 2*(len(kinds)+1) })

	// What is known of somebody is all there.
	export := w.as(w.acme, "GET", "/api/v1/privacy/exports?identifier="+url.QueryEscape("email:"+value(2, "email")), "").want(200)
	if n := export.len("profiles"); n != 1 {
		t.Fatalf("%d profiles, want 1: %s", n, export.Body)
	}
	for _, kind := range []string{"user_id", "anonymous_id", "email", "phone", "crm", "name"} {
		if !strings.Contains(export.Body, value(2, kind)) {
			t.Errorf("the export lacks the %s: %s", kind, export.Body)
		}
	}
	for member, want := range map[string]int{"identities": 2, "events": 3, "transitions": 1, "destinations": 2, "deliveries": 2} {
		if n := export.len("profiles", 0, member); n < want {
			t.Errorf("%d %s, want at least %d: %s", n, member, want, export.Body)
		}
	}
	kindsOf := []string{string(export.at("profiles", 0, "destinations", 0, "identifier_kinds")), string(export.at("profiles", 0, "destinations", 1, "identifier_kinds"))}
	if kindsOf[0] != "null" || !strings.Contains(kindsOf[1], `"email`) {
		t.Errorf("the destinations were told %q", kindsOf)
	}
	if strings.Contains(export.Body, "bob") {
		t.Errorf("the export has somebody else: %s", export.Body)
	}

	var erasures []string
	for i, kind := range kinds {
		erasures = append(erasures, w.ask(kind, value(i, kind)))
		if i%2 == 0 { // whoever takes the lanes over goes on
			stop()
			start()
		}
	}
	erasures = append(erasures, w.ask("user_id", "canary-nobody"))
	for i, id := range erasures {
		proof := w.complete(id)
		if i == len(kinds) {
			continue
		}
		if n := proof.len("destinations"); n != 2 {
			t.Errorf("%d destinations in %s", n, proof.Body)
		}
		for j := range proof.len("destinations") {
			if proof.str("destinations", j, "outcome") != "acknowledged" || string(proof.at("destinations", j, "http_status")) != "200" {
				t.Errorf("not acknowledged: %s", proof.Body)
			}
		}
		for kind, want := range map[string]string{"profiles": "1", "identities": "2", "events": "3", "failed_events": "1", "memberships": "2"} {
			if got := string(proof.at("deleted", kind)); got != want {
				t.Errorf("by %s: %s %s deleted, want %s: %s", kinds[i], got, kind, want, proof.Body)
			}
		}
		var document map[string]jsontext.Value
		if err := json.Unmarshal([]byte(proof.Body), &document); err != nil {
			t.Fatal(err)
		}
		sum := proof.str("sha256")
		delete(document, "sha256")
		plain, err := json.Marshal(document)
		if err == nil {
			err = (*jsontext.Value)(&plain).Canonicalize()
		}
		if got := sha256.Sum256(plain); err != nil || hex.EncodeToString(got[:]) != sum {
			t.Errorf("the hash of the proof is wrong: %v", err)
		}
	}

	// What comes late changes nothing, and is counted.
	for i, kind := range kinds {
		late := []string{`"event":"Order Completed","userId":` + fmt.Sprintf("%q", value(i, "user_id"))}
		switch kind {
		case "anonymous_id":
			late = []string{`"event":"Order Completed","anonymousId":` + fmt.Sprintf("%q", value(i, "anonymous_id"))}
		case "email", "phone":
			late = []string{fmt.Sprintf(`"event":"x","anonymousId":"somebody-%d","context":{"traits":{%q:%q}}`, i, kind, value(i, kind))}
		case "crm":
			late = []string{fmt.Sprintf(`"event":"x","anonymousId":"somebody-%d","context":{"externalIds":[{"id":%q,"type":"crm","collection":"users"}]}`, i, value(i, "crm"))}
		}
		w.send(w.acme, event("track", 9, late[0]))
		id := fmt.Sprint("m", w.sent)
		w.eventually("the trace of what came late", func() bool {
			return w.as(w.acme, "GET", "/api/v1/traces/"+id, "").want(200).str("status") == "suppressed"
		})
	}
	if totals := w.as(w.acme, "GET", "/api/v1/stats", "").want(200); !strings.Contains(totals.Body, fmt.Sprintf(`"suppressed":%d`, len(kinds))) ||
		strings.Contains(totals.Body, `"adds_up":false`) {
		t.Errorf("the counts are %s", totals.Body)
	}

	// Nothing is left, but of bob.
	var canaries []string
	for i := range kinds {
		for _, kind := range []string{"user_id", "anonymous_id", "email", "phone", "crm", "name"} {
			canaries = append(canaries, value(i, kind))
		}
	}
	var found []string
	w.eventually("batches and outboxes to be tidied up", func() bool {
		found = w.residues(canaries...)
		return len(found) == 0 || t.Failed()
	})
	if len(found) > 0 {
		t.Errorf("residues:\n%s", strings.Join(found, "\n"))
	}
	if got := w.residues("bob@example.com"); len(got) == 0 {
		t.Error("bob is not found either: the search is no good")
	}
	if left := ads.Leftovers(partnertest.Audience{ID: w.audience("ads")}); len(left) > 0 {
		t.Errorf("the partner still holds %s", left)
	}
	if got := ads.Members(partnertest.Audience{ID: w.audience("ads")}); !slices.Equal(got, []activation.ProfileID{activation.ProfileID(bob)}) {
		t.Errorf("the partner holds %x, want bob alone", got)
	}
	for i := range 40 { // the last entry of a lane stays until there is another
		w.send(w.acme, event("page", 1, fmt.Sprintf(`"anonymousId":"passer-by-%d"`, i)))
	}
	w.eventually("the lanes' streams to be trimmed", func() bool {
		for lane := range lanes {
			entries, err := w.stream.Read(t.Context(), lane, collector.Offset{}, 1000, 1<<20, time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				for _, m := range e.Messages {
					if strings.Contains(strings.ToLower(string(m.Body)), "canary") {
						return false
					}
				}
			}
		}
		return true
	})
	log := w.as(w.acme, "GET", "/api/v1/audit_log?action=privacy.erase", "").want(200)
	if n := log.len("data"); n != len(kinds)+1 || strings.Contains(strings.ToLower(log.Body), "canary") {
		t.Errorf("%d entries, or one that names somebody: %s", n, log.Body)
	}
	if n := w.as(w.acme, "GET", "/api/v1/audit_log?action=privacy.export", "").want(200).len("data"); n != 1 {
		t.Errorf("%d exports on the log", n)
	}

	// Who comes back begins anew.
	now := time.Now().Add(time.Second).UTC().Format(time.RFC3339)
	w.eventually("the moment of erasure to be over", func() bool { return time.Now().UTC().Format(time.RFC3339) > now })
	w.send(w.acme, fmt.Sprintf(`{"type":"track","event":"Order Completed","timestamp":%q,"userId":%q}`, time.Now().UTC().Format(time.RFC3339Nano), value(0, "user_id")))
	id := w.apart("user_id:"+value(0, "user_id"), "user_id:"+value(0, "user_id"))
	fresh := w.as(w.acme, "GET", "/api/v1/profiles/"+id, "").want(200)
	if string(fresh.at("traits")) != "{}" || fresh.len("identifiers") != 1 || fresh.len("memberships") != 2 {
		t.Errorf("who came back is %s", fresh.Body)
	}
	if again := w.ask("user_id", value(0, "user_id")); again == erasures[0] {
		t.Error("whoever came back cannot be forgotten again")
	}
}

func (w *world) audience(destination string) (id string) {
	w.t.Helper()
	err := w.pool.QueryRow(w.t.Context(), `
		SELECT s.audience FROM destination_segments AS s JOIN destinations AS d ON d.id = s.destination_id WHERE d.key = $1`, destination).Scan(&id)
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

func TestErasuresAreHeldToTheirForm(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	long := strings.Repeat("x", 401)
	for name, tt := range map[string]struct {
		body   string
		status int
	}{
		"no identifier":         {`{}`, 422},
		"an empty identifier":   {`{"identifier":{}}`, 422},
		"no value":              {`{"identifier":{"kind":"email"}}`, 422},
		"an empty value":        {`{"identifier":{"kind":"email","value":""}}`, 422},
		"a value too long":      {`{"identifier":{"kind":"email","value":"` + long + `"}}`, 422},
		"a kind too long":       {`{"identifier":{"kind":"` + long + `","value":"x"}}`, 422},
		"a group":               {`{"identifier":{"kind":"group_id","value":"x"}}`, 422},
		"no profile's id":       {`{"identifier":{"kind":"profile_id","value":"p_x"}}`, 422},
		"a text":                {`{"identifier":"email:ada@example.com"}`, 422},
		"a reason too long":     {`{"identifier":{"kind":"email","value":"x"},"reason":"` + long + long + `"}`, 422},
		"another member":        {`{"identifier":{"kind":"email","value":"x"},"wait":true}`, 400},
		"no e-mail address":     {`{"identifier":{"kind":"email","value":"ada"}}`, 422},
		"no country":            {`{"identifier":{"kind":"phone","value":"0170 1234567"}}`, 422},
		"a word for none":       {`{"identifier":{"kind":"user_id","value":"undefined"}}`, 422},
		"another spelling":      {`{"identifier":{"kind":"userId","value":"ada"}}`, 422},
		"a kind nobody has had": {`{"identifier":{"kind":"shoe_size","value":"43"}}`, 202},
	} {
		if got := w.as(w.acme, "POST", "/api/v1/privacy/erasures", tt.body); got.Status != tt.status {
			t.Errorf("%s: status %d, want %d: %s", name, got.Status, tt.status, got.Body)
		}
	}
	for query, status := range map[string]int{
		"": 400, "?identifier=": 400, "?identifier=ada": 400, "?identifier=:x": 400, "?identifier=email:": 400, "?identifier=p_x": 400,
		"?identifier=group_id:x": 400, "?identifier=user_id:nobody": 404, "?identifier=user_id:ada&x=1": 400,
		"?identifier=user_id:" + long: 400, "?identifier=email:ada": 400, "?identifier=phone:0170-1234567": 400,
		"?identifier=anonymous_id:null": 400, "?identifier=E-Mail:nobody@example.com": 400, "?identifier=" + w.globex.things["profile"]: 404, "?identifier=user_id:ada": 200,
	} {
		if got := w.as(w.acme, "GET", "/api/v1/privacy/exports"+query, ""); got.Status != status {
			t.Errorf("export %.40s: status %d, want %d: %s", query, got.Status, status, got.Body)
		}
	}
	for identifier, want := range map[string]string{
		`{"kind":"email","value":"ada"}`:   `[{"pointer":"#/identifier/value","code":"email","detail":"must be an e-mail address"}]`,
		`{"kind":"userid","value":"null"}`: `[{"pointer":"#/identifier/kind","code":"unknown_kind","detail":"must be written user_id"}]`,
	} {
		got := w.as(w.acme, "POST", "/api/v1/privacy/erasures", `{"identifier":`+identifier+`}`).want(422, "invalid")
		if string(got.at("errors")) != want {
			t.Errorf("of %s it says %s, want %s", identifier, got.at("errors"), want)
		}
	}
	mine := w.as(w.acme, "GET", "/api/v1/privacy/erasures?limit=1", "").want(200)
	if mine.len("data") != 1 || mine.str("data", 0, "kind") != "shoe_size" || string(mine.at("data", 0, "known")) != "false" || string(mine.at("has_more")) != "true" {
		t.Errorf("the list is %s", mine.Body)
	}
	w.as(w.acme, "GET", "/api/v1/privacy/erasures/"+w.globex.things["erasure"], "").want(404)
	w.as(w.acme, "GET", "/api/v1/privacy/erasures/era_0", "").want(404)
	one, two := w.ask("email", "Ada@Example.com "), w.ask("email", "ada@example.com")
	if got := w.as(w.acme, "GET", "/api/v1/privacy/erasures/"+one, "").want(200); string(got.at("known")) != "true" {
		t.Errorf("the erasure of somebody who is known is %s", got.Body)
	}
	if three := w.ask("user_id", "ada"); one != two || one != three {
		t.Errorf("asked again while under way: %s, %s and %s", one, two, three)
	}
}

func TestWhoeverIsKnownByAnythingCanBeForgotten(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.live()
	w.send(w.acme, event("identify", 1, `"userId":"eve","traits":{"email":"not given"}`),
		event("identify", 1, `"userId":"bob","traits":{"phone":"0170 1234567"}`))
	for kind, value := range map[string]string{"email": "not given", "phone": "0170 1234567"} {
		w.eventually(value+" to be known", func() bool {
			return w.as(w.acme, "GET", "/api/v1/privacy/exports?identifier="+kind+":"+url.QueryEscape(value), "").Status == 200
		})
		if got := w.as(w.acme, "GET", "/api/v1/privacy/erasures/"+w.ask(kind, value), "").want(200); string(got.at("known")) != "true" {
			t.Errorf("the erasure of somebody who is known by %s is %s", value, got.Body)
		}
	}
}

func TestADestinationThatRestsIsWaitedForAndToldNothingNew(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.live()
	shoppers := w.segment("shoppers", `{"event":"Order Completed"}`)
	hook := partnertest.NewReceiver(t)
	hook.Arrived = make(chan partnertest.Arrival, 100)
	w.destination("hook", "webhook", shoppers, hook.Settings())
	order := func(user string) {
		w.send(w.acme, event("track", 1, fmt.Sprintf(`"event":"Order Completed","userId":%q`, user)))
	}
	rows := func(status string) (n int) {
		err := w.pool.QueryRow(t.Context(), `SELECT count(*) FROM activations WHERE wanted AND status = $1`, status).Scan(&n)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	order("held")
	w.eventually("the first to be told of", func() bool { return rows("settled") == 1 })
	if _, err := w.destinations.Pause(t.Context(), w.acme.ID, "hook", "resting"); err != nil {
		t.Fatal(err)
	}
	order("queued")
	w.eventually("the second to be queued", func() bool { return rows("pending") == 1 })

	held, queued := w.ask("user_id", "held"), w.ask("user_id", "queued")
	if proof := w.complete(queued); proof.len("destinations") != 0 {
		t.Errorf("nobody was told of the second: %s", proof.Body)
	}
	var proof answer
	w.eventually("the first to be erased here", func() bool {
		proof = w.as(w.acme, "GET", "/api/v1/privacy/erasures/"+held, "").want(200)
		return proof.str("status") != "erasing"
	})
	if proof.str("status") != "erased" || proof.str("destinations", 0, "outcome") != "waiting" {
		t.Errorf("while the destination rests: %s", proof.Body)
	}
	if _, err := w.destinations.Resume(t.Context(), w.acme.ID, "hook"); err != nil {
		t.Fatal(err)
	}
	if proof := w.complete(held); proof.str("destinations", 0, "outcome") != "acknowledged" {
		t.Errorf("after it: %s", proof.Body)
	}
	close(hook.Arrived)
	var told []bool
	for a := range hook.Arrived {
		told = append(told, a.Entered)
	}
	if !slices.Equal(told, []bool{true, false}) {
		t.Errorf("it was told of %v, want the first entering and leaving", told)
	}
}
