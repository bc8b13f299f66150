package api_test

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/profiles"
)

// send puts events into their lanes, as the collector would. Each is JSON without its messageId, which is m1, m2 and so on.
func (w *world) send(tn tenant, events ...string) {
	w.t.Helper()
	var routed []collector.Routed
	for _, e := range events {
		w.sent++
		id := fmt.Sprintf("m%d", w.sent)
		body := []byte(`{"messageId":"` + id + `",` + strings.TrimPrefix(e, "{"))
		event, err := profiles.DecodeEvent(body)
		if err != nil {
			w.t.Fatal(err)
		}
		key := tn.Secret.Key(event.Identifier())
		routed = append(routed, collector.Routed{Lane: key.Lane(lanes), Message: profiles.Message{
			Kind: profiles.KindEvent, Workspace: tn.ID, Source: 1, ID: profiles.MessageKey(id), Key: key, Received: time.Now(), Body: body,
		}})
	}
	if err := w.committer.Commit(w.t.Context(), routed); err != nil {
		w.t.Fatal(err)
	}
}

func event(kind string, minute int, more string) string {
	return fmt.Sprintf(`{"type":%q,"timestamp":"2026-11-01T10:%02d:00Z",%s}`, kind, minute, more)
}

func (w *world) eventually(what string, done func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("waited 30 s for: %s", what)
		}
	}
}

// profile returns the id of the profile that an identifier belongs to, and who else does. On its way from one to another
// it belongs to none.
func (w *world) profile(identifier string) (id string, of []string) {
	w.t.Helper()
	got := w.as(w.acme, "GET", "/api/v1/profiles/"+url.PathEscape(identifier)+"/identities", "")
	if got.Status == 404 {
		return "", nil
	}
	got.want(200)
	for i := range got.len("data") {
		of = append(of, got.str("data", i, "kind")+":"+got.str("data", i, "value"))
	}
	slices.Sort(of)
	return w.as(w.acme, "GET", "/api/v1/profiles/"+url.PathEscape(identifier), "").str("id"), of
}

// apart waits until the profile of an identifier is exactly the merge of those.
func (w *world) apart(identifier string, of ...string) (id string) {
	w.t.Helper()
	var got []string
	defer func() {
		if w.t.Failed() {
			w.t.Logf("%s is in %s with %s", identifier, id, got)
		}
	}()
	w.eventually(fmt.Sprintf("%s to be %s", identifier, of), func() bool {
		id, got = w.profile(identifier)
		return id != "" && slices.Equal(got, of)
	})
	return id
}

func (w *world) segment(key, rule string) (id string) {
	w.t.Helper()
	id = w.as(w.acme, "POST", "/api/v1/segments", fmt.Sprintf(`{"key":%q,"name":%q,"rule":%s}`, key, key, rule)).want(201).str("id")
	w.eventually(key+" to be live", func() bool { return w.as(w.acme, "GET", "/api/v1/segments/"+key, "").str("status") == "live" })
	return id
}

// changes are the transitions of a segment, the oldest first: "profile change cause message".
func (w *world) changes(segment string) (list []string) {
	w.t.Helper()
	got := w.as(w.acme, "GET", "/api/v1/segments/"+segment+"/transitions", "").want(200)
	for i := range got.len("data") {
		t := []any{"data", i}
		at := func(path ...any) string { return got.str(append(slices.Clone(t), path...)...) }
		list = append([]string{strings.Join([]string{at("profile_id"), at("change"), at("cause", "kind"), at("cause", "message_id")}, " ")}, list...)
	}
	return list
}

func (w *world) decide(what, profile, identity string) (messageID string) {
	w.t.Helper()
	body := fmt.Sprintf(`{"identity":%q}`, identity)
	got := w.as(w.acme, "POST", "/api/v1/profiles/"+url.PathEscape(profile)+"/"+what, body).want(202)
	if action := got.str("action"); action != "profile."+what {
		w.t.Errorf("the action is %q", action)
	}
	return got.str("detail", "message_id")
}

func TestAnUnmergeTakesOneIdentityOutAndARemergePutsItBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.flush()
	w.segment("two", `{"event":"Added","count":{"gte":2}}`)
	w.segment("one", `{"event":"Added","count":{"eq":1}}`)
	w.send(
		w.acme,
		event("identify", 1, `"userId":"eve","anonymousId":"v1"`), // m1
		event("identify", 2, `"userId":"eve","anonymousId":"v2"`), // m2
		event("track", 3, `"event":"Added","anonymousId":"v1"`),
		event("track", 4, `"event":"Added","anonymousId":"v2"`),
	)
	eve := w.apart("user_id:eve", "anonymous_id:v1", "anonymous_id:v2", "user_id:eve")
	w.eventually("eve to be in two", func() bool { return strings.Contains(strings.Join(w.changes("two"), ","), eve+" entered") })
	before := w.changes("one")

	identities := w.as(w.acme, "GET", "/api/v1/profiles/user_id:eve/identities", "").want(200)
	for i := range identities.len("data") {
		var by string
		root := string(identities.at("data", i, "root")) == "true"
		if !root {
			by = identities.str("data", i, "claim", "by", "value") + " with " + identities.str("data", i, "claim", "message_id")
		}
		value := identities.str("data", i, "value")
		want := map[string]string{"v1": "eve with m1", "v2": "eve with m2"}[value]
		if by != want || root != (value == "eve") {
			t.Errorf("%s is claimed by %q, want %q; root: %v", value, by, want, root)
		}
	}

	decision := w.decide("unmerge", "user_id:eve", "anonymous_id:v2")
	v2 := w.apart("anonymous_id:v2", "anonymous_id:v2")
	w.apart("user_id:eve", "anonymous_id:v1", "user_id:eve")
	trace := func(id string, changes int) {
		t.Helper()
		w.eventually("the trace of "+id, func() bool {
			got := w.as(w.acme, "GET", "/api/v1/traces/"+id, "").want(200)
			return got.str("status") == "applied" && got.len("events", 0, "transitions") == changes
		})
	}
	trace(decision, 3)
	if diff := cmp.Diff([]string{eve + " left unmerge " + decision}, w.changes("two")[1:]); diff != "" {
		t.Errorf("two (-want +got):\n%s", diff)
	}
	got, want := w.changes("one")[len(before):], []string{eve + " entered unmerge " + decision, v2 + " entered unmerge " + decision}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("one (-want +got):\n%s", diff)
	}

	// What repeats the claim, later or earlier than the first, changes nothing.
	w.send(
		w.acme,
		event("identify", 5, `"userId":"eve","anonymousId":"v2"`),
		event("identify", 0, `"userId":"eve","anonymousId":"v2","traits":{"seen":"again"}`),
		event("alias", 6, `"userId":"eve","previousId":"v2"`),
		event("track", 7, `"event":"Other","anonymousId":"v2"`),
	)
	w.eventually("the last event", func() bool { return w.as(w.acme, "GET", "/api/v1/traces/m8", "").str("status") == "applied" })
	w.eventually("the trait", func() bool {
		return w.as(w.acme, "GET", "/api/v1/profiles/user_id:eve", "").str("traits", "seen") == "again"
	})
	w.apart("anonymous_id:v2", "anonymous_id:v2")
	w.apart("user_id:eve", "anonymous_id:v1", "user_id:eve")

	// The next claimant has it, and loses it when the decision is taken back.
	w.send(w.acme, event("identify", 9, `"userId":"ida","anonymousId":"v2"`))
	w.apart("user_id:ida", "anonymous_id:v2", "user_id:ida")
	back := w.decide("remerge", eve, "anonymous_id:v2")
	w.apart("user_id:eve", "anonymous_id:v1", "anonymous_id:v2", "user_id:eve")
	w.apart("user_id:ida", "user_id:ida")
	w.eventually("eve to be in two again", func() bool {
		return slices.Contains(w.changes("two"), eve+" entered merge "+back)
	})

	log := w.as(w.acme, "GET", "/api/v1/audit_log?subject="+eve, "").want(200)
	if log.len("data") != 2 || log.str("data", 0, "action") != "profile.remerge" || log.str("data", 1, "detail", "message_id") != decision {
		t.Errorf("the log has %s", log.Body)
	}
	for _, name := range []string{`"v2"`, `"eve"`, "anonymous_id"} {
		if strings.Contains(log.Body, name) {
			t.Errorf("the log shows %s: %s", name, log.Body)
		}
	}
}

func TestUsersAreTakenOutWithWhomTheyClaim(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.flush()
	byEmail := func(minute int, more string) string {
		return event("identify", minute, more+`,"traits":{"email":"fam@example.com"},"_mergeOn":["email"]`)
	}
	w.send(
		w.acme,
		byEmail(1, `"userId":"mum","anonymousId":"tablet"`),
		byEmail(2, `"userId":"dad","anonymousId":"phone"`),
		byEmail(3, `"anonymousId":"tv"`),
		byEmail(4, `"userId":"son"`),
	)
	everybody := []string{"anonymous_id:phone", "anonymous_id:tablet", "anonymous_id:tv", "user_id:dad", "user_id:mum", "user_id:son"}
	family := w.apart("user_id:son", everybody...)
	if at := w.acme.Secret.Key(profiles.Identifier{Kind: profiles.Email, Value: "fam@example.com"}).String(); family != at {
		t.Fatalf("the root is %s, want the address's %s", family, at)
	}
	w.as(w.acme, "POST", "/api/v1/profiles/user_id:son/unmerge", `{"identity":"email:Fam@example.com"}`).want(409, "root")

	w.decide("unmerge", "email:fam@example.com", "user_id:dad")
	w.apart("user_id:dad", "anonymous_id:phone", "user_id:dad")
	w.apart("user_id:son", "anonymous_id:tablet", "anonymous_id:tv", "user_id:mum", "user_id:son")
	w.decide("unmerge", "user_id:son", "anonymous_id:tv")
	w.apart("anonymous_id:tv", "anonymous_id:tv")
	w.send(w.acme, byEmail(5, `"userId":"dad"`), byEmail(6, `"anonymousId":"tv"`), byEmail(0, `"userId":"dad"`))
	w.decide("unmerge", "user_id:son", "user_id:mum")
	w.apart("user_id:mum", "anonymous_id:tablet", "user_id:mum")
	w.decide("unmerge", family, "user_id:son")
	w.apart("user_id:son", "user_id:son")
	w.eventually("the family to be gone", func() bool { return w.as(w.acme, "GET", "/api/v1/profiles/"+family, "").Status == 404 })
	w.apart("user_id:dad", "anonymous_id:phone", "user_id:dad")

	for _, id := range []string{"user_id:son", "user_id:mum", "anonymous_id:tv", "user_id:dad"} {
		w.decide("remerge", family, id)
	}
	w.apart("user_id:dad", everybody...)
}

func TestUsersWhoClaimEachOtherAreSeparated(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.flush()
	w.send(
		w.acme,
		event("alias", 1, `"userId":"old","previousId":"new"`),
		event("alias", 2, `"userId":"new","previousId":"old"`), // closes a circle, so it does not count now
		event("alias", 3, `"userId":"new","previousId":"other"`),
		event("alias", 4, `"userId":"other","previousId":"new"`),
		event("track", 5, `"userId":"other","event":"Added"`),
	)
	w.apart("user_id:old", "user_id:new", "user_id:old", "user_id:other")
	w.decide("unmerge", "user_id:old", "user_id:new")
	w.apart("user_id:old", "user_id:old")
	w.apart("user_id:new", "user_id:new", "user_id:other")
	w.decide("remerge", "user_id:old", "user_id:new")
	w.apart("user_id:new", "user_id:new", "user_id:old", "user_id:other")
}

func TestWhatCannotBeUnmerged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const path = "/api/v1/profiles/user_id:ada/"
	for _, c := range []struct {
		path, body string
		status     int
		code       string
	}{
		{path + "unmerge", `{"identity":"user_id:ada"}`, 409, "root"},
		{path + "unmerge", `{"identity":"` + w.acme.things["profile"] + `"}`, 409, "root"},
		{path + "unmerge", `{"identity":"anonymous_id:nobody"}`, 404, "not_of_profile"},
		{path + "unmerge", `{"identity":"email:ada@example.com"}`, 404, "not_of_profile"},
		{path + "unmerge", `{"identity":"anonymous_id:a1"}`, 409, "in_progress"}, // no lane knows of a claim on it
		{path + "unmerge", `{"identity":"anonymous_id"}`, 422, "invalid"},
		{path + "unmerge", `{"identity":"p_1"}`, 422, "invalid"},
		{path + "unmerge", `{}`, 422, "invalid"},
		{path + "unmerge", `{"identity":"anonymous_id:a1","force":true}`, 400, "unknown_member"},
		{"/api/v1/profiles/user_id:nobody/unmerge", `{"identity":"user_id:ada"}`, 404, "not_found"},
		{path + "remerge", `{"identity":"anonymous_id:a1"}`, 404, "not_of_profile"},
		{"/api/v1/profiles/email:nobody@example.com/remerge", `{"identity":"anonymous_id:a1"}`, 404, "not_found"},
		{"/api/v1/profiles/p_1/remerge", `{"identity":"anonymous_id:a1"}`, 404, "not_found"},
	} {
		w.as(w.acme, "POST", c.path, c.body).want(c.status, c.code)
	}
	if got := w.audit(w.acme, ""); len(got) > 0 {
		t.Errorf("the log has %s", got)
	}
}

// A call that is repeated under its Idempotency-Key decides once.
func TestAnUnmergeIsDecidedOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.flush()
	w.send(w.acme, event("identify", 1, `"userId":"eve","anonymousId":"v1"`))
	w.apart("user_id:eve", "anonymous_id:v1", "user_id:eve")
	var answers []string
	for range 2 {
		got := w.as(w.acme, "POST", "/api/v1/profiles/user_id:eve/unmerge", `{"identity":"anonymous_id:v1"}`, header("Idempotency-Key", "u1")).want(202)
		answers = append(answers, got.Body)
		w.apart("anonymous_id:v1", "anonymous_id:v1")
	}
	if answers[0] != answers[1] {
		t.Errorf("the answers differ: %s", answers)
	}
	if got := w.audit(w.acme, "?action=profile.unmerge"); len(got) != 1 {
		t.Errorf("the log has %s", got)
	}
	// Nothing was ever seen of the visitor alone: there it is all the same.
	if got := w.as(w.acme, "GET", "/api/v1/profiles/anonymous_id:v1", "").want(200); string(got.at("first_seen_at")) != "null" {
		t.Errorf("first seen at %s", got.at("first_seen_at"))
	}
}

// What is asked for while lanes cannot be reached is on record, and the trace does not say that it was done.
func TestAnUnmergeThatReachesNoLane(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.flush()
	w.send(w.acme, event("identify", 1, `"userId":"eve","anonymousId":"v1"`))
	w.apart("user_id:eve", "anonymous_id:v1", "user_id:eve")
	w.stopCommits()
	for _, options := range [][]option{nil, {header("Idempotency-Key", "u1")}} {
		w.as(w.acme, "POST", "/api/v1/profiles/user_id:eve/unmerge", `{"identity":"anonymous_id:v1"}`, options...).want(503, "unavailable")
	}
	got := w.as(w.acme, "GET", "/api/v1/audit_log?action=profile.unmerge", "").want(200)
	if n := got.len("data"); n != 2 {
		t.Fatalf("%d entries, want 2: %s", n, got.Body)
	}
	trace := w.as(w.acme, "GET", "/api/v1/traces/"+got.str("data", 0, "detail", "message_id"), "").want(200)
	if trace.str("status") != "unknown" {
		t.Errorf("the trace says %s", trace.Body)
	}
}
