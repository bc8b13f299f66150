package partnertest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
)

// SampleFake is the fake of [Sample].
type SampleFake struct {
	Faults
	URL string

	options   SampleOptions
	mu        sync.Mutex
	right     map[string]map[activation.ProfileID]bool // hash → whom it has ever been right for
	people    map[activation.ProfileID][]string        // → the right hashes of now
	details   map[string]bool
	refuse    map[activation.ProfileID]bool
	audiences map[string]map[string]time.Time // id → hash → added
	refs      map[string]string               // segment → id
	token     string
	refresh   string
	ends      time.Time
	dead      map[string]int // tokens that ended → how often they were used since
	revoked   bool
	refreshes int
	serial    int
	busy      map[string]string // audience and hash → what is being done
	receipts  map[string]*sampleReceipt
	pending   []string

	expected    map[string]activation.Event // by message id
	received    map[string]bool
	refuseEvent map[string]bool

	// Arrived, if not nil, is sent every identifier that is applied, while nobody else is served.
	Arrived chan SampleArrival
}

// SampleArrival is one identifier that was added or removed.
type SampleArrival struct {
	Audience, Hash string
	Added          bool
	At             time.Time
}

// SampleOptions are what a fake may do in more than one way.
type SampleOptions struct {
	Later bool // messages are worked on half a minute later
	SampleConfig
}

type sampleReceipt struct {
	at      time.Time
	asked   time.Time
	early   bool // it was asked for again at once
	message sampleMessage
	events  []sampleEvent // instead
	refused []int
	done    bool
}

const (
	tokenLife   = time.Hour
	workingTime = 30 * time.Second
)

// NewSampleFake starts a fake that lives as long as the test.
func NewSampleFake(t testing.TB, o SampleOptions) *SampleFake {
	t.Helper()
	f := &SampleFake{
		options:   o,
		right:     map[string]map[activation.ProfileID]bool{},
		people:    map[activation.ProfileID][]string{},
		details:   map[string]bool{},
		refuse:    map[activation.ProfileID]bool{},
		audiences: map[string]map[string]time.Time{},
		refs:      map[string]string{},
		token:     "access-0",
		refresh:   "refresh-0",
		ends:      time.Now().Add(tokenLife),
		dead:      map[string]int{},
		busy:      map[string]string{},
		receipts:  map[string]*sampleReceipt{},

		expected:    map[string]activation.Event{},
		received:    map[string]bool{},
		refuseEvent: map[string]bool{},
	}
	f.Changes(func(r *http.Request) bool {
		return (r.URL.Path == "/members" || r.URL.Path == "/events") && r.URL.RawQuery == ""
	})
	f.URL = f.Listen(t, http.HandlerFunc(f.handle))
	return f
}

// Settings implements [Fake].
func (f *SampleFake) Settings() activation.Settings {
	f.mu.Lock()
	defer f.mu.Unlock()
	cfg := f.options.SampleConfig
	cfg.URL = f.URL
	if cfg.Batch == 0 {
		cfg.Batch = 10
	}
	if cfg.Concurrency == 0 {
		cfg.Concurrency = 4
	}
	config, err := json.Marshal(cfg)
	if err != nil {
		panic(err)
	}
	return activation.Settings{
		Config:  config,
		Secrets: jsontext.Value(fmt.Sprintf(`{"access_token":%q,"refresh_token":%q}`, f.token, f.refresh)),
	}
}

func sampleHash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// Seed implements [Fake].
func (f *SampleFake) Seed(people ...activation.Person) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range people {
		var hashes []string
		for _, email := range p.Identified("email") {
			hashes = append(hashes, sampleHash(email))
		}
		for _, phone := range p.Identified("phone") {
			hashes = append(hashes, sampleHash(phone[1:]))
		}
		for _, h := range hashes {
			if f.right[h] == nil {
				f.right[h] = map[activation.ProfileID]bool{}
			}
			f.right[h][p.ID] = true
		}
		if name := p.Text("first_name"); name != "" {
			f.details[sampleHash(strings.ToLower(name))] = true
		}
		f.people[p.ID] = hashes
	}
}

// Refuse implements [Fake].
func (f *SampleFake) Refuse(id activation.ProfileID, refuse bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refuse[id] = refuse
}

// Revoke implements [Fake].
func (f *SampleFake) Revoke() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.revoked = true
}

// Heal implements [Fake].
func (f *SampleFake) Heal() {
	f.Faults.Heal()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.revoked = false
}

// Audience makes an audience, as somebody does with the partner's own tools.
func (f *SampleFake) Audience(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.audiences[id] = map[string]time.Time{}
}

// Expire implements [Expirer].
func (f *SampleFake) Expire() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ends = f.Steady()
}

// Refreshes implements [Expirer].
func (f *SampleFake) Refreshes() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.refreshes
}

// TTL implements [Forgetter].
func (f *SampleFake) TTL() time.Duration { return time.Duration(f.options.TTLMinutes) * time.Minute }

// Words implements [Fake].
func (f *SampleFake) Words() Words {
	return Words{
		Throttled: Fault{Status: 400, Body: `{"code":"slow_down"}`, Wait: 5 * time.Minute, Silent: true},
		Wait: func(d time.Duration) Fault {
			return Fault{Status: 400, Body: fmt.Sprintf(`{"code":"slow_down","seconds":%d}`, int(d.Seconds())), Wait: d, Silent: true}
		},
		TooLarge:  Fault{Status: 400, Body: `{"code":"too_large"}`},
		Forbidden: Fault{Status: 403, Body: `{"code":"forbidden"}`},
		Missing:   Fault{Status: 404, Body: `{"code":"no_audience"}`},
		Passing: []Fault{
			{Status: 400, Body: `{"code":"busy"}`, Apply: false},
			{Status: 200, Body: page},
		},
	}
}

// Members implements [Fake].
func (f *SampleFake) Members(a Audience) []activation.ProfileID {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.work()
	set := map[activation.ProfileID]bool{}
	for id, hashes := range f.people {
		for _, h := range hashes {
			if _, in := f.audiences[a.ID][h]; in {
				set[id] = true
			}
		}
	}
	return sorted(set)
}

// Leftovers implements [Fake].
func (f *SampleFake) Leftovers(a Audience) (left []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.work()
	for h := range f.audiences[a.ID] {
		mine := slices.ContainsFunc(slices.Collect(maps.Values(f.people)), func(hashes []string) bool {
			return slices.Contains(hashes, h)
		})
		if !mine {
			left = append(left, fmt.Sprintf("%s of %d former owners", h[:8], len(f.right[h])))
		}
	}
	return left
}

// work applies messages that were taken in long enough ago, and forgets memberships that have ended.
func (f *SampleFake) work() {
	for len(f.pending) > 0 {
		r := f.receipts[f.pending[0]]
		if f.Steady().Sub(r.at) < workingTime {
			break
		}
		if r.done = true; r.events != nil {
			r.refused = f.applyEvents(r.events)
		} else {
			r.refused = f.apply(r.message)
		}
		f.pending = f.pending[1:]
	}
	if ttl := f.TTL(); ttl > 0 {
		for _, members := range f.audiences {
			for h, at := range members {
				if f.Steady().Sub(at) > ttl {
					f.Violate("%s was forgotten: it was not sent again in time", h[:8])
					delete(members, h)
				}
			}
		}
	}
}

func (f *SampleFake) apply(m sampleMessage) (refused []int) {
	audience := f.audiences[m.Audience]
	for i, p := range m.People {
		bad := false
		for _, h := range []string{p.Email, p.Phone} {
			for id := range f.right[h] {
				bad = bad || f.refuse[id]
			}
		}
		if bad {
			refused = append(refused, i)
			continue
		}
		for _, h := range []string{p.Email, p.Phone} {
			switch {
			case h == "":
				continue
			case p.Action == "add":
				audience[h] = f.Steady()
			default:
				delete(audience, h)
			}
			if f.Arrived != nil {
				f.Arrived <- SampleArrival{m.Audience, h, p.Action == "add", time.Now()}
			}
		}
	}
	return refused
}

func (f *SampleFake) refuseWith(w http.ResponseWriter, status int, code string) {
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"code":%q}`, code)
}

func (f *SampleFake) handle(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	if r.URL.Path == "/members" && r.URL.RawQuery == "" {
		if done := f.occupy(body); done != nil {
			defer done()
			time.Sleep(time.Millisecond) // for whoever comes too early
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.work()
	if r.URL.Path == "/token" {
		f.giveToken(w, body)
		return
	}
	token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	switch {
	case f.revoked:
		f.refuseWith(w, http.StatusUnauthorized, "token_revoked")
		return
	case token != f.token || !f.Steady().Before(f.ends):
		if f.dead[token]++; f.dead[token] > 8 && !f.Skewed() { // what was under way may use it once each
			f.Violate("a token that has ended goes on being used")
		}
		f.refuseWith(w, http.StatusUnauthorized, "token_expired")
		return
	}
	switch path := r.URL.Path; {
	case r.Method == http.MethodPost && path == "/members":
		f.members(w, r, body)
	case r.Method == http.MethodPost && path == "/events":
		f.events(w, r, body)
	case r.Method == http.MethodPost && path == "/audiences":
		f.makeAudience(w, body)
	case r.Method == http.MethodGet && strings.HasPrefix(path, "/audiences/"):
		fmt.Fprintf(w, `{"matched":%d,"state":"READY"}`, len(f.audiences[strings.TrimPrefix(path, "/audiences/")]))
	case r.Method == http.MethodGet && strings.HasPrefix(path, "/receipts/"):
		f.tell(w, strings.TrimPrefix(path, "/receipts/"))
	case r.Method == http.MethodGet && path == "/me":
		io.WriteString(w, `{}`)
	default:
		f.Violate("%s %s is not known", r.Method, path)
		w.WriteHeader(http.StatusNotFound)
	}
}

// occupy notes whom a message is about for as long as it is handled: two at once about one identifier may be applied in any
// order.
func (f *SampleFake) occupy(body []byte) (done func()) {
	var m sampleMessage
	if json.Unmarshal(body, &m) != nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var mine []string
	for _, p := range m.People {
		for _, h := range []string{p.Email, p.Phone} {
			if h == "" {
				continue
			}
			key := m.Audience + h
			if other, ok := f.busy[key]; ok && other != p.Action {
				f.Violate("%s: %s while another request is to %s it", h[:8], p.Action, other)
			}
			if _, ok := f.busy[key]; !ok {
				f.busy[key] = p.Action
				mine = append(mine, key)
			}
		}
	}
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, key := range mine {
			delete(f.busy, key)
		}
	}
}

func (f *SampleFake) giveToken(w http.ResponseWriter, body []byte) {
	var ask struct {
		Refresh string `json:"refresh_token"`
	}
	if json.Unmarshal(body, &ask) != nil || f.revoked || ask.Refresh != f.refresh {
		if !f.revoked {
			f.Violate("a refresh token came that was replaced: the new one was not kept")
		}
		f.refuseWith(w, http.StatusBadRequest, "token_revoked")
		return
	}
	f.refreshes++
	f.token, f.refresh = fmt.Sprintf("access-%d", f.refreshes), fmt.Sprintf("refresh-%d", f.refreshes)
	f.ends = f.Steady().Add(tokenLife)
	fmt.Fprintf(w, `{"access_token":%q,"refresh_token":%q,"expires_in":%d}`, f.token, f.refresh, int(tokenLife.Seconds()))
}

func (f *SampleFake) makeAudience(w http.ResponseWriter, body []byte) {
	var ask struct{ Name, Ref string }
	if json.Unmarshal(body, &ask) != nil || ask.Name == "" || ask.Ref == "" {
		f.Violate("an audience without a name or reference was asked for")
		f.refuseWith(w, http.StatusBadRequest, "invalid")
		return
	}
	id := f.refs[ask.Ref]
	if id == "" {
		id = fmt.Sprintf("aud-%d", len(f.refs)+1)
		f.refs[ask.Ref], f.audiences[id] = id, map[string]time.Time{}
	}
	fmt.Fprintf(w, `{"id":%q}`, id)
}

func (f *SampleFake) members(w http.ResponseWriter, r *http.Request, body []byte) {
	var m sampleMessage
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&m); err != nil {
		f.Violate("the body cannot be read: %v", err)
		f.refuseWith(w, http.StatusBadRequest, "invalid")
		return
	}
	if bytes.ContainsRune(body, '@') {
		f.Violate("there is an e-mail address in the body")
	}
	most := f.options.Batch
	if most == 0 {
		most = 10
	}
	if len(m.People) == 0 || len(m.People) > most {
		f.Violate("the message is about %d people, want 1 to %d", len(m.People), most)
	}
	if f.audiences[m.Audience] == nil {
		f.Violate("audience %q is not there", m.Audience)
		f.refuseWith(w, http.StatusNotFound, "no_audience")
		return
	}
	for i, p := range m.People {
		f.checkRow(i, p, m.People[0].Action)
	}
	if r.URL.RawQuery == "validate=1" {
		io.WriteString(w, `{}`)
		return
	}
	if f.options.Later {
		f.serial++
		id := fmt.Sprintf("receipt-%d", f.serial)
		f.receipts[id] = &sampleReceipt{at: f.Steady(), message: m}
		f.pending = append(f.pending, id)
		fmt.Fprintf(w, `{"receipt":%q}`, id)
		return
	}
	f.answer(w, f.apply(m), "")
}

func (f *SampleFake) answer(w http.ResponseWriter, refused []int, more string) {
	if refused == nil {
		refused = []int{}
	}
	text, err := json.Marshal(refused)
	if err != nil {
		panic(err)
	}
	fmt.Fprintf(w, `{"refused":%s%s}`, text, more)
}

// checkRow notes what is wrong with a row: a value that was never right for anybody, or values of different people.
func (f *SampleFake) checkRow(i int, p samplePerson, first string) {
	if p.Action != "add" && p.Action != "remove" || !f.options.Mixed && p.Action != first {
		f.Violate("row %d: action %q does not go with %q", i, p.Action, first)
	}
	if p.Email == "" && p.Phone == "" {
		f.Violate("row %d is empty", i)
	}
	if p.FirstName != "" && !f.details[p.FirstName] {
		f.Violate("row %d: the first name is nobody's", i)
	}
	var owners map[activation.ProfileID]bool
	for _, h := range []string{p.Email, p.Phone} {
		if h == "" {
			continue
		}
		if len(f.right[h]) == 0 {
			f.Violate("row %d: %q is not the right value for anybody", i, h)
			return
		}
		if owners == nil {
			owners = f.right[h]
			continue
		}
		if !slices.ContainsFunc(slices.Collect(maps.Keys(owners)), func(id activation.ProfileID) bool { return f.right[h][id] }) {
			f.Violate("row %d mixes the identifiers of two people", i)
		}
	}
}

func (f *SampleFake) tell(w http.ResponseWriter, id string) {
	r := f.receipts[id]
	if r == nil {
		f.Violate("receipt %q is not known", id)
		w.WriteHeader(http.StatusNotFound)
		return
	}
	// One that is stopped while it asks does not hear the answer, and the next asks at once.
	if r.early = f.Steady().Sub(r.asked) < workingTime && !r.early; !r.early && f.Steady().Sub(r.asked) < workingTime {
		f.Violate("a receipt was asked for again after %v", f.Steady().Sub(r.asked))
	}
	r.asked = f.Steady()
	if !r.done {
		io.WriteString(w, `{"state":"working"}`)
		return
	}
	f.answer(w, r.refused, `,"state":"done","matched":"61 to 70 %"`)
}
