package api_test

import (
	"strings"
	"testing"
)

func TestSubscriptions(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const path = "/api/v1/destinations/acme-crm/events/purchases"
	const body = `{"names":["Order Completed"],"sources":["acme-shop"],"where":[{"property":"total","op":"gt","value":9007199254740993}],` +
		`"mapping":{"name":"Purchase","fields":{"value":{"path":"properties.total"},"currency":{"value":"EUR"},"rate":{"value":1.10000000000000000001},"x/y":{"value":null}}}}`
	source := w.acme.things["source"]
	made := w.as(w.acme, "PUT", path, strings.Replace(body, "acme-shop", source, 1)).want(201)
	if made.str("sources", 0) != source || !strings.Contains(made.Body, "9007199254740993") || !strings.Contains(made.Body, "1.10000000000000000001") {
		t.Errorf("made %s", made.Body)
	}
	tag := header("If-Match", made.Header.Get("ETag"))
	same := w.as(w.acme, "GET", path, "").want(200)
	if same.Body != made.Body {
		t.Errorf("GET says %s, want %s", same.Body, made.Body)
	}
	if byID := w.as(w.acme, "GET", "/api/v1/destinations/acme-crm/events/"+made.str("id"), "").want(200); byID.Body != made.Body {
		t.Errorf("GET by id says %s", byID.Body)
	}
	w.as(w.acme, "PUT", path, `{"types":["track"]}`, tag).want(200)
	w.as(w.acme, "PUT", path, `{"types":["page"]}`, tag).want(412, "changed")
	if list := w.as(w.acme, "GET", "/api/v1/destinations/acme-crm/events", "").want(200); list.len("data") != 2 {
		t.Errorf("listed %s", list.Body)
	}

	for body, pointer := range map[string]string{
		`{}`:                                    "#",
		`{"types":["purchase"]}`:                "#/types/0",
		`{"names":[""]}`:                        "#/names/0",
		`{"names":["a"],"sources":["nowhere"]}`: "#/sources/0",
		`{"names":["a"],"where":[{"trait":"x"}]}`:                                    "#/where/0/trait",
		`{"names":["a"],"where":{}}`:                                                 "#/where",
		`{"names":["a"],"where":[{"property":"a","op":"within_last","value":"1d"}]}`: "#/where/0/op",
		`{"names":["a"],"mapping":{"fields":{"v":{}}}}`:                              "#/mapping/fields/v",
		`{"names":["a"],"mapping":{"fields":{"v":{"path":"a","value":1}}}}`:          "#/mapping/fields/v",
		`{"names":["a"],"mapping":{"fields":{"v":{"path":"total"}}}}`:                "#/mapping/fields/v/path",
		`{"names":["a"],"mapping":{"fields":{"x/y":{"path":"properties..a"}}}}`:      "#/mapping/fields/x~1y/path",
	} {
		got := w.as(w.acme, "PUT", "/api/v1/destinations/acme-crm/events/other", body).want(422, "invalid")
		if got.str("errors", 0, "pointer") != pointer {
			t.Errorf("%s: %s, want %s", body, got.Body, pointer)
		}
	}
	w.as(w.acme, "PUT", "/api/v1/destinations/acme-crm/events/Not-A-Key", `{"types":["track"]}`).want(404)
	w.as(w.acme, "PUT", "/api/v1/destinations/acme-crm/events/sub_999", `{"types":["track"]}`).want(404)

	sum := w.as(w.acme, "GET", "/api/v1/destinations/acme-crm/summary", "").want(200)
	if string(sum.at("events", "waiting")) != "0" || sum.len("subscriptions") != 2 {
		t.Errorf("summary %s", sum.Body)
	}
	w.as(w.acme, "DELETE", path, "", tag).want(412, "changed")
	w.as(w.acme, "DELETE", path, "").want(204)
	w.as(w.acme, "GET", path, "").want(404)
}

func TestDryRunOfEvents(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.as(w.acme, "PUT", "/api/v1/destinations/acme-crm/events/purchases",
		`{"names":["Order Completed"],"mapping":{"name":"Purchase","fields":{"value":{"path":"properties.products.1.price"}}}}`).want(201)
	const path = "/api/v1/destinations/acme-crm/events/purchases/dry_run"
	got := w.as(w.acme, "POST", path, `{"event":{"type":"track","event":"Order Completed","messageId":"o-1","userId":"eve",`+
		`"properties":{"products":[{"price":1},{"price":49.90}]}}}`).want(200)
	if string(got.at("events")) != "1" || got.len("requests") != 1 {
		t.Fatalf("dry run says %s", got.Body)
	}
	body := got.str("requests", 0, "body")
	for _, part := range []string{`"name":"Purchase"`, `"value":49.90`, `"message_id":"o-1"`} {
		if !strings.Contains(body, part) {
			t.Errorf("the message has no %s: %s", part, body)
		}
	}
	if string(got.at("selected")) != "true" || got.str("selected_reason") != "" {
		t.Errorf("of an event that the subscription selects it says %s", got.Body)
	}
	got = w.as(w.acme, "POST", path, `{"event":{"type":"track","event":"Cart Viewed","userId":"eve"}}`).want(200)
	if string(got.at("selected")) != "false" || !strings.Contains(got.str("selected_reason"), "name") || string(got.at("events")) != "1" {
		t.Errorf("of an event that the subscription does not select it says %s", got.Body)
	}
	w.as(w.acme, "PATCH", "/api/v1/destinations/acme-crm", `{"consent":{"purposes":["ad_user_data"]}}`).want(200)
	for consent, want := range map[string]string{`"denied"`: "1", "false": "1", "true": "0", "null": "0"} {
		got := w.as(w.acme, "POST", path, `{"event":{"type":"track","event":"Order Completed","userId":"eve",`+
			`"context":{"consent":{"ad_user_data":`+consent+`}}}}`).want(200)
		if string(got.at("denied")) != want || (got.len("requests") == 0) != (want == "1") {
			t.Errorf("of an event with the consent %s it says %s", consent, got.Body)
		}
	}
	w.as(w.acme, "PATCH", "/api/v1/destinations/acme-crm", `{"consent":{"purposes":[]}}`).want(200)
	w.as(w.acme, "POST", path, `{"event":[]}`).want(422, "invalid")
	if got := w.as(w.acme, "POST", path, "").want(200); string(got.at("denied")) != "0" {
		t.Errorf("dry run of the latest events says %s", got.Body)
	}
}
