package partnertest

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
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

	"github.com/mubatch/mubatch/activation"
)

// Google is a fake of Google's Data Manager API and of its token endpoint.
type Google struct {
	Faults
	*Crowd
	URL string

	options GoogleOptions
	mu      sync.Mutex
	token   string
	ends    time.Time
	dead    map[string]int // tokens that ended → how often they were used since
	revoked bool
	refused int // data calls since the grant was refused
	tokens  int
	lists   []*googleList
	serial  int
	jobs    map[string]*googleJob
	pending []string
	asked   []time.Time // of the last minute
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

const (
	googleAccount = "1234567890"
	googleManager = "9876543210"
	googleScope   = "https://www.googleapis.com/auth/datamanager"
	googleParent  = "/v1/accountTypes/GOOGLE_ADS/accounts/" + googleAccount + "/userLists"
)

// googleList is a user list.
type googleList struct {
	id, name, code, key string
	duration            string
}

// googleJob is a request that is worked on.
type googleJob struct {
	at       time.Time
	polled   time.Time
	hasty    int // how often it was asked for too early
	add      bool
	list     string
	rows     [][]Key
	denied   int // rows that consent is missing of
	done     bool
	answered bool
}

// googleKey is the key of the service account.
var googleKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

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
	g := &Google{options: o, dead: map[string]int{}, jobs: map[string]*googleJob{}, europe: map[Key]bool{}}
	g.Crowd = NewCrowd(g.Violate, g.recognise)
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
	secrets := map[string]any{
		"client_id": "4711-shop.apps.googleusercontent.com", "client_secret": "GOCSPX-secret-of-ours", "refresh_token": "1//refresh-token-of-ours",
	}
	if g.options.ServiceAccount {
		der, err := x509.MarshalPKCS8PrivateKey(googleKey())
		if err != nil {
			panic(err)
		}
		secrets = map[string]any{"service_account": map[string]any{
			"type": "service_account", "project_id": "shop", "private_key_id": "key-id-0123456789",
			"client_email": "sender@shop.iam.gserviceaccount.com", "token_uri": "https://oauth2.googleapis.com/token",
			"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
		}}
	}
	c, err := json.Marshal(config, json.Deterministic(true))
	s, err2 := json.Marshal(secrets, json.Deterministic(true))
	if err := errors.Join(err, err2); err != nil {
		panic(err)
	}
	return activation.Settings{Config: c, Secrets: s}
}

// Seed implements [Fake].
func (g *Google) Seed(people ...activation.Person) {
	g.Crowd.Seed(people...)
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range people {
		for _, k := range g.recognise(p).Keys {
			g.europe[k] = slices.Contains(googleEurope, p.Text("country"))
		}
	}
}

// Revoke implements [Fake].
func (g *Google) Revoke() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.revoked = true
}

// Heal implements [Fake].
func (g *Google) Heal() {
	g.Faults.Heal()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.revoked, g.refused = false, 0
}

// Expire implements [Expirer].
func (g *Google) Expire() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ends = g.Steady()
}

// Refreshes implements [Expirer].
func (g *Google) Refreshes() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.tokens
}

// TTL implements [Forgetter].
func (g *Google) TTL() time.Duration { return time.Duration(g.options.Days) * 24 * time.Hour }

// Members implements [Fake].
func (g *Google) Members(a Audience) []activation.ProfileID {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.work()
	return g.Crowd.Members(a.ID)
}

// Leftovers implements [Fake].
func (g *Google) Leftovers(a Audience) []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.work()
	return g.Crowd.Leftovers(a.ID)
}

// List makes a user list, as somebody does with Google's own tools.
func (g *Google) List(id string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.lists = append(g.lists, &googleList{id: id, name: "List " + id, key: googleKeyType[g.options.Data]})
	g.Make(id)
}

// Lists returns how many user lists there are.
func (g *Google) Lists() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.lists)
}

// Unasked returns how many requests were accepted whose status nobody has asked for.
func (g *Google) Unasked() (n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, j := range g.jobs {
		if j.answered && j.polled.IsZero() {
			n++
		}
	}
	return n
}

// Words implements [Fake].
func (g *Google) Words() Words {
	detail := func(kind, more string) string {
		return `{"@type":"type.googleapis.com/google.rpc.` + kind + `",` + more + `}`
	}
	fault := func(status int, code string, details ...string) Fault {
		return Fault{Status: status, Body: fmt.Sprintf(`{"error":{"code":%d,"message":"No.","status":%q,"details":[%s]}}`,
			status, code, strings.Join(details, ","))}
	}
	throttled := fault(429, "RESOURCE_EXHAUSTED", detail("ErrorInfo", `"reason":"RATE_LIMIT_EXCEEDED","domain":"googleapis.com","metadata":{"quota_limit":"RequestsPerMinutePerProject"}`))
	throttled.Wait, throttled.Silent = time.Minute, true
	return Words{
		Throttled: throttled,
		Wait: func(d time.Duration) Fault {
			f := fault(429, "RESOURCE_EXHAUSTED", detail("RetryInfo", fmt.Sprintf(`"retryDelay":"%ds"`, int(d.Seconds()))))
			f.Wait, f.Silent = d, true
			return f
		},
		TooLarge: fault(400, "INVALID_ARGUMENT", detail("BadRequest",
			`"fieldViolations":[{"field":"audience_members","description":"Too many.","reason":"TOO_MANY_AUDIENCE_MEMBERS"}]`)),
		Forbidden: fault(403, "PERMISSION_DENIED", detail("ErrorInfo", `"reason":"PERMISSION_DENIED","domain":"datamanager.googleapis.com"`)),
		Missing: fault(400, "INVALID_ARGUMENT", detail("BadRequest",
			`"fieldViolations":[{"field":"destinations[0].product_destination_id","description":"No.","reason":"INVALID_USER_LIST_ID"}]`)),
		Passing: []Fault{
			fault(409, "ABORTED"), fault(500, "INTERNAL"), fault(503, "UNAVAILABLE"), fault(504, "DEADLINE_EXCEEDED"),
			{Status: 200, Body: page},
		},
	}
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
func (g *Google) recognise(p activation.Person) Recognised {
	is := Recognised{Mistakes: map[Key]string{}}
	learn := func(kind, text string, others map[string]string) {
		is.Keys = append(is.Keys, Key{kind, Hex(text)})
		for k, mistake := range HexMistakes(kind, text, others) {
			is.Mistakes[k] = mistake
		}
	}
	country := p.Text("country")
	switch g.options.Data {
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
		for _, text := range g.emails(raw) {
			learn(googleEmail, text, googleEmailMistakes(raw, g.emails(raw)))
		}
	}
	for _, raw := range p.Identified("phone") {
		if number := googleNumber(raw, country); number != "" {
			learn(googlePhone, number, map[string]string{number[1:]: "is hashed without its plus sign", raw: "was not normalised before it was hashed"})
		}
	}
	given, family, postal := p.Text("first_name"), p.Text("last_name"), p.Text("zip")
	if given != "" && family != "" && postal != "" && country != "" {
		g.learnAddress(&is, given, family, country, postal)
	}
	return is
}

// learnAddress adds an address, and what is often made of it.
func (g *Google) learnAddress(is *Recognised, given, family, country, postal string) {
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
func (g *Google) emails(raw string) []string {
	text := strings.ToLower(strings.TrimSpace(raw))
	at := strings.LastIndex(text, "@")
	if domain := text[at+1:]; domain != "gmail.com" && domain != "googlemail.com" {
		return []string{text}
	}
	local := strings.ReplaceAll(text[:at], ".", "")
	plain, _, tagged := strings.Cut(local, "+")
	if tagged && g.options.GmailTags == "both" {
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

// googleRefusal is an answer that is none.
type googleRefusal struct {
	status             int
	code               string
	field, reason, why string
}

func (e *googleRefusal) write(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json; charset=UTF-8")
	w.WriteHeader(e.status)
	violations := ""
	if e.field != "" {
		violations = fmt.Sprintf(`,{"@type":"type.googleapis.com/google.rpc.BadRequest","fieldViolations":[{"field":%q,"description":%q,"reason":%q}]}`,
			e.field, e.why, e.reason)
	}
	fmt.Fprintf(w, `{"error":{"code":%d,"message":%q,"status":%q,"details":[`+
		`{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":%q,"domain":"datamanager.googleapis.com","metadata":{"requestId":"t-1"}}%s]}}`,
		e.status, e.why, e.code, e.code, violations)
}

// invalid is a refusal that is also a violation.
func (g *Google) invalid(field, reason, format string, args ...any) *googleRefusal {
	why := fmt.Sprintf(format, args...)
	g.Violate("%s: %s: %s", field, reason, why)
	return &googleRefusal{400, "INVALID_ARGUMENT", field, reason, why}
}

func (g *Google) handle(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	if r.URL.Path == "/token" {
		g.giveToken(w, r, body)
		return
	}
	g.Inspect(r, body)
	if members, err := readGoogleMembers(body); err == nil && members.Destinations != nil {
		defer g.Occupy(members.Destinations[0].List, strings.HasSuffix(r.URL.Path, ":ingest"), members.keys()...)()
		time.Sleep(time.Millisecond) // for whoever comes too early
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.work()
	if refusal := g.admit(r); refusal != nil {
		refusal.write(w)
		return
	}
	var answer string
	var refusal *googleRefusal
	switch path := r.URL.Path; {
	case r.Method == http.MethodPost && path == "/v1/audienceMembers:ingest":
		answer, refusal = g.members(w, body, true)
	case r.Method == http.MethodPost && path == "/v1/audienceMembers:remove":
		answer, refusal = g.members(w, body, false)
	case r.Method == http.MethodGet && path == "/v1/requestStatus:retrieve":
		answer, refusal = g.tell(r.URL.Query())
	case strings.HasPrefix(path, "/v1/accountTypes/"):
		answer, refusal = g.userLists(r, body)
	default:
		g.Violate("%s %s is not known", r.Method, path)
		refusal = &googleRefusal{status: 404, code: "NOT_FOUND", why: "Not found."}
	}
	if refusal != nil {
		refusal.write(w)
		return
	}
	w.Header().Set("Content-Type", "application/json; charset=UTF-8")
	io.WriteString(w, answer)
}

// admit checks who asks, and how often.
func (g *Google) admit(r *http.Request) *googleRefusal {
	unauthenticated := &googleRefusal{status: 401, code: "UNAUTHENTICATED", why: "Request had invalid authentication credentials."}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	switch {
	case !ok || token == "":
		g.Violate("%s came without a token", r.URL.Path)
		return unauthenticated
	case g.revoked:
		if g.refused++; g.refused > 16 { // what was under way
			g.Violate("requests go on although the grant was refused")
		}
		return unauthenticated
	case token != g.token || !g.Steady().Before(g.ends):
		if g.dead[token]++; g.dead[token] > 8 && !g.Skewed() { // what was under way may use it once each
			g.Violate("a token that has ended goes on being used")
		}
		return unauthenticated
	}
	now := g.Steady()
	g.asked = slices.DeleteFunc(g.asked, func(at time.Time) bool { return now.Sub(at) >= time.Minute })
	if len(g.asked) >= 300 {
		g.NotBefore(time.Second)
		return &googleRefusal{status: 429, code: "RESOURCE_EXHAUSTED", why: "Quota exceeded."}
	}
	g.asked = append(g.asked, now)
	return nil
}

func (g *Google) giveToken(w http.ResponseWriter, r *http.Request, body []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	refuse := func(code string) {
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprintf(w, `{"error":%q,"error_description":"Token has been expired or revoked."}`, code)
	}
	form, err := url.ParseQuery(string(body))
	if err != nil || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/x-www-form-urlencoded" {
		g.Violate("a token was not asked for with a form")
		refuse("invalid_request")
		return
	}
	if g.revoked {
		refuse("invalid_grant")
		return
	}
	want := url.Values{
		"client_id": {"4711-shop.apps.googleusercontent.com"}, "client_secret": {"GOCSPX-secret-of-ours"},
		"refresh_token": {"1//refresh-token-of-ours"}, "grant_type": {"refresh_token"},
	}
	if g.options.ServiceAccount {
		if err := g.checkAssertion(form.Get("assertion")); err != nil {
			g.Violate("the assertion is no good: %v", err)
			refuse("invalid_grant")
			return
		}
		want = url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:jwt-bearer"}, "assertion": {form.Get("assertion")}}
	}
	if form.Encode() != want.Encode() {
		g.Violate("a token was asked for with another form than there is")
		refuse("invalid_request")
		return
	}
	g.tokens++
	g.token, g.ends = fmt.Sprintf("ya29.token-%d", g.tokens), g.Steady().Add(tokenLife)
	fmt.Fprintf(w, `{"access_token":%q,"expires_in":%d,"scope":%q,"token_type":"Bearer"}`, g.token, int(tokenLife.Seconds())-1, googleScope)
}

// checkAssertion reads a JSON web token by hand.
func (g *Google) checkAssertion(token string) error {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return errors.New("it has not three parts")
	}
	var raw [3][]byte
	for i, part := range parts {
		b, err := base64.RawURLEncoding.DecodeString(part)
		if err != nil {
			return err
		}
		raw[i] = b
	}
	var header struct{ Alg, Typ, Kid string }
	var claims struct {
		Iss, Scope, Aud string
		Iat, Exp        int64
	}
	if err := errors.Join(googleStrict(raw[0], &header), googleStrict(raw[1], &claims)); err != nil {
		return err
	}
	sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if err := rsa.VerifyPKCS1v15(&googleKey().PublicKey, crypto.SHA256, sum[:], raw[2]); err != nil {
		return err
	}
	age := g.Now().Unix() - claims.Iat
	switch {
	case header.Alg != "RS256" || header.Kid != "key-id-0123456789":
		return fmt.Errorf("its header is %+v", header)
	case claims.Iss != "sender@shop.iam.gserviceaccount.com" || claims.Scope != googleScope || claims.Aud != g.URL+"/token":
		return fmt.Errorf("it claims %+v", claims)
	case age < -60 || age > 300 || claims.Exp-claims.Iat > 3600:
		return fmt.Errorf("it is %d s old and lasts %d s", age, claims.Exp-claims.Iat)
	}
	return nil
}

// googleStrict reads JSON whose members are known by their exact names.
func googleStrict(b []byte, into any) error {
	return json.Unmarshal(b, into, json.RejectUnknownMembers(true), json.MatchCaseInsensitiveNames(true))
}

// googleMembers is the body of audienceMembers:ingest and :remove.
type googleMembers struct {
	Destinations []struct {
		Reference string        `json:"reference"`
		Operating googleProduct `json:"operatingAccount"`
		Login     googleProduct `json:"loginAccount"`
		List      string        `json:"productDestinationId"`
	} `json:"destinations"`
	Rows     []googleRow     `json:"audienceMembers"`
	Encoding string          `json:"encoding"`
	Validate bool            `json:"validateOnly"`
	Terms    *googleTerms    `json:"termsOfService"`
	Consent  *googleConsents `json:"consent"`
}

type googleTerms struct {
	Status string `json:"customerMatchTermsOfServiceStatus"`
}

type googleProduct struct {
	Type string `json:"accountType"`
	ID   string `json:"accountId"`
}

type googleConsents struct {
	UserData        string `json:"adUserData"`
	Personalization string `json:"adPersonalization"`
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

type googleIdentifier struct {
	Email   string       `json:"emailAddress"`
	Phone   string       `json:"phoneNumber"`
	Address *googlePlace `json:"address"`
}

type googlePlace struct {
	Given  string `json:"givenName"`
	Family string `json:"familyName"`
	Region string `json:"regionCode"`
	Postal string `json:"postalCode"`
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
			switch {
			case id.Email != "":
				keys = append(keys, Key{googleEmail, id.Email})
			case id.Phone != "":
				keys = append(keys, Key{googlePhone, id.Phone})
			case id.Address != nil:
				a := id.Address
				keys = append(keys, Key{googleAddress, strings.Join([]string{a.Given, a.Family, a.Region, a.Postal}, "|")})
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
	job := &googleJob{at: g.Steady(), add: add, list: list.id}
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
	_, lost := w.(*discard)
	job.answered = !lost
	g.jobs[id], g.pending = job, append(g.pending, id)
	return fmt.Sprintf(`{"requestId":%q}`, id), nil
}

func (r googleRow) granted(of *googleConsents) bool {
	if r.Consent != nil {
		of = r.Consent
	}
	return of != nil && of.UserData == "CONSENT_GRANTED" && of.Personalization == "CONSENT_GRANTED"
}

// destination checks where a request goes.
func (g *Google) destination(m googleMembers) (*googleList, *googleRefusal) {
	if len(m.Destinations) > 10 {
		return nil, g.invalid("destinations", "TOO_MANY_DESTINATIONS", "%d destinations", len(m.Destinations))
	}
	seen := map[string]bool{}
	for _, d := range m.Destinations {
		if seen[d.Reference] {
			return nil, g.invalid("destinations", "DUPLICATE_DESTINATION_REFERENCE", "%q is there twice", d.Reference)
		}
		seen[d.Reference] = true
	}
	if len(m.Destinations) != 1 {
		return nil, g.invalid("destinations", "REQUIRED_FIELD_MISSING", "%d destinations, want 1", len(m.Destinations))
	}
	d := m.Destinations[0]
	if d.Operating != (googleProduct{"GOOGLE_ADS", googleAccount}) || d.Login != (googleProduct{"GOOGLE_ADS", googleManager}) {
		return nil, g.invalid("destinations[0].operating_account", "INVALID_DESTINATION", "%v for %v", d.Login, d.Operating)
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
	for _, ref := range r.References {
		if ref != m.Destinations[0].Reference {
			return g.invalid(field+".destination_references", "INVALID_DESTINATION", "%q is no destination", ref)
		}
	}
	if r.Consent != nil {
		for _, s := range []string{r.Consent.UserData, r.Consent.Personalization} {
			if s != "" && s != "CONSENT_GRANTED" && s != "CONSENT_DENIED" {
				return g.invalid(field+".consent", "INVALID_ENUM_VALUE", "%q is no consent", s)
			}
		}
		if !add {
			g.Violate("%s has a consent although it is to be removed", field)
		}
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

var (
	googleDevice = regexp.MustCompile(`^(?i:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})$`)
	googleRegion = regexp.MustCompile(`^[A-Z]{2}$`)
	googleHashed = regexp.MustCompile(`^(?i:[0-9a-f]{32,})$`)
)

func (g *Google) identifier(field string, id googleIdentifier) *googleRefusal {
	given := 0
	for _, is := range []bool{id.Email != "", id.Phone != "", id.Address != nil} {
		if is {
			given++
		}
	}
	if given != 1 {
		return g.invalid(field, "REQUIRED_FIELD_MISSING", "%d of email, phone and address, want one", given)
	}
	hashes := []string{id.Email + id.Phone}
	if a := id.Address; a != nil {
		hashes = []string{a.Given, a.Family}
		switch {
		case a.Given == "" || a.Family == "" || a.Region == "" || a.Postal == "":
			return g.invalid(field, "REQUIRED_FIELD_MISSING", "the address is not whole")
		case !googleRegion.MatchString(a.Region):
			return g.invalid(field+".address.region_code", "INVALID_FORMAT", "%.12q is no region", a.Region)
		case googleHashed.MatchString(a.Postal):
			return g.invalid(field+".address.postal_code", "INVALID_POSTAL_CODE", "the postal code is hashed")
		}
	}
	for _, h := range hashes {
		b, err := hex.DecodeString(h)
		switch {
		case err != nil:
			return g.invalid(field, "INVALID_HEX_ENCODING", "%.12q is not in hexadecimal digits", h)
		case len(b) != 32:
			return g.invalid(field, "INVALID_SHA256_FORMAT", "%.12q is no SHA-256", h)
		}
	}
	return nil
}

// tell says what became of a request.
func (g *Google) tell(query url.Values) (string, *googleRefusal) {
	id := query.Get("requestId")
	j := g.jobs[id]
	if j == nil || len(query) != 1 {
		return "", g.invalid("request_id", "INVALID_REQUEST_ID", "request %q is not known", id)
	}
	since := j.at
	if !j.polled.IsZero() {
		since = j.polled
	}
	if d := g.Steady().Sub(since); d < 30*time.Second {
		if j.hasty++; j.hasty > 3 { // who was stopped while asking may ask again
			g.Violate("the status of a request was asked for after %v", d)
		}
	}
	j.polled = g.Steady()
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
