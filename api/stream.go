package api

import (
	"errors"
	"net/http"
	"time"

	"github.com/mubatch/mubatch/api/problem"
)

// streamer answers a call bit by bit. What it returns as an error before it has written anything is answered as a problem;
// after that the connection is broken off, so that nobody takes a part for the whole.
type streamer func(a *API, c *call, w *streamWriter) error

// serveStream returns the handler of a route whose answer takes as long as it takes. Each write has its own deadline.
func (a *API) serveStream(rt route) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		sw := &streamWriter{ResponseWriter: w, control: http.NewResponseController(w)}
		err := a.stream(sw, r, rt)
		switch {
		case err == nil:
		case !sw.begun:
			for name := range w.Header() { // what was said of the answer that does not come
				if name != "X-Request-Id" && name != "Www-Authenticate" {
					w.Header().Del(name)
				}
			}
			problem.Write(w, r, a.explain(r, err))
		default:
			if !errors.Is(err, errGone) {
				a.explain(r, err) // logs it
			}
			panic(http.ErrAbortHandler)
		}
	}
}

func (a *API) stream(w *streamWriter, r *http.Request, rt route) error {
	c, err := a.admit(w, r, rt)
	if err != nil {
		return err
	}
	if !r.ProtoAtLeast(1, 1) { // its answers end where the connection does, whether they are whole or not
		p := problem.New(http.StatusHTTPVersionNotSupported, "http_version", "This is not answered over HTTP/1.0.")
		p.Detail = "Only from HTTP/1.1 on can you tell whether an answer is whole. If there is a proxy in between, have it speak HTTP/1.1."
		return p
	}
	return rt.stream(a, c, w)
}

// writePatience is how long a client may take to accept what is written.
const writePatience = 30 * time.Second

// errGone says that the client does not listen any more.
var errGone = errors.New("the client is gone")

// streamWriter writes an answer bit by bit.
type streamWriter struct {
	http.ResponseWriter
	control *http.ResponseController
	begun   bool
}

// Unwrap lets a response controller find what is beneath.
func (w *streamWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// send writes b and has it sent, or returns errGone.
func (w *streamWriter) send(b []byte) error {
	w.begun = true
	allow(w.ResponseWriter, writePatience)
	if _, err := w.Write(b); err != nil {
		return errors.Join(errGone, err)
	}
	if err := w.control.Flush(); err != nil {
		return errors.Join(errGone, err)
	}
	return nil
}

// allow gives an answer, or the next part of one, that much time to be written.
func allow(w http.ResponseWriter, patience time.Duration) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(patience + 5*time.Second)) // without it the server's holds
}

// head starts an answer that is not to be kept.
func (w *streamWriter) head(contentType string) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
}
