package activation_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/partnertest"
)

func settings(url string) activation.Settings {
	return activation.Settings{Config: jsontext.Value(fmt.Sprintf(`{"url":%q}`, url))}
}

func TestDestinations(t *testing.T) {
	t.Parallel()
	b := partnertest.NewBench(t, newWebhook(t))
	ctx, s := t.Context(), b.Store
	made, secrets, err := s.Create(ctx, b.Workspace, activation.NewDestination{
		Key: "crm", Type: "webhook", Settings: settings("https://example.com/hook"),
	})
	if err != nil {
		t.Fatal(err)
	}
	var shown struct {
		Secret string `json:"secret"`
	}
	if err := json.Unmarshal(secrets, &shown); err != nil || !strings.HasPrefix(shown.Secret, "whsec_") {
		t.Errorf("the secret that is shown once is %q, %v", shown.Secret, err)
	}
	if made.Name != "crm" || made.Status != activation.Active || made.Version != 1 {
		t.Errorf("Create = %+v", made)
	}

	t.Run("secrets are masked in answers and sealed at rest", func(t *testing.T) {
		if text := fmt.Sprint(made.Secrets, string(made.Config)); strings.Contains(text, shown.Secret[6:20]) {
			t.Errorf("the answer shows the secret: %s", text)
		}
		const query = `SELECT secrets FROM destinations`
		var stored []byte
		if err := b.Pool.QueryRow(ctx, query).Scan(&stored); err != nil || bytes.Contains(stored, []byte(shown.Secret[6:20])) {
			t.Errorf("the database shows the secret, %v", err)
		}
	})
	t.Run("a destination is found by key and by id, in its workspace only", func(t *testing.T) {
		for _, ref := range []string{"crm", fmt.Sprintf("dst_%d", made.ID)} {
			if d, err := s.Get(ctx, b.Workspace, ref); err != nil || d.ID != made.ID {
				t.Errorf("Get(%s) = %d, %v", ref, d.ID, err)
			}
			if _, err := s.Get(ctx, b.Workspace+1, ref); !errors.Is(err, activation.ErrNotFound) {
				t.Errorf("Get(%s) in another workspace: %v", ref, err)
			}
		}
		for _, ref := range []string{"", "none", "dst_999", "dst_99999999999999999999"} {
			if _, err := s.Get(ctx, b.Workspace, ref); !errors.Is(err, activation.ErrNotFound) {
				t.Errorf("Get(%s): %v", ref, err)
			}
		}
	})
	t.Run("a key is taken once", func(t *testing.T) {
		_, _, err := s.Create(ctx, b.Workspace, activation.NewDestination{
			Key: "crm", Type: "webhook", Settings: settings("https://example.com/"),
		})
		if !errors.Is(err, activation.ErrConflict) {
			t.Errorf("Create: %v, want ErrConflict", err)
		}
	})
	t.Run("everything that is wrong is told at once", func(t *testing.T) {
		_, _, err := s.Create(ctx, b.Workspace, activation.NewDestination{
			Key: "dst_1", Name: "a\x00", Type: "webhook", Settings: settings("nonsense"),
		})
		for _, want := range []string{"/key", "/name", "/config/url"} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s is missing in: %v", want, err)
			}
		}
		if _, _, err = s.Create(ctx, b.Workspace, activation.NewDestination{Key: "x", Type: "fax"}); err == nil {
			t.Error("a destination of an unknown type was made")
		}
	})
	t.Run("an update needs the version that it was made for", func(t *testing.T) {
		name := "CRM"
		d, err := s.Update(ctx, b.Workspace, "crm", activation.Update{Name: &name, Version: 1})
		if err != nil || d.Name != name || d.Version != 2 {
			t.Errorf("Update = %+v, %v", d, err)
		}
		if _, err = s.Update(ctx, b.Workspace, "crm", activation.Update{Name: &name, Version: 1}); !errors.Is(err, activation.ErrStale) {
			t.Errorf("Update of an old version: %v, want ErrStale", err)
		}
		d, err = s.Update(ctx, b.Workspace, "crm", activation.Update{Config: settings("https://example.com/2").Config})
		if err != nil || !strings.Contains(string(d.Config), "/2") || cmp.Diff(made.Secrets, d.Secrets) != "" {
			t.Errorf("Update of the config = %s, %v, %v", d.Config, d.Secrets, err)
		}
		if _, err = s.Update(ctx, b.Workspace, "crm", activation.Update{Config: jsontext.Value(`{}`)}); err == nil {
			t.Error("a config without a URL was stored")
		}
	})
	t.Run("a secret is rotated", func(t *testing.T) {
		fresh, err := s.RotateSecret(ctx, b.Workspace, "crm")
		if err != nil || !strings.HasPrefix(fresh["secret"], "whsec_") || fresh["secret"] == shown.Secret {
			t.Errorf("RotateSecret = %v, %v", fresh, err)
		}
		d, err := s.Get(ctx, b.Workspace, "crm")
		if err != nil || !strings.HasSuffix(d.Secrets["previous"], shown.Secret[len(shown.Secret)-4:]) {
			t.Errorf("after a rotation the secrets are %v, %v", d.Secrets, err)
		}
	})
	t.Run("pausing and resuming", func(t *testing.T) {
		d, err := s.Pause(ctx, b.Workspace, "crm", "asked to")
		if err != nil || d.Status != activation.Paused || d.StatusReason != "asked to" {
			t.Errorf("Pause = %+v, %v", d, err)
		}
		if d, err = s.Resume(ctx, b.Workspace, "crm"); err != nil || d.Status != activation.Active || d.StatusReason != "" {
			t.Errorf("Resume = %+v, %v", d, err)
		}
	})
	t.Run("lists are paged by id", func(t *testing.T) {
		b.Destination(t, "second", "webhook", settings("https://example.com/"))
		first, err := s.List(ctx, b.Workspace, 0, 1)
		if err != nil || len(first) != 1 {
			t.Fatalf("List = %d, %v", len(first), err)
		}
		rest, err := s.List(ctx, b.Workspace, first[0].ID, 10)
		if err != nil || len(rest) != 1 || rest[0].Key != "second" {
			t.Errorf("the second page is %+v, %v", rest, err)
		}
	})
	t.Run("segments are attached and detached", func(t *testing.T) {
		for range 2 {
			if err := s.Attach(ctx, b.Workspace, "crm", vip); err != nil {
				t.Fatal(err)
			}
		}
		d, err := s.Get(ctx, b.Workspace, "crm")
		if err != nil || len(d.Segments) != 1 || d.Segments[0].Segment != vip {
			t.Errorf("segments are %+v, %v", d.Segments, err)
		}
		if err := s.Detach(ctx, b.Workspace, "crm", vip); err != nil {
			t.Error(err)
		}
		if err := s.Detach(ctx, b.Workspace, "crm", vip); !errors.Is(err, activation.ErrNotFound) {
			t.Errorf("Detach of what is not attached: %v", err)
		}
	})
	t.Run("a deleted destination leaves nothing", func(t *testing.T) {
		if err := s.Attach(ctx, b.Workspace, "crm", vip); err != nil {
			t.Fatal(err)
		}
		b.Apply(t, change(1, true), change(2, true))
		if err := s.Delete(ctx, b.Workspace, "crm"); err != nil {
			t.Fatal(err)
		}
		if err := s.Delete(ctx, b.Workspace, "crm"); !errors.Is(err, activation.ErrNotFound) {
			t.Errorf("Delete of what is not there: %v", err)
		}
		const query = `SELECT (SELECT count(*) FROM activations) + (SELECT count(*) FROM destination_segments)`
		var left int
		if err := b.Pool.QueryRow(ctx, query).Scan(&left); err != nil || left != 0 {
			t.Errorf("%d rows are left, %v", left, err)
		}
	})
}

func TestLedgerIsListed(t *testing.T) {
	t.Parallel()
	b, r := newBench(t)
	r.Batch(1)
	for n := range 10 {
		b.World.Add(partnertest.Somebody(n))
		c := change(n, true)
		c.MessageID, c.At = fmt.Sprintf("m-%d", n), time.Now().Add(-time.Second)
		b.Apply(t, c)
	}
	r.Script(partnertest.Fault{Status: 500, Body: "ask ada@example.com"})
	b.Dispatch(t, activation.DispatchConfig{})
	b.Rest(t, "hook")

	all := deliveries(t, b, activation.DeliveryFilter{})
	if len(all) < 11 {
		t.Fatalf("the ledger has %d lines, want at least 11", len(all))
	}
	var paged []activation.Delivery
	for before := int64(0); ; {
		page := deliveries(t, b, activation.DeliveryFilter{Before: before, Limit: 3})
		if len(page) == 0 {
			break
		}
		paged = append(paged, page...)
		before = page[len(page)-1].ID
	}
	if diff := cmp.Diff(all, paged); diff != "" {
		t.Errorf("page by page (-want +got):\n%s", diff)
	}
	one := partnertest.Profile(4)
	for name, tc := range map[string]struct {
		filter activation.DeliveryFilter
		keep   func(activation.Delivery) bool
	}{
		"a person":        {activation.DeliveryFilter{Profile: &one}, func(d activation.Delivery) bool { return d.Profile == one }},
		"an outcome":      {activation.DeliveryFilter{Outcome: activation.Retry}, func(d activation.Delivery) bool { return d.Outcome == "retry" }},
		"a status":        {activation.DeliveryFilter{HTTPStatus: 500}, func(d activation.Delivery) bool { return d.HTTPStatus == 500 }},
		"a segment":       {activation.DeliveryFilter{Segment: vip}, func(activation.Delivery) bool { return true }},
		"no such segment": {activation.DeliveryFilter{Segment: vip + 1}, func(activation.Delivery) bool { return false }},
	} {
		var want []activation.Delivery
		for _, d := range all {
			if tc.keep(d) {
				want = append(want, d)
			}
		}
		got := deliveries(t, b, tc.filter)
		if len(got) != len(want) || len(want) == 0 && name != "no such segment" {
			t.Errorf("%s: %d lines, want %d", name, len(got), len(want))
		}
	}
	for _, d := range all {
		if strings.Contains(d.Excerpt, "@") {
			t.Errorf("the excerpt holds an address: %q", d.Excerpt)
		}
		if d.MessageID == "" || d.ChangedAt.IsZero() || d.Latency <= 0 || d.Attempt < 1 || !strings.HasPrefix(d.MessageKey, "msg_") {
			t.Errorf("a line is incomplete: %+v", d)
		}
	}

	var states []activation.State
	for after := new(activation.StateCursor); after != nil; {
		page, next, err := b.Store.States(t.Context(), b.Workspace, "hook", activation.StateFilter{After: *after, Limit: 3})
		if err != nil {
			t.Fatal(err)
		}
		states, after = append(states, page...), next
	}
	if len(states) != 10 {
		t.Errorf("%d states, want 10", len(states))
	}
	now := time.Now()
	n, err := b.Store.Replay(t.Context(), b.Workspace, "hook", activation.Replay{From: now.Add(-time.Minute), To: now})
	if err != nil || n != 10 {
		t.Errorf("Replay of the last minute = %d, %v, want 10", n, err)
	}
	n, err = b.Store.Replay(t.Context(), b.Workspace, "hook", activation.Replay{From: now.Add(-time.Hour), To: now.Add(-time.Minute)})
	if err != nil || n != 0 {
		t.Errorf("Replay of the hour before = %d, %v, want 0", n, err)
	}
}

func TestBothSecretsSignDuringRotation(t *testing.T) {
	t.Parallel()
	b, r := newBench(t)
	b.World.Add(partnertest.Somebody(1))
	fresh, err := b.Store.RotateSecret(t.Context(), b.Workspace, "hook")
	if err != nil {
		t.Fatal(err)
	}
	r.Rotate(fresh["secret"])
	b.Apply(t, change(1, true))
	b.Dispatch(t, activation.DispatchConfig{})
	b.Rest(t, "hook")
	if len(r.Members(theVIPs)) != 1 {
		t.Error("the message did not arrive")
	}
	for _, v := range r.Violations() {
		t.Errorf("violation: %s", v)
	}
}

func TestSecretsThatAreGivenAgain(t *testing.T) {
	t.Parallel()
	b := partnertest.NewBench(t, newWebhook(t))
	ctx, s := t.Context(), b.Store
	_, made, err := s.Create(ctx, b.Workspace, activation.NewDestination{
		Key: "crm", Type: "webhook", Settings: settings("https://example.com/hook"),
	})
	if err != nil {
		t.Fatal(err)
	}
	var own struct {
		Secret string `json:"secret"`
	}
	if err := json.Unmarshal(made, &own); err != nil {
		t.Fatal(err)
	}
	masked := "…" + own.Secret[len(own.Secret)-4:]
	if d, err := s.Update(ctx, b.Workspace, "crm", activation.Update{Secrets: jsontext.Value(`{}`)}); err != nil ||
		!strings.HasSuffix(d.Secrets["secret"], masked) || d.Secrets["previous"] != "" {
		t.Errorf("without a secret: %v, %v, want the same as before", d.Secrets, err)
	}
	want := []activation.FieldError{{
		Pointer: "/secrets/secret", Detail: "is the masked form; send the real secret, or leave secrets out",
	}}
	_, err = s.Update(ctx, b.Workspace, "crm", activation.Update{Secrets: jsontext.Value(`{"secret":"whsec_` + masked + `"}`)})
	if diff := cmp.Diff(want, partnertest.FieldErrors(err)); diff != "" {
		t.Errorf("the masked secret written back (-want +got):\n%s", diff)
	}
	n := activation.NewDestination{Key: "two", Type: "webhook", Settings: settings("https://example.com/hook")}
	n.Settings.Secrets = jsontext.Value(`{"secret":"\u2026abcd"}`)
	_, _, err = s.Create(ctx, b.Workspace, n)
	if diff := cmp.Diff(want, partnertest.FieldErrors(err)); diff != "" {
		t.Errorf("the masked secret of another (-want +got):\n%s", diff)
	}
	fresh := "whsec_" + strings.Repeat("A", 43) + "="
	d, err := s.Update(ctx, b.Workspace, "crm", activation.Update{Secrets: jsontext.Value(`{"secret":"` + fresh + `"}`)})
	if err != nil || !strings.HasSuffix(d.Secrets["previous"], masked) || strings.HasSuffix(d.Secrets["secret"], masked) {
		t.Errorf("with a new secret: %v, %v, want the one before beside it", d.Secrets, err)
	}
	n = activation.NewDestination{Key: "three", Type: "webhok"}
	if _, _, err = s.Create(ctx, b.Workspace, n); err == nil || !strings.Contains(err.Error(), "must be one of webhook") {
		t.Errorf("an unknown type: %v, want those that there are", err)
	}
}

func TestChangedSettingsLookForAudiencesAgain(t *testing.T) {
	t.Parallel()
	b, fake := newSampleBench(t, partnertest.SampleOptions{})
	const tried = `
		UPDATE destination_segments
		SET audience_at = now() + interval '1 hour', audience_tries = 7, audience_reason = 'the account may not'`
	const due = `
		SELECT audience_at < now() AND audience_tries = 0 AND audience_reason = 'the audience is about to be made'
		FROM destination_segments`
	again := func() (ok bool) {
		if err := b.Pool.QueryRow(t.Context(), due).Scan(&ok); err != nil {
			t.Fatal(err)
		}
		return ok
	}
	if _, err := b.Pool.Exec(t.Context(), tried); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Store.Update(t.Context(), b.Workspace, "sample", activation.Update{Name: new("x")}); err != nil || again() {
		t.Errorf("a new name makes the audience due, %v", err)
	}
	if _, err := b.Store.Update(t.Context(), b.Workspace, "sample", activation.Update{Config: fake.Settings().Config}); err != nil || !again() {
		t.Errorf("a new config leaves the audience waiting, %v", err)
	}
}
