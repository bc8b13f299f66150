package microsoft

import (
	"context"
	"strings"

	"github.com/go-json-experiment/json"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/wire"
)

const maxName = 100 // characters

// query is the body of Audiences/QueryByIds. Without ids it is about all audiences of the account.
type query struct {
	IDs  []string `json:"AudienceIds,omitzero"`
	Type string   `json:"Type"`
}

type audience struct {
	ID      wire.ID `json:"Id"`
	Name    string  `json:"Name"`
	Network wire.ID `json:"AudienceNetworkSize"`
	Search  wire.ID `json:"SearchSize"`
}

func (p *Partner) query(ctx context.Context, to activation.Target, ids ...string) (list []*audience, o activation.Outcome) {
	body, err := json.Marshal(query{IDs: ids, Type: "CustomerList"})
	if err != nil {
		return nil, activation.Outcome{Class: activation.Config, Reason: "the list's id cannot be sent"}
	}
	var answer struct {
		Audiences []*audience `json:"Audiences"` // null where there is none of an id
	}
	o = p.call(ctx, to, "/Audiences/QueryByIds", body, &answer)
	return answer.Audiences, o
}

// Create implements [activation.Creator]. The list's name says which destination and segment it is of, by which it is found
// again, even if the segment was renamed since.
func (p *Partner) Create(
	ctx context.Context, to activation.Target, s activation.Segment,
) (made string, o activation.Outcome) {
	name, mark := wire.AudienceName(to, s, maxName)
	there, o := p.query(ctx, to)
	if o.Class != activation.OK {
		return "", o
	}
	for _, a := range there {
		if a != nil && strings.HasSuffix(a.Name, mark) {
			return string(a.ID), o
		}
	}
	type list struct{ Name, Type string }
	body, err := json.Marshal(struct{ Audiences []list }{[]list{{name, "CustomerList"}}})
	if err != nil {
		return "", activation.Outcome{Class: activation.Config, Reason: "the segment's name cannot be sent"}
	}
	var answer struct {
		IDs     []wire.ID `json:"AudienceIds"`
		Partial []*fault  `json:"PartialErrors"`
	}
	o = p.call(ctx, to, "/Audiences", body, &answer)
	switch {
	case o.Class != activation.OK:
		return "", o
	case len(answer.IDs) == 1 && answer.IDs[0] != "":
		return string(answer.IDs[0]), o
	case len(answer.Partial) > 0 && answer.Partial[0] != nil:
		found := answer.Partial[0].outcome()
		found.Status, found.Excerpt = o.Status, o.Excerpt
		return "", found
	}
	o.Class, o.Unknown, o.Reason = activation.Retry, true, "the answer is not what Microsoft promises"
	return "", o
}

// Size implements [activation.Sizer]. Microsoft counts the same list for each of its networks: the greater figure is told.
func (p *Partner) Size(
	ctx context.Context, to activation.Target, made string,
) (size activation.Size, o activation.Outcome) {
	size.Matched = -1
	list, o := p.query(ctx, to, made)
	for _, a := range list {
		if a != nil && string(a.ID) == made {
			size.Matched = max(a.Network.Count(), a.Search.Count())
		}
	}
	return size, o
}

// Test reads the account's lists, which needs all the credentials that everything else needs.
func (p *Partner) Test(ctx context.Context, to activation.Target) activation.Outcome {
	_, o := p.query(ctx, to)
	return o
}
