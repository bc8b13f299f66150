package partnertest

import (
	"fmt"
	"io"
	"net/http"
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

// Microsoft is a fake of the Campaign Management API 13 of Microsoft Advertising, as far as it concerns customer lists, and
// of the token endpoint.
type Microsoft struct {
	Faults
	URL      string // of the API, with its version
	TokenURL string

	*Crowd
	options MicrosoftOptions

	mu        sync.Mutex
	lists     []microsoftList
	taken     map[string]bool // list, action and item → it was taken of a message of which others were refused
	access    string
	refresh   string
	ends      time.Time
	dead      map[string]int // tokens that ended → how often they were used since
	revoked   bool
	refreshes int
}

// MicrosoftOptions are what a fake may do in more than one way.
type MicrosoftOptions struct {
	Identifier  string // email by default, phone, crm
	PhoneFormat string // e164_plus by default, digits
	TermsOpen   bool   // nobody has accepted them in the web interface
	AcceptTerms bool   // the destination does
	MaxItems    int    // 1,000 by default
}

// What the fake wants in headers.
const (
	MicrosoftDeveloperToken = "ABC123DEF456"
	MicrosoftCustomer       = "1111"
	MicrosoftAccount        = "2222"
)

const (
	microsoftAPI    = "/CampaignManagement/v13"
	microsoftTokens = "/common/oauth2/v2.0/token"
	microsoftList1  = 814_123_456
)

type microsoftList struct{ id, name string }

// NewMicrosoft starts a fake that lives as long as the test.
func NewMicrosoft(t testing.TB, o MicrosoftOptions) *Microsoft {
	t.Helper()
	f := &Microsoft{
		options: o, access: "access-token-0", refresh: "refresh-token-0", ends: time.Now().Add(time.Hour),
		dead: map[string]int{}, taken: map[string]bool{},
	}
	if o.MaxItems == 0 {
		f.options.MaxItems = 1000
	}
	f.Crowd = NewCrowd(f.Violate, f.derive)
	f.Changes(func(r *http.Request) bool { return r.URL.Path == microsoftAPI+"/CustomerListUserData/Apply" })
	at := f.Listen(t, http.HandlerFunc(f.handle))
	f.URL, f.TokenURL = at+microsoftAPI, at+microsoftTokens
	return f
}

// Settings implements [Fake].
func (f *Microsoft) Settings() activation.Settings {
	f.mu.Lock()
	defer f.mu.Unlock()
	config := map[string]any{
		"customer_id": MicrosoftCustomer, "account_id": MicrosoftAccount, "client_id": "client-1", "api_url": f.URL, "token_url": f.TokenURL,
	}
	if f.options.Identifier != "" {
		config["identifier"] = f.options.Identifier
	}
	if f.options.PhoneFormat != "" {
		config["phone_format"] = f.options.PhoneFormat
	}
	if f.options.AcceptTerms {
		config["accept_terms"] = true
	}
	text, err := json.Marshal(config, json.Deterministic(true))
	if err != nil {
		panic(err)
	}
	return activation.Settings{Config: text, Secrets: jsontext.Value(fmt.Sprintf(
		`{"developer_token":%q,"refresh_token":%q,"access_token":%q}`, MicrosoftDeveloperToken, f.refresh, f.access))}
}

// List makes a customer list, as somebody does with Microsoft's own tools.
func (f *Microsoft) List(name string) (id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.make(name)
}

// Lists returns the names of all lists.
func (f *Microsoft) Lists() (names []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range f.lists {
		names = append(names, l.name)
	}
	return names
}

func (f *Microsoft) make(name string) (id string) {
	id = strconv.Itoa(microsoftList1 + len(f.lists))
	f.lists = append(f.lists, microsoftList{id, name})
	f.Make(id)
	return id
}

// Members implements [Fake].
func (f *Microsoft) Members(a Audience) []activation.ProfileID { return f.Crowd.Members(a.ID) }

// Leftovers implements [Fake].
func (f *Microsoft) Leftovers(a Audience) []string { return f.Crowd.Leftovers(a.ID) }

// Revoke implements [Fake].
func (f *Microsoft) Revoke() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.revoked = true
}

// Heal implements [Fake].
func (f *Microsoft) Heal() {
	f.Faults.Heal()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.revoked = false
}

// Expire implements [Expirer].
func (f *Microsoft) Expire() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ends = f.Steady()
}

// Refreshes implements [Expirer].
func (f *Microsoft) Refreshes() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.refreshes
}

// Words implements [Fake].
func (f *Microsoft) Words() Words {
	said := func(status, code int, name string) Fault {
		return Fault{Status: status, Body: microsoftRefusal(code, name)}
	}
	throttled := said(400, 117, "CallRateExceeded")
	throttled.Wait, throttled.Silent = time.Minute, true
	return Words{
		Throttled: throttled,
		TooLarge:  Fault{Status: 400, Body: microsoftOperation(4303, "BatchSizeExceeded")},
		Forbidden: said(400, 106, "UserIsNotAuthorized"),
		Missing:   Fault{Status: 400, Body: microsoftOperation(4701, "InvalidAudienceId")},
		Passing: []Fault{
			said(400, 207, "ConcurrentRequestOverLimit"), said(500, 0, "InternalError"), said(400, 0, "InternalError"),
			{Status: 200, Body: page},
		},
	}
}

func microsoftRefusal(code int, name string) string {
	return fmt.Sprintf(`{"Errors":[{"Code":%d,"ErrorCode":%q,"Message":"%s.","Detail":""}],`+
		`"TrackingId":"7f0c","Type":"AdApiFaultDetail"}`, code, name, name)
}

func microsoftOperation(code int, name string) string {
	return fmt.Sprintf(`{"BatchErrors":[],"OperationErrors":[{"Code":%d,"ErrorCode":%q,"Message":"%s.","Details":""}],`+
		`"TrackingId":"7f0c","Type":"ApiFaultDetail"}`, code, name, name)
}

// derive is what Microsoft knows a person by.
func (f *Microsoft) derive(p activation.Person) (is Recognised) {
	is.Mistakes = map[Key]string{}
	add := func(kind, text string, others map[string]string) {
		is.Keys = append(is.Keys, Key{kind, Hex(text)})
		for k, mistake := range HexMistakes(kind, text, others) {
			is.Mistakes[k] = mistake
		}
	}
	switch f.options.Identifier {
	case "crm":
		for _, id := range texts(p, "user_id", "external_id") {
			is.Keys = append(is.Keys, Key{"CRM", id})
			is.Mistakes[Key{"CRM", Hex(id)}] = "is hashed"
		}
	case "phone":
		for _, raw := range texts(p, "phone", "phone") {
			digits := regexp.MustCompile(`[^0-9]`).ReplaceAllString(raw, "")
			if f.options.PhoneFormat == "digits" {
				add("Phone", digits, map[string]string{"+" + digits: "has a plus sign"})
			} else {
				add("Phone", "+"+digits, map[string]string{digits: "lacks its plus sign"})
			}
		}
	default:
		for _, raw := range texts(p, "email", "email") {
			text := strings.ToLower(strings.TrimSpace(raw))
			local, domain, _ := strings.Cut(text, "@")
			others := map[string]string{strings.ReplaceAll(local, ".", "") + "@" + domain: "lacks its dots"}
			if untagged, _, ok := strings.Cut(local, "+"); ok {
				others[untagged+"@"+domain] = "lacks its tag"
			}
			if trimmed := strings.TrimSpace(raw); trimmed != text {
				others[trimmed] = "has capital letters in it"
			}
			delete(others, text)
			add("Email", text, others)
		}
	}
	return is
}

// microsoftFault is an answer that is not well.
type microsoftFault struct {
	status int
	body   string
}

func (f *Microsoft) wrong(fault *microsoftFault, format string, args ...any) *microsoftFault {
	f.Violate(format, args...)
	return fault
}

func (f *Microsoft) handle(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	if r.URL.Path == microsoftAPI+"/CustomerListUserData/Apply" {
		if done := f.occupy(body); done != nil {
			defer done()
			time.Sleep(time.Millisecond) // for whoever comes too early
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.Inspect(r, body)
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	if r.Method == http.MethodPost && r.URL.Path == microsoftTokens {
		r.Body = io.NopCloser(strings.NewReader(string(body)))
		f.giveToken(w, r)
		return
	}
	route := map[string]func([]byte) (string, *microsoftFault){
		"/CustomerListUserData/Apply": f.apply,
		"/Audiences":                  f.add,
		"/Audiences/QueryByIds":       f.query,
	}[strings.TrimPrefix(r.URL.Path, microsoftAPI)]
	if r.Method != http.MethodPost || route == nil || !strings.HasPrefix(r.URL.Path, microsoftAPI) || r.URL.RawQuery != "" {
		f.Violate("%s %s is not known", r.Method, r.URL.Path)
		http.NotFound(w, r)
		return
	}
	answer, fault := "", f.admit(r)
	if fault == nil {
		answer, fault = route(body)
	}
	if fault != nil {
		w.WriteHeader(fault.status)
		io.WriteString(w, fault.body)
		return
	}
	io.WriteString(w, answer)
}

func (f *Microsoft) giveToken(w http.ResponseWriter, r *http.Request) {
	refuse := func(code string) {
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprintf(w, `{"error":%q,"error_description":"AADSTS70000: no."}`, code)
	}
	if err := r.ParseForm(); err != nil || r.Header.Get("Content-Type") != "application/x-www-form-urlencoded" {
		f.Violate("the token endpoint was sent no form")
		refuse("invalid_request")
		return
	}
	for name, want := range map[string]string{
		"client_id": "client-1", "grant_type": "refresh_token", "scope": "https://ads.microsoft.com/msads.manage offline_access",
	} {
		if r.PostForm.Get(name) != want {
			f.Violate("the form's %s is %q, want %q", name, r.PostForm.Get(name), want)
			refuse("invalid_request")
			return
		}
	}
	switch given := r.PostForm.Get("refresh_token"); {
	case f.revoked:
		refuse("invalid_grant")
		return
	case given != f.refresh:
		f.Violate("a refresh token came that was replaced: the new one was not kept")
		refuse("invalid_grant")
		return
	}
	f.refreshes++
	f.access, f.refresh = fmt.Sprintf("access-token-%d", f.refreshes), fmt.Sprintf("refresh-token-%d", f.refreshes)
	f.ends = f.Steady().Add(time.Hour)
	fmt.Fprintf(w, `{"token_type":"Bearer","scope":"https://ads.microsoft.com/msads.manage","expires_in":3600,`+
		`"access_token":%q,"refresh_token":%q}`, f.access, f.refresh)
}

func (f *Microsoft) admit(r *http.Request) *microsoftFault {
	unauthorized := &microsoftFault{http.StatusBadRequest, microsoftRefusal(106, "UserIsNotAuthorized")}
	invalid := &microsoftFault{http.StatusUnauthorized, microsoftRefusal(105, "InvalidCredentials")}
	token, bearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	switch {
	case !bearer || token == "":
		return f.wrong(invalid, "the header Authorization is not there")
	case f.revoked:
		return invalid
	case token != f.access || !f.Steady().Before(f.ends):
		if f.dead[token]++; f.dead[token] > 8 && !f.Skewed() { // what was under way may use it once each
			f.Violate("a token that has ended goes on being used")
		}
		return &microsoftFault{http.StatusUnauthorized, microsoftRefusal(109, "AuthenticationTokenExpired")}
	case r.Header.Get("DeveloperToken") != MicrosoftDeveloperToken:
		return f.wrong(invalid, "the header DeveloperToken is wrong")
	case r.Header.Get("CustomerId") == MicrosoftAccount || r.Header.Get("CustomerAccountId") == MicrosoftCustomer:
		return f.wrong(unauthorized, "customer and account are swapped")
	case r.Header.Get("CustomerId") == "" || r.Header.Get("CustomerAccountId") == "":
		return f.wrong(unauthorized, "the headers CustomerId and CustomerAccountId are not both there")
	case r.Header.Get("CustomerId") != MicrosoftCustomer || r.Header.Get("CustomerAccountId") != MicrosoftAccount:
		return unauthorized
	case r.Header.Get("Content-Type") != "application/json":
		return f.wrong(f.invalid(), "the body is %q, want application/json", r.Header.Get("Content-Type"))
	}
	return nil
}

func (*Microsoft) invalid() *microsoftFault {
	return &microsoftFault{http.StatusBadRequest, microsoftOperation(100, "InvalidRequest")}
}

type microsoftApplication struct {
	Data struct {
		Audience string   `json:"AudienceId"`
		Action   string   `json:"ActionType"`
		Kind     string   `json:"CustomerListItemSubType"`
		Items    []string `json:"CustomerListItems"`
		Accept   *bool    `json:"AcceptCustomerMatchTerm"`
	} `json:"CustomerListUserData"`
}

func (f *Microsoft) occupy(body []byte) (done func()) {
	var m microsoftApplication
	if json.Unmarshal(body, &m) != nil {
		return nil
	}
	var keys []Key
	for _, item := range m.Data.Items {
		keys = append(keys, Key{m.Data.Kind, item})
	}
	return f.Occupy(m.Data.Audience, m.Data.Action == "Add", keys...)
}

var microsoftHash = regexp.MustCompile(`^[0-9a-f]{64}$`)

func (f *Microsoft) apply(body []byte) (string, *microsoftFault) {
	var m microsoftApplication
	if err := json.Unmarshal(body, &m, json.RejectUnknownMembers(true)); err != nil {
		return "", f.wrong(f.invalid(), "the body cannot be read: %v", err)
	}
	d := m.Data
	kind := map[string]string{"": "Email", "email": "Email", "phone": "Phone", "crm": "CRM"}[f.options.Identifier]
	switch {
	case d.Action != "Add" && d.Action != "Remove":
		return "", f.wrong(f.invalid(), "ActionType is %q", d.Action)
	case d.Kind != kind:
		return "", f.wrong(f.invalid(), "CustomerListItemSubType is %q, want %s", d.Kind, kind)
	case len(d.Items) == 0:
		return "", f.wrong(f.invalid(), "there are no items")
	case len(d.Items) > f.options.MaxItems:
		return "", f.wrong(&microsoftFault{http.StatusBadRequest, microsoftOperation(4303, "BatchSizeExceeded")},
			"there are %d items, want at most %d", len(d.Items), f.options.MaxItems)
	case d.Accept != nil && !*d.Accept, d.Accept == nil && f.options.TermsOpen:
		return "", &microsoftFault{http.StatusBadRequest, microsoftOperation(8003, "CustomerListTermsAndConditionsNotAccepted")}
	case !f.Has(d.Audience):
		return "", &microsoftFault{http.StatusBadRequest, microsoftOperation(4701, "InvalidAudienceId")}
	}
	var refused, taken []string
	for i, item := range d.Items {
		if f.takes(d.Kind, i, item) {
			taken = append(taken, item)
			continue
		}
		refused = append(refused, fmt.Sprintf(`{"Index":%d,"Code":4099,"ErrorCode":"InvalidCustomerListItem",`+
			`"FieldPath":"CustomerListItems","Message":"The item is not valid.","Type":"BatchError"}`, i))
	}
	opposite := map[string]string{"Add": "Remove", "Remove": "Add"}[d.Action]
	for _, item := range taken {
		if f.taken[d.Audience+d.Action+item] {
			f.Violate("an item that was taken is sent again because others were refused")
		}
		delete(f.taken, d.Audience+opposite+item)
		if len(refused) > 0 {
			f.taken[d.Audience+d.Action+item] = true
		}
		f.Apply(d.Audience, d.Action == "Add", f.Steady(), Key{d.Kind, item})
	}
	return `{"PartialErrors":[` + strings.Join(refused, ",") + `]}`, nil
}

// takes tells whether an item is taken, and notes what is wrong with it.
func (f *Microsoft) takes(kind string, i int, item string) bool {
	where := fmt.Sprintf("item %d", i)
	if kind == "CRM" {
		if microsoftHash.MatchString(item) || strings.Contains(item, "@") {
			f.Violate("%s: the customer's own id is hashed, or an address", where)
			return false
		}
	} else if !microsoftHash.MatchString(item) {
		f.Violate("%s: %s is no such hash", where, kind)
		return false
	}
	return !f.Check(where, Key{kind, item})
}

func (f *Microsoft) add(body []byte) (string, *microsoftFault) {
	var ask struct {
		Audiences []struct{ Name, Type string } `json:"Audiences"`
	}
	if err := json.Unmarshal(body, &ask, json.RejectUnknownMembers(true)); err != nil || len(ask.Audiences) != 1 {
		return "", f.wrong(f.invalid(), "the body cannot be read, or is not about one list: %v", err)
	}
	one := ask.Audiences[0]
	if one.Type != "CustomerList" || one.Name == "" || len([]rune(one.Name)) > 128 {
		return "", f.wrong(f.invalid(), "Type is %q, and the name has %d characters", one.Type, len(one.Name))
	}
	if slices.ContainsFunc(f.lists, func(l microsoftList) bool { return l.name == one.Name }) {
		f.Violate("a second list %q is made", one.Name)
	}
	return fmt.Sprintf(`{"AudienceIds":[%q],"PartialErrors":[]}`, f.make(one.Name)), nil
}

func (f *Microsoft) query(body []byte) (string, *microsoftFault) {
	var ask struct {
		IDs  []string `json:"AudienceIds"`
		Type string   `json:"Type"`
	}
	if err := json.Unmarshal(body, &ask, json.RejectUnknownMembers(true)); err != nil || len(ask.IDs) > 100 {
		return "", f.wrong(f.invalid(), "the body cannot be read, or is about too many lists: %v", err)
	}
	if ask.Type != "CustomerList" {
		return "", f.wrong(f.invalid(), "Type is %q", ask.Type)
	}
	var found []string
	for _, l := range f.lists {
		if len(ask.IDs) == 0 || slices.Contains(ask.IDs, l.id) {
			found = append(found, fmt.Sprintf(`{"Id":%q,"Name":%q,"Type":"CustomerList","AudienceNetworkSize":%d,"SearchSize":null}`,
				l.id, l.name, f.Size(l.id)))
		}
	}
	if len(ask.IDs) > 0 && len(found) == 0 {
		return `{"Audiences":[null],"PartialErrors":[{"Index":0,"Code":4701,"ErrorCode":"InvalidAudienceId","Type":"BatchError"}]}`, nil
	}
	return `{"Audiences":[` + strings.Join(found, ",") + `],"PartialErrors":[]}`, nil
}
