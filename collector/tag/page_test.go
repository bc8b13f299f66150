package tag_test

import (
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mubatch/mubatch/collector/browsertest"
	"github.com/mubatch/mubatch/collector/tag"
)

func TestAPageIsTold(t *testing.T) {
	s := newSite(t, "")
	tab := s.open("/shoes?utm_source=news&utm_campaign=spring&gclid=abc&token=secret&size=42#top")
	e := s.await(1)[0]
	check(t, "type", e.Type, "page")
	check(t, "url", e.Context.Page.URL, s.at("/shoes?utm_source=news&utm_campaign=spring&gclid=abc&size=42"))
	check(t, "path", e.Context.Page.Path, "/shoes")
	check(t, "title", e.Context.Page.Title, "/shoes")
	check(t, "property", e.Properties["path"], any("/shoes"))
	check(t, "campaign", e.Context.Campaign["name"]+" "+e.Context.Campaign["source"], "spring news")
	check(t, "click id", e.Context.ClickIDs["gclid"], "abc")
	check(t, "time of the click", e.Context.ClickIDsAt["gclid"] > 1e12, true)
	check(t, "first touch", e.Context.Attribution["first"].Campaign["name"], "spring")
	check(t, "start of a session", e.Context.SessionStart, true)
	check(t, "number", e.Context.Mub.N, 1)
	check(t, "visitor", e.AnonymousID, browsertest.Eval[string](tab, `document.cookie.match(/mub_id=(\w+)/)[1]`))
	r := s.sent()[0]
	check(t, "requests, none of them to ask first", r.method+r.path+r.query.Get("writeKey")+r.batch.WriteKey, "POST/v1/bkeykey")
	check(t, "content type", r.header.Get("Content-Type"), "text/plain;charset=UTF-8")
	check(t, "cookies", r.header.Get("Cookie"), "")
	check(t, "library", r.batch.Context["library"].(map[string]any)["version"], any(tag.Version))

	s.visit(tab, "/hats")
	e = s.await(2)[1]
	check(t, "referrer", e.Context.Page.Referrer, "") // typed in
	check(t, "campaign of another page", len(e.Context.Campaign), 0)
	check(t, "last touch", e.Context.Attribution["last"].Campaign["name"], "spring")
	check(t, "click id on another page", e.Context.ClickIDs["gclid"], "abc")
	check(t, "start of a session", e.Context.SessionStart, false)
}

func TestTheCallsAreSegments(t *testing.T) {
	s := newSite(t, `data-auto="off" data-alias="analytics"`)
	s.before = `window.analytics = []; analytics.push(["track", "Early", {n: 0}])`
	tab := s.open("/")
	tab.Run(`
		window.told = 0
		const a = window.analytics
		a.identify("ada", {plan: "pro"}, {context: {extra: 1}}, () => told++)
		a.track("Bought", {price: 9.5}, () => told++)
		a.page("Shop", "Shoes", {size: 42})
		a.page("Home")
		a.group(17, {name: "acme"})
		a.alias("ada2")
		a.screen("Main")
		mub.set({plan: "free"})
		a.track("Left")
		a.identify({age: 3})
		if (a.user().id() != "ada" || a.user().anonymousId().length < 16) throw "user"
		mub.flush()`)
	got := s.await(10)
	var names []string
	for i, e := range got {
		names = append(names, strings.Trim(e.Type+"/"+e.Category+"/"+e.Event+e.Name, "/"))
		check(t, "number", e.Context.Mub.N, i+1)
	}
	check(t, "calls", strings.Join(names, " "), "track//Early identify track//Bought page/Shop/Shoes page//Home group alias screen//Main track//Left identify")
	check(t, "traits", got[1].Traits["plan"], any("pro"))
	check(t, "user", got[2].UserID, "ada")
	check(t, "group", got[5].GroupID, "17")
	check(t, "alias", got[6].UserID+" "+got[6].PreviousID, "ada2 ada")
	check(t, "set", got[8].Properties["plan"], any("free"))
	check(t, "traits without an id", got[9].Traits["age"].(float64), 3)
	check(t, "user without an id", got[9].UserID, "ada")
	tab.Until("told == 2")
}

func TestTheStubKeepsCalls(t *testing.T) {
	s := newSite(t, "")
	s.policy = "default-src 'none'; img-src data:; script-src 'nonce-n1' " + s.collector.URL + "; connect-src " + s.collector.URL
	for path, snippet := range map[string]string{
		"/newest": tag.NewSnippet(s.collector.URL, "key").HTML,
		"/pinned": tag.NewSnippet(s.collector.URL, "key").Pinned,
	} {
		s.html[path] = strings.Replace(snippet, "<script>", `<script nonce="n1">`, 1) +
			`<script nonce="n1">mub.identify("ada"); mub.track("Early").then(e => window.early = e.event); mub.ready(() => window.ready = true)</script>`
	}
	for i, path := range []string{"/newest", "/pinned"} {
		tab := s.open(path)
		tab.Until(`window.early == "Early" && window.ready`)
		got := s.await(3 * (i + 1))[3*i:]
		check(t, "calls", got[0].Type+got[1].Event+got[2].Type, "identifyEarlypage")
		check(t, "key", s.sent()[0].batch.WriteKey, "key")
	}
}

func TestPagesThatAreNotLoadedAreTold(t *testing.T) {
	s := newSite(t, "")
	tab := s.open("/one")
	s.await(1)
	tab.Run(`history.pushState({}, "", "/two"); await new Promise(r => setTimeout(r, 50))`)
	tab.Run(`history.replaceState({}, "", "/two"); await new Promise(r => setTimeout(r, 50))`) // the same
	tab.Run(`history.replaceState({}, "", "/three"); await new Promise(r => setTimeout(r, 50))`)
	tab.Run(`location.hash = "part"; await new Promise(r => setTimeout(r, 50))`) // of the same page
	tab.Run(`location.hash = "#/four"; await new Promise(r => setTimeout(r, 50))`)
	tab.Run(`history.back(); await new Promise(r => setTimeout(r, 200)); mub.flush()`)
	var seen []string
	for _, e := range s.await(5) {
		seen = append(seen, strings.TrimPrefix(e.Context.Page.Referrer, s.at(""))+">"+strings.TrimPrefix(e.Context.Page.URL, s.at("")))
	}
	check(t, "pages", strings.Join(seen, " "), ">/one /one>/two /two>/three /three>/three#/four /three#/four>/three")
}

// A site that tells its pages itself has each of them once, and its events are of the page that is shown.
func TestAPageIsToldOnce(t *testing.T) {
	s := newSite(t, "")
	tab := s.open("/one")
	s.await(1)
	tab.Run(`
		history.pushState({}, "", "/two?utm_campaign=spring")
		mub.track("a"); mub.page("Two")
		await new Promise(r => setTimeout(r, 100)); mub.flush()`)
	got := s.await(3)
	check(t, "event", got[1].Event+got[1].Context.Page.Path, "a/two")
	check(t, "campaign", got[1].Context.Campaign["name"], "spring")
	check(t, "page", got[2].Name+got[2].Context.Page.Referrer, "Two"+s.at("/one"))

	by := newSiteBeside(t, `data-auto="off"`)
	tab = by.open("/one")
	tab.Run(`history.pushState({}, "", "/two"); mub.page(); mub.flush()`)
	check(t, "page", by.await(1)[0].Context.Page.Path, "/two")
}

func TestNothingThatIsGivenThrows(t *testing.T) {
	s := newSite(t, `data-auto="off"`)
	tab := s.open("/")
	tab.Run(`
		const loop = {}; loop.loop = loop
		mub.track("loop", loop)
		mub.track("big", {n: 10n})
		mub.track("null", null, {context: {extra: 1}}, () => { throw new Error("theirs") })
		mub.track(); mub.page(null); mub.identify(null, {a: 1}); mub.group(); mub.alias(); mub.link("::"); mub.ready(); mub.push(["nothing"]); mub.set(null)
		mub.consent(); mub.track("last", undefined, undefined, undefined); mub.flush()`)
	browsertest.Until(t, "the last one comes", func() bool {
		return slices.ContainsFunc(s.events(), func(e event) bool { return e.Event == "last" })
	})
}

func TestClicksAndFormsAreTold(t *testing.T) {
	s := newSite(t, `data-auto="off" data-extras="forms,scroll"`)
	s.before = `window.extras = 0; document.addEventListener("load", e => { if (/mub\.[a-z]+\.js/.test(e.target.src)) extras++ }, true)`
	s.html["/"] = `<button id="b" data-mub-event="Wanted" data-mub-item-size="42"><b id="inner">x</b></button>
		<form id="f" data-mub-event="Asked" data-mub-topic="price"><input id="i"></form><form id="g" name="news"></form>
		<div style="height:9000px"></div><script>` + s.before + `</script>` + s.script()
	tab := s.open("/")
	tab.Until(`window.extras == 2`)
	tab.Run(`
		for (const f of [window.f, window.g]) f.addEventListener("submit", e => e.preventDefault())
		inner.click(); i.click(); f.requestSubmit(); g.requestSubmit(); mub.flush()`)
	got := s.await(3)
	check(t, "click", got[0].Event+" "+got[0].Properties["itemSize"].(string), "Wanted 42")
	check(t, "submit", got[1].Event+" "+got[1].Properties["topic"].(string), "Asked price")
	check(t, "form", got[2].Event+" "+got[2].Properties["name"].(string), "Form Submitted news")
	tab.Run(`scrollTo(0, 4000); await new Promise(r => setTimeout(r, 400)); mub.flush()`)
	check(t, "scroll", s.await(4)[3].Properties["percent"].(float64), 25)
}

func TestBeforeSendHasTheLastWord(t *testing.T) {
	s := newSite(t, `data-auto="off"`)
	tab := s.open("/")
	tab.Run(`
		mub.beforeSend = e => {
			if (e.event == "no") return null
			if (e.event == "bad") throw new Error("hook")
			e.properties.seen = true
			return e
		}
		mub.track("no"); mub.track("bad"); mub.track("yes"); mub.flush()`)
	e := s.await(1)[0]
	check(t, "event", e.Event, "yes")
	check(t, "changed", e.Properties["seen"], any(true))
	check(t, "what is not sent has no number", e.Context.Mub.N, 1)
}

func TestMaskedParametersNeverLeave(t *testing.T) {
	s := newSite(t, `data-mask-url="voucher, name"`)
	s.open("/?voucher=1&name=ada&token=2&size=3")
	check(t, "search", s.await(1)[0].Context.Page.Search, "?token=2&size=3")
}

func TestAPrerenderedPageIsToldWhenItIsSeen(t *testing.T) {
	s := newSite(t, "")
	s.before = `
		let hidden = true
		Object.defineProperty(document, "prerendering", {get: () => hidden})
		window.show = () => { hidden = false; document.dispatchEvent(new Event("prerenderingchange")) }`
	tab := s.open("/")
	tab.Run(`mub.track("Early"); await new Promise(r => setTimeout(r, 600))`)
	check(t, "requests before", len(s.sent()), 0)
	check(t, "stored before", browsertest.Eval[int](tab, `localStorage.length`), 0)
	tab.Run(`show()`)
	got := s.await(2)
	check(t, "calls", got[0].Event+got[1].Type, "Earlypage")
}

// The browser loads the next page before anybody asks for it.
func TestAPrerenderedPageOfChromiumIsToldWhenItIsSeen(t *testing.T) {
	s := newSite(t, "")
	var loaded atomic.Bool
	s.html["/from"] = `<script type="speculationrules">{"prerender": [{"urls": ["/next"], "eagerness": "immediate"}]}</script>
		<a id="a" href="/next">next</a>` + s.script()
	s.seen = func(r *http.Request) {
		if r.URL.Path == "/next" && strings.Contains(r.Header.Get("Sec-Purpose"), "prerender") {
			loaded.Store(true)
		}
	}
	tab := s.open("/from")
	s.await(1)
	browsertest.Until(t, "the next page is prerendered", loaded.Load)
	time.Sleep(time.Second) // in which it would tell of itself
	check(t, "events", len(s.events()), 1)
	tab.Run(`a.click()`)
	check(t, "page", s.await(2)[1].Context.Page.Path, "/next")
}

func TestAPageCanComeBackFromTheCache(t *testing.T) {
	s := newSite(t, "")
	s.before = `addEventListener("pageshow", e => window.persisted = e.persisted)`
	tab := s.open("/one")
	s.await(1)
	tab.Run(`window.same = true`)
	s.visit(tab, "/two")
	s.await(2)
	tab.Run(`history.back()`)
	tab.Until(`location.pathname == "/one" && window.persisted && window.same`)
	got := s.await(3)
	for i, path := range []string{"/one", "/two", "/one"} {
		check(t, "path", got[i].Context.Page.Path, path)
	}
	check(t, "number of the next page", got[1].Context.Mub.N, 2)
	check(t, "stream of the next page", got[1].Context.Mub.S, got[0].Context.Mub.S)
	check(t, "another number", got[2].Context.Mub == got[0].Context.Mub || got[2].Context.Mub == got[1].Context.Mub, false)
}

func TestAVisitorLearnsOfTheirSegments(t *testing.T) {
	s := newSite(t, `data-auto="off"`)
	id := ""
	s.answer = func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.URL.Query().Get("visitor") == "1":
			_, _ = io.WriteString(w, `{"success":true,"visitor":{"anonymousId":"`+id+`","token":"vt_1"}}`)
		case r.URL.Path == "/v1/me":
			_, _ = io.WriteString(w, `{"segments":["vip"],"traits":{"spent":12},"as_of":null}`)
		default:
			return false
		}
		return true
	}
	tab := s.open("/")
	s.set(func() { id = browsertest.Eval[string](tab, `mub.user().anonymousId()`) })
	check(t, "before anything was sent", browsertest.Eval[int](tab, `mub.segments().then(m => m.segments.length)`), 0)
	tab.Run(`mub.track("a")`)
	check(t, "segment", browsertest.Eval[string](tab, `mub.segments().then(m => m.segments[0] + m.traits.spent)`), "vip12")
	tab.Run(`mub.track("b"); await mub.flush()`)
	asked, me := 0, request{}
	for _, r := range s.sent() {
		if r.query.Has("visitor") {
			asked++
		}
		if r.path == "/v1/me" {
			me = r
		}
	}
	check(t, "requests that ask for the token", asked, 1)
	check(t, "query", me.query.Get("writeKey")+me.query.Get("anonymousId")+me.query.Get("token"), "key"+id+"vt_1")
	tab.Run(`mub.reset()`)
	check(t, "of another visitor", browsertest.Eval[int](tab, `mub.segments().then(m => m.segments.length)`), 0)
}

func TestWebVitalsAreToldWhenThePageIsLeft(t *testing.T) {
	s := newSite(t, `data-extras="vitals" data-auto="off"`)
	s.before = `window.extras = 0; document.addEventListener("load", e => { if (/mub\.[a-z]+\.js/.test(e.target.src)) extras++ }, true)`
	tab := s.open("/")
	tab.Until(`window.extras == 1`)
	tab.Go("about:blank")
	e := s.await(1)[0]
	check(t, "event", e.Event, "Web Vitals")
	if _, ok := e.Properties["ttfb"]; !ok {
		t.Errorf("no time to first byte in %v", e.Properties)
	}
}
