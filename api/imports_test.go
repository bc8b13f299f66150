package api_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/collector/files"
)

// importKeys seals the secrets of buckets.
type importKeys struct{ ring *activation.KeyRing }

func (k importKeys) Seal(workspace int32, id int64, plain []byte) []byte {
	return k.ring.Seal(activation.Place{Workspace: workspace, Table: "imports", ID: id}, plain)
}

func (k importKeys) Open(workspace int32, id int64, sealed []byte) ([]byte, error) {
	return k.ring.Open(activation.Place{Workspace: workspace, Table: "imports", ID: id}, sealed)
}

// present says that lanes are never behind.
type present struct{}

func (present) AsOf(context.Context) (time.Time, error) { return time.Now(), nil }

// runImports has imports worked on.
func (w *world) runImports() {
	in := collector.NewIntake(collector.Config{Lanes: lanes}, w.committer, prometheus.NewRegistry())
	log := slog.New(slog.NewTextHandler(w.t.Output(), nil))
	run(w.t, files.NewRunner(files.Config{Poll: 10 * time.Millisecond}, w.pool, importKeys{w.ring}, in, present{}, prometheus.NewRegistry(), log).Run)
}

func TestAFileIsUploadedAndImported(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	file := "{\"type\":\"identify\",\"userId\":\"ada\"}\n{\"type\":\"identify\"}\n=nothing\n"
	sum := sha256.Sum256([]byte(file))
	ask := fmt.Sprintf(`{"source":"acme-shop","upload":{"name":"people.ndjson","size":%d,"sha256":%q}}`, len(file), hex.EncodeToString(sum[:]))

	made := w.as(w.acme, "POST", "/api/v1/imports", ask).want(201)
	path := "/api/v1/imports/" + made.str("id")
	if state := made.str("state"); state != "uploading" {
		t.Errorf("a new import is %s", state)
	}
	if again := w.as(w.acme, "POST", "/api/v1/imports", ask).want(200); again.str("id") != made.str("id") {
		t.Errorf("the same file is the import %s, and then %s", made.str("id"), again.str("id"))
	}
	octets := header("Content-Type", "application/octet-stream")
	w.as(w.acme, "PUT", path+"/content?offset=20", file[20:], octets).want(409, "wrong_state")
	w.as(w.acme, "PUT", path+"/content?offset=-1", file, octets).want(400, "bad_parameter")
	w.as(w.globex, "PUT", path+"/content", file, octets).want(404, "not_found")
	for range 2 {
		if got := w.as(w.acme, "PUT", path+"/content", file[:30], octets).want(200); string(got.at("upload", "uploaded")) != "30" {
			t.Errorf("30 bytes are uploaded, and counted as %s", got.at("upload", "uploaded"))
		}
	}
	w.as(w.acme, "PUT", path+"/content?offset=20", file[20:], octets).want(200)
	w.as(w.acme, "PUT", path+"/content", file, octets).want(409, "wrong_state")

	w.runImports()
	var got answer
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if got = w.as(w.acme, "GET", path, "").want(200); got.str("state") == "done" {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("after a minute, the import is %s", got.Body)
		}
	}
	for _, code := range []string{"malformed_json", "missing_id"} {
		if n := string(got.at("progress", "rejected_by_reason", code)); n != "1" {
			t.Errorf("%s rows are rejected because of %s: %s", n, code, got.Body)
		}
	}
	if n := w.as(w.acme, "GET", path+"/files", "").want(200).len("data"); n != 1 {
		t.Errorf("%d files", n)
	}
	w.as(w.acme, "POST", path+"/pause", "").want(409, "wrong_state")
	if text := w.as(w.acme, "GET", path+"/rejected.csv", "").want(200).Body; !strings.Contains(text, ",malformed_json,") || !strings.Contains(text, ",'=nothing\r\n") {
		t.Errorf("rejected rows: %s", text)
	}
	if lines := strings.Count(w.as(w.acme, "GET", path+"/rejected.ndjson", "").want(200).Body, "\n"); lines != 2 {
		t.Errorf("%d rejected rows", lines)
	}
	w.as(w.globex, "GET", path+"/rejected.csv", "").want(404, "not_found")
}

func TestImportsThatAreRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for body, pointer := range map[string]string{
		`{"source":"globex-shop","url":"s3://b/"}`:                                        "#/source",
		`{"source":"acme-shop"}`:                                                          "#/url",
		`{"source":"acme-shop","url":"s3://b/","upload":{"name":"a","size":1}}`:           "#/url",
		`{"source":"acme-shop","url":"ftp://b/"}`:                                         "#/url",
		`{"source":"acme-shop","upload":{"name":"a","size":0}}`:                           "#/upload/size",
		`{"source":"acme-shop","upload":{"name":"a","size":1},"mapping":"rules"}`:         "#/mapping",
		`{"source":"acme-shop","upload":{"name":"a","size":1},"mapping":1}`:               "#/mapping",
		`{"source":"acme-shop","url":"s3://b/","watch":{"every":"soon"}}`:                 "#/watch/every",
		`{"source":"acme-shop","url":"s3://b/","watch":{"every":"1ms"}}`:                  "#/watch/every",
		`{"source":"acme-shop","url":"s3://b/","format":{"type":"xlsx"}}`:                 "#/format/type",
		`{"source":"acme-shop","url":"s3://b/","format":{"type":"csv","delimiter":"ab"}}`: "#/format/delimiter",
	} {
		got := w.as(w.acme, "POST", "/api/v1/imports", body).want(422, "invalid")
		if at := got.str("errors", 0, "pointer"); at != pointer {
			t.Errorf("%s: %s is wrong, want %s", body, at, pointer)
		}
	}
}

func TestTheSecretsOfABucketAreSealed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	got := w.as(w.acme, "POST", "/api/v1/imports", `{"source":"acme-shop","url":"s3://exports/","mapping":{"version":1,"rules":[{"event":{"type":"identify","userId":"$.id"}}]},
		"watch":{},"s3":{"region":"eu-central-1","access_key_id":"AKIA1","secret_access_key":"hush-hush","session_token":"hush-too"}}`).want(201)
	if strings.Contains(got.Body, "hush") || got.str("s3", "access_key_id") != "AKIA1" || got.str("watch", "every") != "10s" {
		t.Errorf("the import is shown as %s", got.Body)
	}
	var row string
	var sealed []byte
	if err := w.pool.QueryRow(t.Context(), `SELECT i::text, s3_secret FROM imports AS i WHERE url <> ''`).Scan(&row, &sealed); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(row, "hush") || bytes.Contains(sealed, []byte("hush")) || len(sealed) == 0 {
		t.Errorf("the secrets are stored as they are: %s", row)
	}
	w.as(w.acme, "POST", "/api/v1/imports/"+got.str("id")+"/cancel", "").want(200)
	w.as(w.acme, "POST", "/api/v1/imports/"+got.str("id")+"/resume", "").want(409, "wrong_state")
}
