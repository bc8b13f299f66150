// Package tag is the script that websites put into their pages, and how it is served.
//
//	src/*.ts ──► build.go ──► dist/ ──► embedded ──► /mub.js, /mub.<version>.js, /mub.<extra>.js
//
// It calls no other origin than the one that it came from, and is all that a page has to allow.
package tag

import (
	"bytes"
	"crypto/sha512"
	"embed"
	"encoding/base64"
	"encoding/json"
	"html"
	"io"
	"io/fs"
	"net/http"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/andybalholm/brotli"
	"github.com/go-chi/chi/v5"
	"github.com/klauspost/compress/gzip"
)

//go:generate go run -modfile=../../tools.mod build.go

// Version is that of the tag, which pages may pin.
const Version = "1.0.0"

//go:embed dist
var dist embed.FS

// script is a file, as it is and compressed.
type script struct {
	plain, brotli, gzip []byte
	etag, integrity     string
}

// scripts are the files by the names they are served under.
var scripts = sync.OnceValue(func() map[string]*script {
	found := map[string]*script{}
	names, _ := fs.Glob(dist, "dist/mub.*.js") // the pattern is right
	for _, name := range names {
		plain, _ := dist.ReadFile(name) // it is there
		found[path.Base(name)] = newScript(plain)
	}
	found["mub.js"] = found["mub."+Version+".js"]
	return found
})

func newScript(plain []byte) *script {
	var br, gz bytes.Buffer
	b := brotli.NewWriterLevel(&br, brotli.BestCompression)
	g, _ := gzip.NewWriterLevel(&gz, gzip.BestCompression) // there is that level
	for _, w := range []io.WriteCloser{b, g} {
		_, _ = w.Write(plain) // into memory
		_ = w.Close()
	}
	sum := sha512.Sum384(plain)
	hash := base64.StdEncoding.EncodeToString(sum[:])
	return &script{plain, br.Bytes(), gz.Bytes(), hash[:16], "sha384-" + hash}
}

// Integrity is the hash of the pinned tag, as a script element has it: Subresource Integrity.
func Integrity() string { return scripts()["mub.js"].integrity }

// How long browsers and caches may keep what is served: what is pinned never changes.
const (
	short   = "public, max-age=3600, stale-while-revalidate=86400"
	forever = "public, max-age=31536000, immutable"
)

// Routes mounts the scripts.
func Routes(r chi.Router) {
	r.Get("/mub.js", serve)
	r.Get("/mub.{file}", serve)
}

func serve(w http.ResponseWriter, r *http.Request) {
	name := path.Base(r.URL.Path)
	s, ok := scripts()[name]
	if !ok {
		http.NotFound(w, r)
		return
	}
	h := w.Header()
	h.Set("Access-Control-Allow-Origin", "*") // a browser checks the integrity of no script that it may not read
	h.Set("Cross-Origin-Resource-Policy", "cross-origin")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Type", "text/javascript; charset=utf-8")
	h.Set("Cache-Control", short)
	if file := chi.URLParam(r, "file"); file != "" && file[0] <= '9' { // a version
		h.Set("Cache-Control", forever)
	}
	h.Set("Vary", "Accept-Encoding")
	body, suffix := s.plain, ""
	switch accepted := r.Header.Get("Accept-Encoding"); {
	case accepts(accepted, "br"):
		body, suffix = s.brotli, "br"
	case accepts(accepted, "gzip"):
		body, suffix = s.gzip, "gzip"
	}
	if suffix != "" {
		h.Set("Content-Encoding", suffix)
	}
	h.Set("ETag", strconv.Quote(s.etag+suffix))
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body)) // also what is not modified
}

// accepts tells whether an Accept-Encoding has an encoding and does not refuse it.
func accepts(header, encoding string) bool {
	for part := range strings.SplitSeq(header, ",") {
		name, q, _ := strings.Cut(strings.TrimSpace(part), ";")
		if strings.EqualFold(strings.TrimSpace(name), encoding) {
			return strings.Trim(strings.TrimPrefix(strings.TrimSpace(q), "q="), "0.") != "" || q == ""
		}
	}
	return false
}

// Snippet is what to paste into pages.
type Snippet struct {
	Version   string // of the tag
	ScriptURL string // of the newest tag
	PinnedURL string // of this one, for ever
	Integrity string // of what is at PinnedURL
	HTML      string // loads the newest tag; calls of mub are kept until it is there
	Pinned    string // loads this tag and no other
	NoScript  string // tells of a page seen by a browser without scripts
}

// NewSnippet returns what loads the tag from a collector's address, as https://events.example.org, with a write key.
func NewSnippet(address, writeKey string) Snippet {
	s := Snippet{
		Version: Version, ScriptURL: address + "/mub.js", PinnedURL: address + "/mub." + Version + ".js", Integrity: Integrity(),
	}
	stub, _ := dist.ReadFile("dist/stub.js") // it is there
	fill := func(src, integrity string) string {
		return "<script>" + strings.NewReplacer(
			`"SRC"`, quote(src), `"SRI"`, quote(integrity), `"KEY"`, quote(writeKey),
		).Replace(strings.TrimSpace(string(stub))) + "</script>"
	}
	s.HTML, s.Pinned = fill(s.ScriptURL, ""), fill(s.PinnedURL, s.Integrity)
	s.NoScript = `<noscript><img alt="" hidden src="` + html.EscapeString(address+"/v1/pixel/page?visitor=new&writeKey="+writeKey) + `"></noscript>`
	return s
}

// quote returns a text as JavaScript has it within a script element.
func quote(text string) string {
	b, _ := json.Marshal(text) // also escapes what would end the element
	return string(b)
}
