package tradedesk

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
)

// message is a body as it is kept until it is sent: what is posted, and what Send needs to read the answer.
type message struct {
	Data     jsontext.Value `json:"data"`              // for /data/advertiser
	Items    []int          `json:"items"`             // how many of them each member has, in order
	Deletion jsontext.Value `json:"deletion,omitzero"` // for /data/deletion-optout/advertiser, once Data is accepted
}

// data is the body of "POST /data/advertiser" and, with other members, of "POST /data/deletion-optout/advertiser". Members
// that the schema does not know are refused.
type data struct {
	AdvertiserID   string           `json:"AdvertiserId"`
	DataProviderID string           `json:"DataProviderId,omitzero"`
	TraceID        string           `json:"DataLoadTraceId,omitzero"`
	Items          []jsontext.Value `json:"Items"`
	RequestType    string           `json:"RequestType,omitzero"`
}

// item is one identifier of one person: an item may have no more.
type item struct {
	key
	Data []datum `json:"Data,omitzero"`
}

// key has one member that is not empty.
type key struct {
	TDID string `json:"TDID,omitzero"`
	DAID string `json:"DAID,omitzero"`
	UID2 string `json:"UID2,omitzero"`
	EUID string `json:"EUID,omitzero"`
}

func keyOf(id activation.Identifier) (k key, err error) {
	switch id.Kind {
	case "TDID":
		k.TDID = id.Value
	case "DAID":
		k.DAID = id.Value
	case "UID2":
		k.UID2 = id.Value
	case "EUID":
		k.EUID = id.Value
	default:
		return k, fmt.Errorf("no item can hold an identifier of kind %q", id.Kind)
	}
	return k, nil
}

type datum struct {
	Name       string `json:"Name"`
	TTLMinutes int    `json:"TtlInMinutes"` // 0 removes
}

// Encode implements [activation.AudiencePartner]. Members who are to be forgotten share a message with nobody else: Send has The
// Trade Desk delete what it knows of them, and what comes of that is theirs alone.
func (*Partner) Encode(to activation.Target, b activation.Batch) (body []byte, took int, err error) {
	cfg, _, err := read(to.Settings)
	if err != nil {
		return nil, 0, err
	}
	d := data{
		AdvertiserID: cfg.AdvertiserID, DataProviderID: cfg.DataProviderID, TraceID: "mubatch-" + strconv.FormatInt(b.ID, 10),
		Items: []jsontext.Value{},
	}
	deletion := data{AdvertiserID: cfg.AdvertiserID, RequestType: "Deletion"}
	empty, err := json.Marshal(d)
	if err != nil {
		return nil, 0, fmt.Errorf("encode a message: %w", err)
	}
	var m message
	size, name, forgotten := len(empty), cfg.name(b.Segment), forget(b.Members[0])
	for _, member := range b.Members {
		if forget(member) != forgotten {
			break
		}
		ttl := 0
		if member.Entered {
			ttl = cfg.TTLMinutes
		}
		var items, keys []jsontext.Value
		more := 0
		for _, id := range member.Identifiers.IDs {
			k, err := keyOf(id)
			if err != nil {
				return nil, 0, err
			}
			one, err := json.Marshal(item{k, []datum{{name, ttl}}})
			if err != nil {
				return nil, 0, fmt.Errorf("encode an item: %w", err)
			}
			items, more = append(items, one), more+len(one)+len(",")
			if forgotten {
				bare, err := json.Marshal(k)
				if err != nil {
					return nil, 0, fmt.Errorf("encode an identifier: %w", err)
				}
				keys = append(keys, bare)
			}
		}
		if size+more > cfg.MaxBodyBytes && len(m.Items) > 0 {
			break
		}
		size += more
		d.Items, deletion.Items = append(d.Items, items...), append(deletion.Items, keys...)
		m.Items = append(m.Items, len(items))
	}
	if m.Data, err = json.Marshal(d); err != nil {
		return nil, 0, fmt.Errorf("encode a message: %w", err)
	}
	if forgotten {
		if m.Deletion, err = json.Marshal(deletion); err != nil {
			return nil, 0, fmt.Errorf("encode a deletion: %w", err)
		}
	}
	body, err = json.Marshal(m)
	return body, len(m.Items), err
}

// forget tells whether somebody is to be forgotten, not only to leave.
func forget(m activation.Member) bool { return !m.Entered && m.Cause == activation.CauseErasure }

// name is what a segment is called at The Trade Desk, where segments are there as soon as they are named.
func (c Config) name(s activation.Segment) string {
	if s.Key == "" {
		return c.NamePrefix + "seg_" + strconv.FormatInt(s.ID, 10)
	}
	return c.NamePrefix + s.Key
}

// failedLine is what the answer says of an item that was refused.
type failedLine struct {
	key
	ItemNumber int
	ErrorCode  string
}

// Line codes that are about the advertiser, not the line ("First-Party Data API, Error codes").
var advertiserLines = map[string]string{
	"TargetingDataCreationLimitExceeded": "the advertiser may make no more segments",
	"TargetingDataCountLimitExceeded":    "the advertiser may have no more segments",
	"TargetingDataDisabled":              "the segment is disabled at The Trade Desk",
}

var lineReasons = map[string]string{
	"MissingUserId":            "The Trade Desk does not take the identifier",
	"UserNotMapped":            "The Trade Desk knows nobody by the identifier",
	"InvalidTtlInMinutes":      "The Trade Desk does not take the time to live",
	"DataNameTooLong":          "the segment's name is too long for The Trade Desk",
	"InvalidParameterFormat":   "The Trade Desk does not take the format of the identifier",
	"ItemDeserializationError": "The Trade Desk could not read the item",
	"Uid2Error":                "The Trade Desk does not take the UID2: the person may have opted out",
}

// nobodys are the line codes of identifiers by which The Trade Desk finds nobody, so that there is nothing to remove. Those
// of people who have opted out of UID2 are among them, which is usual.
var nobodys = map[string]bool{"UserNotMapped": true, "Uid2Error": true}

// result reads the list of refused items. A member to be added is in if one of the identifiers was taken; one to be removed
// is out only if all were, or are nobody's.
func (m message) result(o activation.Outcome, lines []failedLine, fromZero bool, members []activation.MemberRef) activation.Outcome {
	if len(lines) == 0 {
		return o
	}
	var sent struct{ Items []key }
	if err := json.Unmarshal(m.Data, &sent); err != nil || len(members) != len(m.Items) {
		return activation.Outcome{Class: activation.Config, Reason: "the message cannot be read"}
	}
	first := 1
	if fromZero {
		first = 0
	}
	for _, l := range lines { // a number that only one way of counting has
		if l.ItemNumber == 0 && l.key == (key{}) {
			first = 0
		} else if l.ItemNumber == len(sent.Items) {
			first = 1
		}
	}
	refused := make([]string, len(sent.Items)) // item → code
	for _, l := range lines {
		if reason, ok := advertiserLines[l.ErrorCode]; ok {
			o.Class, o.Reason = activation.Config, reason
			return o
		}
		at := l.ItemNumber - first
		numbered := at >= 0 && at < len(sent.Items)
		if !numbered || sent.Items[at] != l.key { // what it names says more than a number
			if named := slices.Index(sent.Items, l.key); named >= 0 {
				at, numbered = named, true
			}
		}
		if !numbered {
			o.Class, o.Reason = activation.Split, "The Trade Desk does not say whom it refused"
			return o
		}
		refused[at] = cmp.Or(l.ErrorCode, "no code")
	}
	o.Class, o.Reason = activation.Partial, "some identifiers were refused"
	o.Rows = make([]activation.RowOutcome, len(members))
	for i, member := range members {
		codes := refused[:m.Items[i]]
		refused = refused[m.Items[i]:]
		o.Rows[i] = row(member.Entered, codes)
	}
	return o
}

// row tells what became of a member of whose items these are the codes, "" for those that were taken.
func row(entered bool, codes []string) activation.RowOutcome {
	r := activation.RowOutcome{Class: activation.OK}
	refused := 0
	for _, code := range codes {
		if code == "" {
			continue
		}
		counts := entered || !nobodys[code]
		if counts {
			refused++
		}
		if r.Reason == "" || counts {
			r.Reason = cmp.Or(lineReasons[code], "The Trade Desk refused the identifier: "+activation.Redact([]byte(code)))
		}
	}
	if entered && refused == len(codes) || !entered && refused > 0 {
		r.Class = activation.Drop
	}
	return r
}
