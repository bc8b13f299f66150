// Package partnertest holds the suite that every partner passes, and the strict fakes it passes it against.
//
//	Bench.Apply ──► Ledger ──► Dispatcher ──► Partner ──► Fake
//	                real Postgres             the real    refuses what the real one refuses,
//	                                          one         and notes what it would not notice
//
// A fake gives two verdicts on each request. What it answers is what the real partner would, which may be friendly. What it
// notes is everything that is wrong with it. At the end of each test nothing may be noted, and whom the fake holds must be
// whom it should hold.
package partnertest

import (
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/activation"
)

// Fake is a stand-in for a partner that is stricter than the partner.
type Fake interface {
	// Settings returns those of a destination that reaches the fake.
	Settings() activation.Settings

	// Seed makes people known, so that the fake can tell a right identifier from a wrong one.
	Seed(people ...activation.Person)

	// Members returns whom the fake holds, sorted.
	Members(segment int64) []activation.ProfileID

	// Refuse has the fake refuse a person, in the partner's own way, or not any more.
	Refuse(id activation.ProfileID, refuse bool)

	// Revoke has the fake refuse our credentials until Heal.
	Revoke()

	Script(faults ...Fault)
	Heal()
	Scripted() int
	Requests() int
	Violations() []string
}

// Subject is a partner under test.
type Subject struct {
	// New returns the partner and a fake for it, which live as long as the test.
	New func(t testing.TB) (activation.Partner, Fake)
}

const (
	crowd   = 40
	segment = 7
)

// faults are what a partner must live through without anybody's help.
var faults = []struct {
	name   string
	faults []Fault
}{
	{"nothing goes wrong", nil},
	{"it is throttled without being told for how long", []Fault{{Times: 2, Status: 429}}},
	{"it is throttled for some seconds", []Fault{{Status: 429, Wait: 2 * time.Second}}},
	{"it is throttled until a date", []Fault{{Status: 429, Wait: 2 * time.Second, WaitDate: true}}},
	{"the partner answers 500", []Fault{{Times: 3, Status: 500}}},
	{"the partner applies a message and answers 500", []Fault{{Times: 3, Status: 500, Apply: true}}},
	{"a proxy answers 502 with a page", []Fault{{Times: 2, Status: 502, Body: page, Header: http.Header{"Content-Type": {"text/html"}}}}},
	{"the partner is unavailable for some seconds", []Fault{{Status: 503, Wait: 2 * time.Second}}},
	{"the partner is unavailable", []Fault{{Times: 7, Status: 503}}},
	{"the answer is too late for a message that was applied", []Fault{{Apply: true, Delay: 6 * time.Second}}},
	{"the connection is closed at once", []Fault{{Times: 2, Close: true}}},
	{"the connection breaks before the answer", []Fault{{Times: 2, Reset: true}}},
	{"the connection breaks after a message was applied", []Fault{{Times: 2, Reset: true, Apply: true}}},
	{"the connection breaks in the middle of a refusal", []Fault{{Times: 2, Status: 500, Cut: true}}},
	{"the connection breaks in the middle of a good answer", []Fault{{Times: 2, Apply: true, Cut: true}}},
	{"the answer is huge", []Fault{{Apply: true, Huge: true}}},
	{"the answer drips", []Fault{{Apply: true, Drip: true}}},
	{"the answer is a redirect", []Fault{{Times: 2, Status: 302, Redirect: true}, {Status: 307, Redirect: true}}},
	{"a message is too large", []Fault{{Status: 413}}},
	{"the partner's clock is ten minutes ahead", []Fault{{Times: 2, Skew: 10 * time.Minute}}},
	{"the partner's clock is ten minutes behind", []Fault{{Times: 2, Skew: -10 * time.Minute}}},
	{"everything goes wrong, one after the other", []Fault{
		{Status: 500},
		{Status: 429, Wait: time.Second},
		{Reset: true, Apply: true},
		{Status: 413},
		{Close: true},
		{Status: 502, Body: page},
		{Status: 503, Apply: true},
		{Cut: true, Apply: true},
	}},
}

const page = "<html><body><h1>502 Bad Gateway</h1><p>ask admin@example.com at 10.1.2.3</p></body></html>"

// Run has a partner live through everything that can go wrong. At rest it must hold exactly whom it should.
func Run(t *testing.T, s Subject) {
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			stage := newStage(t, s)
			stage.fake.Script(f.faults...)
			stage.crowdIn(t)
			stage.bench.Dispatch(t, activation.DispatchConfig{})
			stage.churn(t)
			stage.settle(t)
			if n := stage.fake.Scripted(); n > 0 {
				stage.enter(t, crowd, crowd+20) // some more, until it all went wrong
				stage.settle(t)
			}
			if n := stage.fake.Scripted(); n > 0 {
				t.Errorf("%d faults did not happen", n)
			}
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
		if _, err := stage.bench.Store.Resume(t.Context(), stage.bench.Workspace, "fake"); err != nil {
			t.Fatal(err)
		}
		stage.settle(t)
	})
	t.Run("one person who is refused keeps nobody else out", func(t *testing.T) {
		t.Parallel()
		stage := newStage(t, s)
		bad := Profile(3)
		stage.fake.Refuse(bad, true)
		stage.crowdIn(t)
		stage.bench.Dispatch(t, activation.DispatchConfig{})
		sum := stage.bench.Rest(t, "fake")
		if sum.Failed != 1 {
			t.Errorf("%d people failed, want 1", sum.Failed)
		}
		want := stage.bench.World.Members(segment)
		got := stage.fake.Members(segment)
		if len(got) != len(want)-1 {
			t.Errorf("the partner holds %d people, want all %d but one", len(got), len(want))
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
		if err := stage.bench.Store.Detach(t.Context(), stage.bench.Workspace, "fake", segment); err != nil {
			t.Fatal(err)
		}
		Eventually(t, 20*time.Second, "the partner holds nobody", func() bool { return len(stage.fake.Members(segment)) == 0 })
		stage.check(t)
	})
	t.Run("a test of the connection changes nothing", func(t *testing.T) {
		t.Parallel()
		stage := newStage(t, s)
		r, err := stage.bench.Store.Test(t.Context(), stage.bench.Workspace, "fake")
		if err != nil || !r.OK {
			t.Errorf("Test = %+v, %v", r, err)
		}
		stage.fake.Script(Fault{Status: 500})
		if r, err = stage.bench.Store.Test(t.Context(), stage.bench.Workspace, "fake"); err != nil || r.OK {
			t.Errorf("Test of a partner that fails = %+v, %v", r, err)
		}
		if n := len(stage.fake.Members(segment)); n > 0 {
			t.Errorf("%d people were added", n)
		}
		stage.check(t)
	})
}

// stage is one test: a bench, a fake, and a destination there.
type stage struct {
	bench *Bench
	fake  Fake
}

func newStage(t *testing.T, s Subject) *stage {
	t.Helper()
	partner, fake := s.New(t)
	b := NewBench(t, partner)
	b.Destination(t, "fake", partner.Type(), fake.Settings(), segment)
	return &stage{bench: b, fake: fake}
}

// crowdIn has the crowd enter the segment.
func (s *stage) crowdIn(t *testing.T) { s.enter(t, 0, crowd) }

func (s *stage) enter(t *testing.T, from, to int) {
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
func (s *stage) churn(t *testing.T) {
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

// settle waits for rest and compares.
func (s *stage) settle(t *testing.T) {
	t.Helper()
	sum := s.bench.Rest(t, "fake")
	if sum.Failed != 0 || sum.Parked != 0 || sum.Drift != 0 || sum.Unknown != 0 {
		t.Errorf("at rest the ledger says %+v", sum)
	}
	if diff := cmp.Diff(s.bench.World.Members(segment), s.fake.Members(segment)); diff != "" {
		t.Errorf("whom the partner holds (-want +got):\n%s", diff)
	}
	s.check(t)
}

func (s *stage) check(t *testing.T) {
	t.Helper()
	for _, v := range s.fake.Violations() {
		t.Errorf("violation: %s", v)
	}
}

func (s *stage) awaitStatus(t *testing.T, want activation.Status) {
	t.Helper()
	Eventually(t, 20*time.Second, "the destination is "+string(want), func() bool {
		d, err := s.bench.Store.Get(t.Context(), s.bench.Workspace, "fake")
		if err != nil {
			t.Fatal(err)
		}
		return d.Status == want && d.StatusReason != ""
	})
}
