package collector

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/gzip"

	"github.com/mubatch/mubatch/api/problem"
)

// budget bounds the bytes of all requests that are being worked on.
type budget struct {
	limit int64
	used  atomic.Int64
}

// take reserves n bytes and tells whether they were to be had. What alone exceeds the limit is never refused for it.
func (b *budget) take(n int64) bool {
	if used := b.used.Add(n); used > b.limit && used > n {
		b.used.Add(-n)
		return false
	}
	return true
}

func (b *budget) give(n int64) { b.used.Add(-n) }

// body is the bytes of a request, which must be let go of.
type body struct {
	bytes.Buffer
	budget *budget
	taken  int64
}

var (
	bodies = sync.Pool{New: func() any { return new(body) }}
	gzips  = sync.Pool{New: func() any { return new(gzip.Reader) }}
)

const (
	bodyStep      = 8 << 10 // what is reserved at a time: slow clients hold no more than they have sent
	maxPooledBody = 64 << 10
)

// readBody returns what r carries, decompressed. gzip is recognised by its first bytes, whatever the headers say,
// because some clients do not say, and some proxies decompress. An error is a *problem.Problem.
func readBody(w http.ResponseWriter, r *http.Request, limit int, from *budget) (*body, error) {
	if e := strings.ToLower(strings.TrimSpace(r.Header.Get("Content-Encoding"))); len(r.Header.Values("Content-Encoding")) > 1 ||
		e != "" && e != "identity" && e != "gzip" && e != "x-gzip" {
		w.Header().Set("Accept-Encoding", "gzip")
		p := problem.New(http.StatusUnsupportedMediaType, "unsupported_encoding", "The body's encoding is not supported.")
		p.Detail = "Send it as it is, or with Content-Encoding: gzip."
		return nil, p
	}
	if r.ContentLength > int64(limit) {
		return nil, tooLarge(limit)
	}
	b := bodies.Get().(*body)
	b.Reset()
	b.budget, b.taken = from, 0
	err := b.fill(http.MaxBytesReader(w, r.Body, int64(limit)), limit)
	if err == nil && bytes.HasPrefix(b.Bytes(), []byte{0x1f, 0x8b}) {
		err = b.gunzip(limit)
	}
	if err != nil {
		b.release()
		return nil, bodyProblem(err, limit)
	}
	return b, nil
}

// release lets go of the bytes.
func (b *body) release() {
	b.budget.give(b.taken)
	if b.Cap() <= maxPooledBody {
		bodies.Put(b)
	}
}

var errTooLarge = errors.New("body too large")

func (b *body) fill(from io.Reader, limit int) error {
	for {
		if room := int64(b.Available()); room < bodyStep/2 {
			b.Grow(bodyStep)
		}
		if grown := int64(b.Len() + bodyStep); grown > b.taken {
			if !b.budget.take(grown - b.taken) {
				return ErrBusy
			}
			b.taken = grown
		}
		room := b.AvailableBuffer()
		n, err := from.Read(room[:min(cap(room), bodyStep)])
		b.Write(room[:n])
		if b.Len() > limit {
			return errTooLarge
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

var errGzip = errors.New("not gzip")

// gunzip decompresses b into another body's buffer and takes that over.
func (b *body) gunzip(limit int) error {
	plain := bodies.Get().(*body)
	plain.Reset()
	plain.budget, plain.taken = b.budget, 0
	z := gzips.Get().(*gzip.Reader)
	defer gzips.Put(z)
	err := z.Reset(&b.Buffer)
	if err == nil {
		err = plain.fill(z, limit)
	}
	b.Buffer, plain.Buffer = plain.Buffer, b.Buffer
	b.taken, plain.taken = plain.taken, b.taken
	plain.release()
	if err != nil && !errors.Is(err, errTooLarge) && !errors.Is(err, ErrBusy) {
		return errGzip
	}
	return err
}

func tooLarge(limit int) *problem.Problem {
	p := problem.New(http.StatusRequestEntityTooLarge, "too_large", "The body is too large.")
	p.Detail = "Send at most " + kilobytes(limit) + " a request, counted after decompression; split larger batches."
	return p
}

func bodyProblem(err error, limit int) *problem.Problem {
	var tooMany *http.MaxBytesError
	switch {
	case errors.As(err, &tooMany), errors.Is(err, errTooLarge):
		return tooLarge(limit)
	case errors.Is(err, ErrBusy):
		return busy()
	case errors.Is(err, errGzip):
		p := problem.New(http.StatusBadRequest, "malformed_gzip", "The body is not gzip.")
		p.Detail = "It begins like gzip, but is damaged or cut short. Nothing was stored."
		return p
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		p := problem.New(http.StatusRequestTimeout, "body_timeout", "The body took too long.")
		p.Detail = "Nothing was stored. Send it again."
		return p
	default: // the client went away, or does not speak HTTP
		p := problem.New(http.StatusBadRequest, "incomplete_body", "The body could not be read.")
		p.Detail = "It ended before it was complete. Nothing was stored. Send it again."
		return p
	}
}
