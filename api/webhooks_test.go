package api_test

import (
	"strings"
	"testing"
)

func TestSourcesOfWebhooks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	made := w.as(w.acme, "POST", "/api/v1/sources",
		`{"key":"shop","type":"webhook","settings":{"merge_on":["email"],"webhook":{"provider":"shopify","secrets":["the first of the secrets"]}}}`).want(201)
	if path := made.str("webhook", "paths", 0); path != "/v1/webhooks/"+made.str("write_key", "key") {
		t.Errorf("the path is %s: %s", path, made.Body)
	}
	if string(made.at("settings", "webhook")) != `{"provider":"shopify"}` || made.str("webhook", "secrets", 0, "hint") != "…rets" ||
		string(made.at("webhook", "deliveries")) != `{"accepted":0,"ignored":0,"failed":0,"unverified":0}` {
		t.Errorf("made %s", made.Body)
	}
	if strings.Contains(made.Body, "the first") {
		t.Errorf("the secret is shown: %s", made.Body)
	}

	// A patch leaves alone what it does not name.
	got := w.as(w.acme, "PATCH", "/api/v1/sources/shop", `{"settings":{"webhook":{"mapping":"generic"}}}`).want(200)
	if string(got.at("settings", "webhook")) != `{"provider":"shopify","mapping":"generic"}` || got.len("webhook", "secrets") != 1 {
		t.Errorf("changed to %s", got.Body)
	}
	got = w.as(w.acme, "PATCH", "/api/v1/sources/shop", `{"settings":{"webhook":{"mapping":null}}}`).want(200)
	if string(got.at("settings", "webhook")) != `{"provider":"shopify"}` {
		t.Errorf("changed to %s", got.Body)
	}
	got = w.as(w.acme, "PATCH", "/api/v1/sources/shop", `{"settings":{"webhook":{"provider":"generic","verify":"basic","username":"ada","secrets":["a password, and a long one"]}}}`).want(200)
	if got.len("webhook", "secrets") != 1 || got.str("webhook", "secrets", 0, "hint") != "… one" {
		t.Errorf("changed to %s", got.Body)
	}
	w.as(w.acme, "PATCH", "/api/v1/sources/shop", `{"name":"The shop"}`).want(200)

	// Secrets are changed without a gap.
	first := got.str("webhook", "secrets", 0, "id")
	w.as(w.acme, "DELETE", "/api/v1/sources/shop/webhook_secrets/"+first, "").want(409, "last_secret")
	second := w.as(w.acme, "POST", "/api/v1/sources/shop/webhook_secrets", `{"secret":"another password, as long"}`).want(201)
	if second.str("hint") != "…long" {
		t.Errorf("added %s", second.Body)
	}
	w.as(w.acme, "POST", "/api/v1/sources/shop/webhook_secrets", `{"secret":"another password, as long"}`).want(422, "invalid")
	w.as(w.acme, "DELETE", "/api/v1/sources/shop/webhook_secrets/"+first, "").want(204)
	w.as(w.acme, "DELETE", "/api/v1/sources/shop/webhook_secrets/"+first, "").want(404, "not_found")
	if got = w.as(w.acme, "GET", "/api/v1/sources/shop", "").want(200); got.len("webhook", "secrets") != 1 || got.str("webhook", "secrets", 0, "id") != second.str("id") {
		t.Errorf("the secrets are %s", got.Body)
	}
	w.as(w.acme, "POST", "/api/v1/sources/acme-shop/webhook_secrets", `{"secret":"s"}`).want(409, "not_webhooks")
	for _, entry := range []string{"webhook_secret.create", "webhook_secret.delete"} {
		if log := w.as(w.acme, "GET", "/api/v1/audit_log?action="+entry, "").want(200); log.len("data") != 1 || strings.Contains(log.Body, "password") {
			t.Errorf("%s: %s", entry, log.Body)
		}
	}

	// Another path: a new write key, and the old one revoked.
	w.as(w.acme, "POST", "/api/v1/sources/shop/write_keys", "").want(201)
	if got = w.as(w.acme, "GET", "/api/v1/sources", "").want(200); strings.Count(got.Body, "/v1/webhooks/mub_wk_") != 2 {
		t.Errorf("the paths are not two: %s", got.Body)
	}
	w.as(w.acme, "POST", "/api/v1/sources", `{"key":"stream","type":"webhook","settings":{"webhook":{"provider":"firehose"}}}`).want(201)
	if got = w.as(w.acme, "GET", "/api/v1/sources/stream", "").want(200); got.str("webhook", "paths", 0) != "/v1/firehose" {
		t.Errorf("firehose is at %s", got.Body)
	}
}

func TestSettingsOfWebhooksThatAreWrong(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for body, pointer := range map[string]string{
		`{"key":"x","type":"webhook"}`:                                                                                                 "#/settings/webhook",
		`{"key":"x","settings":{"webhook":{"provider":"stripe","secrets":["s"]}}}`:                                                     "#/settings/webhook",
		`{"key":"x","type":"webhook","settings":{"webhook":[]}}`:                                                                       "#/settings/webhook",
		`{"key":"x","type":"webhook","settings":{"webhook":{"provider":"stripe"}}}`:                                                    "#/settings/webhook/secrets",
		`{"key":"x","type":"webhook","settings":{"webhook":{"provider":"acme","secrets":["s"]}}}`:                                      "#/settings/webhook/provider",
		`{"key":"x","type":"webhook","settings":{"webhook":{"provider":"stripe","secrets":["s"],"header":"X"}}}`:                       "#/settings/webhook/header",
		`{"key":"x","type":"webhook","settings":{"webhook":{"provider":"stripe","secrets":["s"],"mapping":"nope"}}}`:                   "#/settings/webhook/mapping",
		`{"key":"x","type":"webhook","settings":{"webhook":{"provider":"stripe","secrets":["s"],"tolerance":"60"}}}`:                   "#/settings/webhook/tolerance",
		`{"key":"x","type":"webhook","settings":{"webhook":{"provider":"generic","verify":"hmac","secrets":["s"]}}}`:                   "#/settings/webhook/header",
		`{"key":"x","type":"webhook","settings":{"webhook":{"provider":"stripe","secrets":["whsec_canary-of-a-secret","canary",""]}}}`: "#/settings/webhook/secrets",
	} {
		got := w.as(w.acme, "POST", "/api/v1/sources", body).want(422, "invalid")
		if got.str("errors", 0, "pointer") != pointer || strings.Contains(got.Body, "canary") {
			t.Errorf("%s: %s, want it to point at %s", body, got.Body, pointer)
		}
	}
	w.as(w.acme, "POST", "/api/v1/sources", `{"key":"x","type":"webhook","settings":{"webhook":{"secret":"s"}}}`).want(422, "invalid")
	w.as(w.acme, "PATCH", "/api/v1/sources/acme-hook", `{"settings":{"webhook":{"provider":"mailchimp"}}}`).want(422, "invalid")
}
