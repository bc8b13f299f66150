package partnertest

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/mubatch/mubatch/activation"
)

// Google is a fake of Google's Data Manager API and of its token endpoint.
type Google struct {
	googleAccess
	*Crowd

	options GoogleOptions
	lists   []*googleList
	serial  int
	jobs    map[string]*googleJob
	pending []string
	europe  map[Key]bool
}

// GoogleOptions are what a fake may do in more than one way.
type GoogleOptions struct {
	ServiceAccount bool          // the credential is one
	GmailTags      string        // "both": Gmail addresses with a plus count in both forms
	Data           string        // user_data, mobile_ids (of Android devices) or user_ids
	Days           int           // for which people are kept: 30
	Working        time.Duration // for which requests are worked on: 20 min
	Batch          int           // people in a request: 10
}

// googleList is a user list.
type googleList struct {
	id, name, code, key string
	duration            string
}

// googleJob is a request that is worked on.
type googleJob struct {
	googleRequest
	add    bool
	list   string
	rows   [][]Key
	denied int // rows that consent is missing of
}

// NewGoogle starts a fake that lives as long as the test.
func NewGoogle(t testing.TB, o GoogleOptions) *Google {
	t.Helper()
	if o.Data == "" {
		o.Data = "user_data"
	}
	if o.Days == 0 {
		o.Days = 30
	}
	if o.Working == 0 {
		o.Working = 20 * time.Minute
	}
	if o.Batch == 0 {
		o.Batch = 10
	}
	g := &Google{
		googleAccess: googleAccess{service: o.ServiceAccount, dead: map[string]int{}},
		options:      o, jobs: map[string]*googleJob{}, europe: map[Key]bool{},
	}
	g.Crowd = NewCrowd(g.Violate, o.recognise)
	g.Changes(func(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, "/v1/audienceMembers:") })
	g.URL = g.Listen(t, http.HandlerFunc(g.handle))
	return g
}

// Settings implements [Fake]. There is no access token yet.
func (g *Google) Settings() activation.Settings {
	config := map[string]any{
		"account_id": googleAccount, "login_account_id": googleManager, "terms_accepted": true, "batch": g.options.Batch,
		"membership_days": g.options.Days, "api_url": g.URL, "token_url": g.URL + "/token", "data": g.options.Data,
	}
	if g.options.GmailTags != "" {
		config["gmail_tags"] = g.options.GmailTags
	}
	if g.options.Data == "mobile_ids" {
		config["mobile_platform"], config["mobile_app_id"] = "android", "com.example.shop"
	}
	return g.settings(config)
}

// Seed implements [Fake].
func (g *Google) Seed(people ...activation.Person) {
	g.Crowd.Seed(people...)
	g.guard.Lock()
	defer g.guard.Unlock()
	for _, p := range people {
		for _, k := range g.options.recognise(p).Keys {
			g.europe[k] = slices.Contains(googleEurope, p.Text("country"))
		}
	}
}

// TTL implements [Forgetter].
func (g *Google) TTL() time.Duration { return time.Duration(g.options.Days) * 24 * time.Hour }

// Members implements [Fake].
func (g *Google) Members(a Audience) []activation.ProfileID {
	g.guard.Lock()
	defer g.guard.Unlock()
	g.work()
	return g.Crowd.Members(a.ID)
}

// Leftovers implements [Fake].
func (g *Google) Leftovers(a Audience) []string {
	g.guard.Lock()
	defer g.guard.Unlock()
	g.work()
	return g.Crowd.Leftovers(a.ID)
}

// List makes a user list, as somebody does with Google's own tools.
func (g *Google) List(id string) {
	g.guard.Lock()
	defer g.guard.Unlock()
	g.lists = append(g.lists, &googleList{id: id, name: "List " + id, key: googleKeyType[g.options.Data]})
	g.Make(id)
}

// Lists returns how many user lists there are.
func (g *Google) Lists() int {
	g.guard.Lock()
	defer g.guard.Unlock()
	return len(g.lists)
}

// Unasked returns how many requests were accepted whose status nobody has asked for.
func (g *Google) Unasked() (n int) {
	g.guard.Lock()
	defer g.guard.Unlock()
	for _, j := range g.jobs {
		if j.unasked() {
			n++
		}
	}
	return n
}

// Kinds of keys.
const (
	googleEmail   = "emailAddress"
	googlePhone   = "phoneNumber"
	googleAddress = "address"
	googleMobile  = "mobileId"
	googleUserID  = "userId"
)

var googleKeyType = map[string]string{"user_data": "CONTACT_ID", "mobile_ids": "MOBILE_ID", "user_ids": "USER_ID"}

var googleEurope = []string{"AT", "BE", "DE", "ES", "FR", "GB", "IE", "IT", "NL", "PL", "SE"}

// recognise says what Google knows a person by.
func (o GoogleOptions) recognise(p activation.Person) Recognised {
	is := Recognised{Mistakes: map[Key]string{}}
	learn := func(kind, text string, others map[string]string) {
		is.Keys = append(is.Keys, Key{kind, Hex(text)})
		for k, mistake := range HexMistakes(kind, text, others) {
			is.Mistakes[k] = mistake
		}
	}
	country := p.Text("country")
	switch o.Data {
	case "mobile_ids":
		if id := p.Text("gaid"); id != "" {
			is.Keys = append(is.Keys, Key{googleMobile, strings.ToLower(id)})
			is.Mistakes[Key{googleMobile, Hex(strings.ToLower(id))}] = "is hashed"
		}
		return is
	case "user_ids":
		for _, id := range p.Identified("user_id") {
			is.Keys = append(is.Keys, Key{googleUserID, id})
			is.Mistakes[Key{googleUserID, Hex(id)}] = "is hashed"
		}
		return is
	}
	for _, raw := range p.Identified("email") {
		for _, text := range o.emails(raw) {
			learn(googleEmail, text, googleEmailMistakes(raw, o.emails(raw)))
		}
	}
	for _, raw := range p.Identified("phone") {
		if number := googleNumber(raw, country); number != "" {
			learn(googlePhone, number, map[string]string{number[1:]: "is hashed without its plus sign", raw: "was not normalised before it was hashed"})
		}
	}
	given, family, postal := p.Text("first_name"), p.Text("last_name"), p.Text("zip")
	if given != "" && family != "" && postal != "" && country != "" {
		learnGoogleAddress(&is, given, family, country, postal)
	}
	return is
}

// learnGoogleAddress adds an address, and what is often made of it.
func learnGoogleAddress(is *Recognised, given, family, country, postal string) {
	first := strings.ToLower(strings.TrimSpace(given))
	for _, title := range []string{"mr. ", "mrs. ", "ms. ", "dr. "} {
		first = strings.TrimPrefix(first, title)
	}
	last, _, _ := strings.Cut(strings.ToLower(strings.TrimSpace(family)), ", ")
	key := func(given, family string) Key {
		return Key{googleAddress, strings.Join([]string{given, family, country, postal}, "|")}
	}
	is.Keys = append(is.Keys, key(Hex(first), Hex(last)))
	for k, mistake := range HexMistakes("", first, map[string]string{given: "was not normalised before it was hashed"}) {
		is.Mistakes[key(k.Value, Hex(last))] = "has a given name that " + mistake
	}
	for k, mistake := range HexMistakes("", last, map[string]string{family: "was not normalised before it was hashed"}) {
		is.Mistakes[key(Hex(first), k.Value)] = "has a family name that " + mistake
	}
	for _, k := range is.Keys {
		delete(is.Mistakes, k)
	}
}

// emails returns the forms in which an address counts.
func (o GoogleOptions) emails(raw string) []string {
	text := strings.ToLower(strings.TrimSpace(raw))
	at := strings.LastIndex(text, "@")
	if domain := text[at+1:]; domain != "gmail.com" && domain != "googlemail.com" {
		return []string{text}
	}
	local := strings.ReplaceAll(text[:at], ".", "")
	plain, _, tagged := strings.Cut(local, "+")
	if tagged && o.GmailTags == "both" {
		return []string{plain + text[at:], local + text[at:]}
	}
	return []string{plain + text[at:]}
}

func googleEmailMistakes(raw string, right []string) map[string]string {
	lower := strings.ToLower(strings.TrimSpace(raw))
	mistakes := map[string]string{
		raw: "was not normalised before it was hashed", strings.TrimSpace(raw): "was hashed with capital letters",
		lower: "was hashed with the dots or the tag of a Gmail address",
	}
	if local, domain, _ := strings.Cut(lower, "@"); strings.Contains(local, "+") {
		mistakes[strings.ReplaceAll(local, ".", "")+"@"+domain] = "was hashed with the tag of a Gmail address"
	}
	for _, text := range right {
		delete(mistakes, text)
	}
	return mistakes
}

var googleTrunk = regexp.MustCompile(`\(0\)|[^0-9+]`)

func googleNumber(raw, country string) string {
	number := googleTrunk.ReplaceAllString(raw, "")
	switch {
	case strings.HasPrefix(number, "+"):
		return number
	case country == "US" && len(number) == 10:
		return "+1" + number
	case country == "US" && len(number) == 11:
		return "+" + number
	case country == "DE" && strings.HasPrefix(number, "0"):
		return "+49" + number[1:]
	default:
		return ""
	}
}

// work applies requests that were taken in long enough ago, and forgets memberships that have ended.
func (g *Google) work() {
	for len(g.pending) > 0 {
		j := g.jobs[g.pending[0]]
		if g.Steady().Sub(j.at) < g.options.Working {
			break
		}
		for _, keys := range j.rows {
			g.Apply(j.list, j.add, j.at, keys...)
		}
		j.done = true
		g.pending = g.pending[1:]
	}
	g.Forget(g.Steady().Add(-g.TTL()))
}

func (g *Google) handle(w http.ResponseWriter, r *http.Request) {
	begin := func(body []byte) (end func()) {
		members, err := readGoogleMembers(body)
		if err != nil || members.Destinations == nil {
			return func() {}
		}
		end = g.Occupy(members.Destinations[0].List, strings.HasSuffix(r.URL.Path, ":ingest"), members.keys()...)
		time.Sleep(time.Millisecond) // for whoever comes too early
		return end
	}
	g.serve(w, r, begin, func(body []byte) (string, *googleRefusal) {
		g.work()
		switch path := r.URL.Path; {
		case r.Method == http.MethodPost && path == "/v1/audienceMembers:ingest":
			return g.members(w, body, true)
		case r.Method == http.MethodPost && path == "/v1/audienceMembers:remove":
			return g.members(w, body, false)
		case r.Method == http.MethodGet && path == "/v1/requestStatus:retrieve":
			return g.tell(r.URL.Query())
		case strings.HasPrefix(path, "/v1/accountTypes/"):
			return g.userLists(r, body)
		default:
			return "", g.unknown(r)
		}
	})
}

// googleMembers is the body of audienceMembers:ingest and :remove.
type googleMembers struct {
	Destinations []googleDestination `json:"destinations"`
	Rows         []googleRow         `json:"audienceMembers"`
	Encoding     string              `json:"encoding"`
	Validate     bool                `json:"validateOnly"`
	Terms        *googleTerms        `json:"termsOfService"`
	Consent      *googleConsents     `json:"consent"`
}

type googleTerms struct {
	Status string `json:"customerMatchTermsOfServiceStatus"`
}

type googleRow struct {
	References []string `json:"destinationReferences"`
	UserData   *struct {
		IDs []googleIdentifier `json:"userIdentifiers"`
	} `json:"userData"`
	Mobile *struct {
		IDs []string `json:"mobileIds"`
	} `json:"mobileData"`
	UserID *struct {
		ID string `json:"userId"`
	} `json:"userIdData"`
	Consent *googleConsents `json:"consent"`
}

func readGoogleMembers(body []byte) (m googleMembers, err error) {
	err = json.Unmarshal(body, &m, json.RejectUnknownMembers(true))
	if err == nil && len(m.Destinations) == 0 {
		m.Destinations = nil
	}
	return m, err
}

func (m googleMembers) keys() (keys []Key) {
	for _, r := range m.Rows {
		keys = append(keys, r.keys()...)
	}
	return keys
}

func (r googleRow) keys() (keys []Key) {
	if r.UserData != nil {
		for _, id := range r.UserData.IDs {
			if k := id.key(); k != (Key{}) {
				keys = append(keys, k)
			}
		}
	}
	if r.Mobile != nil {
		for _, id := range r.Mobile.IDs {
			keys = append(keys, Key{googleMobile, id})
		}
	}
	if r.UserID != nil {
		keys = append(keys, Key{googleUserID, r.UserID.ID})
	}
	return keys
}

// members takes in a request about audience members.
func (g *Google) members(w http.ResponseWriter, body []byte, add bool) (string, *googleRefusal) {
	m, err := readGoogleMembers(body)
	if err == nil && !add && (m.Terms != nil || m.Consent != nil) {
		err = errors.New("termsOfService or consent where there is none")
	}
	if err != nil {
		g.Violate("the body cannot be read: %v", err)
		return "", &googleRefusal{status: 400, code: "INVALID_ARGUMENT", why: "Invalid JSON payload received. Unknown name."}
	}
	list, refusal := g.destination(m)
	if refusal != nil {
		return "", refusal
	}
	data, refusal := g.frame(m, add, list)
	if refusal != nil {
		return "", refusal
	}
	job := &googleJob{googleRequest: g.request(w), add: add, list: list.id}
	for i, row := range m.Rows {
		field := fmt.Sprintf("audience_members.audience_members[%d]", i)
		if refusal := g.row(field, data, m, row, add); refusal != nil {
			return "", refusal
		}
		keys := row.keys()
		if g.Check(field, keys...) {
			return "", &googleRefusal{400, "INVALID_ARGUMENT", field + ".user_data.user_identifiers", "INVALID_AUDIENCE_MEMBER", "Not this one."}
		}
		if add && slices.ContainsFunc(keys, func(k Key) bool { return g.europe[k] }) && !row.granted(m.Consent) {
			g.Violate("%s is somebody in Europe of whom not both consents were granted", field)
			job.denied++
			continue
		}
		job.rows = append(job.rows, keys)
	}
	if m.Validate {
		return `{}`, nil
	}
	g.serial++
	id := fmt.Sprintf("request-%d", g.serial)
	g.jobs[id], g.pending = job, append(g.pending, id)
	return fmt.Sprintf(`{"requestId":%q}`, id), nil
}

func (r googleRow) granted(of *googleConsents) bool {
	if r.Consent != nil {
		of = r.Consent
	}
	return of.granted()
}

// destination checks where a request goes.
func (g *Google) destination(m googleMembers) (*googleList, *googleRefusal) {
	d, refusal := g.one(m.Destinations, "GOOGLE_ADS")
	if refusal != nil {
		return nil, refusal
	}
	i := slices.IndexFunc(g.lists, func(l *googleList) bool { return l.id == d.List })
	if i < 0 {
		return nil, g.invalid("destinations[0].product_destination_id", "INVALID_USER_LIST_ID", "list %q is not there", d.List)
	}
	return g.lists[i], nil
}

// frame checks what a request says of all its rows, and returns their data type.
func (g *Google) frame(m googleMembers, add bool, list *googleList) (data string, _ *googleRefusal) {
	if n := len(m.Rows); n == 0 {
		return "", g.invalid("audience_members", "REQUIRED_FIELD_MISSING", "there are none")
	} else if n > 10_000 {
		return "", g.invalid("audience_members", "TOO_MANY_AUDIENCE_MEMBERS", "%d rows", n)
	}
	for i, r := range m.Rows {
		this := ""
		for kind, is := range map[string]bool{"CONTACT_ID": r.UserData != nil, "MOBILE_ID": r.Mobile != nil, "USER_ID": r.UserID != nil} {
			if is && this != "" {
				return "", g.invalid("audience_members", "MULTIPLE_DATA_TYPES_NOT_ALLOWED", "row %d has two", i)
			}
			if is {
				this = kind
			}
		}
		if data == "" {
			data = this
		}
		if this != data {
			return "", g.invalid("audience_members", "MULTIPLE_DATA_TYPES_NOT_ALLOWED", "%s and %s", data, this)
		}
	}
	switch {
	case data != list.key:
		return "", g.invalid("destinations[0].product_destination_id", "INVALID_USER_LIST_TYPE", "the list takes %s, not %s", list.key, data)
	case data == "CONTACT_ID" && m.Encoding != "HEX":
		return "", g.invalid("encoding", "REQUIRED_FIELD_MISSING", "encoding %q, want HEX", m.Encoding)
	case data != "CONTACT_ID" && m.Encoding != "":
		return "", g.invalid("encoding", "INVALID_ENUM_VALUE", "%s is not encoded", data)
	case add && data != "USER_ID" && (m.Terms == nil || m.Terms.Status != "ACCEPTED"):
		return "", g.invalid("terms_of_service", "TERMS_AND_CONDITIONS_NOT_SIGNED", "the terms are not accepted")
	}
	return data, nil
}

// row checks the form of one row.
func (g *Google) row(field, data string, m googleMembers, r googleRow, add bool) *googleRefusal {
	if refusal := g.addressed(field, m.Destinations[0], r.References, r.Consent); refusal != nil {
		return refusal
	}
	if r.Consent != nil && !add {
		g.Violate("%s has a consent although it is to be removed", field)
	}
	keys := r.keys()
	if len(keys) == 0 {
		return g.invalid(field, "REQUIRED_FIELD_MISSING", "there is no identifier")
	}
	if len(keys) > 10 {
		return g.invalid(field+".user_data.user_identifiers", "TOO_MANY_USER_IDENTIFIERS", "%d identifiers", len(keys))
	}
	for i, k := range keys {
		if slices.Contains(keys[:i], k) {
			g.Violate("%s has %s twice", field, k)
		}
	}
	switch data {
	case "MOBILE_ID":
		for _, k := range keys {
			if !googleDevice.MatchString(k.Value) {
				return g.invalid(field+".mobile_data.mobile_ids", "INVALID_MOBILE_ID_FORMAT", "%.12q", k.Value)
			}
		}
	case "CONTACT_ID":
		for _, id := range r.UserData.IDs {
			if refusal := g.identifier(field+".user_data.user_identifiers", id); refusal != nil {
				return refusal
			}
		}
	}
	return nil
}

var googleDevice = regexp.MustCompile(`^(?i:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})$`)

// tell says what became of a request.
func (g *Google) tell(query url.Values) (string, *googleRefusal) {
	id := query.Get("requestId")
	j := g.jobs[id]
	if j == nil || len(query) != 1 {
		return "", g.invalid("request_id", "INVALID_REQUEST_ID", "request %q is not known", id)
	}
	g.poll(&j.googleRequest)
	destination := fmt.Sprintf(`"destination":{"reference":"list","productDestinationId":%q}`, j.list)
	if !j.done {
		return `{"requestStatusPerDestination":[{` + destination + `,"requestStatus":"PROCESSING"}]}`, nil
	}
	kind, state := "audienceMembersRemovalStatus", "SUCCESS"
	counts, match := "", ""
	if j.add {
		kind, match = "audienceMembersIngestionStatus", `,"uploadMatchRateRange":"MATCH_RATE_RANGE_61_TO_70"`
	}
	if j.denied > 0 {
		state = "PARTIAL_SUCCESS"
		counts = fmt.Sprintf(`,"errorInfo":{"errorCounts":[{"recordCount":"%d","reason":"PROCESSING_ERROR_REASON_DENIED_CONSENT"}]}`, j.denied)
	}
	of := map[bool]string{true: "userDataIngestionStatus", false: "userDataRemovalStatus"}[j.add]
	return fmt.Sprintf(`{"requestStatusPerDestination":[{%s,"requestStatus":%q%s,%q:{%q:{"recordCount":"%d"%s}}}]}`,
		destination, state, counts, kind, of, len(j.rows)+j.denied, match), nil
}

// googleNewList is the body of userLists.create.
type googleNewList struct {
	DisplayName string `json:"displayName"`
	Code        string `json:"integrationCode"`
	Membership  string `json:"membershipStatus"`
	Duration    string `json:"membershipDuration"`
	Ingested    struct {
		Keys    []string          `json:"uploadKeyTypes"`
		Contact map[string]string `json:"contactIdInfo"`
		Mobile  map[string]string `json:"mobileIdInfo"`
		UserID  map[string]string `json:"userIdInfo"`
	} `json:"ingestedUserListInfo"`
}

var googleFilter = regexp.MustCompile(`^integration_code = "([^"]+)"$`)

// userLists lists, finds and makes user lists.
func (g *Google) userLists(r *http.Request, body []byte) (string, *googleRefusal) {
	if got, want := r.Header.Get("login-account"), "accountTypes/GOOGLE_ADS/accounts/"+googleManager; got != want {
		g.Violate("%s: login-account is %q, want %q", r.URL.Path, got, want)
		return "", &googleRefusal{status: 403, code: "PERMISSION_DENIED", why: "No."}
	}
	rest, ok := strings.CutPrefix(r.URL.Path, googleParent)
	if !ok {
		return "", &googleRefusal{status: 403, code: "PERMISSION_DENIED", why: "The user does not have permission."}
	}
	id, one := strings.CutPrefix(rest, "/")
	switch {
	case r.Method == http.MethodGet && one:
		i := slices.IndexFunc(g.lists, func(l *googleList) bool { return l.id == id })
		if i < 0 {
			return "", &googleRefusal{status: 404, code: "NOT_FOUND", why: "Not found."}
		}
		return g.show(g.lists[i]), nil
	case r.Method == http.MethodGet:
		var code string
		if filter := r.URL.Query().Get("filter"); filter != "" {
			m := googleFilter.FindStringSubmatch(filter)
			if m == nil {
				return "", g.invalid("filter", "INVALID_FILTER", "%q", filter)
			}
			code = m[1]
		}
		var found []string
		for _, l := range g.lists {
			if code == "" || l.code == code {
				found = append(found, g.show(l))
			}
		}
		if len(found) == 0 {
			return `{}`, nil
		}
		return `{"userLists":[` + strings.Join(found, ",") + `]}`, nil
	case r.Method == http.MethodPost && rest == "":
		return g.makeList(body)
	default:
		g.Violate("%s %s is not known", r.Method, r.URL.Path)
		return "", &googleRefusal{status: 404, code: "NOT_FOUND", why: "Not found."}
	}
}

func (g *Google) show(l *googleList) string {
	return fmt.Sprintf(`{"name":%q,"id":%q,"displayName":%q,"integrationCode":%q,"membershipStatus":"OPEN","membershipDuration":%q,`+
		`"ingestedUserListInfo":{"uploadKeyTypes":[%q]},"sizeInfo":{"displayNetworkMembersCount":"%d","searchNetworkMembersCount":"1"}}`,
		strings.TrimPrefix(googleParent, "/v1/")+"/"+l.id, l.id, l.name, l.code, l.duration, l.key, g.Size(l.id))
}

func (g *Google) makeList(body []byte) (string, *googleRefusal) {
	var ask googleNewList
	if err := json.Unmarshal(body, &ask, json.RejectUnknownMembers(true)); err != nil {
		return "", g.invalid("user_list", "INVALID_FORMAT", "%v", err)
	}
	seconds, err := strconv.Atoi(strings.TrimSuffix(ask.Duration, "s"))
	info := map[string]map[string]string{"CONTACT_ID": ask.Ingested.Contact, "MOBILE_ID": ask.Ingested.Mobile, "USER_ID": ask.Ingested.UserID}
	switch {
	case ask.DisplayName == "" || len(ask.DisplayName) > 255:
		return "", g.invalid("user_list.display_name", "INVALID_DISPLAY_NAME", "%q", ask.DisplayName)
	case err != nil || !strings.HasSuffix(ask.Duration, "s") || seconds <= 0 || seconds%86400 != 0:
		return "", g.invalid("user_list.membership_duration", "INVALID_FORMAT", "%q", ask.Duration)
	case seconds > 540*86400:
		return "", g.invalid("user_list.membership_duration", "MEMBERSHIP_DURATION_TOO_LONG", "%q", ask.Duration)
	case len(ask.Ingested.Keys) != 1 || ask.Ingested.Keys[0] != googleKeyType[g.options.Data]:
		return "", g.invalid("user_list.ingested_user_list_info", "UNSUPPORTED_USER_LIST_UPLOAD_KEY_TYPES", "%q", ask.Ingested.Keys)
	case info[ask.Ingested.Keys[0]]["dataSourceType"] != "DATA_SOURCE_TYPE_FIRST_PARTY":
		return "", g.invalid("user_list.ingested_user_list_info", "REQUIRED_FIELD_MISSING", "the source is not said")
	case ask.Membership != "OPEN":
		return "", g.invalid("user_list.membership_status", "INVALID_ENUM_VALUE", "%q", ask.Membership)
	}
	if m := ask.Ingested.Mobile; ask.Ingested.Keys[0] == "MOBILE_ID" && (m["appId"] == "" || m["keySpace"] != "IOS" && m["keySpace"] != "ANDROID") {
		return "", g.invalid("user_list.ingested_user_list_info.mobile_id_info", "REQUIRED_FIELD_MISSING", "%v", m)
	}
	for _, l := range g.lists {
		if l.name == ask.DisplayName {
			return "", &googleRefusal{400, "INVALID_ARGUMENT", "user_list.display_name", "DISPLAY_NAME_ALREADY_USED", "It is used."}
		}
		if ask.Code != "" && l.code == ask.Code {
			g.Violate("a second list of code %q was made", ask.Code)
		}
	}
	l := &googleList{
		id: strconv.Itoa(8123456789 + len(g.lists)), name: ask.DisplayName, code: ask.Code, key: ask.Ingested.Keys[0], duration: ask.Duration,
	}
	g.lists = append(g.lists, l)
	g.Make(l.id)
	return g.show(l), nil
}
