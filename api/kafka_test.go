package api_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/mubatch/mubatch/collector"
)

func TestFromWhereASourceConsumesIsKept(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.as(w.acme, "GET", "/api/v1/sources/acme-shop/kafka", "").want(409, "not_kafka")
	w.as(w.acme, "POST", "/api/v1/sources", `{"key":"erp","type":"kafka"}`).want(201)
	const path = "/api/v1/sources/erp/kafka"
	w.as(w.acme, "GET", path, "").want(404, "not_found")

	for pointer, body := range map[string]string{
		"#/brokers":          `{"topics":["orders"]}`,
		"#/username":         `{"brokers":["k:9093"],"topics":["orders"],"tls":true,"sasl":"plain"}`,
		"#/secrets/password": `{"brokers":["k:9093"],"topics":["orders"],"tls":true,"sasl":"plain","username":"u"}`,
		"#/mapping":          `{"brokers":["k:9092"],"topics":["orders"],"mapping":"nothing"}`,
	} {
		if got := w.as(w.acme, "PUT", path, body).want(422, "invalid"); got.str("errors", 0, "pointer") != pointer {
			t.Errorf("%s: %s", body, got.Body)
		}
	}
	settings := `"brokers":["k:9093"],"topics":["orders"],"tls":true,"sasl":"scram-sha-512","username":"u"`
	put := w.as(w.acme, "PUT", path, `{`+settings+`,"secrets":{"password":"hunter2"}}`).want(200)
	if put.str("group") != "mubatch-erp" || put.str("start") != "earliest" || put.str("secrets", 0) != "password" || strings.Contains(put.Body, "hunter2") {
		t.Errorf("kept %s", put.Body)
	}
	if again := w.as(w.acme, "PUT", path, `{`+settings+`}`).want(200); again.Body != put.Body { // the secrets stay
		t.Errorf("kept %s, before %s", again.Body, put.Body)
	}
	if got := w.as(w.acme, "GET", path, "").want(200); got.Body != put.Body {
		t.Errorf("got %s, kept %s", got.Body, put.Body)
	}
	mappings := collector.NewMappingStore(w.pool)
	m, err := mappings.Create(t.Context(), w.acme.ID, collector.Mapping{Key: "orders", Document: "version: 1\nrules: [{event: {type: page, userId: $.user}}]"})
	if err != nil {
		t.Fatal(err)
	}
	if got := w.as(w.acme, "PUT", path, fmt.Sprintf(`{%s,"mapping":"map_%d"}`, settings, m.ID)).want(200); got.str("mapping") != "orders" {
		t.Errorf("kept %s", got.Body)
	}
	if err := mappings.Delete(t.Context(), w.acme.ID, "orders", 0); !errors.Is(err, collector.ErrInUse) {
		t.Errorf("a mapping that a source needs is deleted: %v", err)
	}

	var sealed string
	if err := w.pool.QueryRow(t.Context(), `SELECT encode(secrets, 'escape') || settings FROM kafka_sources`).Scan(&sealed); err != nil || strings.Contains(sealed, "hunter2") {
		t.Errorf("the secret is in the table: %v", err)
	}

	w.exec(`INSERT INTO kafka_rejected (workspace_id, source_id, topic, "partition", "offset", code, reason, record)
		SELECT workspace_id, source_id, 'orders', 0, n, 'malformed_json', 'is not JSON', 'x' FROM kafka_sources, generate_series(1, 3) AS n`)
	page := w.as(w.acme, "GET", path+"/rejected?limit=2", "").want(200)
	if page.len("data") != 2 || string(page.at("data", 0, "offset")) != "3" || page.str("data", 0, "record") != "eA==" {
		t.Errorf("listed %s", page.Body)
	}
	rest := w.as(w.acme, "GET", path+"/rejected?limit=2&cursor="+page.str("next_cursor"), "").want(200)
	if rest.len("data") != 1 || string(rest.at("data", 0, "offset")) != "1" {
		t.Errorf("listed %s", rest.Body)
	}
}
