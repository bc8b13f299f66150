package api_test

import (
	"bufio"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/profiles"
)

func TestMembersAreExported(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.acme.number("segment")
	for i := range 30 {
		w.person(w.acme, person{user: fmt.Sprint("u", i), lastSeen: at(i), member: id})
	}
	w.person(w.acme, person{user: "outside", lastSeen: at(1)})
	w.person(w.acme, person{
		user: "=cmd()", visitors: []string{"@v"}, lastSeen: at(1), member: id, traits: map[string]string{
			"country": `"a \"b\", c\r\nd"`, "ltv": `-1.5e3`, "email": `"-x@example.com"`,
		},
	})
	path := "/api/v1/segments/acme-buyers/members"
	file := w.as(w.acme, "GET", path+".csv?traits=country,ltv,none", "").want(200)
	if got := file.Header.Get("Content-Disposition"); got != `attachment; filename="acme-buyers-members.csv"` {
		t.Errorf("Content-Disposition is %s", got)
	}
	if got := file.Header.Get("Mubatch-As-Of"); got != "2026-11-01T12:00:00.000Z" {
		t.Errorf("as of %q", got)
	}
	if strings.Count(file.Body, "\r\n") != 33+1 || strings.Count(file.Body, "\n") != 33+1 {
		t.Errorf("not all lines end with CRLF: %q", file.Body)
	}
	records, err := csv.NewReader(strings.NewReader(file.Body)).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split("profile_id,user_id,anonymous_id,email,phone,entered_at,country,ltv,none", ","), records[0]); diff != "" {
		t.Errorf("header (-want +got):\n%s", diff)
	}
	byUser := map[string][]string{}
	for _, r := range records[1:] {
		byUser[r[1]] = r[2:]
	}
	if len(byUser) != 32 || len(records) != 33 {
		t.Errorf("%d people on %d lines, want 32", len(byUser), len(records))
	}
	want := []string{"a1", "ada@example.com", "", "2026-11-01T10:00:00.000Z", "DE", "12345678901234567890.5", ""}
	if diff := cmp.Diff(want, byUser["ada"]); diff != "" {
		t.Errorf("ada (-want +got):\n%s", diff)
	}
	want = []string{"'@v", "'-x@example.com", "", "2026-11-01T10:01:00.000Z", "a \"b\", c\nd", "-1.5e3", ""} // the reader drops the CR
	if diff := cmp.Diff(want, byUser["'=cmd()"]); diff != "" {
		t.Errorf("a formula (-want +got):\n%s", diff)
	}

	lines := strings.Split(strings.TrimSuffix(w.as(w.acme, "GET", path+".ndjson?traits=ltv", "").want(200).Body, "\n"), "\n")
	slices.Sort(lines)
	i := slices.IndexFunc(lines, func(l string) bool { return strings.Contains(l, `"user_id":"ada"`) })
	if len(lines) != 32 || i < 0 {
		t.Fatalf("%d lines: %s", len(lines), lines)
	}
	ada := fmt.Sprintf(`{"profile_id":%q,"user_id":"ada","anonymous_id":"a1","email":"ada@example.com","phone":null,`+
		`"entered_at":"2026-11-01T10:00:00.000Z","traits":{"ltv":12345678901234567890.5}}`, w.acme.things["profile"])
	if lines[i] != ada {
		t.Errorf("got  %s\nwant %s", lines[i], ada)
	}

	w.as(w.acme, "POST", "/api/v1/segments", `{"key":"nobody","name":"Nobody","rule":{"event":"x"}}`).want(201)
	if got := w.as(w.acme, "GET", "/api/v1/segments/nobody/members.csv", "").want(200).Body; got != "profile_id,user_id,anonymous_id,email,phone,entered_at\r\n" {
		t.Errorf("of nobody: %q", got)
	}
	if got := w.as(w.acme, "GET", "/api/v1/segments/nobody/members.ndjson", "").want(200).Body; got != "" {
		t.Errorf("of nobody: %q", got)
	}
	for _, q := range []string{"traits=", "traits=a,,b", "traits=a,b,a", "columns=a", "traits=" + strings.Repeat("x,", 100) + "y"} {
		w.as(w.acme, "GET", path+".csv?"+q, "").want(400, "bad_parameter")
	}
}

// What goes wrong after the first line never ends in a file that looks whole.
func TestAnExportThatGoesWrongIsBrokenOff(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.acme.number("segment")
	var last profiles.Key
	for i := range 60 {
		p := w.person(w.acme, person{user: fmt.Sprint("u", i), lastSeen: at(1), member: id})
		if p.Lane(lanes) >= last.Lane(lanes) {
			last = p
		}
	}
	w.exec(`UPDATE profiles SET state = '\xff' WHERE id = $1`, last)
	for _, ending := range []string{".csv", ".ndjson"} {
		resp := w.raw("/api/v1/segments/acme-buyers/members" + ending)
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 200 || len(body) == 0 || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: status %d, %d bytes, %v; want some, and then an error", ending, resp.StatusCode, len(body), err)
		}
	}

	conn, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /api/v1/segments/acme-buyers/members.csv HTTP/1.0\r\nAuthorization: Bearer %s\r\n\r\n", w.acme.secret)
	old, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || old.StatusCode != http.StatusHTTPVersionNotSupported {
		t.Errorf("over HTTP/1.0, where nobody could tell: %v, %v", old, err)
	}

	// If it goes wrong before the first line, there is a problem.
	w.exec(`UPDATE profiles SET state = '\xff'`)
	resp := w.raw("/api/v1/segments/acme-buyers/members.csv")
	defer resp.Body.Close()
	if resp.StatusCode != 500 || resp.Header.Get("Content-Type") != "application/problem+json" || resp.Header.Get("Content-Disposition") != "" {
		t.Errorf("status %d: %v", resp.StatusCode, resp.Header)
	}
}

func TestOverlap(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	store := profiles.NewSegments(w.pool, lanes)
	ids := []int64{w.acme.number("segment")}
	for _, key := range []string{"a", "b", "empty"} {
		s, err := store.Create(t.Context(), w.acme.ID, profiles.SegmentDefinition{Key: key, Name: key, Rule: []byte(`{"event":"x"}`)})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, s.ID)
	}
	// Of people numbered from 1, every 2nd is in the first besides ada, every 3rd in a, every 5th in b.
	const people = 90
	join := func(p profiles.Key, segment int64) {
		w.exec(`INSERT INTO memberships (lane, workspace_id, segment_id, profile_id, entered_at) VALUES ($1, $2, $3, $4, now())`,
			p.Lane(lanes), w.acme.ID, segment, p)
	}
	for i := 1; i <= people; i++ {
		p := w.acme.Secret.Key(profiles.Identifier{Kind: profiles.UserID, Value: fmt.Sprint(i)})
		for j, every := range []int{2, 3, 5} {
			if i%every == 0 {
				join(p, ids[j])
			}
		}
	}
	numbers := func(with string) string {
		t.Helper()
		got := w.as(w.acme, "GET", "/api/v1/segments/acme-buyers/overlap?with="+with, "").want(200)
		var s strings.Builder
		for i := range got.len("segments") {
			fmt.Fprintf(&s, "%s %s/%s/%.4s ", got.str("segments", i, "segment_key"), got.at("segments", i, "members"), got.at("segments", i, "only"), got.at("segments", i, "share"))
		}
		if got.str("as_of") == "" {
			t.Errorf("no as_of: %s", got.Body)
		}
		return s.String() + string(got.at("intersection")) + " " + string(got.at("union"))
	}
	for with, want := range map[string]string{
		"a":                                  "acme-buyers 46/31/0.32 a 30/15/0.5 15 61",
		"a," + fmt.Sprintf("seg_%d", ids[2]): "acme-buyers 46/25/0.06 a 30/12/0.1 b 18/6/0.16 3 67",
		"empty":                              "acme-buyers 46/46/0 empty 0/0/0 0 46",
	} {
		if got := numbers(with); got != want {
			t.Errorf("with %s:\n got %s\nwant %s", with, got, want)
		}
	}
	for _, q := range []string{"", "?with=", "?with=a,a", "?with=acme-buyers", "?with=" + w.acme.things["segment"], "?with=nothing", "?with=globex-buyers", "?with=a,b,c,d,e,f", "?with=%00"} {
		got := w.as(w.acme, "GET", "/api/v1/segments/acme-buyers/overlap"+q, "").want(400, "bad_parameter")
		if !strings.Contains(got.str("detail"), `"with"`) {
			t.Errorf("%q: %s", q, got.Body)
		}
	}
}
