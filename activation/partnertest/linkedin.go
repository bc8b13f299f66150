package partnertest

import (
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
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

// LinkedIn is a stand-in for LinkedIn's DMP segments.
type LinkedIn struct {
	Faults
	URL string

	options   LinkedInOptions
	crowd     *Crowd
	mu        sync.Mutex
	owners    map[Key]activation.ProfileID
	segments  map[string]*linkedInSegment
	serial    int
	token     string
	given     time.Time // when a refresh gave the token
	ends      time.Time
	refresh   string
	refreshes int
	connected time.Time // when the refresh token was given
	dead      map[string]int
	revoked   bool
	sunset    bool
	asked     []time.Time // for people, within the last minute
	stumbles  map[activation.ProfileID]int
	taken     map[string]bool // what was taken while others of the same message were not
}

// LinkedInOptions are what the fake does in more than one way: options of the partner, and what LinkedIn's documentation
// leaves open.
type LinkedInOptions struct {
	Config   string        // further members of the destination's config, such as `"batch":7`
	SHA512   bool          // e-mail addresses are to come as SHA-512
	Names    bool          // names are to come
	Segment  string        // one that somebody has made by hand
	Shy      time.Duration // new segments answer 404 for so long
	Most     int           // elements in a message: 5000
	Minute   int           // requests in one: 600
	RestliID bool          // the id of a new segment comes as x-restli-id
	Rotates  bool          // each refresh gives a new refresh token
	Silent   bool          // a refresh gives no refresh token
	Lag      time.Duration // an access token that a refresh has given is refused for so long
}

type linkedInSegment struct {
	source  string
	created time.Time
}

// Of the settings that the fake knows.
const (
	LinkedInAccount = "512345"
	linkedInApp     = "MUBATCH"
	linkedInNewest  = "202608"

	linkedInTokenLife = 60 * 24 * time.Hour
	linkedInConsent   = 365 * 24 * time.Hour // which a refresh does not make last longer
)

// NewLinkedIn starts a fake that lives as long as the test.
func NewLinkedIn(t testing.TB, o LinkedInOptions) *LinkedIn {
	t.Helper()
	if o.Most == 0 {
		o.Most = 5000
	}
	if o.Minute == 0 {
		o.Minute = 600
	}
	f := &LinkedIn{
		options: o, owners: map[Key]activation.ProfileID{}, segments: map[string]*linkedInSegment{},
		token: "AQX-access-token-0", refresh: "AQX-refresh-token-0", dead: map[string]int{},
		stumbles: map[activation.ProfileID]int{}, taken: map[string]bool{},
	}
	f.ends, f.connected = f.Steady().Add(linkedInTokenLife), f.Steady()
	f.crowd = NewCrowd(f.Violate, f.recognise)
	if o.Segment != "" {
		f.segments[o.Segment] = &linkedInSegment{created: f.Steady().Add(-time.Hour)}
		f.crowd.Make(o.Segment)
	}
	f.Changes(func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/users") })
	f.URL = f.Listen(t, http.HandlerFunc(f.handle))
	return f
}

// Settings implements [Fake].
func (f *LinkedIn) Settings() activation.Settings {
	f.mu.Lock()
	defer f.mu.Unlock()
	config := fmt.Sprintf(`{"account_id":%q,"source_platform":%q,"client_id":"app","api_url":%q,"token_url":%q`,
		LinkedInAccount, linkedInApp, f.URL+"/rest", f.URL+"/oauth/v2/accessToken")
	if f.options.SHA512 {
		config += `,"email_hash":"sha512"`
	}
	if f.options.Names {
		config += `,"send_names":true`
	}
	if f.options.Config != "" {
		config += "," + f.options.Config
	}
	return activation.Settings{
		Config: jsontext.Value(config + "}"),
		Secrets: jsontext.Value(fmt.Sprintf(
			`{"access_token":%q,"refresh_token":%q,"client_secret":"app-secret-0123456789"}`, f.token, f.refresh)),
	}
}

// recognise tells what LinkedIn knows somebody by.
func (f *LinkedIn) recognise(p activation.Person) (is Recognised) {
	is.Mistakes = map[Key]string{}
	for _, raw := range p.Identified("email") {
		text := strings.ToLower(strings.TrimSpace(raw))
		if !f.options.SHA512 || len(text) == 64 && !strings.Contains(text, "@") {
			key := Key{"SHA256_EMAIL", Hex(text)}
			if !strings.Contains(text, "@") {
				key.Value = text // somebody else has hashed it
			}
			is.Keys = append(is.Keys, key)
		} else {
			sum := sha512.Sum512([]byte(text))
			is.Keys = append(is.Keys, Key{"SHA512_EMAIL", hex.EncodeToString(sum[:])})
			continue
		}
		local, domain, _ := strings.Cut(text, "@")
		untagged, _, _ := strings.Cut(local, "+")
		others := map[string]string{}
		for text, mistake := range map[string]string{
			raw:                     "is the hash of a text that was not normalised",
			strings.TrimSpace(raw):  "is the hash of a text in capital letters",
			untagged + "@" + domain: "is the hash of an address without its tag, which LinkedIn wants",
			strings.ReplaceAll(local, ".", "") + "@" + domain:    "is the hash of an address without its dots, which LinkedIn wants",
			strings.ReplaceAll(untagged, ".", "") + "@" + domain: "is the hash of an address without its dots and tag, which LinkedIn wants",
		} {
			if text != local+"@"+domain {
				others[text] = mistake
			}
		}
		for key, mistake := range HexMistakes("SHA256_EMAIL", text, others) {
			is.Mistakes[key] = mistake
		}
	}
	for _, raw := range p.Identified("gaid") {
		id := strings.ToLower(strings.TrimSpace(raw))
		is.Keys = append(is.Keys, Key{"GOOGLE_AID", id})
		is.Mistakes[Key{"GOOGLE_AID", strings.ToUpper(id)}] = "is in upper case"
	}
	for _, raw := range p.Identified("idfa") {
		is.Mistakes[Key{"GOOGLE_AID", strings.ToLower(strings.TrimSpace(raw))}] = "is the id of an Apple device"
	}
	for kind, trait := range map[string]string{
		"firstName": "first_name", "lastName": "last_name", "title": "title", "company": "company", "country": "country",
	} {
		if text := p.Text(trait); text != "" {
			is.Details = append(is.Details, Key{kind, text})
		}
	}
	return is
}

// Seed implements [Fake].
func (f *LinkedIn) Seed(people ...activation.Person) {
	f.crowd.Seed(people...)
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range people {
		for _, k := range f.recognise(p).Keys {
			f.owners[k] = p.ID
		}
	}
}

// Members implements [Fake].
func (f *LinkedIn) Members(a Audience) []activation.ProfileID { return f.crowd.Members(a.ID) }

// Leftovers implements [Fake].
func (f *LinkedIn) Leftovers(a Audience) []string { return f.crowd.Leftovers(a.ID) }

// Refuse implements [Fake].
func (f *LinkedIn) Refuse(id activation.ProfileID, refuse bool) {
	f.crowd.Refuse(id, refuse)
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.taken)
}

// Stumble has LinkedIn answer 500 of a person, so many times.
func (f *LinkedIn) Stumble(id activation.ProfileID, times int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stumbles[id] = times
}

// Delete removes a segment, as somebody does with LinkedIn's own tools.
func (f *LinkedIn) Delete(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.segments, id)
}

// Segments returns how many segments there are.
func (f *LinkedIn) Segments() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.segments)
}

// Sunset ends the newest version of the API.
func (f *LinkedIn) Sunset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sunset = true
}

// Revoke implements [Fake].
func (f *LinkedIn) Revoke() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.revoked = true
}

// Heal implements [Fake].
func (f *LinkedIn) Heal() {
	f.Faults.Heal()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.revoked = false
}

// Expire implements [Expirer].
func (f *LinkedIn) Expire() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ends = f.Steady()
}

// Refreshes implements [Expirer].
func (f *LinkedIn) Refreshes() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.refreshes
}

// Words implements [Fake].
func (f *LinkedIn) Words() Words {
	body := func(status int, code, message string) string {
		return fmt.Sprintf(`{"status":%d,"code":%q,"message":%q}`, status, code, message)
	}
	w := Words{
		Throttled: Fault{
			Status: 429, Wait: time.Minute, Silent: true,
			Body: body(429, "TOO_MANY_REQUESTS", "Resource level throttle APPLICATION_AND_MEMBER MINUTE limit for calls to this resource is reached."),
		},
		TooLarge:  Fault{Status: 400, Body: body(400, "ILLEGAL_ARGUMENT", "Too many elements")},
		Forbidden: Fault{Status: 403, Body: body(403, "ACCESS_DENIED", "Not enough permissions to access: POST /dmpSegments/users")},
		Missing:   Fault{Status: 404, Body: body(404, "NOT_FOUND", "Could not find entity")},
		Passing: []Fault{
			{Status: 200, Body: page},
			{Status: 200, Body: `{"elements":[]}`, Apply: true},
			{Status: 504, Body: body(504, "GATEWAY_TIMEOUT", "Request timed out")},
		},
	}
	if f.options.Segment == "" {
		w.Passing = append(w.Passing, w.Missing) // of a segment that was just made
	}
	return w
}

func (f *LinkedIn) refuse(w http.ResponseWriter, status, service int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"status":%d,"serviceErrorCode":%d,"code":%q,"message":%q}`, status, service, code, message)
}

func (f *LinkedIn) handle(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	f.Inspect(r, body)
	if segment, ok := usersOf(r.URL.Path); ok {
		var m linkedInMessage
		if json.Unmarshal(body, &m) == nil {
			for _, e := range m.Elements {
				defer f.crowd.Occupy(segment, e.Action == "ADD", e.keys()...)()
			}
			time.Sleep(time.Millisecond) // for whoever comes too early
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.URL.Path == "/oauth/v2/accessToken" {
		f.giveToken(w, r, body)
		return
	}
	if !f.headers(w, r) || !f.authorised(w, r) {
		return
	}
	segment, users := usersOf(r.URL.Path)
	switch id, one := strings.CutPrefix(r.URL.Path, "/rest/dmpSegments/"); {
	case r.Method == http.MethodPost && users:
		f.users(w, r, segment, body)
	case r.Method == http.MethodPost && r.URL.Path == "/rest/dmpSegments":
		f.create(w, body)
	case r.Method == http.MethodGet && r.URL.Path == "/rest/dmpSegments":
		f.find(w, r.URL.Query())
	case r.Method == http.MethodGet && one && f.segments[id] != nil:
		fmt.Fprint(w, f.describe(id))
	case r.Method == http.MethodGet && one:
		f.refuse(w, http.StatusNotFound, 0, "NOT_FOUND", "Could not find entity")
	default:
		f.Violate("%s %s is not known", r.Method, r.URL.Path)
		f.refuse(w, http.StatusNotFound, 0, "RESOURCE_NOT_FOUND", "No virtual resource found")
	}
}

// usersOf returns the segment of which a path names the people.
func usersOf(path string) (segment string, ok bool) {
	if segment, ok = strings.CutPrefix(path, "/rest/dmpSegments/"); ok {
		segment, ok = strings.CutSuffix(segment, "/users")
	}
	return segment, ok
}

// headers holds a request to what is asked of all.
func (f *LinkedIn) headers(w http.ResponseWriter, r *http.Request) (ok bool) {
	version := r.Header.Get("LinkedIn-Version")
	month, err := time.Parse("200601", version)
	newest, _ := time.Parse("200601", linkedInNewest)
	batch := r.Header.Get("X-RestLi-Method")
	_, users := usersOf(r.URL.Path)
	switch {
	case version == "":
		f.Violate("LinkedIn-Version is missing")
		f.refuse(w, http.StatusBadRequest, 0, "VERSION_MISSING", "A version must be present. Please specify a version by adding the LinkedIn-Version header.")
	case err != nil:
		f.Violate("LinkedIn-Version is %q", version)
		f.refuse(w, http.StatusBadRequest, 0, "VERSION_INVALID", "The version is not valid")
	case month.After(newest), !month.After(newest.AddDate(-1, 0, 0)), f.sunset && !month.After(newest):
		if !f.sunset {
			f.Violate("LinkedIn-Version %s is none of the last 12 months", version)
		}
		f.refuse(w, http.StatusUpgradeRequired, 0, "NONEXISTENT_VERSION", "Requested version "+version+"01 is not active")
	case r.Header.Get("X-Restli-Protocol-Version") != "2.0.0":
		f.Violate("X-Restli-Protocol-Version is %q", r.Header.Get("X-Restli-Protocol-Version"))
		f.refuse(w, http.StatusBadRequest, 0, "ILLEGAL_ARGUMENT", "Invalid Rest.li protocol version")
	case users && batch != "BATCH_CREATE", !users && batch != "":
		f.Violate("%s %s: X-RestLi-Method is %q", r.Method, r.URL.Path, batch)
		f.refuse(w, http.StatusBadRequest, 0, "ILLEGAL_ARGUMENT", "Invalid Rest.li method")
	case r.Method == http.MethodPost && r.Header.Get("Content-Type") != "application/json":
		f.Violate("%s %s: Content-Type is %q", r.Method, r.URL.Path, r.Header.Get("Content-Type"))
		f.refuse(w, http.StatusUnsupportedMediaType, 0, "UNSUPPORTED_MEDIA_TYPE", "Unsupported media type")
	default:
		return true
	}
	return false
}

func (f *LinkedIn) authorised(w http.ResponseWriter, r *http.Request) (ok bool) {
	token, bearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	switch {
	case !bearer || token == "":
		f.Violate("the token is missing")
		f.refuse(w, http.StatusUnauthorized, 401, "", "Empty oauth2_access_token")
	case f.revoked, token == f.token && f.Steady().Sub(f.given) < f.options.Lag:
		f.refuse(w, http.StatusUnauthorized, 65601, "REVOKED_ACCESS_TOKEN", "The token used in the request has been revoked by the user")
	case token != f.token || !f.Steady().Before(f.ends):
		if f.dead[token]++; f.dead[token] > 8 && !f.Skewed() { // what was under way may use it once each
			f.Violate("a token that has ended goes on being used")
		}
		f.refuse(w, http.StatusUnauthorized, 65602, "EXPIRED_ACCESS_TOKEN", "The token used in the request has expired")
	default:
		return true
	}
	return false
}

func (f *LinkedIn) giveToken(w http.ResponseWriter, r *http.Request, body []byte) {
	form, err := url.ParseQuery(string(body))
	fail := func(status int, code string) {
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"error":%q,"error_description":"see error"}`, code)
	}
	switch {
	case err != nil || r.Method != http.MethodPost || len(form) != 4 || form.Get("grant_type") != "refresh_token" ||
		r.Header.Get("Content-Type") != "application/x-www-form-urlencoded":
		f.Violate("a token is asked for in a wrong way: %s %d fields", r.Method, len(form))
		fail(http.StatusBadRequest, "invalid_request")
	case form.Get("client_id") != "app" || form.Get("client_secret") != "app-secret-0123456789":
		f.Violate("a token is asked for by an app that is not known")
		fail(http.StatusUnauthorized, "invalid_client")
	case f.revoked, f.Steady().Sub(f.connected) >= linkedInConsent:
		fail(http.StatusBadRequest, "invalid_grant")
	case form.Get("refresh_token") != f.refresh:
		f.Violate("a refresh token came that was replaced: the new one was not kept")
		fail(http.StatusBadRequest, "invalid_grant")
	default:
		f.refreshes++
		f.token, f.ends = fmt.Sprintf("AQX-access-token-%d", f.refreshes), f.Steady().Add(linkedInTokenLife)
		f.given = f.Steady()
		if f.options.Rotates {
			f.refresh = fmt.Sprintf("AQX-refresh-token-%d", f.refreshes)
		}
		more := fmt.Sprintf(`,"refresh_token":%q,"refresh_token_expires_in":%d`, f.refresh,
			int((linkedInConsent - f.Steady().Sub(f.connected)).Seconds()))
		if f.options.Silent {
			more = ""
		}
		fmt.Fprintf(w, `{"access_token":%q,"expires_in":%d,"scope":"rw_dmp_segments"%s}`, f.token, int(linkedInTokenLife.Seconds()), more)
	}
}

// find answers a search for segments of an account.
func (f *LinkedIn) find(w http.ResponseWriter, query url.Values) {
	for name := range query {
		if !slices.Contains([]string{"q", "account", "sourcePlatform", "sourceSegmentId", "start", "count"}, name) {
			f.Violate("segments are searched by %q", name)
		}
	}
	switch {
	case query.Get("q") != "account":
		f.Violate("segments are searched with q=%q", query.Get("q"))
		f.refuse(w, http.StatusBadRequest, 0, "ILLEGAL_ARGUMENT", "Unknown finder")
		return
	case query.Get("account") != "urn:li:sponsoredAccount:"+LinkedInAccount:
		f.refuse(w, http.StatusForbidden, 0, "ACCESS_DENIED", "Not enough permissions to access: FINDER-account /dmpSegments")
		return
	case query.Get("sourcePlatform") != linkedInApp:
		f.refuse(w, http.StatusBadRequest, 0, "ILLEGAL_ARGUMENT", "Invalid query parameters passed to request")
		return
	}
	var found []string
	for id, s := range f.segments {
		if source := query.Get("sourceSegmentId"); s.source != "" && (source == "" || source == s.source) {
			found = append(found, f.describe(id))
		}
	}
	fmt.Fprintf(w, `{"paging":{"start":0,"count":10,"links":[]},"elements":[%s]}`, strings.Join(found, ","))
}

// describe returns a segment as LinkedIn does.
func (f *LinkedIn) describe(id string) string {
	s := f.segments[id]
	return fmt.Sprintf(`{"id":%s,"name":"a segment","type":"USER","accessPolicy":"PRIVATE","sourcePlatform":%q,"sourceSegmentId":%q,`+
		`"account":"urn:li:sponsoredAccount:%s","created":%d,"inputCount":1,"destinations":[{"destination":"LINKEDIN",`+
		`"destinationSegmentId":"urn:li:adSegment:1","audienceSize":%d,"matchedCount":2,"status":"READY"}]}`,
		id, linkedInApp, s.source, LinkedInAccount, s.created.UnixMilli(), f.crowd.Size(id))
}

func (f *LinkedIn) create(w http.ResponseWriter, body []byte) {
	var ask struct {
		Name            string `json:"name"`
		SourcePlatform  string `json:"sourcePlatform"`
		SourceSegmentID string `json:"sourceSegmentId"`
		Account         string `json:"account"`
		AccessPolicy    string `json:"accessPolicy"`
		Type            string `json:"type"`
		Destinations    []struct {
			Destination string `json:"destination"`
		} `json:"destinations"`
	}
	err := json.Unmarshal(body, &ask, json.RejectUnknownMembers(true))
	if err == nil && ask.SourcePlatform != linkedInApp { // of the settings, not of the partner
		f.refuse(w, http.StatusBadRequest, 0, "ILLEGAL_ARGUMENT", "sourcePlatform is not valid")
		return
	}
	if err != nil || ask.Name == "" || ask.SourceSegmentID == "" || ask.Account != "urn:li:sponsoredAccount:"+LinkedInAccount ||
		ask.AccessPolicy != "PRIVATE" || ask.Type != "USER" || len(ask.Destinations) != 1 ||
		ask.Destinations[0].Destination != "LINKEDIN" {
		f.Violate("a segment is asked for in a wrong way: %+v, %v", ask, err)
		f.refuse(w, http.StatusBadRequest, 0, "ILLEGAL_ARGUMENT", "The segment is not valid")
		return
	}
	for _, s := range f.segments {
		if s.source == ask.SourceSegmentID {
			f.Violate("segment %q is made twice", ask.SourceSegmentID)
			f.refuse(w, http.StatusConflict, 0, "CONFLICT", "A segment with this sourceSegmentId exists")
			return
		}
	}
	f.serial++
	id := strconv.Itoa(9821700 + f.serial)
	f.segments[id] = &linkedInSegment{source: ask.SourceSegmentID, created: f.Steady()}
	f.crowd.Make(id)
	header := "x-linkedin-id"
	if f.options.RestliID {
		header = "x-restli-id"
	}
	w.Header().Set(header, id)
	w.WriteHeader(http.StatusCreated)
}

type linkedInMessage struct {
	Elements []linkedInElement `json:"elements"`
}

type linkedInElement struct {
	Action  string `json:"action"`
	UserIDs []struct {
		Type  string `json:"idType"`
		Value string `json:"idValue"`
	} `json:"userIds,omitzero"`
	FirstName string `json:"firstName,omitzero"`
	LastName  string `json:"lastName,omitzero"`
	Title     string `json:"title,omitzero"`
	Company   string `json:"company,omitzero"`
	Country   string `json:"country,omitzero"`
}

func (e linkedInElement) keys() (keys []Key) {
	for _, id := range e.UserIDs {
		keys = append(keys, Key{id.Type, id.Value})
	}
	return keys
}

func (e linkedInElement) details() (keys []Key) {
	for _, k := range []Key{
		{"firstName", e.FirstName}, {"lastName", e.LastName}, {"title", e.Title}, {"company", e.Company}, {"country", e.Country},
	} {
		if k.Value != "" {
			keys = append(keys, k)
		}
	}
	return keys
}

// users adds people to a segment, and removes them.
func (f *LinkedIn) users(w http.ResponseWriter, r *http.Request, segment string, body []byte) {
	now := f.Steady()
	f.asked = slices.DeleteFunc(f.asked, func(at time.Time) bool { return now.Sub(at) >= time.Minute })
	if len(f.asked) >= f.options.Minute {
		f.NotBefore(f.asked[0].Add(time.Minute).Sub(now))
		f.refuse(w, http.StatusTooManyRequests, 101, "TOO_MANY_REQUESTS",
			"Resource level throttle APPLICATION_AND_MEMBER MINUTE limit for calls to this resource is reached.")
		return
	}
	f.asked = append(f.asked, now)
	s := f.segments[segment]
	if s == nil || now.Sub(s.created) < max(f.options.Shy, 5*time.Second) {
		if s != nil && now.Sub(s.created) < 5*time.Second {
			f.Violate("people come %v after the segment was made, want 5 s", now.Sub(s.created))
		}
		f.refuse(w, http.StatusNotFound, 0, "NOT_FOUND", "Could not find entity")
		return
	}
	var m linkedInMessage
	err := json.Unmarshal(body, &m, json.RejectUnknownMembers(true))
	if n := len(m.Elements); err != nil || n == 0 || n > f.options.Most {
		f.Violate("a message of %d people, want 1 to %d: %v", n, f.options.Most, err)
		f.refuse(w, http.StatusBadRequest, 0, "ILLEGAL_ARGUMENT", "The elements are not valid")
		return
	}
	statuses := make([]int, len(m.Elements))
	action, mixed := map[Key]string{}, false
	for i, e := range m.Elements {
		statuses[i] = f.element(segment, i, e)
		mixed = mixed || statuses[i] != http.StatusCreated
		for _, k := range e.keys() {
			if other, ok := action[k]; ok && other != e.Action {
				f.Violate("person %d: %s is to be added and removed by one message", i, k)
			}
			action[k] = e.Action
		}
	}
	_, lost := w.(*discard)
	answers := make([]string, len(statuses))
	for i, status := range statuses {
		e := m.Elements[i]
		row := fmt.Sprint(segment, e)
		if status == http.StatusCreated {
			if f.taken[row] {
				f.Violate("person %d was taken before, when others were not, and is sent again", i)
			}
			if mixed && !lost {
				f.taken[row] = true
			}
			answers[i] = `{"status":201}`
			continue
		}
		answers[i] = fmt.Sprintf(`{"status":%d,"message":"the element is not valid"}`, status)
	}
	fmt.Fprintf(w, `{"elements":[%s]}`, strings.Join(answers, ","))
}

// element adds or removes one person and returns the status of that.
func (f *LinkedIn) element(segment string, i int, e linkedInElement) (status int) {
	bad := func(format string, args ...any) int {
		f.Violate("person %d: "+format, append([]any{i}, args...)...)
		return http.StatusBadRequest
	}
	if e.Action != "ADD" && e.Action != "REMOVE" {
		return bad("the action is %q", e.Action)
	}
	if len(e.UserIDs) == 0 && (e.FirstName == "" || e.LastName == "") {
		return bad("there is neither a user id nor a full name")
	}
	seen := map[Key]bool{}
	for _, k := range e.keys() {
		length := map[string]int{"SHA256_EMAIL": 64, "SHA512_EMAIL": 128}[k.Kind]
		_, err := hex.DecodeString(k.Value)
		isHex := err == nil && k.Value == strings.ToLower(k.Value)
		switch {
		case seen[k]:
			return bad("%s is there twice", k)
		case length > 0 && (len(k.Value) != length || !isHex):
			return bad("%s is not made of %d lower-case hexadecimal digits", k.Kind, length)
		case k.Kind == "GOOGLE_AID" && isHex && len(k.Value) >= 32:
			return bad("GOOGLE_AID is a hash")
		case length == 0 && k.Kind != "GOOGLE_AID":
			return bad("the id type is %q", k.Kind)
		}
		seen[k] = true
	}
	if names := len(e.details()) > 0; names && !f.options.Names {
		return bad("there are names, and nobody has asked for them")
	} else if names && e.Action == "REMOVE" {
		f.Violate("person %d is removed by name, although nobody has a name alone", i)
	}
	if f.crowd.Check(fmt.Sprintf("person %d", i), slices.Concat(e.keys(), e.details())...) {
		return http.StatusBadRequest
	}
	for _, k := range e.keys() {
		if id, ok := f.owners[k]; ok && f.stumbles[id] > 0 {
			f.stumbles[id]--
			return http.StatusInternalServerError
		}
	}
	f.crowd.Apply(segment, e.Action == "ADD", f.Steady(), e.keys()...)
	return http.StatusCreated
}
