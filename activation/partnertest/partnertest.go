// Package partnertest holds the suite that every partner passes, and the strict fakes it passes it against.
//
//	Bench.Apply ──► Ledger ──► Dispatcher ──► Partner ──► Fake
//	                real Postgres             the real    refuses what the real one refuses,
//	                                          one         and notes what it would not notice
//
// A fake gives two verdicts on each request. What it answers is what the real partner would, which may be friendly. What it
// notes is everything that is wrong with it. At the end of each test nothing may be noted, and whom the fake holds must be
// whom it should hold.
//
// # A new partner
//
// The partner is a package activation/<partner> that exports Partner, made by New(client, outbound), and implements
// [activation.AudiencePartner] and those of the other interfaces of activation/partner.go that its API has room for. Its fake is a
// type of this package, in a file of its own, that embeds [Faults] and implements [Fake]; [SampleFake] is an example of one
// that uses everything, and [Receiver] one that needs little. A fake shares no code with its partner: it computes
// signatures, normal forms and hashes by itself, from the people it is given by Seed.
//
//	func TestSuite(t *testing.T) {
//		partnertest.Run(t, partnertest.Subject{
//			New: func(t testing.TB) (activation.Partner, partnertest.Fake) {
//				client := activation.NewClient(private)
//				t.Cleanup(client.CloseIdleConnections)
//				return meta.New(client, private), partnertest.NewMeta(t)
//			},
//		})
//	}
//
// In the fake's handler:
//
//   - Wrap everything in [Faults.Serve], so that scripted faults happen, and say with [Faults.Changes] which requests change
//     an audience: faults that name no others happen to those alone. Serve runs the handler for requests that are to be
//     applied before they are answered badly.
//   - There are two clocks. [Faults.Now] is the wall clock that the fake has, skewed by faults: hold to it what requests
//     carry, such as signed timestamps; [Faults.Skewed] says when to hold nothing against anybody that follows from it.
//     [Faults.Steady] is moved on when the suite has time pass: measure by it what ends, such as tokens, waits and
//     memberships. A wait that is asked for in the partner's own words is noted with [Faults.NotBefore]; then requests that
//     come too early are violations.
//   - Call [Faults.Violate] for whatever a real partner would refuse or silently not match: unknown paths, members, header
//     values, wrong types; anything with an "@" where hashes belong; hashes of text that was not normalised, of a wrong kind,
//     twice hashed, in upper case, of the empty string; identifiers of two people in one row.
//   - Keep a real set of identifiers for each audience. Members are those people, as last seeded, of whom the audience has
//     at least one right identifier; leftovers are identifiers that are right for nobody as last seeded: of somebody's former
//     address, for instance. Somebody may be seeded again with other identifiers, and two people with the same.
//   - Words are the faults in the partner's own dialect; what is left out of them is not tested.
//
// The suite has the partner live through all of [Run]'s list. Where it would have to wait it has time pass, for the
// database and the fake at once: see [Bench.Warp]. People are [Somebody] and [Known]: their identifiers are made so that
// any normal form of them is right.
//
// # A partner that takes events
//
// It implements [activation.EventPartner], its fake [EventFake], and it passes [RunEvents]; [SampleEventsFake] is an example.
// The events are [Order]s, of which the fake is told by Expect what they are and whose. The fake keeps those that it counts
// by the id that the partner knows duplicates by. It violates whatever the partner would refuse or silently not match, and
// refuses an event that RefuseEvent names in the partner's own way: alone, or with all of its message.
package partnertest

import (
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/activation"
)

// Fake is a stand-in for a partner that is stricter than the partner.
type Fake interface {
	// Settings returns those of a destination that reaches the fake.
	Settings() activation.Settings

	// Seed makes people known, so that the fake can tell a right identifier from a wrong one. Who is seeded again is known
	// by what is given last.
	Seed(people ...activation.Person)

	// Members returns which of the seeded people the partner would recognise in an audience, sorted.
	Members(a Audience) []activation.ProfileID

	// Leftovers returns which identifiers are in an audience that are right for nobody, in a form that helps find out why.
	Leftovers(a Audience) []string

	// Refuse has the fake refuse a person, in the partner's own way, or not any more.
	Refuse(id activation.ProfileID, refuse bool)

	// Revoke has the fake refuse our credentials until Heal.
	Revoke()

	// Words returns how the partner says what other partners say by status.
	Words() Words

	Script(faults ...Fault)
	Heal()
	Scripted() int
	Requests() int
	Violations() []string
	Advance(d time.Duration)
}

// Audience names one: by our segment, and by the partner's own id where there are such.
type Audience struct {
	Segment int64
	Key     string // of the segment; that of [Segment] if empty
	ID      string
}

// key returns the segment's key.
func (a Audience) key() string {
	if a.Key != "" {
		return a.Key
	}
	return Segment(a.Segment).Key
}

// Words are faults as a partner puts them. A zero fault means that it has no words for that.
type Words struct {
	Throttled Fault                     // too many requests, without saying for how long; 429 if zero
	Wait      func(time.Duration) Fault // and for how long; 429 with Retry-After if nil
	TooLarge  Fault                     // 413 if zero
	Forbidden Fault                     // a permission is missing: the destination is paused
	Missing   Fault                     // the audience is not there: the destination is paused
	Passing   []Fault                   // what heals by itself and no status tells
}

// Expirer is a [Fake] whose access tokens end.
type Expirer interface {
	// Expire ends the access token that is in use. A refresh gets another.
	Expire()

	// Refreshes returns how often a token was refreshed.
	Refreshes() int
}

// Forgetter is a [Fake] at which memberships end.
type Forgetter interface {
	// TTL is after how long; 0 if they do not.
	TTL() time.Duration
}

// Subject is a partner under test.
type Subject struct {
	// New returns the partner and a fake for it, which live as long as the test.
	New func(t testing.TB) (activation.Partner, Fake)

	// Audience is given to destinations at partners that need one and cannot make it.
	Audience string

	// Steps is how long the random history of Run is: 60 by default.
	Steps int

	// Blind says that the partner looks at nobody, and so refuses nobody: it keeps what it is given for others to read.
	Blind bool

	// Brief leaves out the list of faults: for variants of a partner that passes them all otherwise.
	Brief bool
}

const (
	crowd   = 40
	segment = 7
)

// or returns a partner's word for something, or the usual one.
func (f Fault) or(usual Fault) Fault {
	if f.Status == 0 && f.Body == "" && f.Header == nil {
		return usual
	}
	return f
}

func (f Fault) times(n int) Fault {
	f.Times = n
	return f
}

// faults are what a partner must live through without anybody's help.
func faults(w Words) map[string][]Fault {
	throttled := w.Throttled.or(Fault{Status: 429})
	wait := w.Wait
	if wait == nil {
		wait = func(d time.Duration) Fault { return Fault{Status: 429, Wait: d} }
	}
	large := w.TooLarge.or(Fault{Status: 413})
	all := map[string][]Fault{
		"nothing goes wrong":                                    nil,
		"it is throttled without being told for how long":       {throttled.times(2)},
		"it is throttled for some seconds":                      {wait(2 * time.Second)},
		"it is throttled for some hours":                        {wait(3 * time.Hour)},
		"a proxy asks to wait until a date":                     {{Status: 429, Wait: 2 * time.Second, WaitDate: true}},
		"the partner answers 500":                               {{Times: 3, Status: 500}},
		"the partner applies a message and answers 500":         {{Times: 3, Status: 500, Apply: true}},
		"a proxy answers 502 with a page":                       {{Times: 2, Status: 502, Body: page, Header: http.Header{"Content-Type": {"text/html"}}}},
		"a proxy answers 200 with a page":                       nil, // below
		"the partner is unavailable for some seconds":           {{Status: 503, Wait: 2 * time.Second}},
		"the partner is unavailable":                            {{Times: 7, Status: 503}},
		"the answer is too late for a message that was applied": {{Apply: true, Delay: 6 * time.Second}},
		"the connection is closed at once":                      {{Times: 2, Close: true}},
		"the connection breaks before the answer":               {{Times: 2, Reset: true}},
		"the connection breaks after a message was applied":     {{Times: 2, Reset: true, Apply: true}},
		"the connection breaks in the middle of a refusal":      {{Times: 2, Status: 500, Cut: true}},
		"the connection breaks in the middle of a good answer":  {{Times: 2, Apply: true, Cut: true}},
		"the answer is huge":                                    {{Apply: true, Huge: true}},
		"the answer drips":                                      {{Apply: true, Drip: true}},
		"the answer is a redirect":                              {{Times: 2, Status: 302, Redirect: true}, {Status: 307, Redirect: true}},
		"a message is too large":                                {large},
		"the partner's clock is ten minutes ahead":              {{Times: 2, Skew: 10 * time.Minute}},
		"the partner's clock is ten minutes behind":             {{Times: 2, Skew: -10 * time.Minute}},
		"everything goes wrong, one after the other": {
			{Status: 500},
			wait(time.Second),
			{Reset: true, Apply: true},
			large,
			{Close: true},
			{Status: 502, Body: page},
			{Status: 503, Apply: true},
			{Cut: true, Apply: true},
		},
	}
	delete(all, "a proxy answers 200 with a page") // for a webhook that is an answer
	for i, f := range w.Passing {
		all[fmt.Sprintf("the partner has words of its own for what will pass, %d", i)] = []Fault{f.times(2)}
	}
	return all
}

const page = "<html><body><h1>502 Bad Gateway</h1><p>ask admin@example.com at 10.1.2.3</p></body></html>"

// Run has a partner live through everything that can go wrong. At rest it must hold exactly whom it should.
func Run(t *testing.T, s Subject) {
	partner, fake := s.New(t)
	words, limits := fake.Words(), partner.Limits(activation.Target{Settings: fake.Settings()})
	for name, script := range faults(words) {
		if s.Brief {
			break
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stage := newStage(t, s)
			stage.fake.Script(script...)
			stage.crowdIn(t)
			stage.bench.Dispatch(t, activation.DispatchConfig{})
			stage.churn(t)
			stage.settle(t)
			if n := stage.fake.Scripted(); n > 0 {
				stage.enter(t, crowd, crowd+20) // some more, until it all went wrong
				stage.settle(t)
			}
			for n := 1; stage.fake.Scripted() > 0 && n < 5; n++ {
				stage.enter(t, crowd+20*n, crowd+20*(n+1))
				stage.settle(t)
			}
			if n := stage.fake.Scripted(); n > 0 {
				t.Errorf("%d faults did not happen", n)
			}
		})
	}
	for name, fault := range map[string]Fault{
		"a missing permission":                   words.Forbidden,
		"an audience that is not there any more": words.Missing,
	} {
		if fault.or(Fault{}).Status == 0 && fault.Body == "" {
			continue
		}
		t.Run(name+" pauses the destination until somebody mends it", func(t *testing.T) {
			t.Parallel()
			stage := newStage(t, s)
			stage.crowdIn(t)
			stage.bench.Dispatch(t, activation.DispatchConfig{})
			stage.settle(t)
			stage.sleep(t, 20*time.Minute) // some partners do not know at once what they have made
			stage.fake.Script(fault.times(1000))
			stage.churn(t)
			stage.awaitStatus(t, activation.Paused)
			stage.churn(t) // and what was under way arrives
			stage.fake.Heal()
			stage.resume(t)
			stage.settle(t)
		})
	}
	t.Run("a revoked credential pauses the destination until somebody resumes it", func(t *testing.T) {
		t.Parallel()
		stage := newStage(t, s)
		stage.fake.Revoke()
		stage.crowdIn(t)
		stage.bench.Dispatch(t, activation.DispatchConfig{})
		stage.awaitStatus(t, activation.Paused)
		asked := stage.fake.Requests()
		stage.churn(t)
		time.Sleep(300 * time.Millisecond)
		if n := stage.fake.Requests() - asked; n > 8 { // what was under way
			t.Errorf("%d requests came after the credential was refused", n)
		}
		stage.fake.Heal()
		stage.resume(t)
		stage.settle(t)
	})
	t.Run("one person who is refused keeps nobody else out", func(t *testing.T) {
		t.Parallel()
		if s.Blind {
			t.Skip("the partner refuses nobody")
		}
		stage := newStage(t, s)
		bad := Profile(3)
		stage.fake.Refuse(bad, true)
		stage.crowdIn(t)
		stage.bench.Dispatch(t, activation.DispatchConfig{})
		sum := stage.rest(t)
		if sum.Failed != 1 {
			t.Errorf("%d people failed, want 1", sum.Failed)
		}
		if got, want := len(stage.fake.Members(stage.audience(t))), crowd-1; got != want {
			t.Errorf("the partner holds %d people, want %d: all but one", got, want)
		}
		stage.fake.Refuse(bad, false)
		n, err := stage.bench.Store.Replay(t.Context(), stage.bench.Workspace, "fake", activation.Replay{})
		if err != nil || n != 1 {
			t.Errorf("Replay of what failed = %d, %v, want 1", n, err)
		}
		stage.settle(t)
	})
	t.Run("two dispatchers share the work and double nothing", func(t *testing.T) {
		t.Parallel()
		stage := newStage(t, s)
		stage.fake.Script(Fault{Times: 3, Status: 500, Apply: true}, Fault{Reset: true, Apply: true})
		stage.bench.Dispatch(t, activation.DispatchConfig{})
		stage.bench.Dispatch(t, activation.DispatchConfig{})
		stage.crowdIn(t)
		for range 5 {
			stage.churn(t)
		}
		stage.settle(t)
	})
	t.Run("a dispatcher that is stopped and started again loses and doubles nothing", func(t *testing.T) {
		t.Parallel()
		stage := newStage(t, s)
		stage.crowdIn(t)
		for range 4 {
			stage.fake.Script(Fault{Times: 2, Delay: 400 * time.Millisecond, Apply: true})
			stop := stage.bench.Dispatch(t, activation.DispatchConfig{})
			stage.churn(t)
			time.Sleep(50 * time.Millisecond)
			stop()
		}
		stage.fake.Heal()
		stage.bench.Dispatch(t, activation.DispatchConfig{})
		stage.settle(t)
	})
	t.Run("a day on which it is unavailable costs nothing but the day", func(t *testing.T) {
		t.Parallel()
		stage := newStage(t, s)
		stage.fake.Script(Fault{Times: 1 << 20, Status: 503})
		stage.crowdIn(t)
		stage.bench.Dispatch(t, activation.DispatchConfig{Schedule: activation.DefaultSchedule})
		for range 8 {
			stage.churn(t)
			stage.sleep(t, 3*time.Hour)
		}
		if n := len(stage.fake.Members(stage.audience(t))); n > 0 {
			t.Errorf("the partner holds %d people although it took nothing", n)
		}
		stage.fake.Heal()
		sum := stage.settle(t)
		if sum.Failed != 0 || sum.Parked != 0 {
			t.Errorf("%d failed and %d are parked, want none within 72 hours", sum.Failed, sum.Parked)
		}
		stage.bench.checkOrder(t, "fake")
	})
	t.Run("everything can be sent again", func(t *testing.T) {
		t.Parallel()
		stage := newStage(t, s)
		stage.crowdIn(t)
		stage.bench.Dispatch(t, activation.DispatchConfig{})
		stage.settle(t)
		asked := stage.fake.Requests()
		n, err := stage.bench.Store.Replay(t.Context(), stage.bench.Workspace, "fake", activation.Replay{Everything: true})
		if err != nil || n != crowd {
			t.Errorf("Replay of everything = %d, %v, want %d", n, err, crowd)
		}
		stage.settle(t)
		if stage.fake.Requests() == asked {
			t.Error("nothing was sent again")
		}
	})
	t.Run("a detached segment is emptied", func(t *testing.T) {
		t.Parallel()
		stage := newStage(t, s)
		stage.crowdIn(t)
		stage.bench.Dispatch(t, activation.DispatchConfig{})
		stage.settle(t)
		audience := stage.audience(t)
		if err := stage.bench.Store.Detach(t.Context(), stage.bench.Workspace, "fake", segment); err != nil {
			t.Fatal(err)
		}
		stage.await(t, "the partner holds nobody", func() bool { return len(stage.fake.Members(audience)) == 0 })
		stage.check(t)
	})
	t.Run("withdrawn consent removes, and given consent adds", func(t *testing.T) {
		t.Parallel()
		stage := newStage(t, s)
		gate := activation.AdGate()
		_, err := stage.bench.Store.Update(t.Context(), stage.bench.Workspace, "fake", activation.Update{Consent: &gate})
		if err != nil {
			t.Fatal(err)
		}
		stage.crowdIn(t)
		stage.bench.Dispatch(t, activation.DispatchConfig{})
		stage.settle(t)
		for n := range 10 {
			p := Somebody(n)
			p.Consent = map[string]bool{activation.AdUserData: true, activation.AdPersonalization: n%2 == 0}
			if n == 4 {
				p.Consent[activation.GPC] = true
			}
			stage.bench.Person(t, p, "m-3")
		}
		sum := stage.settle(t)
		if sum.Wanted != crowd-6 || sum.Denied != 6 {
			t.Errorf("%d are wanted and %d denied, want %d and 6", sum.Wanted, sum.Denied, crowd-6)
		}
		for n := range 10 {
			stage.bench.Person(t, Somebody(n), "m-4")
		}
		if sum = stage.settle(t); sum.Wanted != crowd {
			t.Errorf("%d are wanted, want %d", sum.Wanted, crowd)
		}
	})
	t.Run("a test of the connection changes nothing", func(t *testing.T) {
		t.Parallel()
		stage := newStage(t, s)
		r, err := stage.bench.Store.Test(t.Context(), stage.bench.Workspace, "fake")
		if err != nil || !r.OK {
			t.Errorf("Test = %+v, %v", r, err)
		}
		stage.fake.Script(Fault{Status: 500, Match: func(*http.Request) bool { return true }})
		if r, err = stage.bench.Store.Test(t.Context(), stage.bench.Workspace, "fake"); err != nil || r.OK {
			t.Errorf("Test of a partner that fails = %+v, %v", r, err)
		}
		if n := len(stage.fake.Members(stage.audience(t))); n > 0 {
			t.Errorf("%d people were added", n)
		}
		stage.check(t)
	})
	t.Run("a dry run changes nothing and shows nobody", func(t *testing.T) {
		t.Parallel()
		stage := newStage(t, s)
		stage.crowdIn(t)
		d, err := stage.bench.dryRun(t, "fake", segment)
		if err != nil || len(d.Requests) == 0 && d.Validated == nil {
			t.Errorf("DryRun = %+v, %v", d, err)
		}
		if n := len(stage.fake.Members(stage.audience(t))); n > 0 {
			t.Errorf("%d people were added", n)
		}
		stage.bench.Dispatch(t, activation.DispatchConfig{})
		stage.settle(t)
	})
	if !limits.ByProfile {
		runIdentities(t, s)
	}
	if _, ok := fake.(Expirer); ok {
		runTokens(t, s)
	}
	if f, ok := fake.(Forgetter); ok && f.TTL() > 0 {
		t.Run("whom the partner would forget is sent again in time", func(t *testing.T) {
			t.Parallel()
			stage := newStage(t, s)
			stage.crowdIn(t)
			stage.bench.Dispatch(t, activation.DispatchConfig{})
			stage.settle(t)
			for range 4 {
				stage.sleep(t, f.TTL()*65/100)
				stage.await(t, "everybody is to be sent again, or has been", func() bool { return stage.bench.renewed(t, "fake") })
				stage.settle(t)
			}
		})
	}
	t.Run("whatever happens, in the end it holds whom it should", func(t *testing.T) {
		t.Parallel()
		Random(t, s, uint64(time.Now().UnixNano()))
	})
}

// runIdentities tests what follows from partners' knowing people by what changes and may be shared.
func runIdentities(t *testing.T, s Subject) {
	t.Run("what somebody was known by is removed, then what the person is known by now added", func(t *testing.T) {
		t.Parallel()
		stage := newStage(t, s)
		stage.crowdIn(t)
		stage.bench.Dispatch(t, activation.DispatchConfig{})
		stage.settle(t)
		asked := stage.fake.Requests()
		p := Somebody(5)
		p.Traits["plan"] = []byte(`"free"`)
		stage.bench.Person(t, p, "m-5")
		stage.settle(t)
		if n := stage.fake.Requests() - asked; n > 0 {
			t.Errorf("%d requests came although nothing that identifies anybody changed", n)
		}
		p = Known(5, 1005)
		stage.fake.Seed(p)
		stage.bench.Person(t, p, "m-6")
		stage.settle(t)
		lines := stage.lines(t, p.ID)
		if want := []string{"entered event", "left identity", "entered identity"}; !slices.Equal(lines, want) {
			t.Errorf("the ledger says %v, want %v", lines, want)
		}
	})
	t.Run("who has nothing the partner could use is not reachable, until there is something", func(t *testing.T) {
		t.Parallel()
		stage := newStage(t, s)
		stage.crowdIn(t)
		stage.bench.World.Add(Nameless(crowd))
		stage.fake.Seed(Nameless(crowd))
		stage.bench.Apply(t, activation.Change{Segment: segment, Profile: Profile(crowd), Entered: true})
		stage.bench.Dispatch(t, activation.DispatchConfig{})
		if sum := stage.rest(t); sum.Unreachable != 1 || sum.Drift != 0 {
			t.Errorf("summary %+v, want 1 unreachable and no drift", sum)
		}
		stage.fake.Seed(Somebody(crowd))
		stage.bench.Person(t, Somebody(crowd), "m-7")
		if sum := stage.settle(t); sum.Unreachable != 0 {
			t.Errorf("%d are unreachable, want 0", sum.Unreachable)
		}
		stage.fake.Seed(Nameless(crowd))
		stage.bench.Person(t, Nameless(crowd), "m-8")
		if sum := stage.rest(t); sum.Unreachable != 1 {
			t.Errorf("%d are unreachable, want 1", sum.Unreachable)
		}
		stage.compare(t)
	})
	t.Run("what two people share stays for as long as one of them does", func(t *testing.T) {
		t.Parallel()
		stage := newStage(t, s)
		twin := Known(crowd, 3)
		stage.fake.Seed(twin)
		stage.bench.World.Add(twin)
		stage.crowdIn(t)
		stage.bench.Apply(t, activation.Change{Segment: segment, Profile: twin.ID, Entered: true})
		stage.bench.Dispatch(t, activation.DispatchConfig{})
		stage.settle(t)
		stage.bench.Apply(t, activation.Change{Segment: segment, Profile: Profile(3)})
		stage.settle(t)
		stage.bench.Apply(t, activation.Change{Segment: segment, Profile: twin.ID})
		stage.settle(t)
	})
	t.Run("a merge moves", func(t *testing.T) {
		t.Parallel()
		stage := newStage(t, s)
		stage.crowdIn(t)
		stage.bench.Dispatch(t, activation.DispatchConfig{})
		stage.settle(t)
		stage.fake.Script(Fault{Reset: true, Apply: true}, Fault{Status: 500})
		for n := range 10 { // each becomes a part of somebody new
			into := Known(100+n, n)
			stage.fake.Seed(into)
			stage.bench.World.Add(into)
			if n%2 == 0 {
				stage.bench.Apply(t, activation.Change{Segment: segment, Profile: into.ID, Entered: true, Cause: "merge"})
			}
			stage.bench.World.Remove(Profile(n))
			stage.fake.Seed(Nameless(n))
			stage.bench.Apply(t, activation.Change{Segment: segment, Profile: Profile(n), Cause: "merge"})
			if n%2 == 1 {
				stage.bench.Apply(t, activation.Change{Segment: segment, Profile: into.ID, Entered: true, Cause: "merge"})
			}
		}
		stage.settle(t)
	})
}

// runTokens tests what follows from access tokens' ending.
func runTokens(t *testing.T, s Subject) {
	t.Run("an access token that ends is refreshed once, whoever finds out", func(t *testing.T) {
		t.Parallel()
		stage := newStage(t, s)
		stage.bench.Dispatch(t, activation.DispatchConfig{})
		stage.bench.Dispatch(t, activation.DispatchConfig{})
		stage.crowdIn(t)
		stage.settle(t)
		fake := stage.fake.(Expirer)
		before := fake.Refreshes()
		fake.Expire()
		stage.churn(t)
		stage.settle(t)
		if n := fake.Refreshes() - before; n != 1 {
			t.Errorf("the token was refreshed %d times, want once", n)
		}
	})
	t.Run("an access token is refreshed before it ends", func(t *testing.T) {
		t.Parallel()
		stage := newStage(t, s)
		stage.bench.Dispatch(t, activation.DispatchConfig{})
		stage.crowdIn(t)
		stage.settle(t)
		fake := stage.fake.(Expirer)
		d, err := stage.bench.Store.Get(t.Context(), stage.bench.Workspace, "fake")
		if err != nil || d.TokenExpires.IsZero() {
			t.Skipf("nobody knows when the token ends: %v", err)
		}
		before := fake.Refreshes()
		stage.sleep(t, time.Until(d.TokenExpires)*9/10)
		stage.await(t, "the token is refreshed", func() bool { return fake.Refreshes() > before })
		stage.churn(t)
		stage.settle(t)
	})
}

// stage is one test: a bench, a fake, and a destination there.
type stage struct {
	bench   *Bench
	fake    Fake
	partner activation.Partner
}

func newStage(t testing.TB, s Subject) *stage {
	t.Helper()
	partner, fake := s.New(t)
	b := NewBench(t, partner)
	b.Destination(t, "fake", partner.Type(), fake.Settings(), segment)
	if s.Audience != "" {
		if err := b.Store.SetAudience(t.Context(), b.Workspace, "fake", segment, s.Audience); err != nil {
			t.Fatal(err)
		}
	}
	return &stage{bench: b, fake: fake, partner: partner}
}

// crowdIn has the crowd enter the segment.
func (s *stage) crowdIn(t testing.TB) { s.enter(t, 0, crowd) }

func (s *stage) enter(t testing.TB, from, to int) {
	t.Helper()
	var changes []activation.Change
	for n := from; n < to; n++ {
		p := Somebody(n)
		s.fake.Seed(p)
		s.bench.World.Add(p)
		changes = append(changes, activation.Change{Segment: segment, Profile: p.ID, Entered: true, MessageID: "m-1"})
	}
	s.bench.Apply(t, changes...)
}

// churn has some of the crowd leave, some leave and come back, and some leave for good, with time for messages in between.
func (s *stage) churn(t testing.TB) {
	t.Helper()
	turn := func(from, to int, entered bool) {
		var changes []activation.Change
		for n := from; n < to; n++ {
			changes = append(changes, activation.Change{Segment: segment, Profile: Profile(n), Entered: entered, MessageID: "m-2"})
		}
		s.bench.Apply(t, changes...)
	}
	turn(0, 10, false)
	time.Sleep(20 * time.Millisecond)
	turn(5, 15, false)
	turn(5, 15, true)
	time.Sleep(100 * time.Millisecond)
	turn(20, 30, false)
	turn(25, 35, true)
}

func (s *stage) resume(t testing.TB) {
	t.Helper()
	if _, err := s.bench.Store.Resume(t.Context(), s.bench.Workspace, "fake"); err != nil {
		t.Fatal(err)
	}
}

// sleep has time pass, for us and the partner.
func (s *stage) sleep(t testing.TB, d time.Duration) {
	t.Helper()
	s.bench.Warp(t, d, s.fake)
}

// await waits until a condition comes true, and has time pass while there is nothing to do but wait.
func (s *stage) await(t testing.TB, what string, is func() bool) {
	t.Helper()
	s.bench.await(t, what, func(d time.Duration) { s.sleep(t, d) }, is)
}

// rest waits until nothing is under way and returns the ledger's counts.
func (s *stage) rest(t testing.TB) (sum activation.Summary) {
	t.Helper()
	s.await(t, "the ledger is at rest", func() bool {
		done := false
		sum, done = s.bench.resting(t, "fake")
		return done
	})
	return sum
}

// settle waits for rest and compares.
func (s *stage) settle(t testing.TB) activation.Summary {
	t.Helper()
	sum := s.rest(t)
	if sum.Failed != 0 || sum.Parked != 0 || sum.Drift != 0 || sum.Unknown != 0 {
		t.Errorf("at rest the ledger says %+v", sum)
	}
	s.compare(t)
	return sum
}

// compare holds what the fake has to what it should.
func (s *stage) compare(t testing.TB) {
	t.Helper()
	audience := s.audience(t)
	if diff := cmp.Diff(s.expected(t), s.fake.Members(audience)); diff != "" {
		t.Errorf("whom the partner holds (-want +got):\n%s", diff)
	}
	for _, x := range s.fake.Leftovers(audience) {
		t.Errorf("the partner holds what is nobody's: %s", x)
	}
	s.bench.checkHoldings(t)
	s.check(t)
}

// expected returns whom the partner should recognise: who is wanted, and who cannot be told from them, which is who has the
// same address.
func (s *stage) expected(t testing.TB) []activation.ProfileID {
	t.Helper()
	d, err := s.bench.Store.Get(t.Context(), s.bench.Workspace, "fake")
	if err != nil {
		t.Fatal(err)
	}
	byProfile := s.partner.Limits(activation.Target{Settings: s.fake.Settings()}).ByProfile
	set, known := map[activation.ProfileID]bool{}, map[string]bool{}
	for _, p := range s.bench.World.Wanted(segment, d.Consent) {
		if byProfile {
			set[p.ID] = true
			continue
		}
		for _, email := range p.Identified("email") {
			known[email] = true
		}
	}
	for _, p := range s.bench.World.everybody() {
		for _, email := range p.Identified("email") {
			if known[email] {
				set[p.ID] = true
			}
		}
	}
	return sorted(set)
}

// audience returns the one of the segment.
func (s *stage) audience(t testing.TB) Audience {
	t.Helper()
	d, err := s.bench.Store.Get(t.Context(), s.bench.Workspace, "fake")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range d.Segments {
		if a.Segment == segment {
			return Audience{Segment: segment, ID: a.Audience}
		}
	}
	return Audience{Segment: segment}
}

// lines returns what the ledger says was accepted of somebody, the oldest first.
func (s *stage) lines(t testing.TB, id activation.ProfileID) (lines []string) {
	t.Helper()
	list, err := s.bench.Store.Deliveries(t.Context(), s.bench.Workspace, "fake", activation.DeliveryFilter{
		Profile: &id, Outcome: activation.OK, Limit: 100,
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(list)
	for _, d := range list {
		line := "left " + d.Cause
		if d.Entered {
			line = "entered " + d.Cause
		}
		if len(lines) == 0 || lines[len(lines)-1] != line { // accepted, then polled
			lines = append(lines, line)
		}
	}
	return lines
}

func (s *stage) check(t testing.TB) {
	t.Helper()
	for _, v := range s.fake.Violations() {
		t.Errorf("violation: %s", v)
	}
}

func (s *stage) awaitStatus(t testing.TB, want activation.Status) {
	t.Helper()
	s.await(t, "the destination is "+string(want), func() bool {
		d, err := s.bench.Store.Get(t.Context(), s.bench.Workspace, "fake")
		if err != nil {
			t.Fatal(err)
		}
		return d.Status == want && d.StatusReason != ""
	})
}
