package api_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/api"
)

// audit lists what the log has for a tenant, oldest first, as "action subject".
func (w *world) audit(tn tenant, query string) (list []string) {
	w.t.Helper()
	got := w.as(tn, "GET", "/api/v1/audit_log"+query, "").want(200)
	for i := range got.len("data") {
		line := got.str("data", i, "action") + " " + got.str("data", i, "subject")
		list = append([]string{line}, list...)
	}
	return list
}

func TestEveryChangeIsNamed(t *testing.T) {
	t.Parallel()
	want := []string{"POST /profiles/{profile}/unmerge", "POST /profiles/{profile}/remerge"}
	if diff := cmp.Diff(want, api.Unnamed()); diff != "" {
		t.Errorf("operations that change something without a name for the audit log (-want +got):\n%s", diff)
	}
}

func TestTheAuditLogHasWhatWasChanged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	crm := w.acme.things["destination"]
	rule := `"rule":{"trait":"ssn","op":"eq","value":"078-05-1120"}`

	seg := w.as(w.acme, "POST", "/api/v1/segments", `{"key":"vip","name":"VIP",`+rule+`}`).want(201).str("id")
	w.as(w.acme, "POST", "/api/v1/segments", `{"key":"vip","name":"VIP",`+rule+`}`).want(409)
	w.as(w.acme, "PATCH", "/api/v1/segments/vip", `{"name":"Very"}`).want(200)
	w.as(w.acme, "PATCH", "/api/v1/segments/vip", `{"name":""}`).want(422)
	w.as(w.acme, "PUT", "/api/v1/destinations/acme-crm/segments/vip", "").want(200)
	for range 2 { // a call that is answered from memory has changed nothing
		w.as(w.acme, "POST", "/api/v1/destinations/acme-crm/pause", `{"reason":"holiday"}`, header("Idempotency-Key", "p1")).want(200)
	}
	w.as(w.acme, "POST", "/api/v1/destinations/acme-crm/rotate_secret", "", header("Idempotency-Key", "r1")).want(200)
	key := w.as(w.acme, "POST", "/api/v1/keys", `{"name":"ci","scopes":["read"]}`).want(201)
	w.as(w.acme, "DELETE", "/api/v1/keys/"+key.str("id"), "").want(200)
	w.as(w.acme, "DELETE", "/api/v1/segments/vip", "").want(202)
	w.as(w.acme, "DELETE", "/api/v1/destinations/acme-crm", "").want(204)
	src := w.as(w.acme, "POST", "/api/v1/sources", `{"key":"app"}`, header("Idempotency-Key", "s1")).want(201).str("id")
	w.as(w.acme, "DELETE", "/api/v1/sources/app", "").want(204)

	want := []string{
		"segment.create " + seg, "segment.update " + seg, "destination.attach " + crm, "destination.pause " + crm,
		"destination.rotate_secret " + crm, "key.create " + key.str("id"), "key.revoke " + key.str("id"), "segment.delete " + seg,
		"destination.delete " + crm, "source.create " + src, "source.delete " + src,
	}
	if diff := cmp.Diff(want, w.audit(w.acme, "")); diff != "" {
		t.Errorf("audit log (-want +got):\n%s", diff)
	}
	if got := w.audit(w.globex, ""); len(got) > 0 {
		t.Errorf("another workspace sees %s", got)
	}

	got := w.as(w.acme, "GET", "/api/v1/audit_log", "").want(200)
	for _, secret := range []string{"078-05", "Very", "holiday", key.str("secret")} {
		if strings.Contains(got.Body, secret) {
			t.Errorf("the log shows %q: %s", secret, got.Body)
		}
	}
	first := got.len("data") - 1
	if name, detail := got.str("data", first, "actor", "name"), string(got.at("data", first, "detail")); name != "test" ||
		detail != `{"path":"/api/v1/segments","members":["key","name","rule"]}` {
		t.Errorf("the first entry is of %q with %s", name, detail)
	}
	if diff := cmp.Diff([]string{"segment.create " + seg, "segment.update " + seg, "segment.delete " + seg}, w.audit(w.acme, "?subject="+seg)); diff != "" {
		t.Errorf("about the segment (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"segment.delete " + seg}, w.audit(w.acme, "?action=segment.delete&subject="+seg)); diff != "" {
		t.Errorf("the segment's end (-want +got):\n%s", diff)
	}

	var paged []string
	cursor := ""
	for range len(want) {
		page := w.as(w.acme, "GET", "/api/v1/audit_log?limit=2"+cursor, "").want(200)
		for i := range page.len("data") {
			paged = append([]string{fmt.Sprint(page.str("data", i, "action"), " ", page.str("data", i, "subject"))}, paged...)
		}
		if page.str("next_cursor") == "" {
			break
		}
		cursor = "&cursor=" + url.QueryEscape(page.str("next_cursor"))
	}
	if diff := cmp.Diff(want, paged); diff != "" {
		t.Errorf("in pages (-want +got):\n%s", diff)
	}
}
