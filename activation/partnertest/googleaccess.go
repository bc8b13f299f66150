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
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/mubatch/mubatch/activation"
)

// googleAccess is what all fakes of Google's Data Manager API do alike: they give access tokens, let in who has one, and
// refuse in Google's way.
type googleAccess struct {
	Faults
	URL string

	service bool // the credential is that of a service account
	guard   sync.Mutex
	token   string
	ends    time.Time
	dead    map[string]int // tokens that ended → how often they were used since
	revoked bool
	refused int // data calls since the grant was refused
	tokens  int
	asked   []time.Time // of the last minute
}

const (
	googleAccount = "1234567890"
	googleManager = "9876543210"
	googleScope   = "https://www.googleapis.com/auth/datamanager"
	googleParent  = "/v1/accountTypes/GOOGLE_ADS/accounts/" + googleAccount + "/userLists"
)

// googleKey is the key of the service account.
var googleKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

// settings returns those of a destination with a config and the credential. There is no access token yet.
func (g *googleAccess) settings(config map[string]any) activation.Settings {
	secrets := map[string]any{
		"client_id": "4711-shop.apps.googleusercontent.com", "client_secret": "GOCSPX-secret-of-ours", "refresh_token": "1//refresh-token-of-ours",
	}
	if g.service {
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

// Revoke implements [Fake].
func (g *googleAccess) Revoke() {
	g.guard.Lock()
	defer g.guard.Unlock()
	g.revoked = true
}

// Heal implements [Fake].
func (g *googleAccess) Heal() {
	g.Faults.Heal()
	g.guard.Lock()
	defer g.guard.Unlock()
	g.revoked, g.refused = false, 0
}

// Expire implements [Expirer].
func (g *googleAccess) Expire() {
	g.guard.Lock()
	defer g.guard.Unlock()
	g.ends = g.Steady()
}

// Refreshes implements [Expirer].
func (g *googleAccess) Refreshes() int {
	g.guard.Lock()
	defer g.guard.Unlock()
	return g.tokens
}

// Words implements [Fake].
func (g *googleAccess) Words() Words {
	throttled := googleFault(429, "RESOURCE_EXHAUSTED", googleDetail("ErrorInfo", `"reason":"RATE_LIMIT_EXCEEDED","domain":"googleapis.com","metadata":{"quota_limit":"RequestsPerMinutePerProject"}`))
	throttled.Wait, throttled.Silent = time.Minute, true
	return Words{
		Throttled: throttled,
		Wait: func(d time.Duration) Fault {
			f := googleFault(429, "RESOURCE_EXHAUSTED", googleDetail("RetryInfo", fmt.Sprintf(`"retryDelay":"%ds"`, int(d.Seconds()))))
			f.Wait, f.Silent = d, true
			return f
		},
		TooLarge: googleFault(400, "INVALID_ARGUMENT", googleDetail("BadRequest",
			`"fieldViolations":[{"field":"audience_members","description":"Too many.","reason":"TOO_MANY_AUDIENCE_MEMBERS"}]`)),
		Forbidden: googleFault(403, "PERMISSION_DENIED", googleDetail("ErrorInfo", `"reason":"PERMISSION_DENIED","domain":"datamanager.googleapis.com"`)),
		Missing: googleFault(400, "INVALID_ARGUMENT", googleDetail("BadRequest",
			`"fieldViolations":[{"field":"destinations[0].product_destination_id","description":"No.","reason":"INVALID_USER_LIST_ID"}]`)),
		Passing: []Fault{
			googleFault(409, "ABORTED"), googleFault(500, "INTERNAL"), googleFault(503, "UNAVAILABLE"), googleFault(504, "DEADLINE_EXCEEDED"),
			{Status: 200, Body: page},
		},
	}
}

func googleFault(status int, code string, details ...string) Fault {
	return Fault{Status: status, Body: fmt.Sprintf(`{"error":{"code":%d,"message":"No.","status":%q,"details":[%s]}}`,
		status, code, strings.Join(details, ","))}
}

func googleDetail(kind, more string) string {
	return `{"@type":"type.googleapis.com/google.rpc.` + kind + `",` + more + `}`
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
func (g *googleAccess) invalid(field, reason, format string, args ...any) *googleRefusal {
	why := fmt.Sprintf(format, args...)
	g.Violate("%s: %s: %s", field, reason, why)
	return &googleRefusal{400, "INVALID_ARGUMENT", field, reason, why}
}

// unknown is the refusal of what is not there.
func (g *googleAccess) unknown(r *http.Request) *googleRefusal {
	g.Violate("%s %s is not known", r.Method, r.URL.Path)
	return &googleRefusal{status: 404, code: "NOT_FOUND", why: "Not found."}
}

// serve gives a token to who asks for one, and answers all else as answer does, holding the lock, once it has let it in. What
// begin does comes before the lock.
func (g *googleAccess) serve(
	w http.ResponseWriter, r *http.Request, begin func(body []byte) (end func()),
	answer func(body []byte) (string, *googleRefusal),
) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	if r.URL.Path == "/token" {
		g.giveToken(w, r, body)
		return
	}
	g.Inspect(r, body)
	defer begin(body)()
	g.guard.Lock()
	defer g.guard.Unlock()
	refusal := g.admit(r)
	var text string
	if refusal == nil {
		text, refusal = answer(body)
	}
	if refusal != nil {
		refusal.write(w)
		return
	}
	w.Header().Set("Content-Type", "application/json; charset=UTF-8")
	io.WriteString(w, text)
}

// admit checks who asks, and how often.
func (g *googleAccess) admit(r *http.Request) *googleRefusal {
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

func (g *googleAccess) giveToken(w http.ResponseWriter, r *http.Request, body []byte) {
	g.guard.Lock()
	defer g.guard.Unlock()
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
	if g.service {
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
func (g *googleAccess) checkAssertion(token string) error {
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

type googleProduct struct {
	Type string `json:"accountType"`
	ID   string `json:"accountId"`
}

type googleConsents struct {
	UserData        string `json:"adUserData"`
	Personalization string `json:"adPersonalization"`
}

// granted tells whether both consents were given.
func (c *googleConsents) granted() bool {
	return c != nil && c.UserData == "CONSENT_GRANTED" && c.Personalization == "CONSENT_GRANTED"
}

type googleDestination struct {
	Reference string        `json:"reference"`
	Operating googleProduct `json:"operatingAccount"`
	Login     googleProduct `json:"loginAccount"`
	List      string        `json:"productDestinationId"`
}

// one checks where a request goes, in accounts of a type.
func (g *googleAccess) one(all []googleDestination, kind string) (d googleDestination, _ *googleRefusal) {
	if len(all) > 10 {
		return d, g.invalid("destinations", "TOO_MANY_DESTINATIONS", "%d destinations", len(all))
	}
	seen := map[string]bool{}
	for _, d := range all {
		if seen[d.Reference] {
			return d, g.invalid("destinations", "DUPLICATE_DESTINATION_REFERENCE", "%q is there twice", d.Reference)
		}
		seen[d.Reference] = true
	}
	if len(all) != 1 {
		return d, g.invalid("destinations", "REQUIRED_FIELD_MISSING", "%d destinations, want 1", len(all))
	}
	d = all[0]
	if d.Operating != (googleProduct{kind, googleAccount}) || d.Login != (googleProduct{kind, googleManager}) {
		return d, g.invalid("destinations[0].operating_account", "INVALID_DESTINATION", "%v for %v", d.Login, d.Operating)
	}
	return d, nil
}

// addressed checks the destinations and consents of a row.
func (g *googleAccess) addressed(field string, d googleDestination, references []string, c *googleConsents) *googleRefusal {
	for _, ref := range references {
		if ref != d.Reference {
			return g.invalid(field+".destination_references", "INVALID_DESTINATION", "%q is no destination", ref)
		}
	}
	if c == nil {
		return nil
	}
	for _, s := range []string{c.UserData, c.Personalization} {
		if s != "" && s != "CONSENT_GRANTED" && s != "CONSENT_DENIED" {
			return g.invalid(field+".consent", "INVALID_ENUM_VALUE", "%q is no consent", s)
		}
	}
	return nil
}

type googleIdentifier struct {
	Email   string       `json:"emailAddress"`
	Phone   string       `json:"phoneNumber"`
	Address *googlePlace `json:"address"`
}

// key is what an identifier is known by.
func (id googleIdentifier) key() Key {
	switch {
	case id.Email != "":
		return Key{googleEmail, id.Email}
	case id.Phone != "":
		return Key{googlePhone, id.Phone}
	case id.Address != nil:
		a := id.Address
		return Key{googleAddress, strings.Join([]string{a.Given, a.Family, a.Region, a.Postal}, "|")}
	default:
		return Key{}
	}
}

type googlePlace struct {
	Given  string `json:"givenName"`
	Family string `json:"familyName"`
	Region string `json:"regionCode"`
	Postal string `json:"postalCode"`
}

var (
	googleRegion = regexp.MustCompile(`^[A-Z]{2}$`)
	googleHashed = regexp.MustCompile(`^(?i:[0-9a-f]{32,})$`)
)

// identifier checks the form of one user identifier.
func (g *googleAccess) identifier(field string, id googleIdentifier) *googleRefusal {
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

// googleRequest is a request that was taken in to be worked on.
type googleRequest struct {
	at       time.Time
	polled   time.Time
	hasty    int // how often it was asked for too early
	done     bool
	answered bool
}

func (g *googleAccess) request(w http.ResponseWriter) googleRequest {
	_, lost := w.(*discard)
	return googleRequest{at: g.Steady(), answered: !lost}
}

// unasked tells whether nobody has asked what became of a request, although it was accepted.
func (r googleRequest) unasked() bool { return r.answered && r.polled.IsZero() }

// poll notes that somebody asks what became of a request.
func (g *googleAccess) poll(r *googleRequest) {
	since := r.at
	if !r.polled.IsZero() {
		since = r.polled
	}
	if d := g.Steady().Sub(since); d < 30*time.Second {
		if r.hasty++; r.hasty > 3 { // who was stopped while asking may ask again
			g.Violate("the status of a request was asked for after %v", d)
		}
	}
	r.polled = g.Steady()
}
