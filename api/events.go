package api

import (
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/api/problem"
)

type subscriptionJSON struct {
	ID        string         `json:"id"`
	Key       string         `json:"key"`
	Types     []string       `json:"types"`
	Names     []string       `json:"names"`
	Sources   []string       `json:"sources"`
	Where     jsontext.Value `json:"where"`
	Mapping   jsontext.Value `json:"mapping"`
	Revision  int64          `json:"revision"`
	CreatedAt timestamp      `json:"created_at"`
	UpdatedAt timestamp      `json:"updated_at"`
}

func showSubscription(s activation.Subscription) subscriptionJSON {
	mapping, err := json.Marshal(s.Mapping, json.Deterministic(true))
	if err != nil {
		panic(err) // it was read from JSON
	}
	out := subscriptionJSON{
		ID: formatID(subscriptionID, s.ID), Key: s.Key, Types: s.Types, Names: s.Names, Sources: []string{}, Where: s.Where,
		Mapping: mapping, Revision: s.Version, CreatedAt: timestamp(s.CreatedAt), UpdatedAt: timestamp(s.UpdatedAt),
	}
	for _, id := range s.Sources {
		out.Sources = append(out.Sources, formatID(sourceID, id))
	}
	return out
}

func replySubscription(status int, s activation.Subscription, err error) (answer, error) {
	if err != nil {
		return answer{}, err
	}
	ans, err := reply(status, showSubscription(s))
	ans.ETag = etag(s.Version)
	return ans, err
}

// subscription returns the subscription that the path names, and its destination.
func (c *call) subscription() (s activation.Subscription, destination string, err error) {
	_, destination, err = c.destination()
	if err != nil {
		return s, "", err
	}
	ref := c.param("subscription")
	id, byID := parseID(subscriptionID, ref)
	all, err := c.destinations.Subscriptions(c.Context(), c.workspace(), destination)
	if err != nil {
		return s, "", err
	}
	i := slices.IndexFunc(all, func(s activation.Subscription) bool { return byID && s.ID == id || !byID && s.Key == ref })
	if i < 0 {
		return s, "", errNotFound()
	}
	c.subject = formatID(subscriptionID, all[i].ID)
	return all[i], destination, nil
}

func listSubscriptions(c *call) (answer, error) {
	if _, err := c.query(); err != nil {
		return answer{}, err
	}
	_, ref, err := c.destination()
	if err != nil {
		return answer{}, err
	}
	found, err := c.destinations.Subscriptions(c.Context(), c.workspace(), ref)
	if err != nil {
		return answer{}, err
	}
	p := page[subscriptionJSON]{Data: []subscriptionJSON{}}
	for _, s := range found {
		p.Data = append(p.Data, showSubscription(s))
	}
	return reply(http.StatusOK, p)
}

func getSubscription(c *call) (answer, error) {
	if _, err := c.query(); err != nil {
		return answer{}, err
	}
	s, _, err := c.subscription()
	return replySubscription(http.StatusOK, s, err)
}

func putSubscription(c *call) (answer, error) {
	var in struct {
		Types   []string           `json:"types"`
		Names   []string           `json:"names"`
		Sources []string           `json:"sources" validate:"max=100"`
		Where   jsontext.Value     `json:"where"`
		Mapping activation.Mapping `json:"mapping"`
	}
	_, ref, err := c.destination()
	if err != nil {
		return answer{}, err
	}
	key := c.param("subscription")
	if _, byID := parseID(subscriptionID, key); byID { // only what is there has an id
		s, _, err := c.subscription()
		if err != nil {
			return answer{}, err
		}
		key = s.Key
	}
	if !humanKey.MatchString(key) {
		return answer{}, errNotFound()
	}
	if err := c.decode(&in); err != nil {
		return answer{}, err
	}
	revision, err := c.ifMatch()
	if err != nil {
		return answer{}, err
	}
	sources, err := c.sourcesOfBody(in.Sources)
	if err != nil {
		return answer{}, err
	}
	s, created, err := c.destinations.Subscribe(c.Context(), c.workspace(), ref, key, activation.NewSubscription{
		EventFilter: activation.EventFilter{Types: in.Types, Names: in.Names, Sources: sources, Where: in.Where},
		Mapping:     in.Mapping, Version: int64(revision),
	})
	c.subject = formatID(subscriptionID, s.ID)
	if created {
		return replySubscription(http.StatusCreated, s, err)
	}
	return replySubscription(http.StatusOK, s, err)
}

// sourcesOfBody returns the ids of the sources that a body lists.
func (c *call) sourcesOfBody(refs []string) (ids []int32, err error) {
	var faults []problem.FieldError
	for i, ref := range refs {
		s, err := c.source(ref)
		switch {
		case missing(err):
			faults = append(faults, problem.FieldError{
				Pointer: problem.Pointer("sources", strconv.Itoa(i)), Code: "not_found", Detail: "is not a source of this workspace",
			})
		case err != nil:
			return nil, err
		case !slices.Contains(ids, s.ID):
			ids = append(ids, s.ID)
		}
	}
	if faults != nil {
		return nil, invalid(faults...)
	}
	return ids, nil
}

func deleteSubscription(c *call) (answer, error) {
	revision, err := c.ifMatch()
	if err != nil {
		return answer{}, err
	}
	s, ref, err := c.subscription()
	if err != nil {
		return answer{}, err
	}
	if err := c.destinations.Unsubscribe(c.Context(), c.workspace(), ref, s.Key, int64(revision)); err != nil {
		return answer{}, err
	}
	return answer{Status: http.StatusNoContent}, nil
}

func dryRunSubscription(c *call) (answer, error) {
	var in struct {
		Event jsontext.Value `json:"event"`
	}
	s, ref, err := c.subscription()
	if err != nil {
		return answer{}, err
	}
	if len(c.body) > 0 {
		if err := c.decode(&in); err != nil {
			return answer{}, err
		}
	}
	if in.Event != nil && in.Event.Kind() != '{' {
		return answer{}, invalid(problem.FieldError{Pointer: "#/event", Code: "type", Detail: "must be an object"})
	}
	run, err := c.destinations.DryRunEvents(c.Context(), c.workspace(), ref, s.Key, in.Event, c.identities)
	if err != nil {
		return answer{}, err
	}
	type refusedJSON struct {
		MessageID string `json:"message_id"`
		Reason    string `json:"reason"`
	}
	out := struct {
		Selected   bool          `json:"selected"`
		Unselected string        `json:"selected_reason"`
		Events     int           `json:"events"`
		Denied     int           `json:"denied"`
		Refused    []refusedJSON `json:"refused"`
		Requests   []draftJSON   `json:"requests"`
		Validated  *testJSON     `json:"validated"`
	}{Selected: run.Unselected == "", Unselected: run.Unselected, Events: run.Events, Denied: run.Denied, Refused: []refusedJSON{}, Requests: showDrafts(run.Requests)}
	for _, r := range run.Refused {
		out.Refused = append(out.Refused, refusedJSON(r))
	}
	if run.Validated != nil {
		out.Validated = new(showTest(*run.Validated))
	}
	return reply(http.StatusOK, out)
}

type draftJSON struct {
	Method  string            `json:"method"`
	URL     string            `json:"url"`
	Headers map[string]string `json:"headers"`
	Body    string            `json:"body"`
}

func showDrafts(drafts []activation.Draft) []draftJSON {
	list := make([]draftJSON, len(drafts))
	for i, d := range drafts {
		list[i] = draftJSON{d.Method, d.URL, map[string]string{}, string(d.Body)}
		for name, values := range d.Header {
			list[i].Headers[name] = strings.Join(values, ", ")
		}
	}
	return list
}

type eventSummaryJSON struct {
	Waiting   int64 `json:"waiting"`
	Accepted  int64 `json:"accepted"`
	Sent      int64 `json:"sent"`
	Failed    int64 `json:"failed"`
	Parked    int64 `json:"parked"`
	Denied    int64 `json:"denied"`
	Expired   int64 `json:"expired"`
	Forgotten int64 `json:"forgotten"`
}

type subscriptionSummaryJSON struct {
	SubscriptionID  string  `json:"subscription_id"`
	SubscriptionKey *string `json:"subscription_key"`
	eventSummaryJSON
}

// eventSummaries returns the counts of a destination's events, all in all and by subscription.
func (c *call) eventSummaries(ref string) (all eventSummaryJSON, each []subscriptionSummaryJSON, err error) {
	total, sums, err := c.destinations.EventSummaries(c.Context(), c.workspace(), ref)
	if err != nil {
		return all, nil, err
	}
	subs, err := c.destinations.Subscriptions(c.Context(), c.workspace(), ref)
	if err != nil {
		return all, nil, err
	}
	each = []subscriptionSummaryJSON{}
	for _, s := range subs {
		each = append(each, subscriptionSummaryJSON{formatID(subscriptionID, s.ID), &s.Key, eventSummaryJSON(sums[s.ID])})
		delete(sums, s.ID)
	}
	for id, sum := range sums { // those that are gone
		each = append(each, subscriptionSummaryJSON{formatID(subscriptionID, id), nil, eventSummaryJSON(sum)})
	}
	slices.SortFunc(each[len(subs):], func(a, b subscriptionSummaryJSON) int { return strings.Compare(a.SubscriptionID, b.SubscriptionID) })
	return eventSummaryJSON(total), each, nil
}

// segmentOrNone and subscriptionOrNone tell what a line of the ledger is about: people in a segment, or an event.
func segmentOrNone(id int64) *string {
	if id == 0 {
		return nil
	}
	return new(formatID(segmentID, id))
}

func subscriptionOrNone(id *int64) *string {
	if id == nil {
		return nil
	}
	return new(formatID(subscriptionID, *id))
}
