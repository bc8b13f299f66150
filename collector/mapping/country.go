package mapping

import (
	_ "embed"
	"errors"
	"strings"
	"sync"
	"unicode"
)

// countries has a country a line: its two and its three letters (ISO 3166-1), and its names, the English one first. Kosovo
// has codes that are in use though ISO has none.
//
//go:embed countries.txt
var countries string

// countryCodes are the two letters of countries by all that they are called by.
var countryCodes = sync.OnceValue(func() map[string]string {
	codes := make(map[string]string, 1000)
	for line := range strings.Lines(countries) {
		code, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		three, names, _ := strings.Cut(rest, " ")
		codes[code], codes[three] = code, code
		for name := range strings.SplitSeq(names, "|") {
			codes[lettersOf(name)] = code
		}
	}
	return codes
})

// lettersOf returns a name as it is looked up: its letters, in upper case.
func lettersOf(name string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsLetter(r) {
			return -1
		}
		return unicode.ToUpper(r)
	}, name)
}

// country turns a name or a code of a country into its two letters.
func country(_ *run, v value, _ []value) (value, error) {
	s, err := v.characters()
	if err != nil || strings.TrimSpace(s) == "" {
		return value{}, err
	}
	if len(s) <= 100 {
		if code, ok := countryCodes()[lettersOf(s)]; ok {
			return textOf(code), nil
		}
	}
	return value{}, errors.New("is no country")
}
