package api_test

import (
	"encoding/base64"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/profiles"
)

// moves has people enter a tenant's segment, and returns their ids.
func (w *world) moves(tn tenant, from, n int) (ids []string) {
	w.t.Helper()
	for i := from; i < from+n; i++ {
		p := tn.Secret.Key(profiles.Identifier{Kind: profiles.UserID, Value: fmt.Sprint("mover", i)})
		w.transition(tn, p, tn.number("segment"), true, int32(tn.number("source")), fmt.Sprint("move", i), at(i))
		ids = append(ids, p.String())
	}
	return ids
}

func TestTheFeedGoesOnWhereItWasLeft(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	path := "/api/v1/segments/acme-buyers/transitions"
	now := w.as(w.acme, "GET", path+"?after=now", "").want(200)
	if now.len("data") != 0 || string(now.at("has_more")) != "false" || now.str("next_cursor") == "" || now.str("as_of") == "" {
		t.Errorf("from now on: %s", now.Body)
	}

	var read []string
	follow := func(cursor string, limit int) string {
		t.Helper()
		for range 100 {
			p := w.as(w.acme, "GET", fmt.Sprintf("%s?after=%s&limit=%d", path, cursor, limit), "").want(200)
			for i := range p.len("data") {
				read = append(read, p.str("data", i, "profile_id"))
			}
			if cursor = p.str("next_cursor"); string(p.at("has_more")) == "false" {
				return cursor
			}
		}
		t.Fatal("the feed does not end")
		return ""
	}
	want := w.moves(w.acme, 1, 10)
	cursor := follow(now.str("next_cursor"), 3)
	want = append(want, w.moves(w.acme, 11, 4)...)
	cursor = follow(cursor, 100)
	if again := follow(cursor, 100); again != cursor {
		t.Errorf("nothing has happened, and %s has become %s", cursor, again)
	}
	if diff := cmp.Diff(want, read); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	read = nil
	follow("", 4)
	if diff := cmp.Diff(append([]string{w.acme.things["profile"]}, want...), read); diff != "" {
		t.Errorf("from the beginning (-want +got):\n%s", diff)
	}

	raw, err := base64.RawURLEncoding.DecodeString(cursor)
	if err != nil {
		t.Fatal(err)
	}
	raw[len(raw)-1] ^= 1
	for name, bad := range map[string]string{
		"nonsense": "nonsense", "then": "then", "altered": base64.RawURLEncoding.EncodeToString(raw), "cut": cursor[:len(cursor)-4], "padded": cursor + "=",
	} {
		if got := w.as(w.acme, "GET", path+"?after="+bad, ""); got.Status != 400 || got.str("code") != "bad_cursor" {
			t.Errorf("%s: %d %s", name, got.Status, got.Body)
		}
	}
	w.as(w.globex, "GET", "/api/v1/segments/globex-buyers/transitions?after="+cursor, "").want(400, "bad_cursor")
	w.as(w.acme, "POST", "/api/v1/segments", `{"key":"other","name":"Other","rule":{"event":"x"}}`).want(201)
	w.as(w.acme, "GET", "/api/v1/segments/other/transitions?after="+cursor, "").want(400, "bad_cursor")
	first := w.as(w.acme, "GET", path+"?limit=1", "").want(200)
	w.as(w.acme, "GET", path+"?after=&cursor="+first.str("next_cursor"), "").want(400)

	// The database was set back: what has happened since is not known any more.
	w.exec(`UPDATE lanes SET transition_seq = transition_seq - 1 WHERE transition_seq > 1`)
	w.as(w.acme, "GET", path+"?after="+cursor, "").want(400, "bad_cursor")
}
