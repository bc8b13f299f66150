package partnertest

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
)

// TradeDesk is the fake of The Trade Desk's first-party data API, of the platform API that makes tokens for it, and of the
// UID2 or EUID operator.
type TradeDesk struct {
	Faults
	URL string

	options TradeDeskOptions
	crowd   *Crowd
	started time.Time
	turn    atomic.Int64 // how often raw UID2s have been replaced
	open    atomic.Int32 // requests that are being answered

	mu        sync.Mutex
	people    map[activation.ProfileID]activation.Person
	hashes    map[Key]map[activation.ProfileID]bool // what the operator may be asked for → of whom
	mistakes  map[Key]string
	optouts   map[Key]bool // hashes of people who have opted out
	told      map[Key]bool // keys of people of whom the operator has said so
	asked     map[Key]*asking
	nonces    map[string]bool
	forge     int
	names     map[string]bool
	deleted   map[Key]bool
	forgotten map[Key]bool
	partial   map[[32]byte]int
	token     string
	ends      time.Time
	dead      map[string]int
	revoked   bool
	logins    int
}

// TradeDeskOptions are what The Trade Desk may do, or be asked, in more than one way.
type TradeDeskOptions struct {
	Auth     string        // "login", "token" or "signature"
	Scheme   string        // "uid2" or "euid"
	TTL      time.Duration // of the destination: 30 days
	Rotate   time.Duration // after which raw UID2s are others: 20 days
	Millis   bool          // the operator tells times in milliseconds
	FromZero bool          // items are counted from 0
	Terse    bool          // failed lines have numbers, and do not name the identifier
	Batch    int           // people in one message: 10
	MaxBody  int           // what is larger is answered with 413: 64 KB
	Slow     time.Duration // how long an answer takes
	Parallel int           // so many requests at once are a violation: more than 4 for each of two processes
}

// asking is how a hash was asked for since raw UID2s were replaced last.
type asking struct {
	turn  int64
	times int
}

const (
	tradeDeskAdvertiser = "adv123"
	tradeDeskProvider   = "prov9"
	tradeDeskPrefix     = "shop-"
	tradeDeskToken      = "ttd-token-0000"
	tradeDeskLogin      = "api-user-0001"
	tradeDeskPassword   = "correct horse battery"
	tradeDeskSecret     = "advertiser-secret"
	tradeDeskProvSecret = "provider-secret"
	tradeDeskNameLength = 128
	tradeDeskLongestTTL = 259200
	uid2Key             = "UID2-C-L-999-fCXrMM.fsR3mDqAXELtWWMS"
	uid2Secret          = "wJ0hP19QU4hmpB64Y3fV2dAed8t/mupw3sjN5jNRFzg="
	uid2MaxItems        = 5000
	uid2Example         = "user@example.com"
)

// NewTradeDesk starts a fake that lives as long as the test.
func NewTradeDesk(t testing.TB, o TradeDeskOptions) *TradeDesk {
	t.Helper()
	if o.Auth == "" {
		o.Auth = "login"
	}
	if o.Scheme == "" {
		o.Scheme = "uid2"
	}
	if o.TTL == 0 {
		o.TTL = 30 * 24 * time.Hour
	}
	if o.Rotate == 0 {
		o.Rotate = 20 * 24 * time.Hour
	}
	if o.Batch == 0 {
		o.Batch = 10
	}
	if o.MaxBody == 0 {
		o.MaxBody = 64 << 10
	}
	if o.Parallel == 0 {
		o.Parallel = 2*4 + 1
	}
	f := &TradeDesk{
		options:   o,
		started:   time.Now(),
		people:    map[activation.ProfileID]activation.Person{},
		hashes:    map[Key]map[activation.ProfileID]bool{},
		mistakes:  map[Key]string{},
		optouts:   map[Key]bool{},
		told:      map[Key]bool{},
		asked:     map[Key]*asking{},
		nonces:    map[string]bool{},
		names:     map[string]bool{},
		deleted:   map[Key]bool{},
		forgotten: map[Key]bool{},
		partial:   map[[32]byte]int{},
		dead:      map[string]int{},
	}
	f.crowd = NewCrowd(f.Violate, f.derive)
	f.Changes(func(r *http.Request) bool { return r.URL.Path == "/data/advertiser" })
	f.URL = f.Listen(t, http.HandlerFunc(f.handle))
	return f
}

// Settings implements [Fake].
func (f *TradeDesk) Settings() activation.Settings {
	config := map[string]any{
		"advertiser_id": tradeDeskAdvertiser, "data_provider_id": tradeDeskProvider, "name_prefix": tradeDeskPrefix,
		"scheme": f.options.Scheme, "ttl_minutes": int(f.options.TTL.Minutes()), "batch": f.options.Batch,
		"api_url": f.URL, "platform_url": f.URL, "operator_url": f.URL + "/", "items_from_zero": f.options.FromZero,
	}
	secrets := map[string]string{"uid2_api_key": uid2Key, "uid2_client_secret": uid2Secret}
	switch f.options.Auth {
	case "login":
		secrets["login"], secrets["password"] = tradeDeskLogin, tradeDeskPassword
	case "token":
		secrets["token"] = tradeDeskToken
	default:
		secrets["advertiser_secret"], secrets["data_provider_secret"] = tradeDeskSecret, tradeDeskProvSecret
	}
	c, err := json.Marshal(config)
	if err != nil {
		panic(err)
	}
	s, err := json.Marshal(secrets)
	if err != nil {
		panic(err)
	}
	return activation.Settings{Config: c, Secrets: s}
}

// Seed implements [Fake].
func (f *TradeDesk) Seed(people ...activation.Person) {
	f.mu.Lock()
	for _, p := range people {
		f.people[p.ID] = p
		for kind, texts := range hashedTexts(p) {
			for _, text := range texts {
				k := Key{kind, base64Hash(text)}
				if f.hashes[k] == nil {
					f.hashes[k] = map[activation.ProfileID]bool{}
				}
				f.hashes[k][p.ID] = true
				f.mistakes[Key{kind, Hex(text)}] = "is in hexadecimal digits"
				f.mistakes[Key{kind, base64.StdEncoding.EncodeToString([]byte(Hex(text)))}] = "is the base64 of hexadecimal digits"
				f.mistakes[Key{kind, base64Hash(Hex(text))}] = "is hashed twice"
				f.mistakes[Key{kind, base64Hash(text + "\n")}] = "is the hash of a text with a line break"
				f.mistakes[Key{kind, base64Hash(strings.TrimPrefix(text, "+"))}] = "is the hash of a number without +"
			}
		}
		for _, raw := range p.Emails() {
			if _, right := f.hashes[Key{"email_hash", base64Hash(raw)}]; !right {
				f.mistakes[Key{"email_hash", base64Hash(raw)}] = "is the hash of an address that was not normalised"
			}
		}
		for _, raw := range p.Phones() {
			if _, right := f.hashes[Key{"phone_hash", base64Hash(raw)}]; !right {
				f.mistakes[Key{"phone_hash", base64Hash(raw)}] = "is the hash of a number that was not normalised"
			}
		}
	}
	f.mu.Unlock()
	f.crowd.Seed(people...)
}

// hashedTexts are the normal forms of which the operator wants hashes, by kind.
func hashedTexts(p activation.Person) map[string][]string {
	texts := map[string][]string{}
	for _, raw := range p.Emails() {
		email := strings.ToLower(strings.TrimSpace(raw))
		local, domain, ok := strings.Cut(email, "@")
		if !ok {
			continue
		}
		if domain == "gmail.com" {
			local, _, _ = strings.Cut(local, "+")
			local = strings.ReplaceAll(local, ".", "")
		}
		texts["email_hash"] = append(texts["email_hash"], local+"@"+domain)
	}
	for _, raw := range p.Phones() {
		number := strings.ReplaceAll(strings.TrimSpace(raw), "(0)", "")
		digits := notDigits.ReplaceAllString(number, "")
		switch {
		case strings.HasPrefix(number, "+"):
		case p.Country() == "US" && len(digits) == 10:
			digits = "1" + digits
		case p.Country() == "US" && len(digits) == 11:
		default:
			continue
		}
		texts["phone_hash"] = append(texts["phone_hash"], "+"+digits)
	}
	return texts
}

var notDigits = regexp.MustCompile(`\D`)

func base64Hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// derive is what The Trade Desk knows a person by, at present.
func (f *TradeDesk) derive(p activation.Person) Recognised {
	is := Recognised{Mistakes: map[Key]string{}}
	kind := strings.ToUpper(f.options.Scheme)
	for from, texts := range hashedTexts(p) {
		for _, text := range texts {
			is.Keys = append(is.Keys, Key{kind, f.raw(Key{from, base64Hash(text)})})
			is.Mistakes[Key{kind, base64Hash(text)}] = "is a hash, not a raw UID2"
		}
	}
	apple, others := p.Devices()
	for _, id := range append(apple, others...) {
		is.Keys = append(is.Keys, Key{"DAID", strings.ToLower(id)})
	}
	if id := p.Text("tdid"); id != "" {
		is.Keys = append(is.Keys, Key{"TDID", id})
	}
	return is
}

// raw is the raw UID2 of a hash, until it is replaced.
func (f *TradeDesk) raw(k Key) string {
	return base64Hash(fmt.Sprintf("%s %s %s %d", f.options.Scheme, k.Kind, k.Value, f.turn.Load()))
}

// pass forgets memberships that have ended and replaces raw UID2s whose time is over.
func (f *TradeDesk) pass() {
	now := f.Steady()
	f.crowd.Forget(now)
	f.mu.Lock()
	defer f.mu.Unlock()
	if turn := int64(now.Sub(f.started) / f.options.Rotate); f.turn.Swap(turn) != turn {
		for _, p := range f.people {
			f.crowd.Seed(p)
		}
	}
}

// Members implements [Fake].
func (f *TradeDesk) Members(a Audience) []activation.ProfileID {
	f.pass()
	return f.crowd.Members(tradeDeskPrefix + a.key())
}

// Leftovers implements [Fake].
func (f *TradeDesk) Leftovers(a Audience) []string {
	f.pass()
	return f.crowd.Leftovers(tradeDeskPrefix + a.key())
}

// Refuse implements [Fake].
func (f *TradeDesk) Refuse(id activation.ProfileID, refuse bool) { f.crowd.Refuse(id, refuse) }

// Revoke implements [Fake].
func (f *TradeDesk) Revoke() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.revoked = true
}

// Heal implements [Fake].
func (f *TradeDesk) Heal() {
	f.Faults.Heal()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.revoked = false
}

// OptOut has a person opt out of UID2 by all addresses and numbers.
func (f *TradeDesk) OptOut(p activation.Person) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for kind, texts := range hashedTexts(p) {
		for _, text := range texts {
			f.optouts[Key{kind, base64Hash(text)}] = true
		}
	}
}

// Forge has the operator's next answers carry a nonce that is not the request's.
func (f *TradeDesk) Forge(times int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forge = times
}

// Forget says that somebody was erased with us. It is a violation, then, if The Trade Desk is not told to delete whatever it
// knows the person by.
func (f *TradeDesk) Forget(id activation.ProfileID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, k := range f.derive(f.people[id]).Keys {
		f.forgotten[k] = true
	}
}

// Violations implements [Fake].
func (f *TradeDesk) Violations() []string {
	list := f.Faults.Violations()
	f.mu.Lock()
	defer f.mu.Unlock()
	for k := range f.forgotten {
		if !f.deleted[k] {
			list = append(list, fmt.Sprintf("%s is of somebody who was erased, and was not deleted", k))
		}
	}
	return list
}

// Asked returns how often the operator was asked for a hash, and for how many different ones.
func (f *TradeDesk) Asked() (times, different int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range f.asked {
		times += a.times
	}
	return times, len(f.asked)
}

// Expire implements [Expirer].
func (f *TradeDesk) Expire() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ends = f.Steady()
}

// Refreshes implements [Expirer].
func (f *TradeDesk) Refreshes() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.logins
}

// TTL implements [Forgetter].
func (f *TradeDesk) TTL() time.Duration { return f.options.TTL }

// Words implements [Fake].
func (f *TradeDesk) Words() Words {
	return Words{
		TooLarge:  Fault{Status: 413, Body: `{"ErrorCode":"MaxRequestSizeExceeded","Message":"too large"}`},
		Forbidden: Fault{Status: 403, Body: `{"ErrorCode":"IncorrectPermissions","Message":"no"}`},
		Missing:   Fault{Status: 404, Body: `{"ErrorCode":"EndpointNotConfigured","Message":"not here"}`},
		Passing:   []Fault{{Status: 200, Body: page}, {Status: 503, Body: `{"ErrorCode":"ServiceUnavailable"}`}},
	}
}

func (f *TradeDesk) handle(w http.ResponseWriter, r *http.Request) {
	defer f.open.Add(-1)
	if n := int(f.open.Add(1)); n >= f.options.Parallel {
		f.Violate("%d requests came at once", n)
	}
	time.Sleep(f.options.Slow)
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	f.pass()
	if r.URL.RawQuery != "" || r.Method != http.MethodPost {
		f.Violate("%s %s is not known", r.Method, r.URL)
		w.WriteHeader(http.StatusNotFound)
		return
	}
	f.Inspect(r, body)
	switch r.URL.Path {
	case "/v3/identity/map":
		f.mapIdentities(w, r, body)
	case "/v3/authentication":
		f.login(w, body)
	case "/data/advertiser":
		f.data(w, r, body)
	case "/data/deletion-optout/advertiser":
		f.delete(w, r, body)
	default:
		f.Violate("%s is not known", r.URL.Path)
		f.fail(w, http.StatusNotFound, "EndpointNotConfigured")
	}
}

func (f *TradeDesk) fail(w http.ResponseWriter, status int, code string) {
	w.Header().Set("x-ttd-request-id", "req-1")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"ErrorCode":%q,"Message":"%s, said the fake"}`, code, code)
}

// strict reads JSON as The Trade Desk's schema does: no member that it does not know, none twice, no wrong type.
func (f *TradeDesk) strict(w http.ResponseWriter, r *http.Request, body []byte, into any) bool {
	if r != nil && r.Header.Get("Content-Type") != "application/json" {
		f.Violate("Content-Type is %q", r.Header.Get("Content-Type"))
	}
	if err := json.Unmarshal(body, into, json.RejectUnknownMembers(true)); err != nil {
		f.Violate("the body cannot be read: %v", err)
		f.fail(w, http.StatusBadRequest, "SerializationFailed")
		return false
	}
	return true
}

func (f *TradeDesk) login(w http.ResponseWriter, body []byte) {
	var ask struct {
		Login, Password          string
		TokenExpirationInMinutes int
	}
	if !f.strict(w, nil, body, &ask) {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.revoked || ask.Login != tradeDeskLogin || ask.Password != tradeDeskPassword {
		f.fail(w, http.StatusUnauthorized, "AuthenticationFailed")
		return
	}
	if ask.TokenExpirationInMinutes < 1 || ask.TokenExpirationInMinutes > 24*60 {
		f.Violate("a token for %d minutes was asked for", ask.TokenExpirationInMinutes)
		f.fail(w, http.StatusBadRequest, "IncorrectContent")
		return
	}
	f.logins++
	f.token = fmt.Sprintf("access-token-%d", f.logins)
	f.ends = f.Steady().Add(time.Duration(ask.TokenExpirationInMinutes) * time.Minute)
	fmt.Fprintf(w, `{"Token":%q}`, f.token)
}

// admit tells whether a request may come in, and answers it if it may not.
func (f *TradeDesk) admit(w http.ResponseWriter, r *http.Request, body []byte) bool {
	token, signed := r.Header.Get("TTD-Auth"), r.Header.Get("TtdSignature")
	switch {
	case token == "" && signed == "" || token != "" && signed != "":
		f.Violate("%s: neither a token nor a signature came, or both", r.URL.Path)
		f.fail(w, http.StatusUnauthorized, "InvalidToken")
		return false
	case f.revoked:
		f.fail(w, http.StatusUnauthorized, "InvalidToken")
		return false
	case signed != "":
		for name, secret := range map[string]string{"TtdSignature": tradeDeskSecret, "TtdSignature-dp": tradeDeskProvSecret} {
			mac := hmac.New(sha1.New, []byte(secret))
			mac.Write(body)
			if want := base64.StdEncoding.EncodeToString(mac.Sum(nil)); r.Header.Get(name) != want {
				f.Violate("%s is not that of the body", name)
				f.fail(w, http.StatusUnauthorized, "AuthenticationFailed")
				return false
			}
		}
		return f.options.Auth == "signature"
	case f.options.Auth == "token" && token == tradeDeskToken:
		return true
	case f.options.Auth == "login" && token == f.token && f.Steady().Before(f.ends):
		return true
	}
	if f.dead[token]++; f.dead[token] > 8 { // what was under way may use it once each
		f.Violate("a token that does not hold goes on being used")
	}
	f.fail(w, http.StatusUnauthorized, "InvalidToken")
	return false
}

type tradeDeskItem struct {
	TDID      string
	DAID      string
	UID2      string
	UID2Token string
	EUID      string
	EUIDToken string
	RampID    string
	ID5       string
	Data      []struct {
		Name         string
		TTL          jsontext.Value `json:"TtlInMinutes"`
		TimestampUtc time.Time
	}
}

// keys returns the identifiers of an item, of which there may be only one.
func (i tradeDeskItem) keys() (keys []Key) {
	for kind, value := range map[string]string{
		"TDID": i.TDID, "DAID": i.DAID, "UID2": i.UID2, "UID2Token": i.UID2Token, "EUID": i.EUID, "EUIDToken": i.EUIDToken,
		"RampID": i.RampID, "ID5": i.ID5,
	} {
		if value != "" {
			keys = append(keys, Key{kind, value})
		}
	}
	return keys
}

type tradeDeskData struct {
	AdvertiserID string `json:"AdvertiserId"`
	ProviderID   string `json:"DataProviderId"`
	TraceID      string `json:"DataLoadTraceId"`
	Items        []tradeDeskItem
}

func (f *TradeDesk) data(w http.ResponseWriter, r *http.Request, body []byte) {
	if done := f.occupy(body); done != nil {
		defer done()
		time.Sleep(time.Millisecond) // for whoever comes too early
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.admit(w, r, body) {
		return
	}
	if len(body) > f.options.MaxBody {
		f.fail(w, http.StatusRequestEntityTooLarge, "MaxRequestSizeExceeded")
		return
	}
	var d tradeDeskData
	if !f.strict(w, r, body, &d) {
		return
	}
	if d.AdvertiserID != tradeDeskAdvertiser || d.ProviderID != tradeDeskProvider {
		f.fail(w, http.StatusForbidden, "IncorrectPermissions")
		return
	}
	if len(d.Items) == 0 { // as whoever tries the connection does
		f.fail(w, http.StatusBadRequest, "MissingData")
		return
	}
	var lines []string
	for i, item := range d.Items {
		code := f.item(i, item)
		if code == "" {
			continue
		}
		number := i + 1
		if f.options.FromZero {
			number = i
		}
		line := fmt.Sprintf(`{"ItemNumber":%d,"DataNumber":1,"ErrorCode":%q,"Message":"item #%d"`, number, code, number)
		if keys := item.keys(); len(keys) == 1 && !f.options.Terse {
			line += fmt.Sprintf(`,%q:%q`, keys[0].Kind, keys[0].Value)
		}
		lines = append(lines, line+"}")
	}
	if len(lines) == 0 {
		io.WriteString(w, `{}`)
		return
	}
	sum := sha256.Sum256(body)
	if f.partial[sum]++; f.partial[sum] > 3 {
		f.Violate("a message of which some items are refused is sent again and again")
	}
	fmt.Fprintf(w, `{"FailedLines":[%s]}`, strings.Join(lines, ","))
}

// occupy notes whom a request is about for as long as it is handled.
func (f *TradeDesk) occupy(body []byte) (done func()) {
	var d tradeDeskData
	if json.Unmarshal(body, &d) != nil {
		return nil
	}
	var all []func()
	for _, item := range d.Items {
		for _, datum := range item.Data {
			all = append(all, f.crowd.Occupy(datum.Name, string(datum.TTL) != "0", item.keys()...))
		}
	}
	return func() {
		for _, done := range all {
			done()
		}
	}
}

// item applies one item and returns the code of why it is refused, or "".
func (f *TradeDesk) item(i int, item tradeDeskItem) (code string) {
	where, keys := fmt.Sprintf("item %d", i), item.keys()
	if len(keys) != 1 {
		f.Violate("%s has %d identifiers", where, len(keys))
		return "MissingUserId"
	}
	k := keys[0]
	if code = f.form(where, k); code != "" {
		return code
	}
	if len(item.Data) != 1 {
		f.Violate("%s is about %d segments", where, len(item.Data))
		return "ItemDeserializationError"
	}
	name := item.Data[0].Name
	if name == "" || len(name) > tradeDeskNameLength {
		f.Violate("%s: the segment's name has %d bytes", where, len(name))
		return "DataNameTooLong"
	}
	ttl, err := strconv.Atoi(string(item.Data[0].TTL))
	if err != nil || ttl < 0 || ttl > tradeDeskLongestTTL {
		f.Violate("%s: TtlInMinutes is %s", where, item.Data[0].TTL)
		return "InvalidTtlInMinutes"
	}
	if f.crowd.Check(where, k) {
		return "Uid2Error"
	}
	f.names[name] = true
	f.crowd.Make(name)
	if f.told[k] { // they are nowhere
		if ttl > 0 {
			f.Violate("%s: %s is of somebody who has opted out", where, k)
		}
		f.crowd.Apply(name, false, f.Steady(), k)
		return "Uid2Error"
	}
	f.crowd.Apply(name, ttl > 0, f.Steady().Add(time.Duration(ttl)*time.Minute), k)
	return ""
}

var hexHash = regexp.MustCompile(`^[0-9a-fA-F]{64}$`)

// form tells whether a value cannot be one of its kind.
func (f *TradeDesk) form(where string, k Key) (code string) {
	sum, err := base64.StdEncoding.DecodeString(k.Value)
	switch {
	case strings.Contains(k.Value, "@"), hexHash.MatchString(k.Value):
		f.Violate("%s: %s is an address or a hash", where, k.Kind)
	case (k.Kind == "UID2" || k.Kind == "EUID") && (err != nil || len(sum) != sha256.Size):
		f.Violate("%s: %s is not the base64 of 32 bytes", where, k)
	case k.Kind != strings.ToUpper(f.options.Scheme) && k.Kind != "DAID" && k.Kind != "TDID":
		f.Violate("%s: %s is of a kind that nobody has", where, k)
	default:
		return ""
	}
	return "MissingUserId"
}

func (f *TradeDesk) delete(w http.ResponseWriter, r *http.Request, body []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.admit(w, r, body) {
		return
	}
	var d struct {
		AdvertiserID string `json:"AdvertiserId"`
		Items        []struct{ TDID, DAID, UID2, EUID string }
		RequestType  string
	}
	if !f.strict(w, r, body, &d) {
		return
	}
	if d.AdvertiserID != tradeDeskAdvertiser {
		f.fail(w, http.StatusForbidden, "IncorrectPermissions")
		return
	}
	if d.RequestType != "Deletion" && d.RequestType != "OptOut" || len(d.Items) == 0 {
		f.Violate("a %q of %d items was asked for", d.RequestType, len(d.Items))
		f.fail(w, http.StatusBadRequest, "IncorrectContent")
		return
	}
	for i, item := range d.Items {
		where, keys := fmt.Sprintf("deletion %d", i), tradeDeskItem{TDID: item.TDID, DAID: item.DAID, UID2: item.UID2, EUID: item.EUID}.keys()
		if len(keys) != 1 {
			f.Violate("%s has %d identifiers", where, len(keys))
			continue
		}
		f.crowd.Check(where, keys...)
		f.deleted[keys[0]] = true
		for name := range f.names {
			f.crowd.Apply(name, false, f.Steady(), keys...)
		}
	}
	io.WriteString(w, `{}`)
}

// mapIdentities is the operator.
func (f *TradeDesk) mapIdentities(w http.ResponseWriter, r *http.Request, body []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	refuse := func(status int, code, message string) {
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"status":%q,"message":%q}`, code, message)
	}
	if r.Header.Get("Authorization") != "Bearer "+uid2Key {
		refuse(http.StatusUnauthorized, "unauthorized", "unknown key")
		return
	}
	gcm := uid2Cipher()
	plain, why := f.unseal(gcm, body)
	if why != "" {
		if !f.Skewed() {
			f.Violate("the operator was asked wrongly: %s", why)
		}
		refuse(http.StatusBadRequest, "client_error", why)
		return
	}
	var ask struct {
		Email     []string `json:"email"`
		EmailHash []string `json:"email_hash"`
		Phone     []string `json:"phone"`
		PhoneHash []string `json:"phone_hash"`
	}
	if err := json.Unmarshal(plain[16:], &ask, json.RejectUnknownMembers(true)); err != nil || len(ask.Email)+len(ask.Phone) > 0 {
		f.Violate("the operator was asked for other than hashes: %v", err)
		refuse(http.StatusBadRequest, "client_error", "cannot be read")
		return
	}
	if n := len(ask.EmailHash) + len(ask.PhoneHash); n == 0 || n > uid2MaxItems || len(body) > 1<<20 {
		f.Violate("the operator was asked for %d hashes", n)
		refuse(http.StatusBadRequest, "client_error", "too many or none")
		return
	}
	found := func(kind string, hashes []string) string {
		list := make([]string, len(hashes))
		for i, h := range hashes {
			list[i] = f.mapped(Key{kind, h})
		}
		return "[" + strings.Join(list, ",") + "]"
	}
	text := fmt.Sprintf(`{"body":{"email":[],"email_hash":%s,"phone":[],"phone_hash":%s},"status":"success"}`,
		found("email_hash", ask.EmailHash), found("phone_hash", ask.PhoneHash))
	answer := bytes.Clone(plain[:16])
	binary.BigEndian.PutUint64(answer, uint64(f.Now().UnixMilli()))
	if f.forge > 0 {
		f.forge--
		answer[15]++
	}
	iv := make([]byte, gcm.NonceSize())
	rand.Read(iv)
	sealed := gcm.Seal(iv, iv, append(answer, text...), nil)
	io.WriteString(w, base64.StdEncoding.EncodeToString(sealed))
}

func uid2Cipher() cipher.AEAD {
	secret, err := base64.StdEncoding.DecodeString(uid2Secret)
	if err != nil {
		panic(err)
	}
	block, err := aes.NewCipher(secret)
	if err != nil {
		panic(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return gcm
}

// unseal opens the envelope of a request, or tells what is wrong with it.
func (f *TradeDesk) unseal(gcm cipher.AEAD, body []byte) (plain []byte, why string) {
	envelope, err := base64.StdEncoding.DecodeString(string(body))
	if err != nil || len(envelope) < 1+gcm.NonceSize() {
		return nil, "no envelope"
	}
	if envelope[0] != 1 {
		return nil, "a version that is not known"
	}
	if plain, err = gcm.Open(nil, envelope[1:13], envelope[13:], nil); err != nil || len(plain) < 16 {
		return nil, "it cannot be decrypted"
	}
	if at := time.UnixMilli(int64(binary.BigEndian.Uint64(plain))); f.Now().Sub(at).Abs() > time.Minute {
		return nil, "it is too old"
	}
	nonce := hex.EncodeToString(plain[8:16])
	if f.nonces[nonce] {
		return nil, "the nonce was used before"
	}
	f.nonces[nonce] = true
	return plain, ""
}

// mapped is what the operator says of a hash.
func (f *TradeDesk) mapped(k Key) string {
	if sum, err := base64.StdEncoding.DecodeString(k.Value); err != nil || len(sum) != sha256.Size {
		mistake := f.mistakes[k]
		if mistake == "" {
			mistake = "is no hash"
		}
		f.Violate("the operator: %s %s", k, mistake)
		return `{"e":"invalid identifier"}`
	}
	if k.Value != base64Hash(uid2Example) && len(f.hashes[k]) == 0 {
		mistake := f.mistakes[k]
		if mistake == "" {
			mistake = "is not right for anybody"
		}
		f.Violate("the operator: %s %s", k, mistake)
	}
	turn := f.turn.Load()
	if f.asked[k] == nil || f.asked[k].turn != turn {
		f.asked[k] = &asking{turn: turn}
	}
	// Several may find out at once that they need it, and whoever dies may not have kept the answer.
	if f.asked[k].times++; f.asked[k].times > 5 && k.Value != base64Hash(uid2Example) {
		f.Violate("the operator: %s is asked for again and again", k)
	}
	if f.optouts[k] {
		for id := range f.hashes[k] {
			for _, key := range f.derive(f.people[id]).Keys {
				f.told[key] = true
			}
		}
		return `{"e":"optout"}`
	}
	end := time.Now().Add(f.started.Add(time.Duration(turn+1) * f.options.Rotate).Sub(f.Steady()))
	r := end.Unix() + 1
	if f.options.Millis {
		r = end.UnixMilli()
	}
	return fmt.Sprintf(`{"u":%q,"p":null,"r":%d}`, f.raw(k), r)
}
