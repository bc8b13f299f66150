package api

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"github.com/go-json-experiment/json"

	"github.com/mubatch/mubatch/api/problem"
)

const (
	defaultLimit = 100
	maxLimit     = 1000
)

// page is a part of a list.
type page[T any] struct {
	Data       []T     `json:"data"`
	NextCursor *string `json:"next_cursor"`
	HasMore    bool    `json:"has_more"`
}

// freshPage is a part of a list that says how fresh it is.
type freshPage[T any] struct {
	page[T]
	AsOf *timestamp `json:"as_of"`
}

// query returns the parameters of the URL, each of which must be known and may be given once.
func (c *call) query(known ...string) (url.Values, error) {
	q, err := url.ParseQuery(c.URL.RawQuery)
	if err != nil {
		return nil, problem.New(http.StatusBadRequest, "bad_parameter", "The query of the URL cannot be read.")
	}
	for _, name := range slices.Sorted(maps.Keys(q)) {
		switch {
		case !slices.Contains(known, name):
			return nil, badParameter(name, "is not known here")
		case len(q[name]) > 1:
			return nil, badParameter(name, "is given more than once")
		}
	}
	return q, nil
}

// paging reads limit and cursor, the latter into at, a pointer to what [pageOf] was given for the page before; without
// a cursor, at stays as it is. It returns the other parameters, which must be among filters.
func (c *call) paging(at any, filters ...string) (limit int, q url.Values, err error) {
	q, err = c.query(append(filters, "limit", "cursor")...)
	if err != nil {
		return 0, nil, err
	}
	limit = defaultLimit
	if q.Has("limit") {
		limit, err = strconv.Atoi(q.Get("limit"))
		if err != nil || limit < 1 || limit > maxLimit {
			return 0, nil, badParameter("limit", "must be a whole number from 1 to "+strconv.Itoa(maxLimit))
		}
	}
	if q.Has("cursor") {
		if err := c.openCursor(q.Get("cursor"), at); err != nil {
			return 0, nil, err
		}
	}
	return limit, q, nil
}

// pageOf makes a page of found, of which there is one more than limit if there is a next page. place says where in the
// list something is.
func pageOf[T, U any](c *call, found []T, limit int, place func(T) any, show func(T) U) (p page[U], err error) {
	p.Data = make([]U, 0, min(len(found), limit))
	if len(found) > limit {
		found = found[:limit]
		cursor, err := c.sealCursor(place(found[limit-1]))
		if err != nil {
			return p, err
		}
		p.NextCursor, p.HasMore = &cursor, true
	}
	for _, f := range found {
		p.Data = append(p.Data, show(f))
	}
	return p, nil
}

const macSize = 16

// sealCursor makes a cursor that is good for this list only: this path, these filters, this workspace.
func (c *call) sealCursor(place any) (string, error) {
	b, err := json.Marshal(place)
	if err != nil {
		return "", err
	}
	return base64.RawURLEncoding.EncodeToString(append(c.cursorMAC(b), b...)), nil
}

func (c *call) openCursor(cursor string, place any) error {
	b, err := base64.RawURLEncoding.Strict().DecodeString(cursor)
	if err != nil || len(b) < macSize || !hmac.Equal(b[:macSize], c.cursorMAC(b[macSize:])) || json.Unmarshal(b[macSize:], place) != nil {
		p := problem.New(http.StatusBadRequest, "bad_cursor", "The cursor is not one of this list.")
		p.Detail = "Send next_cursor as it was, with the same path and filters, or leave it out to start anew."
		return p
	}
	return nil
}

func (c *call) cursorMAC(place []byte) []byte {
	q := c.URL.Query()
	q.Del("limit")
	q.Del("cursor")
	mac := hmac.New(sha256.New, c.id.workspace)
	for _, part := range []string{"\x00cursor", c.URL.EscapedPath(), q.Encode()} { // no identifier's kind starts with a NUL
		mac.Write([]byte(part))
		mac.Write([]byte{0})
	}
	mac.Write(place)
	return mac.Sum(nil)[:macSize]
}
