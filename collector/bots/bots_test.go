package bots

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
)

const (
	chrome = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36"
	google = "Mozilla/5.0 AppleWebKit/537.36 (KHTML, like Gecko; compatible; Googlebot/2.1; +http://www.google.com/bot.html) Chrome/142.0.0.0 Safari/537.36"
)

func TestName(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ userAgent, want string }{
		{chrome, ""},
		{"Mozilla/5.0 (iPhone; CPU iPhone OS 26_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/26.0 Mobile/15E148 Safari/604.1", ""},
		{"Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0", ""},
		{"Dalvik/2.1.0 (Linux; U; Android 16; Pixel 10 Build/BP2A)", ""},
		{"", ""},
		{google, "Googlebot"},
		{"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) HeadlessChrome/142.0.0.0 Safari/537.36", "HeadlessChrome"},
		{"facebookexternalhit/1.1 (+http://www.facebook.com/externalhit_uatext.php)", "facebookexternalhit"},
		{"Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)", "bingbot"},
		{"Wget/1.21", "Wget"},
		{"wget/1.21", "Wget"},
		{"curl/8.9.1", "curl"},
		{"my curl/8.9.1", ""}, // it has to begin with it
		{"AdsBot-Google (+http://www.google.com/adsbot.html)", "AdsBot-Google"},
		{"Mozilla/5.0 SSL Labs", "SSL Labs"},
		{strings.Repeat("x", 4000) + "Googlebot/2.1", ""}, // as far as it is looked at
	} {
		for range 2 { // the second answer comes from memory
			if got := Name(c.userAgent); got != c.want {
				t.Errorf("Name(%.80q) = %q, want %q", c.userAgent, got, c.want)
			}
		}
	}
}

// The automaton finds what looking for one text after the other finds.
func TestTheAutomatonFindsWhatASearchFinds(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	word := func() string {
		b := make([]byte, 1+rng.IntN(4))
		for i := range b {
			b[i] = "ab/ "[rng.IntN(3)]
		}
		return string(b)
	}
	for range 300 {
		var text strings.Builder
		var words, kinds []string
		for i := range 1 + rng.IntN(8) {
			w, kind := word(), []string{"anywhere", "begin", "end"}[rng.IntN(3)]
			words, kinds = append(words, w), append(kinds, kind)
			fmt.Fprintf(&text, "%s\t%s\t%d\n", kind, w, i)
		}
		m := compile(text.String())
		for range 20 {
			in := word() + word() + word()
			want := ""
			for i, w := range words {
				if kinds[i] == "anywhere" && strings.Contains(in, w) || kinds[i] == "begin" && strings.HasPrefix(in, w) ||
					kinds[i] == "end" && strings.HasSuffix(in, w) {
					want = fmt.Sprint(i)
					break
				}
			}
			if got := m.find(in); got != want {
				t.Fatalf("in %q found %q, want %q of\n%s", in, got, want, text.String())
			}
		}
	}
}

func TestManyUserAgentsTakeBoundedMemory(t *testing.T) {
	t.Parallel()
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 5000 {
				Name(fmt.Sprint("agent ", g, i))
			}
		})
	}
	wg.Wait()
	for i := range answers {
		answers[i].mu.Lock()
		if n := len(answers[i].known); n > shardAnswer || n != answers[i].order.Len() {
			t.Errorf("shard %d has %d answers in a list of %d, want at most %d", i, n, answers[i].order.Len(), shardAnswer)
		}
		answers[i].mu.Unlock()
	}
}

func BenchmarkName(b *testing.B) {
	b.Run("remembered", func(b *testing.B) {
		for b.Loop() {
			Name(chrome)
		}
	})
	b.Run("new", func(b *testing.B) {
		m := theList()
		for b.Loop() {
			m.find(chrome)
		}
	})
}
