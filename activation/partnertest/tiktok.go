package partnertest

import (
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
)

// TikTok is a fake of TikTok API for Business v1.3, as far as it concerns segment mapping.
type TikTok struct {
	Faults
	URL   string // of the API, with its version
	Token string

	*Crowd
	options TikTokOptions

	mu        sync.Mutex
	revoked   bool
	audiences []tikTokAudience
}

// TikTokOptions are what TikTok's own pages disagree on, or do not say. They are those of the destination's config, too.
type TikTokOptions struct {
	PhoneFormat string // e164_plus by default, digits, both
	EmailFormat string // plain by default, without_tags, without_tags_and_dots, all
	DeviceHash  string // sha256 by default, md5
	MaxRows     int    // 10,000 by default
}

// Advertisers of the fake. The first two are those of its settings, and in one Business Center. Ours may not touch the last.
const (
	TikTokAdvertiser       = "7001234567890123456"
	TikTokSecondAdvertiser = "7001234567890123457"
	TikTokOtherAdvertiser  = "7009999999999999999"
)

type tikTokAudience struct{ id, advertiser, name string }

const tikTokAPI = "/open_api/v1.3"

// NewTikTok starts a fake that lives as long as the test.
func NewTikTok(t testing.TB, o TikTokOptions) *TikTok {
	t.Helper()
	f := &TikTok{options: o, Token: "9f3c5e1a7b2d4c6e8f0a"}
	if o.MaxRows == 0 {
		f.options.MaxRows = 10_000
	}
	f.Crowd = NewCrowd(f.Violate, f.derive)
	f.Changes(func(r *http.Request) bool { return r.URL.Path == tikTokAPI+"/segment/mapping/" })
	f.URL = f.Listen(t, http.HandlerFunc(f.handle)) + tikTokAPI
	return f
}

// Settings implements [Fake].
func (f *TikTok) Settings() activation.Settings {
	config := map[string]any{
		"advertiser_ids": []string{TikTokAdvertiser, TikTokSecondAdvertiser}, "api_url": f.URL, "requests_per_second": 500,
		"app_id": "7180001",
	}
	for name, value := range map[string]string{
		"phone_format": f.options.PhoneFormat, "email_format": f.options.EmailFormat, "device_hash": f.options.DeviceHash,
	} {
		if value != "" {
			config[name] = value
		}
	}
	text, err := json.Marshal(config, json.Deterministic(true))
	if err != nil {
		panic(err)
	}
	return activation.Settings{Config: text, Secrets: jsontext.Value(fmt.Sprintf(`{"access_token":%q}`, f.Token))}
}

// Audience makes an audience of an advertiser, as somebody does with TikTok's own tools.
func (f *TikTok) Audience(advertiser, name string) (id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.make(advertiser, name)
}

// Audiences returns the names of an advertiser's audiences.
func (f *TikTok) Audiences(advertiser string) (names []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range f.of(advertiser) {
		names = append(names, a.name)
	}
	return names
}

func (f *TikTok) make(advertiser, name string) (id string) {
	id = strconv.Itoa(1_770_001 + len(f.audiences))
	f.audiences = append(f.audiences, tikTokAudience{id, advertiser, name})
	f.Make(id)
	return id
}

func (f *TikTok) of(advertiser string) (list []tikTokAudience) {
	for _, a := range f.audiences {
		if a.advertiser == advertiser {
			list = append(list, a)
		}
	}
	return list
}

// Members implements [Fake].
func (f *TikTok) Members(a Audience) []activation.ProfileID { return f.Crowd.Members(a.ID) }

// Leftovers implements [Fake].
func (f *TikTok) Leftovers(a Audience) []string { return f.Crowd.Leftovers(a.ID) }

// Revoke implements [Fake].
func (f *TikTok) Revoke() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.revoked = true
}

// Heal implements [Fake].
func (f *TikTok) Heal() {
	f.Faults.Heal()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.revoked = false
}

// Words implements [Fake].
func (f *TikTok) Words() Words {
	said := func(code int, message string) Fault {
		return Fault{Status: 200, Body: tikTokAnswer(code, message, "{}")}
	}
	throttled := said(40100, "Too many requests. Please retry in some time.")
	throttled.Wait, throttled.Silent = 2*time.Second, true
	cut := said(50000, "System error.")
	cut.Cut = true
	return Words{
		Throttled: throttled,
		TooLarge:  said(40002, "batch_data: too many rows."),
		Forbidden: said(40001, "No permission to operate advertiser."),
		Missing:   said(40002, "audience_ids: audience does not exist."),
		Passing:   []Fault{said(50000, "System error."), said(51010, "Internal service timeout."), {Status: 200, Body: page}, cut},
	}
}

// derive is what TikTok knows a person by.
func (f *TikTok) derive(p activation.Person) (is Recognised) {
	is.Mistakes = map[Key]string{}
	add := func(kind, text string) {
		is.Keys = append(is.Keys, Key{kind, Hex(text)})
		for k, mistake := range HexMistakes(kind, text, nil) {
			is.Mistakes[k] = mistake
		}
		for _, other := range []string{"EMAIL_SHA256", "PHONE_SHA256", "IDFA_SHA256", "AAID_SHA256"} {
			if other != kind {
				is.Mistakes[Key{other, Hex(text)}] = "belongs into the column " + kind
			}
		}
	}
	for _, raw := range texts(p, "email", "email") {
		email := strings.ToLower(strings.ReplaceAll(raw, " ", ""))
		local, domain, _ := strings.Cut(email, "@")
		untagged, _, _ := strings.Cut(local, "+")
		forms := map[string]string{
			"plain":                 email,
			"without_tags":          untagged + "@" + domain,
			"without_tags_and_dots": strings.ReplaceAll(untagged, ".", "") + "@" + domain,
		}
		want := f.options.EmailFormat
		if want == "" {
			want = "plain"
		}
		for name, form := range forms {
			if want == "all" || want == name {
				add("EMAIL_SHA256", form)
			} else {
				is.Mistakes[Key{"EMAIL_SHA256", Hex(form)}] = "is the form " + name
			}
		}
		if strings.Contains(raw, " ") {
			is.Mistakes[Key{"EMAIL_SHA256", Hex(strings.ToLower(raw))}] = "has a space in it"
		}
		if raw != strings.ToLower(raw) {
			is.Mistakes[Key{"EMAIL_SHA256", Hex(strings.ReplaceAll(raw, " ", ""))}] = "has capital letters in it"
		}
	}
	for _, raw := range append(texts(p, "phone", "phone"), texts(p, "", "mobile")...) {
		digits := regexp.MustCompile(`\(0\)|[^0-9]`).ReplaceAllString(raw, "")
		if want := f.options.PhoneFormat; want == "digits" || want == "both" {
			add("PHONE_SHA256", digits)
		} else {
			is.Mistakes[Key{"PHONE_SHA256", Hex(digits)}] = "lacks its plus sign"
		}
		if f.options.PhoneFormat != "digits" {
			add("PHONE_SHA256", "+"+digits)
		} else {
			is.Mistakes[Key{"PHONE_SHA256", Hex("+" + digits)}] = "has a plus sign"
		}
	}
	for system, ids := range map[string][]string{"IDFA": texts(p, "idfa", "idfa"), "AAID": texts(p, "gaid", "aaid")} {
		for _, raw := range ids {
			text := strings.ToLower(strings.TrimSpace(raw))
			is.Mistakes[Key{system + "_SHA256", Hex(raw)}] = "is in the letters it came in"
			if f.options.DeviceHash == "md5" {
				sum := md5.Sum([]byte(text))
				is.Keys = append(is.Keys, Key{system + "_MD5", hex.EncodeToString(sum[:])})
			} else {
				add(system+"_SHA256", text)
			}
		}
	}
	for _, k := range is.Keys {
		delete(is.Mistakes, k)
	}
	return is
}

func tikTokAnswer(code int, message, data string) string {
	return fmt.Sprintf(`{"code":%d,"message":%q,"request_id":"20260801120000010203040506070809","data":%s}`, code, message, data)
}

// tikTokFault is an answer that is not well. What it says of the request is noted if it is wrong of whoever asks.
type tikTokFault struct {
	code    int
	message string
}

func (f *TikTok) handle(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	if r.URL.Path == tikTokAPI+"/segment/mapping/" {
		if done := f.occupy(body); done != nil {
			defer done()
			time.Sleep(time.Millisecond) // for whoever comes too early
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.Inspect(r, body)
	route := map[string]func([]byte, url.Values) (string, *tikTokFault){
		"POST /segment/mapping/":         f.mapping,
		"POST /segment/audience/":        f.segment,
		"GET /dmp/custom_audience/list/": f.list,
		"GET /dmp/custom_audience/get/":  f.get,
	}[r.Method+" "+strings.TrimPrefix(r.URL.Path, tikTokAPI)]
	if route == nil || !strings.HasPrefix(r.URL.Path, tikTokAPI+"/") {
		f.Violate("%s %s is not known", r.Method, r.URL.Path)
		http.NotFound(w, r)
		return
	}
	data, fault := "", f.admit(r)
	if fault == nil {
		data, fault = route(body, r.URL.Query())
	}
	w.Header().Set("Content-Type", "application/json")
	if fault != nil {
		io.WriteString(w, tikTokAnswer(fault.code, fault.message, "{}"))
		return
	}
	io.WriteString(w, tikTokAnswer(0, "OK", data))
}

// wrong notes something and returns the answer to it.
func (f *TikTok) wrong(code int, format string, args ...any) *tikTokFault {
	f.Violate(format, args...)
	return &tikTokFault{code, fmt.Sprintf(format, args...)}
}

func (f *TikTok) admit(r *http.Request) *tikTokFault {
	const refused = "Access token is incorrect or has been revoked."
	if r.Header.Get("Authorization") != "" {
		f.Violate("there is a header Authorization: TikTok wants Access-Token")
	}
	if len(r.Header.Values("Access-Token")) != 1 {
		return f.wrong(40105, "the header Access-Token is not there, or not once")
	}
	if f.revoked || r.Header.Get("Access-Token") != f.Token {
		return &tikTokFault{40105, refused}
	}
	if kind := r.Header.Get("Content-Type"); r.Method == http.MethodPost && kind != "application/json" {
		return f.wrong(40002, "the body is %q, want application/json", kind)
	}
	if r.Method == http.MethodPost && r.URL.RawQuery != "" {
		return f.wrong(40002, "there is a query")
	}
	return nil
}

// advertiser tells what is wrong with an advertiser's id.
func (f *TikTok) advertiser(id string) *tikTokFault {
	if id != TikTokAdvertiser && id != TikTokSecondAdvertiser {
		return &tikTokFault{40001, "No permission to operate advertiser " + id + "."}
	}
	return nil
}

type tikTokMapping struct {
	Advertisers []string         `json:"advertiser_ids"`
	Action      string           `json:"action"`
	Schema      []string         `json:"id_schema"`
	Rows        [][]tikTokMapped `json:"batch_data"`
}

type tikTokMapped struct {
	ID        string   `json:"id"`
	Audiences []string `json:"audience_ids"`
}

// keys returns what a row says.
func (m tikTokMapping) keys(row []tikTokMapped) (keys []Key) {
	for i, cell := range row {
		if i < len(m.Schema) && cell.ID != "" {
			keys = append(keys, Key{m.Schema[i], cell.ID})
		}
	}
	return keys
}

func (f *TikTok) occupy(body []byte) (done func()) {
	var m tikTokMapping
	if json.Unmarshal(body, &m) != nil {
		return nil
	}
	byAudience := map[string][]Key{}
	for _, row := range m.Rows {
		for i, cell := range row {
			for _, audience := range cell.Audiences {
				if i < len(m.Schema) {
					byAudience[audience] = append(byAudience[audience], Key{m.Schema[i], cell.ID})
				}
			}
		}
	}
	var all []func()
	for audience, keys := range byAudience {
		all = append(all, f.Occupy(audience, m.Action == "add", keys...))
	}
	return func() {
		for _, done := range all {
			done()
		}
	}
}

var tikTokHashes = map[string]*regexp.Regexp{
	"SHA256": regexp.MustCompile(`^[0-9a-f]{64}$`),
	"MD5":    regexp.MustCompile(`^[0-9a-f]{32}$`),
}

func (f *TikTok) mapping(body []byte, _ url.Values) (string, *tikTokFault) {
	var m tikTokMapping
	if err := json.Unmarshal(body, &m, json.RejectUnknownMembers(true)); err != nil {
		return "", f.wrong(40002, "the body cannot be read: %v", err)
	}
	if fault := f.checkMapping(m); fault != nil {
		return "", fault
	}
	if len(m.Advertisers) == 0 {
		return "", f.wrong(40002, "advertiser_ids is empty")
	}
	for _, id := range m.Advertisers {
		if fault := f.advertiser(id); fault != nil {
			return "", fault
		}
	}
	for i, row := range m.Rows {
		if fault := f.checkRow(m, i, row); fault != nil {
			return "", fault
		}
	}
	part := false
	for i, row := range m.Rows {
		keys := m.keys(row)
		if f.Check(fmt.Sprintf("row %d", i), keys...) {
			part = true
			continue
		}
		for column, cell := range row {
			for _, audience := range cell.Audiences {
				f.Apply(audience, m.Action == "add", f.Steady(), Key{m.Schema[column], cell.ID})
			}
		}
	}
	if part {
		return "", &tikTokFault{20001, "Partial success."}
	}
	return "{}", nil
}

// checkMapping tells what is wrong with a message as a whole.
func (f *TikTok) checkMapping(m tikTokMapping) *tikTokFault {
	if m.Action != "add" && m.Action != "delete" {
		return f.wrong(40002, "action is %q", m.Action)
	}
	if len(m.Schema) == 0 {
		return f.wrong(40002, "id_schema is empty")
	}
	for i, kind := range m.Schema {
		_, hash, _ := strings.Cut(kind, "_")
		system := strings.TrimSuffix(kind, "_"+hash)
		known := slices.Contains([]string{"EMAIL", "PHONE", "IDFA", "AAID"}, system) && hash == "SHA256" ||
			slices.Contains([]string{"IDFA", "AAID"}, system) && hash == "MD5"
		if !known {
			return f.wrong(40002, "id_schema has %q", kind)
		}
		if slices.Contains(m.Schema[:i], kind) {
			return f.wrong(40002, "id_schema has %q twice", kind)
		}
	}
	if len(m.Rows) == 0 || len(m.Rows) > f.options.MaxRows {
		return f.wrong(40002, "batch_data has %d rows, want 1 to %d", len(m.Rows), f.options.MaxRows)
	}
	return nil
}

// checkRow tells what is wrong with the form of a row, and with the audiences it is for.
func (f *TikTok) checkRow(m tikTokMapping, i int, row []tikTokMapped) *tikTokFault {
	if len(row) != len(m.Schema) {
		return f.wrong(40002, "row %d has %d columns, and id_schema %d", i, len(row), len(m.Schema))
	}
	if len(m.keys(row)) == 0 {
		return f.wrong(40002, "row %d is empty", i)
	}
	for column, cell := range row {
		if cell.ID == "" && cell.Audiences == nil {
			continue
		}
		_, hash, _ := strings.Cut(m.Schema[column], "_")
		if !tikTokHashes[hash].MatchString(cell.ID) {
			return f.wrong(40002, "row %d: what is in the column %s is no such hash", i, m.Schema[column])
		}
		if len(cell.Audiences) == 0 {
			return f.wrong(40002, "row %d: a cell is for no audience", i)
		}
		for _, id := range cell.Audiences {
			at := slices.IndexFunc(f.audiences, func(a tikTokAudience) bool { return a.id == id })
			switch {
			case at < 0:
				return f.wrong(40002, "audience %q does not exist", id)
			case !slices.Contains(m.Advertisers, f.audiences[at].advertiser):
				return f.wrong(40001, "audience %s is another advertiser's", id)
			}
		}
	}
	return nil
}

func (f *TikTok) segment(body []byte, _ url.Values) (string, *tikTokFault) {
	var ask struct {
		Name       string `json:"custom_audience_name"`
		Advertiser string `json:"advertiser_id"`
		Action     string `json:"action"`
	}
	if err := json.Unmarshal(body, &ask, json.RejectUnknownMembers(true)); err != nil {
		return "", f.wrong(40002, "the body cannot be read: %v", err)
	}
	if ask.Action != "create" || ask.Name == "" {
		return "", f.wrong(40002, "action is %q and the name %q", ask.Action, ask.Name)
	}
	if fault := f.advertiser(ask.Advertiser); fault != nil {
		return "", fault
	}
	if name := []rune(ask.Name); len(name) > 70 {
		f.Violate("a name of %d characters is cut", len(name))
		ask.Name = string(name[:67]) + "..."
	}
	if slices.ContainsFunc(f.of(ask.Advertiser), func(a tikTokAudience) bool { return a.name == ask.Name }) {
		f.Violate("a second audience %q is made", ask.Name)
	}
	return fmt.Sprintf(`{"audience_id":%q}`, f.make(ask.Advertiser, ask.Name)), nil
}

// query tells whether there is what must be in a query, and nothing else.
func (f *TikTok) query(q url.Values, names ...string) *tikTokFault {
	for name := range q {
		if !slices.Contains(names, name) {
			return f.wrong(40002, "the parameter %s is not known", name)
		}
	}
	for _, name := range names {
		if len(q[name]) != 1 || q.Get(name) == "" {
			return f.wrong(40002, "the parameter %s is not there, or not once", name)
		}
	}
	return f.advertiser(q.Get("advertiser_id"))
}

func (f *TikTok) list(_ []byte, q url.Values) (string, *tikTokFault) {
	if fault := f.query(q, "advertiser_id", "page", "page_size"); fault != nil {
		return "", fault
	}
	page, err := strconv.Atoi(q.Get("page"))
	size, err2 := strconv.Atoi(q.Get("page_size"))
	if err != nil || err2 != nil || page < 1 || size < 1 || size > 100 {
		return "", f.wrong(40002, "page %q of %q", q.Get("page"), q.Get("page_size"))
	}
	all := f.of(q.Get("advertiser_id"))
	some := all[min(len(all), (page-1)*size):min(len(all), page*size)]
	var rows []string
	for _, a := range some {
		rows = append(rows, f.describe(a))
	}
	return fmt.Sprintf(`{"list":[%s],"page_info":{"page":%d,"page_size":%d,"total_number":%d,"total_page":%d}}`,
		strings.Join(rows, ","), page, size, len(all), (len(all)+size-1)/size), nil
}

func (f *TikTok) get(_ []byte, q url.Values) (string, *tikTokFault) {
	if fault := f.query(q, "advertiser_id", "custom_audience_ids"); fault != nil {
		return "", fault
	}
	var ids []string
	if err := json.Unmarshal([]byte(q.Get("custom_audience_ids")), &ids); err != nil || len(ids) == 0 {
		return "", f.wrong(40002, "custom_audience_ids is not a list of texts")
	}
	var rows []string
	for _, a := range f.of(q.Get("advertiser_id")) {
		if slices.Contains(ids, a.id) {
			rows = append(rows, fmt.Sprintf(`{"audience_details":%s,"audience_history":[]}`, f.describe(a)))
		}
	}
	return `{"list":[` + strings.Join(rows, ",") + `]}`, nil
}

func (f *TikTok) describe(a tikTokAudience) string {
	n := f.Size(a.id)
	return fmt.Sprintf(`{"audience_id":%q,"name":%q,"audience_type":"Customer File Audience","cover_num":%d,"is_creator":true,`+
		`"is_valid":%v,"owner_id":%q,"shared":false}`, a.id, a.name, n, n >= 1000, a.advertiser)
}
