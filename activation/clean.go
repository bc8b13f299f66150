package activation

import (
	"cmp"
	"net/http"
	"slices"
	"strings"
)

// shortestSecret is the length from which a secret is kept out of what is stored and shown: shorter ones are found in any
// text.
const shortestSecret = 4

// cleaner replaces a destination's secrets in texts, however short they are, and so what [Redact] takes for words.
type cleaner struct{ secrets []string } // the longest first

func (t served) cleaner() (c cleaner) {
	for _, text := range eachText(t.Secrets) {
		if len(text) >= shortestSecret {
			c.secrets = append(c.secrets, text)
		}
	}
	slices.SortFunc(c.secrets, func(a, b string) int { return cmp.Or(cmp.Compare(len(b), len(a)), cmp.Compare(a, b)) })
	return c
}

func (c cleaner) text(s string) string {
	for _, secret := range c.secrets {
		s = strings.ReplaceAll(s, secret, "…")
	}
	return s
}

// excerpt cleans what [Redact] may have cut off in the middle of a secret.
func (c cleaner) excerpt(s string) string {
	if len(s) < MaxExcerpt-3 { // where it is cut, a character may have gone with it
		return c.text(s)
	}
	for _, secret := range c.secrets {
		for n := len(secret) - 1; n >= shortestSecret; n-- {
			if begun, found := strings.CutSuffix(s, secret[:n]); found {
				return c.text(begun) + "…"
			}
		}
	}
	return c.text(s)
}

// clean returns what a partner made of an answer without the destination's own secrets, which the answer may have repeated.
// Every outcome goes through here before it is kept, logged or shown.
func (t served) clean(o Outcome) Outcome {
	if o.Reason == "" && o.Excerpt == "" && len(o.Rows) == 0 {
		return o
	}
	c := t.cleaner()
	o.Reason, o.Excerpt = c.text(o.Reason), c.excerpt(o.Excerpt)
	o.Rows = slices.Clone(o.Rows)
	for i := range o.Rows {
		o.Rows[i].Reason = c.text(o.Rows[i].Reason)
	}
	return o
}

// cleanPolled is clean for what became of a message.
func (t served) cleanPolled(p Polled) Polled {
	p.Outcome = t.clean(p.Outcome)
	c := t.cleaner()
	p.Counts = slices.Clone(p.Counts)
	for i := range p.Counts {
		p.Counts[i].Reason = c.text(p.Counts[i].Reason)
	}
	return p
}

// cleanDraft is clean for a request that is shown instead of being sent.
func (t served) cleanDraft(d Draft) Draft {
	c := t.cleaner()
	d.URL, d.Body = c.text(d.URL), []byte(c.text(string(d.Body)))
	header := http.Header{}
	for name, values := range d.Header {
		for _, v := range values {
			header.Add(name, c.text(v))
		}
	}
	d.Header = header
	return d
}
