package profilestest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/mubatch/mubatch/profiles"
	"github.com/mubatch/mubatch/profiles/profilestest/brute"
)

// Act is one distinct event of a crowd: like [Event], with everything that a rule can ask for.
type Act struct {
	Source        int32
	ID            string
	Type, Name    string
	User, Anon    string
	Previous      string
	Custom        string // an external id of type "crm"
	Traits        map[string]any
	Consent       map[string]any
	Properties    map[string]any
	At            int64 // unix milliseconds
	MergeOnEmail  bool  // the source merges people by it
	MergeOnCustom bool
}

// Crowd draws n events of a few people who share devices, take each other's names and change their minds.
func Crowd(c *brute.Chance, n int) []Act {
	users, anons := 1+c.IntN(6), 1+c.IntN(8)
	pick := func(prefix string, n int) string { return fmt.Sprint(prefix, c.IntN(n)) }
	mergeOnEmail, mergeOnCustom := c.IntN(6) == 0, c.IntN(8) == 0
	acts := make([]Act, 0, n)
	for i := range n {
		did := c.Event()
		a := Act{
			Source: 1, ID: fmt.Sprintf("m%d-%d", i, c.IntN(1000)), Type: "track", Name: did.Name, At: did.At,
			MergeOnEmail: mergeOnEmail, MergeOnCustom: mergeOnCustom,
		}
		if did.Name == profiles.PageViewed {
			a.Type = "page"
		}
		switch c.IntN(3) {
		case 0:
			a.Anon = pick("a", anons)
		case 1:
			a.User = pick("u", users)
		default:
			a.User, a.Anon = pick("u", users), pick("a", anons)
		}
		switch c.IntN(10) {
		case 0, 1:
			a.Type, a.Traits = "identify", c.Object()
			for _, name := range slices.Sorted(maps.Keys(a.Traits)) {
				if c.IntN(6) == 0 {
					a.Traits[name] = nil
				}
			}
			if c.IntN(2) == 0 {
				a.Traits["email"] = pick([]string{"e", "E"}[c.IntN(2)], 3) + "@example.com"
			}
		case 2:
			if c.IntN(2) == 0 {
				a.Properties = did.Properties.(map[string]any)
				break
			}
			a.Type, a.User, a.Anon = "alias", pick("u", users), ""
			a.Previous = pick([]string{"u", "u", "a"}[c.IntN(3)], max(users, anons))
		default:
			a.Properties = did.Properties.(map[string]any)
		}
		if c.IntN(5) == 0 {
			a.Consent = consents(c)
		}
		if c.IntN(8) == 0 {
			a.Custom = pick("c", 3)
		}
		if i > 0 && c.IntN(12) == 0 { // the same message at the same time, from somewhere else
			a.Source, a.ID, a.At = acts[i-1].Source+1, acts[i-1].ID, acts[i-1].At
			if c.IntN(2) == 0 {
				a.Consent, acts[i-1].Consent = consents(c), consents(c)
			}
			if a.Type != "alias" && acts[i-1].Anon != "" { // and perhaps of the same person
				a.User, a.Anon = "", acts[i-1].Anon
			}
		}
		acts = append(acts, a)
	}
	return acts
}

// consents draws what somebody consents to, in all its forms.
func consents(c *brute.Chance) map[string]any {
	all := map[string]any{}
	for _, purpose := range brute.Purposes {
		if c.IntN(3) > 0 {
			all[purpose] = []any{true, false, "granted", "denied", "Denied", "perhaps", nil, json.Number("1")}[c.IntN(8)]
		}
	}
	if c.IntN(4) == 0 {
		return map[string]any{"categoryPreferences": all, brute.Purposes[0]: c.IntN(2) == 0}
	}
	return all
}

// Message is the event as the collector passes it on.
func (a Act) Message() profiles.Message {
	body := map[string]any{"type": a.Type, "messageId": a.ID, "timestamp": time.UnixMilli(a.At).UTC().Format("2006-01-02T15:04:05.000Z")}
	for name, value := range map[string]string{"userId": a.User, "anonymousId": a.Anon, "previousId": a.Previous} {
		if value != "" {
			body[name] = value
		}
	}
	if a.Type == "track" {
		body["event"] = a.Name
	}
	if a.Traits != nil {
		body["traits"] = a.Traits
	}
	if a.Properties != nil {
		body["properties"] = a.Properties
	}
	context := map[string]any{}
	if a.Consent != nil {
		context["consent"] = a.Consent
	}
	if a.Custom != "" {
		context["externalIds"] = []any{map[string]any{"id": a.Custom, "type": "crm"}}
	}
	if len(context) > 0 {
		body["context"] = context
	}
	var mergeOn []string
	if a.MergeOnEmail {
		mergeOn = append(mergeOn, "email")
	}
	if a.MergeOnCustom {
		mergeOn = append(mergeOn, "crm")
	}
	if mergeOn != nil {
		body["_mergeOn"] = mergeOn
	}
	b, err := json.Marshal(body)
	if err != nil {
		panic(err)
	}
	return profiles.Message{
		Kind: profiles.KindEvent, Workspace: 1, Source: a.Source, ID: profiles.MessageKey(a.ID), Key: Secret.Key(a.identifier()),
		Received: time.UnixMilli(a.At).UTC(), Body: b,
	}
}

func (a Act) identifier() profiles.Identifier {
	if a.User != "" {
		return user(a.User)
	}
	return anon(a.Anon)
}

func user(v string) profiles.Identifier { return profiles.Identifier{Kind: profiles.UserID, Value: v} }

func anon(v string) profiles.Identifier {
	return profiles.Identifier{Kind: profiles.AnonymousID, Value: v}
}

// stamp orders what is said of the same thing: by time, then by message.
type stamp struct {
	at int64
	id string
}

func (a Act) stamp() stamp {
	id := profiles.MessageKey(a.ID)
	return stamp{a.At, string(id[:8])}
}

func (s stamp) compare(t stamp) int { return cmp.Or(cmp.Compare(s.at, t.at), cmp.Compare(s.id, t.id)) }

// claimed is a claim and when it was made.
type claimed struct {
	Claim
	stamp
}

func (c claimed) pair() profiles.Pair {
	return profiles.Pair{Parent: Secret.Key(c.Parent), Child: Secret.Key(c.Child)}
}

// claims returns what an event says of who belongs to whom.
func (a Act) claims() (list []claimed) {
	add := func(parent, child profiles.Identifier) {
		if parent != child {
			list = append(list, claimed{Claim{parent, child}, a.stamp()})
		}
	}
	if a.User != "" && a.Anon != "" {
		add(user(a.User), anon(a.Anon))
	}
	if a.Type == "alias" {
		add(user(a.User), anon(a.Previous))
		add(user(a.User), user(a.Previous))
	}
	if email, ok := a.Traits["email"].(string); ok && a.MergeOnEmail {
		add(profiles.Identifier{Kind: profiles.Email, Value: strings.ToLower(email)}, a.identifier())
	}
	if a.Custom != "" && a.MergeOnCustom {
		add(profiles.Identifier{Kind: "crm", Value: a.Custom}, a.identifier())
	}
	return list
}

// Decisions draws decisions on a crowd's claims.
func Decisions(c *brute.Chance, acts []Act) (list []Decision) {
	var onUsers, onVisitors []Claim
	for _, a := range acts {
		for _, said := range a.claims() {
			if said.Child.Kind == profiles.UserID {
				onUsers = append(onUsers, said.Claim)
			} else {
				onVisitors = append(onVisitors, said.Claim)
			}
		}
	}
	for i := range c.IntN(5) {
		d := Decision{ID: fmt.Sprintf("d%d-%d", i, c.IntN(1000)), At: time.UnixMilli(c.Instant()).UTC(), Void: c.IntN(3) > 0}
		of := [][]Claim{onUsers, onVisitors}[c.IntN(2)]
		if len(of) > 0 {
			d.Pairs = []Claim{of[c.IntN(len(of))]}
			list = append(list, d)
		}
	}
	return list
}

// People says who everybody is, and all that is known of them: the earliest to claim an identifier has it, unless that
// claim was declared void or would close a circle; and the latest word on a trait or a consent stands.
func People(acts []Act, decisions []Decision) map[profiles.Key]*brute.Person {
	void := voided(decisions)
	var claims []claimed
	for _, a := range acts {
		claims = append(claims, a.claims()...)
	}
	slices.SortFunc(claims, func(a, b claimed) int {
		x, y := a.pair(), b.pair()
		return cmp.Or(a.compare(b.stamp), slices.Compare(x.Parent[:], y.Parent[:]), slices.Compare(x.Child[:], y.Child[:]))
	})
	owner := map[profiles.Key]profiles.Key{}
	root := func(id profiles.Identifier) profiles.Key {
		k := Secret.Key(id)
		for {
			next, owned := owner[k]
			if !owned {
				return k
			}
			k = next
		}
	}
	for _, c := range claims {
		pair := c.pair()
		if _, taken := owner[pair.Child]; !taken && !void[pair] && root(c.Parent) != pair.Child {
			owner[pair.Child] = pair.Parent
		}
	}
	theirs, roots := map[profiles.Key][]Act{}, map[profiles.Key]bool{}
	for _, a := range acts {
		r := root(a.identifier())
		theirs[r], roots[r] = append(theirs[r], a), true
		if a.User != "" && a.Anon != "" { // the visitor is somebody, with or without events of its own
			roots[root(anon(a.Anon))] = true
		}
	}
	people := map[profiles.Key]*brute.Person{}
	for r := range roots {
		people[r] = person(theirs[r])
	}
	return people
}

// person folds what one person did.
func person(acts []Act) *brute.Person {
	p := &brute.Person{Traits: map[string]any{}, Consent: map[string]bool{}}
	for _, a := range acts {
		if a.Type == "track" || a.Type == "page" {
			p.Events = append(p.Events, brute.Occurrence{Name: a.Name, Properties: any(a.Properties), At: a.At})
		}
	}
	// Whatever comes last in these orders overwrites what came before. At a tie the greater value does, and a refusal.
	slices.SortStableFunc(acts, func(a, b Act) int { return a.stamp().compare(b.stamp()) })
	wrote := map[string]Act{}
	for _, a := range acts {
		if a.Type != "identify" {
			continue
		}
		for name, value := range a.Traits {
			if before, ok := wrote[name]; ok && before.stamp() == a.stamp() && text(value) < text(before.Traits[name]) {
				continue
			}
			wrote[name] = a
			p.Traits[name] = value
		}
	}
	for name, value := range p.Traits {
		if value == nil {
			delete(p.Traits, name)
		}
	}
	decided := map[string]stamp{}
	for _, a := range acts {
		decide := func(purpose string, value any) {
			granted, ok := decision(value)
			if !ok || granted && decided[purpose] == a.stamp() && !p.Consent[purpose] {
				return
			}
			decided[purpose] = a.stamp()
			p.Consent[purpose] = granted
		}
		for purpose, value := range a.Consent {
			if inner, ok := value.(map[string]any); ok {
				for purpose, value := range inner {
					decide(purpose, value)
				}
				continue
			}
			decide(purpose, value)
		}
	}
	return p
}

// decision reads a consent.
func decision(value any) (granted, ok bool) {
	switch v := value.(type) {
	case bool:
		return v, true
	case string:
		switch strings.ToLower(v) {
		case "granted":
			return true, true
		case "denied":
			return false, true
		}
	}
	return false, false
}

func text(value any) string {
	b, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	return string(b)
}
