package tag_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/mubatch/mubatch/collector/browsertest"
)

// stored is all that a site finds in the browser of its visitor.
const stored = `Object.keys(localStorage).concat(Object.keys(sessionStorage), document.cookie || []).sort().join(" ")`

func TestWithoutConsentNothingIsStored(t *testing.T) {
	s := newSite(t, "")
	s.before = `window.mub = [["consent", "default", {analytics_storage: "denied", ad_storage: "denied"}]]`
	tab := s.open("/?gclid=abc")
	denied := s.await(1)[0]
	check(t, "stored", browsertest.Eval[string](tab, stored), "")
	check(t, "consent", denied.Context.Consent["analytics_storage"]+denied.Context.Consent["ad_storage"], "denieddenied")
	check(t, "a visitor for this page", len(denied.AnonymousID) >= 16, true)

	tab.Run(`mub.consent("update", {analytics_storage: "granted", ad_storage: "granted"}); mub.track("Allowed"); mub.flush()`)
	allowed := s.await(2)[1]
	check(t, "the same visitor", allowed.AnonymousID, denied.AnonymousID)
	check(t, "consent", allowed.Context.Consent["ad_storage"], "granted")
	tab.Until(`document.cookie.includes("mub_id=") && localStorage.mub_id && localStorage.mub_c`)
	s.visit(tab, "/two") // where the page assumes again that it may not
	next := s.await(3)[2]
	check(t, "the decision is remembered", next.Context.Consent["analytics_storage"], "granted")
	check(t, "the same visitor", next.AnonymousID, denied.AnonymousID)

	tab.Run(`mub.consent("update", {analytics_storage: "denied"}); mub.track("Denied"); mub.flush()`)
	last := s.await(4)[3]
	check(t, "another visitor", last.AnonymousID != denied.AnonymousID, true)
	check(t, "consent", last.Context.Consent["analytics_storage"], "denied")
	check(t, "stored", browsertest.Eval[string](tab, stored), "")
	tab.Go("about:blank")
	s.set(func() { s.html["/plain"] = "" })
	tab.Go(s.at("/plain"))
	check(t, "stored by the page that went", browsertest.Eval[string](tab, stored), "")
}

func TestWithoutConsentThereMayBeNoEventsAtAll(t *testing.T) {
	s := newSite(t, `data-consent="denied" data-denied="drop"`)
	tab := s.open("/")
	tab.Run(`mub.track("a"); await mub.flush()`)
	check(t, "stored", browsertest.Eval[string](tab, stored), "")
	tab.Run(`mub.consent("update", {analytics_storage: "granted"}); mub.track("b"); mub.flush()`)
	e := s.await(1)[0]
	check(t, "event", e.Event, "b")
	check(t, "what is not decided stays denied", e.Context.Consent["ad_storage"], "denied")
}

func TestGlobalPrivacyControlIsHeard(t *testing.T) {
	s := newSite(t, "")
	s.before = `Object.defineProperty(navigator, "globalPrivacyControl", {value: true})`
	tab := s.open("/")
	c := s.await(1)[0].Context.Consent
	check(t, "sale", c["ad_user_data"]+c["ad_personalization"], "denieddenied")
	check(t, "visitor", browsertest.Eval[bool](tab, `!!localStorage.mub_id`), true)
	tab.Run(`mub.consent("default", {ad_user_data: "granted"}); mub.track("a"); mub.flush()`)
	check(t, "what a page assumes changes nothing", s.await(2)[1].Context.Consent["ad_user_data"], "denied")
	tab.Run(`mub.consent("update", {ad_user_data: "granted"}); mub.track("b"); mub.flush()`)
	check(t, "what the visitor decides does", s.await(3)[2].Context.Consent["ad_user_data"], "granted")
}

func TestWhoOptsOutIsNotToldOf(t *testing.T) {
	s := newSite(t, "")
	tab := s.open("/")
	s.await(1)
	tab.Run(`mub.optOut(); mub.track("a")`)
	s.visit(tab, "/two")
	tab.Run(`mub.optOut(false); mub.track("b"); mub.flush()`)
	check(t, "event", s.await(2)[1].Event, "b")
}

// Who opted out stays so when consent is denied, too, and on pages that assume that it is.
func TestAnOptOutOutlivesConsent(t *testing.T) {
	s := newSite(t, `data-auto="off" data-consent="denied"`)
	tab := s.open("/")
	tab.Run(`mub.consent("update", {analytics_storage: "granted"}); mub.optOut()
		mub.consent("update", {analytics_storage: "denied"}); mub.track("a"); await mub.flush()`)
	s.visit(tab, "/two")
	tab.Run(`mub.track("b"); await mub.flush(); mub.optOut(false); mub.track("c"); mub.flush()`)
	check(t, "event", s.await(1)[0].Event, "c")
}

func TestDoNotTrackIsHeardWhereThePageSaysSo(t *testing.T) {
	s := newSite(t, `data-dnt="on"`)
	s.before = `Object.defineProperty(navigator, "doNotTrack", {value: "1"})`
	tab := s.open("/")
	tab.Run(`await mub.track("a"); await mub.flush()`)
	check(t, "requests", len(s.sent()), 0)
}

func TestConsentPlatformsAreHeard(t *testing.T) {
	for name, c := range map[string]struct{ extra, before, want string }{
		"a TCF platform": {
			"tcf", `window.__tcfapi = (command, version, f) =>
			f({eventStatus: "useractioncomplete", gdprApplies: true, purpose: {consents: {1: true, 7: true, 8: true}}}, true)`,
			"ad_personalization=denied ad_storage=granted ad_user_data=granted analytics_storage=granted",
		},
		"a TCF platform where nobody has to be asked": {
			"tcf", `window.__tcfapi = (command, version, f) => f({eventStatus: "tcloaded", gdprApplies: false}, true)`,
			"ad_personalization=granted ad_storage=granted ad_user_data=granted analytics_storage=granted",
		},
		"Global Privacy Control where nobody has to be asked": {
			"tcf", `Object.defineProperty(navigator, "globalPrivacyControl", {value: true})
			window.__tcfapi = (command, version, f) => f({eventStatus: "tcloaded", gdprApplies: false}, true)`,
			"ad_personalization=denied ad_storage=granted ad_user_data=denied analytics_storage=granted",
		},
		"a GPP platform": {
			"gpp", `window.__gpp = (command, f) => f({eventName: "listenerRegistered",
			pingData: {parsedSections: {usnat: [{SaleOptOut: 1, SharingOptOut: 2}]}}}, true)`,
			"ad_personalization=denied ad_user_data=denied",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, `data-auto="off" data-extras="`+c.extra+`"`)
			s.before = c.before
			tab := s.open("/")
			tab.Until(`localStorage.mub_c`)
			tab.Run(`mub.track("a"); mub.flush()`)
			got := s.await(1)[0].Context.Consent
			var list []string
			for _, k := range slices.Sorted(maps.Keys(got)) {
				list = append(list, k+"="+got[k])
			}
			check(t, "consent", strings.Join(list, " "), c.want)
		})
	}
}
