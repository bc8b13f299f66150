package api

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"strings"
	"time"
	"unicode"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/matchkey"
	"github.com/mubatch/mubatch/api/problem"
	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/profiles"
)

func (c *call) erasures() *profiles.Erasures {
	return profiles.NewErasures(c.db, c.lanes, c.destinations.KeyRing())
}

const erasureID = "era_"

// profileIDKind is what the id of a profile is called among identifiers.
const profileIDKind = "profile_id"

type erasureJSON struct {
	ID          string     `json:"id"`
	Status      string     `json:"status"`
	Kind        string     `json:"kind"`
	Hash        string     `json:"hash"`
	Known       bool       `json:"known"`
	Reason      string     `json:"reason"`
	AskedBy     actorJSON  `json:"asked_by"`
	AskedAt     timestamp  `json:"asked_at"`
	ErasedAt    *timestamp `json:"erased_at"`
	CompletedAt *timestamp `json:"completed_at"`
}

func showErasure(e profiles.Erasure) erasureJSON {
	out := erasureJSON{
		ID: formatID(erasureID, e.ID), Status: "erasing", Kind: e.Kind, Hash: hex.EncodeToString(e.Hash), Known: e.Known,
		Reason: e.Reason, AskedBy: actorJSON{formatID(keyID, e.KeyID), e.KeyName}, AskedAt: timestamp(e.AskedAt),
		ErasedAt: maybe(e.ErasedAt), CompletedAt: maybe(e.CompletedAt),
	}
	switch {
	case e.CompletedAt != nil:
		out.Status = "complete"
	case e.ErasedAt != nil:
		out.Status = "erased"
	}
	return out
}

// proofJSON is what was done about an erasure. What it is hashed over is all of it but the hash.
type proofJSON struct {
	erasureJSON
	Tombstones   int              `json:"tombstones"`
	Deleted      map[string]int64 `json:"deleted"`
	Destinations []releaseJSON    `json:"destinations"`
	SHA256       string           `json:"sha256,omitzero"`
}

type releaseJSON struct {
	DestinationID string     `json:"destination_id"`
	SegmentID     string     `json:"segment_id"`
	Outcome       string     `json:"outcome"`
	Reason        string     `json:"reason"`
	HTTPStatus    int        `json:"http_status"`
	At            *timestamp `json:"at"`
}

// deletions are the kinds of what is deleted, by what they are called.
var deletions = []string{
	"profiles", "identities", "traits", "memberships", "events", "failed_events", "quarantined_events", "transitions", "claims", "decisions", "routes",
}

func showProof(e profiles.Erasure, held []activation.Erased) (proofJSON, error) {
	out := proofJSON{erasureJSON: showErasure(e), Tombstones: e.Tombstones, Deleted: map[string]int64{}, Destinations: []releaseJSON{}}
	for _, kind := range deletions {
		out.Deleted[kind] = e.Deleted[kind]
	}
	for _, h := range held {
		out.Destinations = append(out.Destinations, releaseJSON{
			formatID(destinationID, h.Destination), formatID(segmentID, h.Segment), h.Outcome, h.Reason, h.Status, maybe(h.At),
		})
	}
	plain, err := json.Marshal(out, json.Deterministic(true))
	if err == nil {
		err = (*jsontext.Value)(&plain).Canonicalize()
	}
	sum := sha256.Sum256(plain)
	out.SHA256 = hex.EncodeToString(sum[:])
	return out, err
}

func createErasure(c *call) (answer, error) {
	var in struct {
		Identifier *struct {
			Kind  string `json:"kind" validate:"required,max=64"`
			Value string `json:"value" validate:"required,max=400"`
		} `json:"identifier" validate:"required"`
		Reason string `json:"reason" validate:"max=500"`
	}
	if err := c.decode(&in); err != nil {
		return answer{}, err
	}
	key, err := c.named("#/identifier", in.Identifier.Kind, in.Identifier.Value)
	if err != nil {
		return answer{}, err
	}
	e, _, err := c.erasures().Ask(c.Context(), c.workspace(), c.id.workspace, profiles.NewErasure{
		Kind: in.Identifier.Kind, Key: key, Reason: in.Reason, KeyID: c.id.key.ID, KeyName: c.id.key.Name,
	})
	if err != nil {
		return answer{}, err
	}
	ans, err := reply(http.StatusAccepted, showErasure(e))
	ans.Location = "/api/v1/privacy/erasures/" + formatID(erasureID, e.ID)
	return ans, err
}

// named returns the key of an identifier that a person is to be found by. One by which nobody is known, and nobody could be,
// is a slip of whoever gives it, who would be told that nothing is left of the person.
func (c *call) named(pointer, kind, value string) (profiles.Key, error) {
	if kind == profileIDKind {
		key, err := profiles.ParseKey(value)
		if err != nil || key.String() != value {
			return profiles.Key{}, invalid(problem.FieldError{Pointer: pointer + "/value", Code: "profile_id", Detail: "must be the id of a profile"})
		}
		return key, nil
	}
	if kind == profiles.GroupID {
		return profiles.Key{}, invalid(problem.FieldError{Pointer: pointer + "/kind", Code: "group", Detail: "must be of a person, not of a group"})
	}
	key, err := c.id.workspace.ParseIdentity(kind + ":" + value)
	if err != nil {
		return profiles.Key{}, err
	}
	fault, ok := implausible(kind, value)
	if !ok {
		return key, nil
	}
	found, err := c.people.Known(c.Context(), c.workspace(), key)
	if err == nil && len(found) == 0 {
		fault.Pointer = pointer + fault.Pointer
		err = invalid(fault)
	}
	return key, err
}

// implausible tells what is wrong with an identifier that nobody sends of anybody, if something is.
func implausible(kind, value string) (fault problem.FieldError, ok bool) {
	plain := plainKind(kind)
	for _, known := range []string{profiles.UserID, profiles.AnonymousID, profiles.Email, profiles.Phone, profiles.GroupID, profileIDKind} {
		if kind != known && plain == plainKind(known) {
			return problem.FieldError{Pointer: "/kind", Code: "unknown_kind", Detail: "must be written " + known}, true
		}
	}
	fault.Pointer = "/value"
	switch kind {
	case profiles.Email:
		fault.Code, fault.Detail = "email", "must be an e-mail address"
		_, ok = matchkey.Recipe{}.Email(value)
	case profiles.Phone:
		fault.Code, fault.Detail = "phone", "must be a phone number: give the number with its country, such as +49 170 1234567"
		_, ok = matchkey.Recipe{}.Phone(value, "")
	default:
		fault.Code, fault.Detail = "blocked", "must be somebody's id: this is what programs write where there is none"
		ok = !collector.Blocked(value)
	}
	return fault, !ok
}

// plainKind returns the letters of a kind, in lower case.
func plainKind(kind string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsLetter(r) {
			return -1
		}
		return unicode.ToLower(r)
	}, kind)
}

func listErasures(c *call) (answer, error) {
	var before int64
	limit, _, err := c.paging(&before)
	if err != nil {
		return answer{}, err
	}
	found, err := c.erasures().List(c.Context(), c.workspace(), before, limit+1)
	if err != nil {
		return answer{}, err
	}
	p, err := pageOf(c, found, limit, func(e profiles.Erasure) any { return e.ID }, showErasure)
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusOK, p)
}

func getErasure(c *call) (answer, error) {
	if _, err := c.query(); err != nil {
		return answer{}, err
	}
	id, ok := parseID(erasureID, c.param("erasure"))
	if !ok {
		return answer{}, errNotFound()
	}
	e, err := c.erasures().Get(c.Context(), c.workspace(), id)
	if err != nil {
		return answer{}, err
	}
	held, err := c.destinations.Erased(c.Context(), e.ID)
	if err != nil {
		return answer{}, err
	}
	proof, err := showProof(e, held)
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusOK, proof)
}

type toldJSON struct {
	DestinationID  string    `json:"destination_id"`
	SegmentID      *string   `json:"segment_id"`
	SubscriptionID *string   `json:"subscription_id"`
	Change         string    `json:"change"`
	Outcome        string    `json:"outcome"`
	HTTPStatus     int       `json:"http_status"`
	At             timestamp `json:"at"`
}

func showTold(d activation.Told) toldJSON {
	said := change(d.Entered)
	if d.Subscription != nil {
		said = happened
	}
	return toldJSON{
		formatID(destinationID, d.Destination), segmentOrNone(d.Segment), subscriptionOrNone(d.Subscription), said, d.Outcome, d.Status,
		timestamp(d.At),
	}
}

type heldJSON struct {
	DestinationID   string    `json:"destination_id"`
	SegmentID       string    `json:"segment_id"`
	Status          string    `json:"status"`
	IdentifierKinds *[]string `json:"identifier_kinds"`
}

// exportPerson writes all that is known of the people of an identifier, bit by bit.
func exportPerson(_ *API, c *call, w *streamWriter) error {
	ctx := c.Context()
	q, err := c.query("identifier")
	if err != nil {
		return err
	}
	kind, value := profileIDKind, q.Get("identifier")
	if !strings.HasPrefix(value, "p_") {
		var ok bool
		if kind, value, ok = strings.Cut(value, ":"); !ok || kind == "" || value == "" || len(kind) > 64 || len(value) > 400 {
			return badParameter("identifier", "must be kind:value, or the id of a profile")
		}
	}
	key, err := c.named("#", kind, value)
	if p := (*problem.Problem)(nil); errors.As(err, &p) && len(p.Errors) > 0 {
		return badParameter("identifier", "must be kind:value of a person, or the id of a profile; its "+
			strings.TrimPrefix(p.Errors[0].Pointer, "#/")+" "+p.Errors[0].Detail)
	}
	if err != nil {
		return err
	}
	asOf, err := c.people.AsOf(ctx) // before reading: what it says must be true
	if err != nil {
		return err
	}
	found, err := c.people.Known(ctx, c.workspace(), key)
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return errNotFound()
	}
	computed, err := c.people.Computed(ctx, c.workspace())
	if err != nil {
		return err
	}
	if c.Method == http.MethodHead {
		w.head("application/json")
		return nil
	}
	detail, err := json.Marshal(map[string]any{"kind": kind, "profiles": len(found)}, json.Deterministic(true))
	if err != nil {
		return err
	}
	if _, err := c.audit.Record(ctx, c.id.key, AuditEntry{Action: "privacy.export", Subject: found[0].ID.String(), Detail: detail}); err != nil {
		return err
	}
	w.head("application/json")
	w.Header().Set("Content-Disposition", `attachment; filename="person.json"`)
	out := jsontext.NewEncoder(sender{w})
	err = put(out, jsontext.BeginObject, "as_of", unlessZero(asOf), "profiles", jsontext.BeginArray)
	for _, p := range found {
		if err == nil {
			err = c.exportProfile(out, p, computed)
		}
	}
	if err != nil {
		return err
	}
	return put(out, jsontext.EndArray, jsontext.EndObject)
}

// exportPage is how much of what may be long is read at a time.
const exportPage = 500

// exportProfile writes what is known of one profile: what is short at once, what may be long page by page.
func (c *call) exportProfile(out *jsontext.Encoder, p *profiles.Profile, computed profiles.ComputedValues) error {
	ctx := c.Context()
	segments, err := c.segmentsOf(ctx, p)
	if err != nil {
		return err
	}
	err = put(out, jsontext.BeginObject, "profile", showProfile(p, segments, computed, time.Time{}), "identities", jsontext.BeginArray)
	for after, more := (profiles.Key{}), true; more && err == nil; {
		var list []profiles.Identity
		if list, err = c.people.Identities(ctx, c.id.workspace, p, after, exportPage); err != nil {
			return err
		}
		for _, id := range list {
			after = id.Key
			err = errors.Join(err, put(out, showIdentity(id)))
		}
		more = len(list) == exportPage
	}
	if err == nil {
		err = put(out, jsontext.EndArray, "transitions", jsontext.BeginArray)
	}
	for before, more := (profiles.Moment{}), true; more && err == nil; {
		list, err := c.people.TransitionsOfProfile(ctx, p, 0, before, exportPage)
		if err != nil {
			return err
		}
		lines, err := c.showTransitions(list)
		for i, line := range lines {
			before = list[i].At
			err = errors.Join(err, put(out, line))
		}
		if more = len(list) == exportPage; err != nil {
			return err
		}
	}
	if err == nil {
		err = put(out, jsontext.EndArray, "events", jsontext.BeginArray)
	}
	for before, more := (profiles.Moment{}), true; more && err == nil; {
		var list []profiles.PastEvent
		if list, err = c.people.Events(ctx, p, before, exportPage); err != nil {
			return err
		}
		for _, e := range list {
			before = e.At
			err = errors.Join(err, put(out, showEvent(e)))
		}
		more = len(list) == exportPage
	}
	if err == nil {
		err = put(out, jsontext.EndArray)
	}
	if err != nil {
		return err
	}
	return c.exportTold(out, p)
}

// exportTold writes what destinations hold of a profile, and what they were told.
func (c *call) exportTold(out *jsontext.Encoder, p *profiles.Profile) error {
	ctx := c.Context()
	ids := []activation.ProfileID{activation.ProfileID(p.ID)}
	for _, f := range p.Fragments {
		if f.Key != p.ID {
			ids = append(ids, activation.ProfileID(f.Key)) // under which the person was told of before a merge
		}
	}
	held, err := c.destinations.Held(ctx, c.workspace(), ids)
	if err != nil {
		return err
	}
	list := make([]heldJSON, len(held))
	for i, h := range held {
		list[i] = heldJSON{DestinationID: formatID(destinationID, h.Destination), SegmentID: formatID(segmentID, h.Segment), Status: h.Status}
		if h.Kinds != nil {
			list[i].IdentifierKinds = &h.Kinds
		}
	}
	err = put(out, "destinations", list, "deliveries", jsontext.BeginArray)
	for _, id := range ids {
		for before, more := int64(0), true; more && err == nil; {
			var list []activation.Told
			if list, err = c.destinations.Told(ctx, c.workspace(), id, before, exportPage); err != nil {
				return err
			}
			for _, d := range list {
				before = d.ID
				err = errors.Join(err, put(out, showTold(d)))
			}
			more = len(list) == exportPage
		}
	}
	if err != nil {
		return err
	}
	return put(out, jsontext.EndArray, jsontext.EndObject)
}

// put writes tokens as they are, and anything else as JSON.
func put(out *jsontext.Encoder, parts ...any) error {
	for _, part := range parts {
		var err error
		if token, ok := part.(jsontext.Token); ok {
			err = out.WriteToken(token)
		} else {
			err = json.MarshalEncode(out, part, json.Deterministic(true))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// sender sends all that is written to it.
type sender struct{ w *streamWriter }

func (s sender) Write(b []byte) (int, error) { return len(b), s.w.send(b) }
