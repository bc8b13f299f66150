package api

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/mubatch/mubatch/api/problem"
	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/profiles"
)

// Committer puts messages durably into lanes; *collector.Committer is the real one.
type Committer interface {
	Commit(ctx context.Context, messages []collector.Routed) error
}

type identityJSON struct {
	ID          profiles.Key `json:"id"`
	Kind        string       `json:"kind"`
	Value       string       `json:"value"`
	Root        bool         `json:"root"`
	FirstSeenAt *timestamp   `json:"first_seen_at"`
	LastSeenAt  *timestamp   `json:"last_seen_at"`
	Claim       *claimJSON   `json:"claim"`
}

type claimJSON struct {
	ByID      profiles.Key         `json:"by_id"`
	By        *profiles.Identifier `json:"by"`
	At        timestamp            `json:"at"`
	MessageID string               `json:"message_id"`
}

func showIdentity(id profiles.Identity) identityJSON {
	out := identityJSON{
		ID: id.Key, Kind: id.Identifier.Kind, Value: id.Identifier.Value, Root: id.Root,
		FirstSeenAt: unlessZero(id.FirstSeen), LastSeenAt: unlessZero(id.LastSeen),
	}
	if claim := id.Claim; claim != nil {
		out.Claim = &claimJSON{ByID: claim.By, At: timestamp(claim.At), MessageID: claim.MessageID}
		if claim.Identifier.Value != "" {
			out.Claim.By = &claim.Identifier
		}
	}
	return out
}

func listIdentities(c *call) (answer, error) {
	var after profiles.Key
	limit, _, err := c.paging(&after)
	if err != nil {
		return answer{}, err
	}
	asOf, err := c.people.AsOf(c.Context()) // before what it is to hold for
	if err != nil {
		return answer{}, err
	}
	p, err := c.find()
	if err != nil {
		return answer{}, err
	}
	found, err := c.people.Identities(c.Context(), c.id.workspace, p, after, limit+1)
	if err != nil {
		return answer{}, err
	}
	list, err := pageOf(c, found, limit, func(id profiles.Identity) any { return id.Key }, showIdentity)
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusOK, freshPage[identityJSON]{list, unlessZero(asOf)})
}

func unmergeProfile(c *call) (answer, error) {
	p, err := c.find()
	if err != nil {
		return answer{}, err
	}
	key, err := c.identity()
	if err != nil {
		return answer{}, err
	}
	if key == p.ID {
		return answer{}, errRoot()
	}
	if _, found := p.Fragment(key); !found {
		return answer{}, errNotOfProfile("The profile has no such identity; GET its identities lists those it has.")
	}
	d, err := c.people.Unmerge(c.Context(), c.workspace(), c.id.workspace, p.ID, key)
	if errors.Is(err, profiles.ErrNotFound) {
		return answer{}, errMoving()
	}
	if err != nil {
		return answer{}, err
	}
	return c.decide("profile.unmerge", p.ID, d)
}

func remergeProfile(c *call) (answer, error) {
	root, err := c.root()
	if err != nil {
		return answer{}, err
	}
	key, err := c.identity()
	if err != nil {
		return answer{}, err
	}
	d, err := c.people.Remerge(c.Context(), c.workspace(), c.id.workspace, root, key)
	if errors.Is(err, profiles.ErrNotFound) {
		return answer{}, errNotOfProfile("No un-merge has taken that identity out of this profile, or it was taken back.")
	}
	if err != nil {
		return answer{}, err
	}
	return c.decide("profile.remerge", root, d)
}

// identity reads the body that names an identity, and returns its key.
func (c *call) identity() (profiles.Key, error) {
	var in struct {
		Identity string `json:"identity" validate:"required,max=400"`
	}
	if err := c.decode(&in); err != nil {
		return profiles.Key{}, err
	}
	key, err := c.id.workspace.ParseIdentity(in.Identity)
	if err != nil {
		return profiles.Key{}, invalid(problem.FieldError{Pointer: "#/identity", Code: "identity", Detail: "must be kind:value, or an id"})
	}
	return key, nil
}

// root returns the root of the profile that the path names. There may be no such profile: one of which every identity
// was taken out is gone.
func (c *call) root() (profiles.Key, error) {
	ref := c.param("profile")
	for _, prefix := range []string{"p_", profiles.UserID + ":", profiles.AnonymousID + ":"} {
		if !strings.HasPrefix(ref, prefix) {
			continue
		}
		key, err := c.id.workspace.ParseIdentity(ref)
		if err != nil {
			return profiles.Key{}, errNotFound()
		}
		return c.people.Root(c.Context(), c.workspace(), key)
	}
	p, err := c.find()
	if err != nil {
		return profiles.Key{}, err
	}
	return p.ID, nil
}

// decide records a decision and puts it into its lane.
//
// The record comes first and stays whatever follows, also if the call is undone: there is no decision without its record.
// It says what was asked for; whether that was done is told by the trace of the message it names.
func (c *call) decide(action string, subject profiles.Key, d profiles.Decision) (answer, error) {
	type pairJSON struct {
		By profiles.Key `json:"by"`
		On profiles.Key `json:"on"`
	}
	detail := struct {
		Identity  profiles.Key `json:"identity"`
		Claims    []pairJSON   `json:"claims"`
		MessageID string       `json:"message_id"`
	}{Identity: d.Key, MessageID: d.MessageID}
	for _, p := range d.Pairs {
		detail.Claims = append(detail.Claims, pairJSON{p.Parent, p.Child})
	}
	packed, err := json.Marshal(detail)
	if err != nil {
		return answer{}, err
	}
	entry, err := NewAuditLog(c.pool).Record(c.Context(), c.id.key, AuditEntry{Action: action, Subject: subject.String(), Detail: packed})
	if err != nil {
		return answer{}, err
	}
	lane, m := d.Message(c.workspace(), c.id.workspace, c.lanes)
	if err := c.committer.Commit(c.Context(), []collector.Routed{{Lane: lane, Message: m}}); err != nil {
		return answer{}, err
	}
	return reply(http.StatusAccepted, showAudit(entry))
}

func errRoot() *problem.Problem {
	p := problem.New(http.StatusConflict, "root", "The identity is the root of the profile.")
	p.Detail = "The profile is what belongs to it: un-merge the others instead."
	return p
}

func errNotOfProfile(detail string) *problem.Problem {
	p := problem.New(http.StatusNotFound, "not_of_profile", "The identity is not of this profile.")
	p.Detail = detail
	return p
}

func errMoving() *problem.Problem {
	p := problem.New(http.StatusConflict, "in_progress", "The identity is being merged or un-merged.")
	p.RetryAfter = time.Second
	return p
}
