package meta_test

import (
	"testing"

	"github.com/mubatch/mubatch/activation/matchkey"
	"github.com/mubatch/mubatch/activation/meta"
)

// Where they are not ours the vectors are those of the tests of Meta's parameter builder.
func TestNormalise(t *testing.T) {
	t.Parallel()
	in := func(f func(raw, country string) (matchkey.Text, bool), country string) func(string) (matchkey.Text, bool) {
		return func(raw string) (matchkey.Text, bool) { return f(raw, country) }
	}
	for _, tt := range []struct {
		name string
		of   func(string) (matchkey.Text, bool)
		want map[string]string
	}{
		{"name", meta.Name, map[string]string{
			"Valéry": "valéry", "정": "정", " Mary-Ann ": "maryann", "O’Brien": "obrien", "D'Arcy": "darcy", "": "", "null": "", "...": "",
			"62A14E44F765419D10FEA99367361A727C12365E2520F32218D505ED9AA0F62F": "62a14e44f765419d10fea99367361a727c12365e2520f32218d505ed9aa0f62f",
			"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855": "",
		}},
		{"city", meta.City, map[string]string{
			"    Menlo-Park  ": "menlopark", "London": "london", "San Francisco": "sanfrancisco", "Köln": "köln", "undefined": "",
		}},
		{"state", in(meta.State, ""), map[string]string{
			"    California.   ": "ca", "C/a/lifo,rnia.": "ca", "CA": "ca", "US-NY": "ny", "Bayern": "bayern", "": "",
		}},
		{"state of the United States", in(meta.State, "US"), map[string]string{"New York": "ny", "Georgia": "ga"}},
		{"state of Georgia's", in(meta.State, "GE"), map[string]string{"GE-TB": "tb", "Georgia": "georgia"}},
		{"postal code", in(meta.PostalCode, ""), map[string]string{
			"37221-3312": "37221", "1229-076": "1229076", "SW1A 1AA": "sw1a1aa", "1": "", "": "", "94045": "94045", "123456789-": "123456789",
		}},
		{"postal code of the United States", in(meta.PostalCode, "US"), map[string]string{
			"37221-3312": "37221", "37221": "37221", " 372213312": "37221", "2134": "", "SW1A 1AA": "",
		}},
		{"country", meta.Country, map[string]string{
			"United States": "us", "US": "us", "usa": "us", "United Kingdom": "gb", "UK": "gb", "Deutschland": "", "Germany": "de",
			"Côte d’Ivoire": "ci", "XX": "", "150": "", "none": "",
		}},
		{"birth", func(raw string) (matchkey.Text, bool) {
			year, month, day, ok := meta.Birth(raw)
			t, _ := matchkey.Other(year.String()+month.String()+day.String(), func(s string) string { return s })
			return t, ok
		}, map[string]string{
			"1990-01-15": "19900115", "1990/1/5": "19900105", "15.1.1990": "19900115", "1990-01-15T10:00:00Z": "19900115",
			"19900115": "19900115", "01/15/1990": "", "1990-01-32": "", "0001-01-01": "", "": "", "soon": "",
		}},
	} {
		for raw, want := range tt.want {
			got, ok := tt.of(raw)
			if ok != (want != "") || ok && got.String() != want {
				t.Errorf("%s %q became %q, %t, want %q", tt.name, raw, got, ok, want)
			}
		}
	}
}

func FuzzNormalise(f *testing.F) {
	for _, s := range []string{"", "San Francisco", "C/a/lifo,rnia.", "37221-3312", "United States", "1990-01-15", "ſ", "İ", "\xff"} {
		f.Add(s, "US")
	}
	f.Fuzz(func(t *testing.T, raw, country string) {
		for name, of := range map[string]func(string) (matchkey.Text, bool){
			"name": meta.Name, "city": meta.City, "country": meta.Country,
			"state":       func(s string) (matchkey.Text, bool) { return meta.State(s, country) },
			"postal code": func(s string) (matchkey.Text, bool) { return meta.PostalCode(s, country) },
		} {
			got, ok := of(raw)
			if !ok {
				continue
			}
			if got.String() == "" || matchkey.Poisoned(got.Hex()) {
				t.Errorf("%s %q became %q", name, raw, got)
			}
			if again, ok := of(got.String()); !ok || again != got {
				t.Errorf("%s %q became %q, and that %q, %t", name, raw, got, again, ok)
			}
		}
	})
}
