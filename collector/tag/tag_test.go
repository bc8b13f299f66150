package tag_test

import (
	"bytes"
	"compress/gzip"
	"crypto/sha512"
	"encoding/base64"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/andybalholm/brotli"
	"github.com/go-chi/chi/v5"

	"github.com/mubatch/mubatch/collector/tag"
)

// Pages wait for what is in them: the tag and the stub stay small.
func TestTheTagIsSmall(t *testing.T) {
	t.Parallel()
	for name, most := range map[string]int{"mub." + tag.Version + ".js": 4096, "stub.js": 350} {
		plain, err := os.ReadFile(filepath.Join("dist", name))
		if err != nil {
			t.Fatal(err)
		}
		var packed bytes.Buffer
		w, _ := gzip.NewWriterLevel(&packed, gzip.BestCompression)
		_, _ = w.Write(plain)
		_ = w.Close()
		t.Logf("%s: %d bytes, %d with gzip -9", name, len(plain), packed.Len())
		if packed.Len() > most {
			t.Errorf("%s has %d bytes with gzip -9, want %d at most", name, packed.Len(), most)
		}
	}
}

func TestWhatIsCommittedIsWhatIsBuilt(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if out, err := exec.Command("go", "run", "-modfile=../../tools.mod", "build.go", "-o", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	built, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range built {
		want, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join("dist", f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("dist/%s is not what src makes: make generate", f.Name())
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "mub."+tag.Version+".js")); err != nil || len(built) < 7 {
		t.Errorf("%d files were built, among them: %v", len(built), err)
	}
}

func get(t *testing.T, path string, header ...string) *http.Response {
	t.Helper()
	router := chi.NewRouter()
	tag.Routes(router)
	r := httptest.NewRequest(http.MethodGet, path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	router.ServeHTTP(w, r)
	return w.Result()
}

func TestTheTagIsServedAsBrowsersLikeIt(t *testing.T) {
	t.Parallel()
	plain, err := os.ReadFile("dist/mub." + tag.Version + ".js")
	if err != nil {
		t.Fatal(err)
	}
	etags := map[string]bool{}
	for encoding, reader := range map[string]func(io.Reader) io.Reader{
		"":     func(r io.Reader) io.Reader { return r },
		"br":   func(r io.Reader) io.Reader { return brotli.NewReader(r) },
		"gzip": func(r io.Reader) io.Reader { z, _ := gzip.NewReader(r); return z },
	} {
		resp := get(t, "/mub.js", "Accept-Encoding", encoding)
		body, err := io.ReadAll(reader(resp.Body))
		if err != nil || !bytes.Equal(body, plain) || resp.Header.Get("Content-Encoding") != encoding {
			t.Errorf("%q: %v, %d bytes, encoding %q", encoding, err, len(body), resp.Header.Get("Content-Encoding"))
		}
		for name, want := range map[string]string{
			"Content-Type": "text/javascript; charset=utf-8", "Cross-Origin-Resource-Policy": "cross-origin",
			"Access-Control-Allow-Origin": "*", "Vary": "Accept-Encoding", "X-Content-Type-Options": "nosniff",
		} {
			if got := resp.Header.Get(name); got != want {
				t.Errorf("%q: %s is %q, want %q", encoding, name, got, want)
			}
		}
		etag := resp.Header.Get("ETag")
		if etags[etag] || etag == "" {
			t.Errorf("%q: the ETag %s is that of other bytes", encoding, etag)
		}
		etags[etag] = true
		if resp := get(t, "/mub.js", "Accept-Encoding", encoding, "If-None-Match", etag); resp.StatusCode != http.StatusNotModified {
			t.Errorf("%q: status %d for what the browser has", encoding, resp.StatusCode)
		}
	}
	if resp := get(t, "/mub.js", "Accept-Encoding", "br;q=0, gzip;q=0.5"); resp.Header.Get("Content-Encoding") != "gzip" {
		t.Errorf("brotli was refused, and %q came", resp.Header.Get("Content-Encoding"))
	}
}

func TestAPinnedTagNeverChanges(t *testing.T) {
	t.Parallel()
	resp := get(t, "/mub."+tag.Version+".js")
	body, _ := io.ReadAll(resp.Body)
	sum := sha512.Sum384(body)
	if want := "sha384-" + base64.StdEncoding.EncodeToString(sum[:]); tag.Integrity() != want {
		t.Errorf("the integrity is %s, want %s", tag.Integrity(), want)
	}
	if got := resp.Header.Get("Cache-Control"); !strings.Contains(got, "immutable") {
		t.Errorf("a pinned tag has Cache-Control %q", got)
	}
	for _, path := range []string{"/mub.js", "/mub.tcf.js"} {
		if got := get(t, path).Header.Get("Cache-Control"); strings.Contains(got, "immutable") || got == "" {
			t.Errorf("%s has Cache-Control %q", path, got)
		}
	}
	for _, path := range []string{"/mub.0.0.0.js", "/mub.stub.js", "/mub..js"} {
		if resp := get(t, path); resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s: status %d", path, resp.StatusCode)
		}
	}
}

func TestTheSnippetIsSafeToPaste(t *testing.T) {
	t.Parallel()
	s := tag.NewSnippet("https://events.example.org", "mub_wk_1")
	for text, parts := range map[string][]string{
		s.HTML:     {`"https://events.example.org/mub.js"`, `"mub_wk_1"`},
		s.Pinned:   {`"https://events.example.org/mub.` + tag.Version + `.js"`, `"mub_wk_1"`, tag.Integrity()},
		s.NoScript: {`https://events.example.org/v1/pixel/page?visitor=new&amp;writeKey=mub_wk_1`},
	} {
		for _, part := range parts {
			if !strings.Contains(text, part) {
				t.Errorf("%s is not in %s", part, text)
			}
		}
		for _, left := range []string{"SRC", "SRI", "KEY"} {
			if strings.Contains(text, left) {
				t.Errorf("%s is left in %s", left, text)
			}
		}
	}
	evil := tag.NewSnippet(`https://a.example/</script><script>alert(1)//"`, `"`)
	if strings.Contains(strings.TrimSuffix(evil.HTML, "</script>"), "</script>") || strings.Contains(evil.NoScript, `//"`) {
		t.Errorf("it breaks out: %s %s", evil.HTML, evil.NoScript)
	}
}
