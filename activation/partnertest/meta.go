package partnertest

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
)

// Meta is a fake of what Meta's Marketing API has for Custom Audiences.
type Meta struct {
	metaGraph
	URL string

	options   MetaOptions
	crowd     *Crowd
	limited   map[Key]bool // whose data may be used only within limits
	audiences map[string]*metaAudience
	ids       []string // of audiences, in the order in which they were made
	sessions  map[string]*metaSession
	terms     bool
}

// MetaOptions are what Meta may be asked for in more than one way, or does in more than one.
type MetaOptions struct {
	TokenIn         string // "query" by default, or "header"
	Proof           string // of the app secret: none by default, "plain" or "timed"
	LimitedDataUse  string // for whom it has to be asked: nobody by default, "us_states" or "all"
	KeysOnly        bool
	ExternID        bool
	CustomerConsent bool
	Version         string // that is served: v25.0 by default
	Batch           int    // rows in a message: 25 by default
}

type metaAudience struct{ name, description, state string }

type metaSession struct {
	next int64
	done bool
}

// NewMeta starts a fake that lives as long as the test.
func NewMeta(t testing.TB, o MetaOptions) *Meta {
	t.Helper()
	o.TokenIn, o.Version, o.Batch = cmp.Or(o.TokenIn, "query"), cmp.Or(o.Version, "v25.0"), cmp.Or(o.Batch, 25)
	f := &Meta{
		metaGraph: metaGraph{tokenIn: o.TokenIn, proof: o.Proof, version: o.Version, used: 7}, options: o, limited: map[Key]bool{}, audiences: map[string]*metaAudience{}, sessions: map[string]*metaSession{},
		terms: true,
	}
	f.crowd = NewCrowd(f.Violate, o.derive)
	f.Changes(func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/users") })
	f.URL = f.Listen(t, http.HandlerFunc(f.handle))
	return f
}

// Settings implements [Fake].
func (f *Meta) Settings() activation.Settings {
	config, err := json.Marshal(map[string]any{
		"ad_account_id": "act_" + metaAccount, "api_url": f.URL, "api_version": f.options.Version, "batch": f.options.Batch,
		"requests_per_hour": 700_000, "token_in": f.options.TokenIn, "proof_time": f.options.Proof == "timed",
		"limited_data_use": cmp.Or(f.options.LimitedDataUse, "off"), "keys_only": f.options.KeysOnly,
		"extern_id": f.options.ExternID, "customer_consent": f.options.CustomerConsent,
	})
	if err != nil {
		panic(err)
	}
	return activation.Settings{Config: config, Secrets: f.secrets()}
}

// Seed implements [Fake].
func (f *Meta) Seed(people ...activation.Person) {
	f.mu.Lock()
	for _, p := range people {
		for _, k := range f.options.derive(p).Keys {
			f.limited[k] = metaLimits(p, f.options.LimitedDataUse)
		}
	}
	f.mu.Unlock()
	f.crowd.Seed(people...)
}

// metaLimits tells whether somebody's data may be used within limits only.
func metaLimits(p activation.Person, whose string) bool {
	state := metaState(p)
	some := whose == "us_states" && metaCountry(p) == "us" && (state == "" || slices.Contains(metaLimited, state))
	return some || whose == "all"
}

// The states of which Meta limits the use of data.
var metaLimited = []string{"ca", "co", "ct", "de", "fl", "mt", "ne", "nh", "nj", "or", "tx"}

// derive says what Meta knows a person by. It understands no more than what the people of tests have.
func (o MetaOptions) derive(p activation.Person) Recognised {
	is := Recognised{Mistakes: map[Key]string{}}
	hashed := func(list *[]Key, kind, text string, others map[string]string) {
		if text == "" {
			return
		}
		*list = append(*list, Key{kind, Hex(text)})
		maps.Copy(is.Mistakes, HexMistakes(kind, text, others))
	}
	for _, raw := range append(p.Identified("email"), p.Text("email")) {
		text := strings.ToLower(strings.TrimSpace(raw))
		local, domain, _ := strings.Cut(text, "@")
		untagged, _, _ := strings.Cut(local, "+")
		others := map[string]string{
			strings.ReplaceAll(local, ".", "") + "@" + domain:    "is without the dots of the address, which Meta keeps",
			strings.ReplaceAll(untagged, ".", "") + "@" + domain: "is normalised as Google does",
			untagged + "@" + domain:                              "is without what follows the plus sign, which Meta keeps",
			raw:                                                  "is the hash of the address as it came",
			strings.TrimSpace(raw):                               "is the hash of an address with capitals",
		}
		delete(others, text)
		hashed(&is.Keys, "EMAIL", text, others)
	}
	for _, raw := range append(p.Identified("phone"), p.Text("phone")) {
		number := metaDigits(strings.ReplaceAll(raw, "(0)", ""))
		if !strings.HasPrefix(strings.TrimSpace(raw), "+") {
			switch {
			case metaCountry(p) != "us":
				continue
			case len(number) == 10:
				number = "1" + number
			}
		}
		hashed(&is.Keys, "PHONE", number, map[string]string{
			"+" + number:                           "is hashed with +; Meta wants digits only",
			"00" + number:                          "is hashed with leading zeros",
			strings.TrimPrefix(number, "1"):        "has no country code",
			"0" + strings.TrimPrefix(number, "49"): "has no country code",
			metaDigits(raw) + " ":                  "has a space",
		})
	}
	for _, name := range []string{"idfa", "gaid", "aaid", "advertising_id", "maid"} {
		if id := strings.TrimSpace(p.Text(name)); id != "" {
			is.Keys = append(is.Keys, Key{"MADID", strings.ToLower(id)})
			is.Mistakes[Key{"MADID", strings.ToUpper(id)}] = "is in upper case"
			is.Mistakes[Key{"MADID", Hex(strings.ToLower(id))}] = "is hashed; Meta wants device ids as they are"
		}
	}
	if id := p.Identified("user_id"); o.ExternID && len(id) > 0 {
		is.Details = append(is.Details, Key{"EXTERN_ID", id[0]})
		is.Mistakes[Key{"EXTERN_ID", Hex(id[0])}] = "is hashed; Meta wants the customer's own ids as they are"
	}
	if o.KeysOnly {
		return is
	}
	plain := func(s string) string {
		return strings.Map(func(r rune) rune {
			if unicode.IsLetter(r) || unicode.IsMark(r) || unicode.IsDigit(r) {
				return unicode.ToLower(r)
			}
			return -1
		}, s)
	}
	zip := p.Text("zip")
	if metaCountry(p) == "us" && len(zip) > 5 {
		zip = zip[:5]
	}
	for kind, raw := range map[string]string{"FN": p.Text("first_name"), "LN": p.Text("last_name"), "CT": p.Text("city")} {
		hashed(&is.Details, kind, plain(raw), map[string]string{raw: "is the hash of the text as it came"})
	}
	hashed(&is.Details, "ST", metaState(p), map[string]string{p.Text("state"): "is the hash of the state as it came"})
	hashed(&is.Details, "ZIP", zip, nil)
	hashed(&is.Details, "COUNTRY", metaCountry(p), map[string]string{p.Text("country"): "is the hash of the country in capitals"})
	return is
}

func metaCountry(p activation.Person) string { return strings.ToLower(p.Text("country")) }

func metaState(p activation.Person) string {
	state := strings.ToLower(p.Text("state"))
	if state == "california" {
		return "ca"
	}
	return state
}

func metaDigits(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return r
		}
		return -1
	}, s)
}

// Members implements [Fake].
func (f *Meta) Members(a Audience) []activation.ProfileID { return f.crowd.Members(a.ID) }

// Leftovers implements [Fake].
func (f *Meta) Leftovers(a Audience) []string { return f.crowd.Leftovers(a.ID) }

// Refuse implements [Fake]. Whoever is refused is a row that cannot be read, of which only the number is told.
func (f *Meta) Refuse(id activation.ProfileID, refuse bool) { f.crowd.Refuse(id, refuse) }

// Make makes an audience as somebody does with Meta's own tools.
func (f *Meta) Make(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.make(id, metaAudience{name: "made by hand"})
}

func (f *Meta) make(id string, a metaAudience) {
	f.audiences[id] = &a
	f.ids = append(f.ids, id)
	f.crowd.Make(id)
}

// Mark has an audience be "flagged", "unshared" or "deleted", or, with "", well again.
func (f *Meta) Mark(id, state string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.audiences[id].state = state
}

// Audiences returns how many there are.
func (f *Meta) Audiences() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.ids)
}

// Accept says whether the terms for Custom Audiences are accepted.
func (f *Meta) Accept(accepted bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.terms = accepted
}

// metaBody is what comes to /users.
type metaBody struct {
	CustomerConsent *bool `json:"customer_consent"`
	Session         *struct {
		ID        jsontext.Value `json:"session_id"`
		Batch     int64          `json:"batch_seq"`
		Last      bool           `json:"last_batch_flag"`
		Estimated int64          `json:"estimated_num_total"`
	} `json:"session"`
	Payload struct {
		Schema jsontext.Value   `json:"schema"`
		IsRaw  bool             `json:"is_raw"`
		Data   []jsontext.Value `json:"data"`
	} `json:"payload"`
}

// metaRow is a row, by column.
type metaRow struct {
	values  map[string]string
	limited bool
}

// keys returns the keys and details of a row, the keys first.
func (r metaRow) keys() (keys, all []Key) {
	var details []Key
	for column, v := range r.values {
		switch {
		case v == "":
		case column == "EMAIL" || column == "PHONE" || column == "MADID":
			keys = append(keys, Key{column, v})
		default:
			details = append(details, Key{column, v})
		}
	}
	return keys, slices.Concat(keys, details)
}

// rows reads the rows of a body, and says what is wrong with their shape.
func (b metaBody) rows() (rows []metaRow, wrong string) {
	var schema []string
	one := map[string]string{"EMAIL_SHA256": "EMAIL", "PHONE_SHA256": "PHONE", "MOBILE_ADVERTISER_ID": "MADID"}
	flat := b.Payload.Schema.Kind() == '"'
	if flat {
		var name string
		if json.Unmarshal(b.Payload.Schema, &name) != nil || one[name] == "" {
			return nil, "the schema is no key that may stand alone"
		}
		schema = []string{one[name]}
	} else if json.Unmarshal(b.Payload.Schema, &schema) != nil {
		return nil, "the schema is neither a text nor a list of texts"
	}
	for i, column := range schema {
		if !slices.Contains(metaColumns, column) {
			return nil, fmt.Sprintf("the schema has an unknown key %q", column)
		}
		if slices.Contains(schema[:i], column) {
			return nil, fmt.Sprintf("the schema has %s twice", column)
		}
	}
	if n := len(b.Payload.Data); n == 0 || n > 10_000 {
		return nil, fmt.Sprintf("there are %d rows, want 1 to 10000", n)
	}
	for i, data := range b.Payload.Data {
		r := metaRow{values: map[string]string{}}
		values := []jsontext.Value{data}
		if !flat {
			if json.Unmarshal(data, &values) != nil {
				return nil, fmt.Sprintf("row %d is no list", i)
			}
			if len(values) != len(schema) {
				return nil, fmt.Sprintf("row %d has %d values, the schema %d", i, len(values), len(schema))
			}
		}
		for c, v := range values {
			if schema[c] == "DATA_PROCESSING_OPTIONS" {
				var options []string
				if json.Unmarshal(v, &options) != nil || len(options) > 1 || len(options) == 1 && options[0] != "LDU" {
					return nil, fmt.Sprintf("row %d has data processing options that are not known", i)
				}
				r.limited = len(options) == 1
				continue
			}
			var text string
			if json.Unmarshal(v, &text) != nil {
				return nil, fmt.Sprintf("row %d has something in %s that is no text", i, schema[c])
			}
			r.values[schema[c]] = text
		}
		rows = append(rows, r)
	}
	return rows, ""
}

var (
	metaColumns = []string{
		"EXTERN_ID", "EMAIL", "PHONE", "GEN", "DOBY", "DOBM", "DOBD", "LN", "FN", "FI", "CT", "ST", "ZIP", "MADID", "COUNTRY",
		"DATA_PROCESSING_OPTIONS",
	}
	anyHash = regexp.MustCompile(`^([0-9a-fA-F]{32}|[0-9a-fA-F]{40}|[0-9a-fA-F]{64})$`)
)

func (f *Meta) handle(w http.ResponseWriter, r *http.Request) {
	data, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	path := strings.Split(strings.TrimPrefix(r.URL.Path, "/"), "/")
	var (
		body  metaBody
		rows  []metaRow
		wrong string
	)
	if users := len(path) == 3 && path[2] == "users"; users {
		if err := json.Unmarshal(data, &body, json.RejectUnknownMembers(true)); err != nil {
			wrong = "the body cannot be read: " + err.Error()
		} else {
			rows, wrong = body.rows()
		}
		var keys []Key
		for _, row := range rows {
			mine, _ := row.keys()
			keys = append(keys, mine...)
		}
		defer f.crowd.Occupy(path[1], r.Method == http.MethodPost, keys...)()
		time.Sleep(time.Millisecond) // for whoever comes too early
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.Inspect(r, data)
	if !f.admit(w, r, path) {
		return
	}
	f.tell(w)
	w.Header().Set("Content-Type", "application/json")
	switch route := r.Method + " " + strings.Join(path[2:], "/"); {
	case route == "POST users", route == "DELETE users":
		f.users(w, r.Method == http.MethodPost, path[1], r.Header.Get("Content-Type"), body, rows, wrong)
	case strings.HasPrefix(path[1], "act_") && path[1] != "act_"+metaAccount:
		f.violateAnd(w, metaError(100, 33, "GraphMethodException", "Unsupported request."), "the ad account %s is not there", path[1])
	case route == "POST customaudiences":
		f.create(w, data)
	case route == "GET customaudiences":
		f.list(w, r.URL.Query())
	case route == "GET " && path[1] == "act_"+metaAccount:
		f.fields(w, r, map[string]any{"id": path[1], "tos_accepted": map[string]int{"custom_audience_tos": map[bool]int{true: 1}[f.terms]}})
	case route == "GET ":
		a := f.audiences[path[1]]
		if a == nil {
			f.violateAnd(w, metaError(100, 33, "GraphMethodException", "Unsupported get request."), "audience %s is not there", path[1])
			return
		}
		count := f.crowd.Size(path[1])
		if count < 20 {
			count = -1
		}
		status := map[string]any{"code": 200, "description": "This audience is ready for use."}
		if a.state == "flagged" {
			status = map[string]any{"code": 471}
		}
		f.fields(w, r, map[string]any{"id": path[1], "name": a.name, "operation_status": status, "approximate_count_lower_bound": count})
	default:
		f.violateAnd(w, metaError(2500, 0, "OAuthException", "Unknown path components"), "%s %s is not known", r.Method, r.URL.Path)
	}
}

// users adds to an audience, or removes.
func (f *Meta) users(w http.ResponseWriter, add bool, audience, contentType string, b metaBody, rows []metaRow, wrong string) {
	invalid := func(format string, args ...any) {
		f.violateAnd(w, metaError(100, 0, "OAuthException", "Invalid parameter"), format, args...)
	}
	if contentType != "application/json" {
		invalid("the content type is %q", contentType)
		return
	}
	a := f.audiences[audience]
	if a == nil {
		f.violateAnd(w, metaError(100, 33, "GraphMethodException", "Unsupported post request."), "audience %q is not there", audience)
		return
	}
	states := map[string]string{
		"flagged":  metaError(100, 1713230, "OAuthException", "Invalid parameter"),
		"unshared": metaError(1487301, 0, "OAuthException", "The audience is not shared"),
		"deleted":  metaError(1487366, 0, "OAuthException", "The audience has been deleted"),
		"terms":    metaError(2655, 0, "OAuthException", "Terms of service has not been accepted."),
	}
	state := a.state
	if !f.terms {
		state = "terms"
	}
	if answer := states[state]; answer != "" {
		w.WriteHeader(http.StatusForbidden)
		io.WriteString(w, answer)
		return
	}
	if wrong == "" {
		wrong = f.session(b)
	}
	if wrong != "" {
		invalid("%s", wrong)
		return
	}
	if consent := b.CustomerConsent != nil && *b.CustomerConsent; consent != (add && f.options.CustomerConsent) {
		f.Violate("customer_consent is %t", consent)
	}
	refused := 0
	for i, row := range rows {
		if !f.row(fmt.Sprintf("row %d", i), add, audience, row) {
			refused++
		}
	}
	samples := map[string]string{}
	if refused > 0 {
		samples["0"] = "Invalid entry"
	}
	answer, err := json.Marshal(samples)
	if err != nil {
		panic(err)
	}
	fmt.Fprintf(w, `{"audience_id":%q,"session_id":"0","num_received":%d,"num_invalid_entries":%d,"invalid_entry_samples":%s}`,
		audience, len(rows), refused, answer)
}

// row applies a row and tells whether it could be read.
func (f *Meta) row(where string, add bool, audience string, row metaRow) (readable bool) {
	keys, all := row.keys()
	if len(all) == 0 {
		f.Violate("%s is empty", where)
		return false
	}
	for column, v := range row.values {
		if v != "" && column != "MADID" && column != "EXTERN_ID" && !anyHash.MatchString(v) {
			f.Violate("%s: %s is not hashed", where, column)
			return false
		}
	}
	if len(keys) == 0 {
		f.Violate("%s has nothing but details", where)
	}
	if f.crowd.Check(where, all...) && add {
		return false
	}
	for _, k := range keys {
		if add && f.limited[k] != row.limited {
			f.Violate("%s: limited data use is %t, want %t", where, row.limited, f.limited[k])
		}
	}
	f.crowd.Apply(audience, add, f.Steady(), keys...)
	return true
}

// session says what is wrong with a batch's place in its session.
func (f *Meta) session(b metaBody) string {
	if b.Session == nil {
		return ""
	}
	id := string(b.Session.ID)
	if _, err := strconv.ParseInt(id, 10, 64); err != nil {
		return "session_id is no integer"
	}
	s := f.sessions[id]
	if s == nil {
		s = &metaSession{next: 1}
		f.sessions[id] = s
	}
	if s.done || b.Session.Batch != s.next {
		return "batch_seq does not follow, or comes after the last batch"
	}
	s.next++
	s.done = b.Session.Last
	return ""
}

func (f *Meta) create(w http.ResponseWriter, data []byte) {
	var ask struct {
		Name        string `json:"name"`
		Subtype     string `json:"subtype"`
		Description string `json:"description"`
		Source      string `json:"customer_file_source"`
	}
	sources := []string{"USER_PROVIDED_ONLY", "PARTNER_PROVIDED_ONLY", "BOTH_USER_AND_PARTNER_PROVIDED"}
	if err := json.Unmarshal(data, &ask, json.RejectUnknownMembers(true)); err != nil || ask.Name == "" || ask.Subtype != "CUSTOM" ||
		!slices.Contains(sources, ask.Source) {
		f.violateAnd(w, metaError(100, 0, "OAuthException", "Invalid parameter"), "an audience was asked for that cannot be: %s", data)
		return
	}
	for _, a := range f.audiences {
		if a.description == ask.Description {
			f.Violate("an audience was made twice: %s", ask.Description)
		}
	}
	id := strconv.Itoa(23851234567890000 + len(f.ids))
	f.make(id, metaAudience{name: ask.Name, description: ask.Description})
	fmt.Fprintf(w, `{"id":%q}`, id)
}

// list answers with two audiences at once, however many are asked for.
func (f *Meta) list(w http.ResponseWriter, query url.Values) {
	from := 0
	if after := query.Get("after"); after != "" {
		from = slices.Index(f.ids, after) + 1
	}
	if query.Get("fields") != "id,description" {
		f.Violate("the fields asked for are %q", query.Get("fields"))
	}
	to := min(from+2, len(f.ids))
	type audience struct {
		ID          string `json:"id"`
		Description string `json:"description,omitzero"`
	}
	answer := struct {
		Data   []audience     `json:"data"`
		Paging map[string]any `json:"paging,omitzero"`
	}{Data: []audience{}}
	for _, id := range f.ids[from:to] {
		answer.Data = append(answer.Data, audience{id, f.audiences[id].description})
	}
	if to > from {
		answer.Paging = map[string]any{"cursors": map[string]string{"before": f.ids[from], "after": f.ids[to-1]}}
	}
	if to < len(f.ids) {
		answer.Paging["next"] = "https://graph.example/elsewhere"
	}
	if err := json.MarshalWrite(w, answer); err != nil {
		panic(err)
	}
}
