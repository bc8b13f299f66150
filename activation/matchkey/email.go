package matchkey

import "strings"

// address is an e-mail address in lower case.
type address struct{ local, domain string }

// parseEmail reads an e-mail address, without the space around it and without a full stop behind it. It refuses what
// cannot be one, not what does not exist.
func parseEmail(raw string) (address, bool) {
	s := strings.ToLower(strings.TrimRight(trim(raw), ".\v\x00 \t\r\n"))
	local, domain, ok := strings.Cut(s, "@")
	if !ok || local == "" || len(s) > 254 || Nothing(local) && Nothing(domain) {
		return address{}, false
	}
	for _, r := range s {
		if r <= ' ' || r == 0x7f || strings.ContainsRune(`,;:<>()[]"\`, r) {
			return address{}, false
		}
	}
	if strings.HasPrefix(local, ".") || strings.HasSuffix(local, ".") && !gmail[domain] {
		return address{}, false
	}
	if strings.Contains(local, "..") && !gmail[domain] {
		return address{}, false
	}
	labels := strings.Split(domain, ".")
	if len(labels) < 2 {
		return address{}, false
	}
	for _, label := range labels {
		if label == "" || len(label) > 63 || strings.ContainsRune(label, '@') || label[0] == '-' || label[len(label)-1] == '-' {
			return address{}, false
		}
	}
	if len(labels[len(labels)-1]) < 2 {
		return address{}, false
	}
	return address{local, domain}, true
}

// gmail are the domains of which Google ignores the dots in the local part.
var gmail = map[string]bool{"gmail.com": true, "googlemail.com": true}

// emailRule says what becomes of an address before it is hashed.
type emailRule struct {
	dots bool                     // leave the local part's dots out
	tag  bool                     // cut the local part at its first plus sign
	at   func(domain string) bool // only there; nil: everywhere
}

func (r emailRule) apply(a address) (string, bool) {
	if r.at == nil || r.at(a.domain) {
		if r.tag {
			a.local, _, _ = strings.Cut(a.local, "+")
		}
		if r.dots {
			a.local = strings.ReplaceAll(a.local, ".", "")
		}
	}
	if a.local == "" {
		return "", false
	}
	return a.local + "@" + a.domain, true
}
