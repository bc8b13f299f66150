package tiktok

import (
	"cmp"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/matchkey"
)

// The kinds of identifiers, as id_schema of segment mapping names them.
const (
	emailSHA256 = "EMAIL_SHA256"
	phoneSHA256 = "PHONE_SHA256"
	idfaSHA256  = "IDFA_SHA256"
	aaidSHA256  = "AAID_SHA256"
	idfaMD5     = "IDFA_MD5"
	aaidMD5     = "AAID_MD5"
)

// columns are all kinds, in the order in which messages have them.
var columns = []string{emailSHA256, phoneSHA256, idfaSHA256, aaidSHA256, idfaMD5, aaidMD5}

// perKind is how many identifiers of a kind one person may have, so that everybody fits into a request. Who has more is
// nobody in particular.
const perKind = 100

// Identify implements [activation.AudiencePartner]. TikTok's reference and its help pages differ on whether phone numbers begin
// with a plus sign and on which parts of an e-mail address count: the destination's settings say, and may have all forms
// sent. Space is taken out of e-mail addresses, inside too.
func (*Partner) Identify(t activation.Target, p activation.Person) (ids activation.Identifiers, err error) {
	cfg, _, err := settings(activation.Settings{Config: t.Config})
	if err != nil {
		return ids, fmt.Errorf("read the settings of a TikTok destination: %w", err)
	}
	add := func(kind, value string) {
		id := activation.Identifier{Kind: kind, Value: value}
		if !slices.Contains(ids.IDs, id) && len(values(ids, kind)) < perKind {
			ids.IDs = append(ids.IDs, id)
		}
	}
	for _, raw := range p.Emails() {
		for _, recipe := range cfg.emails() {
			if email, ok := recipe.Email(strings.Join(strings.Fields(raw), "")); ok {
				add(emailSHA256, email.Hex())
			}
		}
	}
	country := cmp.Or(p.Country(), cfg.DefaultCountry)
	for _, raw := range p.Phones() {
		for _, recipe := range cfg.phones() {
			if phone, ok := recipe.Phone(raw, country); ok {
				add(phoneSHA256, phone.Hex())
			}
		}
	}
	apple, others := p.Devices()
	for _, raw := range apple {
		cfg.device(add, idfaSHA256, idfaMD5, raw)
	}
	for _, raw := range others {
		cfg.device(add, aaidSHA256, aaidMD5, raw)
	}
	if len(ids.IDs) == 0 {
		ids.Reason = why(p, country)
	}
	return ids, nil
}

func (cfg Config) emails() []matchkey.Recipe {
	plain := matchkey.TikTok
	switch cfg.EmailFormat {
	case "without_tags":
		return []matchkey.Recipe{plain.WithoutTags()}
	case "without_tags_and_dots":
		return []matchkey.Recipe{plain.WithoutTags().WithoutDots()}
	case "all":
		return []matchkey.Recipe{plain, plain.WithoutTags(), plain.WithoutTags().WithoutDots()}
	}
	return []matchkey.Recipe{plain}
}

func (cfg Config) phones() []matchkey.Recipe {
	plus, digits := matchkey.TikTok.WithPlus(true), matchkey.TikTok.WithPlus(false)
	switch cfg.PhoneFormat {
	case "digits":
		return []matchkey.Recipe{digits}
	case "both":
		return []matchkey.Recipe{plus, digits}
	}
	return []matchkey.Recipe{plus}
}

func (cfg Config) device(add func(kind, value string), sha256, md5s, raw string) {
	id, ok := matchkey.Device(raw)
	switch {
	case !ok:
	case cfg.DeviceHash == "md5":
		sum := md5.Sum([]byte(id.String()))
		add(md5s, hex.EncodeToString(sum[:]))
	default:
		add(sha256, id.Hex())
	}
}

// why says why there is nothing that TikTok could know a person by.
func why(p activation.Person, country string) string {
	apple, others := p.Devices()
	known := slices.Concat(p.Emails(), p.Phones(), apple, others)
	if !slices.ContainsFunc(known, func(raw string) bool { return !matchkey.Nothing(raw) }) {
		return "no e-mail address, phone number or advertising id is known"
	}
	lacksCountry := func(raw string) bool {
		_, ok := matchkey.TikTok.Phone(raw, "US")
		return ok
	}
	if country == "" && slices.ContainsFunc(p.Phones(), lacksCountry) {
		return "the phone number does not say its country, and neither the person nor the destination has one"
	}
	return "what is given as e-mail address, phone number or advertising id is not one that TikTok could match"
}

// mapping is the body of segment/mapping/.
type mapping struct {
	AdvertiserIDs []string `json:"advertiser_ids"`
	Action        string   `json:"action"`
	Schema        []string `json:"id_schema"`
	Rows          [][]cell `json:"batch_data"`
}

// cell is an identifier and the audience it is for, or nothing at all.
type cell struct {
	ID        string   `json:"id,omitzero"`
	Audiences []string `json:"audience_ids,omitzero"`
}

// Encode implements [activation.AudiencePartner]. A row has one person's identifiers, at most one of each kind, each in the column
// of its kind; who has more has several rows. To delete some identifiers of a person and leave others is to send rows of
// those alone: every identifier is mapped to the audience by itself.
func (*Partner) Encode(t activation.Target, b activation.Batch) (body []byte, took int, err error) {
	cfg, _, err := settings(activation.Settings{Config: t.Config})
	if err != nil {
		return nil, 0, fmt.Errorf("read the settings of a TikTok destination: %w", err)
	}
	rows := 0
	used := map[string]bool{}
	for _, m := range b.Members {
		n := height(m.Identifiers)
		if took > 0 && rows+n > cfg.Rows {
			break
		}
		for _, id := range m.Identifiers.IDs {
			used[id.Kind] = true
		}
		rows += n
		took++
	}
	msg := mapping{AdvertiserIDs: cfg.AdvertiserIDs, Action: "delete", Rows: make([][]cell, 0, rows)}
	if b.Members[0].Entered {
		msg.Action = "add"
	}
	for _, kind := range columns {
		if used[kind] {
			msg.Schema = append(msg.Schema, kind)
		}
	}
	audiences := []string{b.Audience}
	for _, m := range b.Members[:took] {
		person := make([][]cell, height(m.Identifiers))
		for i := range person {
			person[i] = make([]cell, len(msg.Schema))
		}
		for column, kind := range msg.Schema {
			for i, value := range values(m.Identifiers, kind) {
				person[i][column] = cell{value, audiences}
			}
		}
		msg.Rows = append(msg.Rows, person...)
	}
	body, err = json.Marshal(msg)
	return body, took, err
}

// height is how many rows a person needs.
func height(ids activation.Identifiers) (n int) {
	for _, kind := range columns {
		n = max(n, len(values(ids, kind)))
	}
	return n
}

// values returns the identifiers of a kind, in order.
func values(ids activation.Identifiers, kind string) (list []string) {
	for _, id := range ids.IDs {
		if id.Kind == kind {
			list = append(list, id.Value)
		}
	}
	return list
}
