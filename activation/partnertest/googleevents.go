package partnertest

import (
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
)

// GoogleEvents is a fake of Google's Data Manager API for events, and of its token endpoint. It counts an event once by its
// transaction id, as a conversion action does.
type GoogleEvents struct {
	googleAccess
	*Crowd

	options  GoogleEventsOptions
	serial   int
	jobs     map[string]*googleEventsJob
	pending  []string
	expected map[string]activation.Event
	messages map[string]string // transaction id → message id
	counted  map[string]bool   // transaction ids
	refuse   map[string]bool
	recent   map[string]bool // messages whose click is too recent
	europe   map[Key]bool
}

// GoogleEventsOptions are what a fake may do in more than one way.
type GoogleEventsOptions struct {
	ServiceAccount bool          // the credential is one
	AccountType    string        // GOOGLE_ADS, FLOODLIGHT_CONFIG or GOOGLE_ANALYTICS_PROPERTY, with a web data stream
	OrderIDs       bool          // orders are known by their own ids
	Working        time.Duration // for which requests are worked on: 20 min
	Batch          int           // events in a request: 10
}

// googleEventsJob is a request that is worked on.
type googleEventsJob struct {
	googleRequest
	transactions []string
	denied       map[string]bool
	failed       map[string]int // how many were refused, by reason
}

// NewGoogleEvents starts a fake that lives as long as the test.
func NewGoogleEvents(t testing.TB, o GoogleEventsOptions) *GoogleEvents {
	t.Helper()
	if o.AccountType == "" {
		o.AccountType = "GOOGLE_ADS"
	}
	if o.Working == 0 {
		o.Working = 20 * time.Minute
	}
	if o.Batch == 0 {
		o.Batch = 10
	}
	g := &GoogleEvents{
		googleAccess: googleAccess{service: o.ServiceAccount, dead: map[string]int{}},
		options:      o, jobs: map[string]*googleEventsJob{}, expected: map[string]activation.Event{}, messages: map[string]string{},
		counted: map[string]bool{}, refuse: map[string]bool{}, recent: map[string]bool{}, europe: map[Key]bool{},
	}
	g.Crowd = NewCrowd(g.Violate, GoogleOptions{}.recognise)
	g.Changes(func(r *http.Request) bool { return r.URL.Path == "/v1/events:ingest" })
	g.URL = g.Listen(t, http.HandlerFunc(g.handle))
	return g
}

const googleAction = "7123456789"

// stream is what takes the events.
func (g *GoogleEvents) stream() string {
	if g.analytics() {
		return "G-ABCDEF1234"
	}
	return googleAction
}

func (g *GoogleEvents) analytics() bool { return g.options.AccountType == "GOOGLE_ANALYTICS_PROPERTY" }

// Settings implements [EventFake]. There is no access token yet.
func (g *GoogleEvents) Settings() activation.Settings {
	config := map[string]any{
		"account_type": g.options.AccountType, "account_id": googleAccount, "login_account_type": g.options.AccountType,
		"login_account_id": googleManager, "product_destination_id": g.stream(), "batch": g.options.Batch, "api_url": g.URL,
		"token_url": g.URL + "/token",
	}
	if g.options.OrderIDs {
		config["transaction_id"] = "order_id"
	}
	return g.settings(config)
}

// Seed implements [EventFake].
func (g *GoogleEvents) Seed(people ...activation.Person) {
	g.Crowd.Seed(people...)
	g.guard.Lock()
	defer g.guard.Unlock()
	for _, p := range people {
		for _, k := range (GoogleOptions{}).recognise(p).Keys {
			g.europe[k] = slices.Contains(googleEurope, p.Text("country"))
		}
	}
}

// Expect implements [EventFake].
func (g *GoogleEvents) Expect(events ...activation.Event) {
	g.guard.Lock()
	defer g.guard.Unlock()
	for _, e := range events {
		var of struct {
			OrderID string `json:"order_id"`
		}
		id := e.MessageID
		if g.options.OrderIDs && json.Unmarshal(e.Properties, &of) == nil && of.OrderID != "" {
			id = of.OrderID
		}
		g.expected[id], g.messages[id] = e, e.MessageID
	}
}

// Received implements [EventFake].
func (g *GoogleEvents) Received() []string {
	g.guard.Lock()
	defer g.guard.Unlock()
	g.work()
	ids := map[string]bool{}
	for id := range g.counted {
		ids[g.messages[id]] = true
	}
	return slices.Sorted(maps.Keys(ids))
}

// RefuseEvent implements [EventFake].
func (g *GoogleEvents) RefuseEvent(messageID string, refuse bool) {
	g.guard.Lock()
	defer g.guard.Unlock()
	g.refuse[messageID] = refuse
}

// Recent has the fake find the click before an event too recent, or not any more.
func (g *GoogleEvents) Recent(messageID string, recent bool) {
	g.guard.Lock()
	defer g.guard.Unlock()
	g.recent[messageID] = recent
}

// Unasked returns how many requests were accepted whose status nobody has asked for.
func (g *GoogleEvents) Unasked() (n int) {
	g.guard.Lock()
	defer g.guard.Unlock()
	for _, j := range g.jobs {
		if j.unasked() {
			n++
		}
	}
	return n
}

// Words implements [EventFake].
func (g *GoogleEvents) Words() Words {
	w := g.googleAccess.Words()
	w.TooLarge = googleFault(400, "INVALID_ARGUMENT", googleDetail("BadRequest",
		`"fieldViolations":[{"field":"events","description":"Too many.","reason":"TOO_MANY_EVENTS"}]`))
	w.Missing = googleFault(400, "INVALID_ARGUMENT", googleDetail("BadRequest",
		`"fieldViolations":[{"field":"destinations[0].product_destination_id","description":"No.","reason":"INVALID_CONVERSION_ACTION_ID"}]`))
	return w
}

// work counts the events of requests that were taken in long enough ago.
func (g *GoogleEvents) work() {
	for len(g.pending) > 0 {
		j := g.jobs[g.pending[0]]
		if g.Steady().Sub(j.at) < g.options.Working {
			break
		}
		for _, id := range j.transactions {
			switch {
			case j.denied[id]:
				j.failed["REASON_DENIED_CONSENT"]++
			case g.recent[g.messages[id]]:
				j.failed["REASON_TOO_RECENT_CLICK"]++
			case g.counted[id]:
				j.failed["REASON_DUPLICATE_TRANSACTION_ID"]++
			default:
				g.counted[id] = true
			}
		}
		j.done = true
		g.pending = g.pending[1:]
	}
}

func (g *GoogleEvents) handle(w http.ResponseWriter, r *http.Request) {
	begin := func([]byte) (end func()) { return func() {} }
	g.serve(w, r, begin, func(body []byte) (string, *googleRefusal) {
		g.work()
		switch path := r.URL.Path; {
		case r.Method == http.MethodPost && path == "/v1/events:ingest":
			return g.take(w, body)
		case r.Method == http.MethodGet && path == "/v1/requestStatus:retrieve":
			return g.tell(r.URL.Query())
		default:
			return "", g.unknown(r)
		}
	})
}

// googleEvents is the body of events:ingest.
type googleEvents struct {
	Destinations []googleDestination `json:"destinations"`
	Events       []googleEvent       `json:"events"`
	Encoding     string              `json:"encoding"`
	Validate     bool                `json:"validateOnly"`
}

type googleEvent struct {
	References  []string  `json:"destinationReferences"`
	Transaction string    `json:"transactionId"`
	Timestamp   time.Time `json:"eventTimestamp"`
	Source      string    `json:"eventSource"`
	Name        string    `json:"eventName"`
	UserData    *struct {
		IDs []googleIdentifier `json:"userIdentifiers"`
	} `json:"userData"`
	Consent *googleConsents `json:"consent"`
	Ad      struct {
		Session string `json:"sessionAttributes"`
		GCLID   string `json:"gclid"`
		GBRAID  string `json:"gbraid"`
		WBRAID  string `json:"wbraid"`
		DCLID   string `json:"dclid"`
		Match   string `json:"matchId"`
		Device  string `json:"mobileDeviceId"`
	} `json:"adIdentifiers"`
	ClientID   string         `json:"clientId"`
	AppID      string         `json:"appInstanceId"`
	UserID     string         `json:"userId"`
	Currency   string         `json:"currency"`
	Value      jsontext.Value `json:"conversionValue"`
	Count      jsontext.Value `json:"conversionCount"`
	Properties struct {
		Type  string `json:"customerType"`
		Value string `json:"customerValueBucket"`
	} `json:"userProperties"`
	Cart *struct {
		Merchant string         `json:"merchantId"`
		Label    string         `json:"merchantFeedLabel"`
		Language string         `json:"merchantFeedLanguageCode"`
		Discount jsontext.Value `json:"transactionDiscount"`
		Coupons  []string       `json:"couponCodes"`
		Items    []googleItem   `json:"items"`
	} `json:"cartData"`
	Device struct {
		UserAgent string `json:"userAgent"`
		IP        string `json:"ipAddress"`
	} `json:"eventDeviceInfo"`
	Variables []struct {
		Variable string `json:"variable"`
		Value    string `json:"value"`
	} `json:"customVariables"`
	Parameters []googleParameter `json:"additionalEventParameters"`
}

type googleItem struct {
	ProductID  string            `json:"merchantProductId"`
	ID         string            `json:"itemId"`
	Quantity   string            `json:"quantity"`
	UnitPrice  jsontext.Value    `json:"unitPrice"`
	Parameters []googleParameter `json:"additionalItemParameters"`
}

type googleParameter struct {
	Name  string `json:"parameterName"`
	Value string `json:"value"`
}

// take takes in a request about events.
func (g *GoogleEvents) take(w http.ResponseWriter, body []byte) (string, *googleRefusal) {
	var m googleEvents
	if err := json.Unmarshal(body, &m, json.RejectUnknownMembers(true)); err != nil {
		g.Violate("the body cannot be read: %v", err)
		return "", &googleRefusal{status: 400, code: "INVALID_ARGUMENT", why: "Invalid JSON payload received. Unknown name."}
	}
	d, refusal := g.one(m.Destinations, g.options.AccountType)
	if refusal != nil {
		return "", refusal
	}
	switch n := len(m.Events); {
	case d.List != g.stream():
		return "", g.invalid("destinations[0].product_destination_id", "INVALID_CONVERSION_ACTION_ID", "%q is not there", d.List)
	case n == 0:
		return "", g.invalid("events", "REQUIRED_FIELD_MISSING", "there are none")
	case n > 2000:
		return "", g.invalid("events", "TOO_MANY_EVENTS", "%d events", n)
	case m.Encoding != "HEX":
		return "", g.invalid("encoding", "REQUIRED_FIELD_MISSING", "encoding %q, want HEX", m.Encoding)
	}
	job := &googleEventsJob{googleRequest: g.request(w), denied: map[string]bool{}, failed: map[string]int{}}
	for i, e := range m.Events {
		field := fmt.Sprintf("events.events[%d]", i)
		if refusal := g.event(field, d, e); refusal != nil {
			return "", refusal
		}
		if m.Validate {
			continue
		}
		if g.refuse[g.messages[e.Transaction]] {
			return "", &googleRefusal{400, "INVALID_ARGUMENT", field, "INVALID_EVENT", "Not this one."}
		}
		g.compare(field, e)
		for _, k := range e.keys() {
			if g.europe[k] && !e.Consent.granted() {
				g.Violate("%s is somebody in Europe of whom not both consents were granted", field)
				job.denied[e.Transaction] = true
				break
			}
		}
		job.transactions = append(job.transactions, e.Transaction)
	}
	if m.Validate {
		return `{}`, nil
	}
	g.serial++
	id := fmt.Sprintf("request-%d", g.serial)
	g.jobs[id], g.pending = job, append(g.pending, id)
	return fmt.Sprintf(`{"requestId":%q}`, id), nil
}

func (e googleEvent) keys() (keys []Key) {
	if e.UserData != nil {
		for _, id := range e.UserData.IDs {
			keys = append(keys, id.key())
		}
	}
	return keys
}

var (
	googleSources  = []string{"WEB", "APP", "IN_STORE", "PHONE", "MESSAGE", "OTHER"}
	googleCurrency = regexp.MustCompile(`^[A-Z]{3}$`)
	googleQuantity = regexp.MustCompile(`^[0-9]*$`)
	googleName     = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_]{0,39}$`)
)

// event checks the form of one event.
func (g *GoogleEvents) event(field string, d googleDestination, e googleEvent) *googleRefusal {
	if refusal := g.addressed(field, d, e.References, e.Consent); refusal != nil {
		return refusal
	}
	oldest := 63 * 24 * time.Hour
	if g.analytics() {
		oldest = 72 * time.Hour
	}
	age := g.Now().Sub(e.Timestamp)
	switch {
	case e.Transaction == "":
		g.Violate("%s has no transaction id: if it comes again it counts twice", field)
	case e.Timestamp.IsZero():
		return g.invalid(field+".event_timestamp", "REQUIRED_FIELD_MISSING", "there is none")
	case (age > oldest || age < -10*time.Minute) && !g.Skewed():
		return g.invalid(field+".event_timestamp", "EVENT_TIME_INVALID", "it is %v old", age)
	case !slices.Contains(googleSources, e.Source):
		return g.invalid(field+".event_source", "INVALID_ENUM_VALUE", "%q is no source", e.Source)
	case e.Currency != "" && !googleCurrency.MatchString(e.Currency):
		return g.invalid(field+".currency", "INVALID_CURRENCY_CODE", "%q is none", e.Currency)
	case e.Properties.Type != "" && !slices.Contains([]string{"NEW", "RETURNING", "REENGAGED"}, e.Properties.Type):
		return g.invalid(field+".user_properties.customer_type", "INVALID_ENUM_VALUE", "%q is none", e.Properties.Type)
	case e.Properties.Value != "" && !slices.Contains([]string{"LOW", "MEDIUM", "HIGH"}, e.Properties.Value):
		return g.invalid(field+".user_properties.customer_value_bucket", "INVALID_ENUM_VALUE", "%q is none", e.Properties.Value)
	}
	for name, v := range map[string]jsontext.Value{"conversion_value": e.Value, "conversion_count": e.Count} {
		if v != nil && v.Kind() != '0' {
			return g.invalid(field+"."+name, "INVALID_NUMBER_FORMAT", "%s is no number", v)
		}
	}
	if ip := e.Device.IP; ip != "" {
		if _, err := netip.ParseAddr(ip); err != nil {
			return g.invalid(field+".event_device_info.ip_address", "INVALID_FORMAT", "%q is no address", ip)
		}
		for _, k := range e.keys() {
			if g.europe[k] {
				g.Violate("%s has the IP address of somebody in Europe", field)
			}
		}
	}
	if refusal := g.whose(field, e); refusal != nil {
		return refusal
	}
	return g.cart(field, e)
}

// whose checks what an event may be recognised by.
func (g *GoogleEvents) whose(field string, e googleEvent) *googleRefusal {
	clicks := 0
	for _, id := range []string{e.Ad.GCLID, e.Ad.GBRAID, e.Ad.WBRAID} {
		if id != "" {
			clicks++
		}
	}
	if clicks > 1 {
		g.Violate("%s has %d ids of clicks, want one", field, clicks)
	}
	if id := e.Ad.Device; id != "" && !googleDevice.MatchString(id) {
		return g.invalid(field+".ad_identifiers.mobile_device_id", "INVALID_MOBILE_ID_FORMAT", "%.12q", id)
	}
	keys := e.keys()
	if e.UserData != nil && len(keys) == 0 {
		return g.invalid(field+".user_data.user_identifiers", "REQUIRED_FIELD_MISSING", "there is none")
	}
	if len(keys) > 10 {
		return g.invalid(field+".user_data.user_identifiers", "TOO_MANY_USER_IDENTIFIERS", "%d identifiers", len(keys))
	}
	for i, k := range keys {
		if slices.Contains(keys[:i], k) {
			g.Violate("%s has %s twice", field, k)
		}
		if refusal := g.identifier(field+".user_data.user_identifiers", e.UserData.IDs[i]); refusal != nil {
			return refusal
		}
	}
	ad := e.Ad
	ad.Session = ""
	inAd := ad != googleEvent{}.Ad
	switch {
	case g.analytics() && e.ClientID != "" && e.AppID != "":
		return g.invalid(field, "BOTH_CLIENT_ID_AND_APP_INSTANCE_ID_NOT_ALLOWED", "both are there")
	case g.analytics() && e.ClientID == "":
		return g.invalid(field+".client_id", "REQUIRED_FIELD_MISSING", "there is none")
	case g.analytics() && !googleName.MatchString(e.Name):
		return g.invalid(field+".event_name", "INVALID_EVENT_NAME", "%q is none", e.Name)
	case g.analytics() && len(e.Variables) > 0:
		g.Violate("%s has custom variables, which Google Analytics does not know", field)
	case g.analytics():
	case g.options.AccountType == "FLOODLIGHT_CONFIG" && !inAd, len(keys) == 0 && !inAd:
		return g.invalid(field, "NO_IDENTIFIERS_PROVIDED", "there is nothing to know it by")
	case e.Name+e.ClientID+e.AppID+e.UserID != "" || len(e.Parameters) > 0:
		g.Violate("%s has what only Google Analytics knows", field)
	}
	return nil
}

// cart checks the cart of an event.
func (g *GoogleEvents) cart(field string, e googleEvent) *googleRefusal {
	if e.Cart == nil {
		return nil
	}
	if e.Ad.GBRAID+e.Ad.WBRAID != "" {
		g.Violate("%s has a cart, which is not supported with gbraid or wbraid", field)
	}
	if v := e.Cart.Discount; v != nil && v.Kind() != '0' {
		return g.invalid(field+".cart_data.transaction_discount", "INVALID_NUMBER_FORMAT", "%s is no number", v)
	}
	for i, item := range e.Cart.Items {
		at := fmt.Sprintf("%s.cart_data.items[%d]", field, i)
		switch {
		case !googleQuantity.MatchString(item.Quantity):
			return g.invalid(at+".quantity", "INVALID_NUMBER_FORMAT", "%q is no number", item.Quantity)
		case item.UnitPrice != nil && item.UnitPrice.Kind() != '0':
			return g.invalid(at+".unit_price", "INVALID_NUMBER_FORMAT", "%s is no number", item.UnitPrice)
		case !g.analytics() && item.ProductID == "":
			g.Violate("%s has no product id of Merchant Center", at)
		case g.analytics() && item.ID == "":
			g.Violate("%s has no item id", at)
		case !g.analytics() && len(item.Parameters) > 0:
			g.Violate("%s has parameters, which only Google Analytics knows", at)
		}
	}
	return nil
}

// compare holds an event against what happened.
func (g *GoogleEvents) compare(field string, e googleEvent) {
	want, ok := g.expected[e.Transaction]
	if !ok {
		g.Violate("%s: transaction %q was never heard of", field, e.Transaction)
		return
	}
	keys := e.keys()
	if len(keys) > 0 {
		g.Check(field, keys...)
		theirs := GoogleOptions{}.recognise(want.Person).Keys
		for _, k := range keys {
			if !slices.Contains(theirs, k) {
				g.Violate("%s has the identifiers of another person than the one whose event it is", field)
			}
		}
	}
	if !e.Timestamp.Equal(want.Timestamp) {
		g.Violate("%s happened at %v, not %v", field, want.Timestamp, e.Timestamp)
	}
	var context struct {
		Page struct {
			URL string `json:"url"`
		} `json:"page"`
	}
	_ = json.Unmarshal(want.Context.Raw, &context) // one that says nothing has no click
	if page, err := url.Parse(context.Page.URL); err == nil && page.Query().Get("gclid") != e.Ad.GCLID {
		g.Violate("%s comes from click %q, not %q", field, page.Query().Get("gclid"), e.Ad.GCLID)
	}
	var order struct {
		Total    jsontext.Value `json:"total"`
		Currency string         `json:"currency"`
		Products []struct {
			ID       string         `json:"product_id"`
			Price    jsontext.Value `json:"price"`
			Quantity jsontext.Value `json:"quantity"`
		} `json:"products"`
	}
	if want.Name != "Order Completed" || json.Unmarshal(want.Properties, &order) != nil {
		return
	}
	if string(e.Value) != string(order.Total) || e.Currency != order.Currency {
		g.Violate("%s is worth %s %s, not %s %s", field, order.Total, order.Currency, e.Value, e.Currency)
	}
	if e.Cart == nil || len(e.Cart.Items) != len(order.Products) {
		g.Violate("%s does not have the %d products of the order", field, len(order.Products))
		return
	}
	for i, p := range order.Products {
		if item := e.Cart.Items[i]; item.ID != p.ID || string(item.UnitPrice) != string(p.Price) || item.Quantity != string(p.Quantity) {
			g.Violate("%s has another item %d than the order", field, i)
		}
	}
}

// tell says what became of a request.
func (g *GoogleEvents) tell(query url.Values) (string, *googleRefusal) {
	id := query.Get("requestId")
	j := g.jobs[id]
	if j == nil || len(query) != 1 {
		return "", g.invalid("request_id", "INVALID_REQUEST_ID", "request %q is not known", id)
	}
	g.poll(&j.googleRequest)
	state, counts := "PROCESSING", ""
	if j.done {
		var failed []string
		n := 0
		for _, reason := range slices.Sorted(maps.Keys(j.failed)) {
			n += j.failed[reason]
			failed = append(failed, fmt.Sprintf(`{"recordCount":"%d","reason":"PROCESSING_ERROR_%s"}`, j.failed[reason], reason))
		}
		counts = fmt.Sprintf(`,"errorInfo":{"errorCounts":[%s]}`, strings.Join(failed, ","))
		switch n {
		case 0:
			state, counts = "SUCCESS", ""
		case len(j.transactions):
			state = "FAILED"
		default:
			state = "PARTIAL_SUCCESS"
		}
	}
	return fmt.Sprintf(`{"requestStatusPerDestination":[{"destination":{"reference":"events","productDestinationId":%q},`+
		`"requestStatus":%q%s,"eventsIngestionStatus":{"recordCount":"%d"}}]}`, g.stream(), state, counts, len(j.transactions)), nil
}
