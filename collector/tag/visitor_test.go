package tag_test

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mubatch/mubatch/collector/browsertest"
)

func TestAVisitorIsOneOnAllHostsOfASite(t *testing.T) {
	s := newSite(t, "")
	tab := s.open("/", "www.shop.test")
	first := s.await(1)[0]
	s.visit(tab, "/", "help.shop.test")
	check(t, "visitor", s.await(2)[1].AnonymousID, first.AnonymousID)
	s.visit(tab, "/", "other.test")
	check(t, "another site's", s.await(3)[2].AnonymousID != first.AnonymousID, true)
	if c := browsertest.Eval[string](tab, "document.cookie"); strings.Contains(c, "mub_t") {
		t.Errorf("what was tried is left: %s", c)
	}
}

func TestAVisitorComesAlongToAnotherSite(t *testing.T) {
	s := newSite(t, `data-domains="one.test two.test"`)
	s.html["/from"] = `<a id="a" href="` + s.at("/to", "www.two.test") + `">two</a><a id="b" href="` + s.at("/to", "three.test") + `">three</a>` + s.script()
	tab := s.open("/from", "one.test")
	first := s.await(1)[0]
	check(t, "a link within the site", browsertest.Eval[string](tab, `mub.link("/x")`), s.at("/x", "one.test"))
	tab.Run(`a.click()`)
	tab.Until(`location.host.startsWith("www.two.test") && window.mub && mub.version`)
	e := s.await(2)[1]
	check(t, "visitor", e.AnonymousID, first.AnonymousID)
	check(t, "address", browsertest.Eval[string](tab, "location.href"), s.at("/to", "www.two.test"))
	check(t, "page", e.Context.Page.URL, s.at("/to", "www.two.test"))

	s.visit(tab, "/from", "one.test")
	s.await(3)
	tab.Run(`b.click()`)
	tab.Until(`location.host.startsWith("three.test") && window.mub && mub.version`)
	check(t, "a site that is not listed", s.await(4)[3].AnonymousID != first.AnonymousID, true)
}

// Whoever could make others use an id would see what they do.
func TestAVisitorIsNotTakenFromJustAnyLink(t *testing.T) {
	s := newSite(t, `data-domains="one.test two.test"`)
	made := func(ago time.Duration) string {
		return "/?_mub=" + strings.Repeat("a", 20) + "." + strconv.FormatInt(time.Now().Add(-ago).UnixMilli(), 36)
	}
	for i, c := range []struct{ from, to string }{
		{"three.test", made(0)},             // not ours
		{"one.test", made(3 * time.Minute)}, // copied
		{"one.test", "/?_mub=a." + strconv.FormatInt(time.Now().UnixMilli(), 36)},
	} {
		tab := browsertest.New(t)
		s.set(func() { s.html["/away"] = `<a id="a" href="` + s.at(c.to, "two.test") + `">x</a>` })
		tab.Go(s.at("/away", c.from))
		tab.Run(`a.click()`)
		tab.Until(`location.host.startsWith("two.test") && window.mub && mub.version`)
		e := s.await(i + 1)[i]
		check(t, "visitor", len(e.AnonymousID) > 20, true)
		check(t, "address", browsertest.Eval[string](tab, "location.search"), "")
	}
}

func TestAnotherUserIsAnotherVisitor(t *testing.T) {
	s := newSite(t, `data-auto="off"`)
	tab := s.open("/")
	tab.Run(`
		mub.track("a"); mub.identify("ada"); mub.identify("ada"); mub.group("g")
		mub.identify("bob"); mub.track("b"); mub.reset(); mub.track("c"); mub.flush()`)
	got := s.await(7)
	check(t, "who signs in stays", got[1].AnonymousID, got[0].AnonymousID)
	check(t, "signs in again", got[2].AnonymousID, got[0].AnonymousID)
	check(t, "another user", got[4].AnonymousID != got[0].AnonymousID, true)
	check(t, "user and group", got[5].UserID+got[5].GroupID, "bob")
	check(t, "session", got[4].Context.SessionStart, true)
	check(t, "after reset", got[6].UserID, "")
	check(t, "visitor after reset", got[6].AnonymousID != got[5].AnonymousID, true)
	check(t, "numbers do not tie visitors together", got[6].Context.Mub.S != got[5].Context.Mub.S, true)
}

func TestASessionEndsAfterHalfAnHour(t *testing.T) {
	s := newSite(t, `data-auto="off"`)
	tab := s.open("/")
	tab.Run(`
		mub.track("a"); mub.track("b")
		let [start, last] = localStorage.mub_s.split(".")
		localStorage.mub_s = (start - 29 * 6e4) + "." + (last - 29 * 6e4); mub.track("c")
		;[start, last] = localStorage.mub_s.split(".")
		localStorage.mub_s = (start - 31 * 6e4) + "." + (last - 31 * 6e4); mub.track("d"); mub.flush()`)
	got := s.await(4)
	starts := ""
	for _, e := range got {
		starts += strconv.FormatBool(e.Context.SessionStart)[:1]
	}
	check(t, "starts", starts, "tfft")
	check(t, "session", got[1].Context.SessionID, got[0].Context.SessionID)
	check(t, "another session", got[3].Context.SessionID > got[2].Context.SessionID, true)
}

func TestClickIDsAreForgottenAfter90Days(t *testing.T) {
	s := newSite(t, "")
	tab := s.open("/?gclid=old&fbclid=new")
	s.await(1)
	tab.Run(`
		const a = JSON.parse(localStorage.mub_a)
		a.ids.gclid[1] -= 91 * 864e5; a.ids.fbclid[1] -= 89 * 864e5
		localStorage.mub_a = JSON.stringify(a)
		document.cookie = "_fbp=fb.1.2.3"`)
	s.visit(tab, "/")
	c := s.await(2)[1].Context
	check(t, "older than 90 days", c.ClickIDs["gclid"], "")
	check(t, "younger", c.ClickIDs["fbclid"], "new")
	check(t, "a partner's cookie", c.ClickIDs["fbp"], "fb.1.2.3")
}

func TestBlockedStorageStopsNothing(t *testing.T) {
	s := newSite(t, "")
	s.before = `
		for (const name of ["localStorage", "sessionStorage"])
			Object.defineProperty(window, name, {get() { throw new DOMException("blocked", "SecurityError") }})
		Object.defineProperty(document, "cookie", {get() { throw new Error("off") }, set() { throw new Error("off") }})`
	tab := s.open("/")
	tab.Run(`mub.identify("ada"); mub.track("a"); mub.flush()`)
	got := s.await(3)
	for i, e := range got {
		check(t, "visitor", e.AnonymousID, got[0].AnonymousID)
		check(t, "number", e.Context.Mub.N, i+1)
	}
	check(t, "user", got[2].UserID, "ada")
	tab.Run(`mub.track("last")`)
	tab.Go("about:blank")
	check(t, "what was left when the page went", s.await(4)[3].Event, "last")
}

func TestACollectorOfTheSiteIsAskedForTheCookie(t *testing.T) {
	s := newSite(t, `data-cookies="localhost"`)
	s.open("/")
	e := s.await(1)[0]
	q := s.sent()[0].query
	check(t, "cookie", q.Get("cookie"), e.AnonymousID)
	check(t, "domain", q.Get("domain"), "localhost")
}
