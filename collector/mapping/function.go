package mapping

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// maxText bounds what a function may make of a text. No event can hold more.
const maxText = 64 << 10

// function is what can stand behind a | in a path. Its errors say what is wrong with a value without telling the value.
type function struct {
	min, max     int // how many arguments it takes; max -1: any number
	takesMissing bool
	do           func(r *run, v value, args []value) (value, error)
	bind         func(args []value) (func(value) (value, error), error) // instead, for those whose arguments must be literal
}

var functions = map[string]function{
	"string":   {do: toText},
	"number":   {do: toNumber},
	"int":      {do: toInt},
	"bool":     {do: toBool},
	"json":     {do: toJSON},
	"lower":    {do: onText(strings.ToLower)},
	"upper":    {do: onText(strings.ToUpper)},
	"trim":     {do: onText(strings.TrimSpace)},
	"replace":  {min: 2, max: 2, do: replace},
	"slice":    {min: 1, max: 2, do: slice},
	"split":    {min: 1, max: 1, do: split},
	"join":     {min: 1, max: 1, do: join},
	"concat":   {min: 1, max: -1, do: concat},
	"length":   {do: length},
	"first":    {do: func(r *run, v value, _ []value) (value, error) { return itemAt(r, v, 0) }},
	"last":     {do: func(r *run, v value, _ []value) (value, error) { return itemAt(r, v, -1) }},
	"default":  {min: 1, max: 1, takesMissing: true, do: coalesce},
	"coalesce": {min: 1, max: -1, takesMissing: true, do: coalesce},
	"pick":     {min: 1, max: -1, do: pick},
	"omit":     {min: 1, max: -1, do: omit},
	"date":     {max: 2, bind: bindDate},
	"cents":    {max: 1, do: cents},
	"sha256":   {do: hash},
	"country":  {do: country},
}

// Functions returns the names of all functions.
func Functions() []string { return sortedKeys(functions) }

// with returns a call of f, if it takes these arguments.
func (f function) with(name string, args []cell) (call, error) {
	if len(args) < f.min || f.max >= 0 && len(args) > f.max {
		most := strconv.Itoa(f.max)
		if f.max < 0 {
			most = "any number of"
		}
		return call{}, fmt.Errorf("calls %s with %d arguments; it takes %d to %s", name, len(args), f.min, most)
	}
	c := call{function: f, name: name, args: args}
	if f.bind == nil {
		return c, nil
	}
	values := make([]value, len(args))
	for i, arg := range args {
		literal, ok := arg.(literalCell)
		if !ok {
			return call{}, fmt.Errorf("calls %s with an argument that is not a literal", name)
		}
		values[i] = value(literal)
	}
	var err error
	if c.bound, err = f.bind(values); err != nil {
		return call{}, fmt.Errorf("calls %s, which %w", name, err)
	}
	return c, nil
}

var (
	errNotText   = errors.New("takes a text or a number")
	errNotList   = errors.New("takes a list")
	errNotObject = errors.New("takes an object")
)

// characters returns the text of a scalar; numbers as they were written.
func (v value) characters() (string, error) {
	switch v.kind {
	case absent, null:
		return "", nil
	case object, list:
		return "", errNotText
	}
	return v.text, nil
}

func onText(do func(string) string) func(*run, value, []value) (value, error) {
	return func(_ *run, v value, _ []value) (value, error) {
		s, err := v.characters()
		return textOf(do(s)), err
	}
}

func toText(_ *run, v value, _ []value) (value, error) {
	s, err := v.characters()
	return textOf(s), err
}

// toNumber takes what people write for a number. An empty text is none.
func toNumber(_ *run, v value, _ []value) (value, error) {
	d, s, err := v.decimal()
	switch {
	case err != nil || s == "":
		return value{}, err
	case jsontext.Value(s).IsValid():
		return numberOf(s), nil
	}
	return numberOf(d.String()), nil
}

// decimal reads v as a number. The text is empty if there is none.
func (v value) decimal() (decimal, string, error) {
	if v.kind != number && v.kind != text {
		return decimal{}, "", errNotText
	}
	s := strings.TrimSpace(v.text)
	if s == "" {
		return decimal{}, "", nil
	}
	d, ok := parseDecimal(s)
	if !ok {
		return decimal{}, "", errors.New("is no number, or one beyond 40 digits")
	}
	return d, s, nil
}

// toInt cuts off the fraction.
func toInt(_ *run, v value, _ []value) (value, error) {
	d, s, err := v.decimal()
	if err != nil || s == "" {
		return value{}, err
	}
	return numberOf(d.whole().String()), nil
}

func toBool(_ *run, v value, _ []value) (value, error) {
	s, err := v.characters()
	if err != nil {
		return value{}, err
	}
	switch strings.ToLower(strings.TrimSpace(s)) {
	case "":
		return value{}, nil
	case "true", "yes", "y", "on", "1":
		return boolOf(true), nil
	case "false", "no", "n", "off", "0":
		return boolOf(false), nil
	}
	return value{}, errors.New("is neither true nor false, yes nor no, 1 nor 0")
}

// toJSON turns a text that is JSON into what it says, and anything else into its JSON.
func toJSON(r *run, v value, _ []value) (value, error) {
	if v.kind != text {
		b := r.write(nil, v, maxText)
		if len(b) > maxText {
			return value{}, errTooLong
		}
		r.spend(len(b) / workBytes)
		return textOf(string(b)), nil
	}
	var t tree
	if strings.TrimSpace(v.text) == "" {
		return value{}, nil
	}
	if fault := t.parse([]byte(v.text)); fault != nil {
		return value{}, errors.New("is no JSON")
	}
	if !r.spend(len(t.nodes) * workValue) {
		return value{}, nil
	}
	return t.copy(0), nil
}

// copy returns a node as a value that does not need the tree.
func (t *tree) copy(at int32) value {
	n := &t.nodes[at]
	if n.kind != object && n.kind != list {
		return t.value(at)
	}
	made := &composite{}
	for i := t.first(at); i != 0; i = t.nodes[i].next {
		if n.kind == object {
			made.names = append(made.names, t.name(i))
		}
		made.values = append(made.values, t.copy(i))
	}
	return value{kind: n.kind, made: made}
}

func replace(_ *run, v value, args []value) (value, error) {
	s, err1 := v.characters()
	old, err2 := args[0].characters()
	with, err3 := args[1].characters()
	if err := errors.Join(err1, err2, err3); err != nil {
		return value{}, errNotText
	}
	if old == "" {
		return textOf(s), nil
	}
	if len(s)+strings.Count(s, old)*(len(with)-len(old)) > max(maxText, len(s)) {
		return value{}, errTooLong
	}
	return textOf(strings.ReplaceAll(s, old, with)), nil
}

// slice takes a part of a text, in characters, or of a list: from one place up to before another. Negative places count
// from the end.
func slice(r *run, v value, args []value) (value, error) {
	size := 0
	switch v.kind {
	case object:
		return value{}, errors.New("takes a text or a list")
	case list:
		size = r.size(v)
	default:
		size = utf8.RuneCountInString(v.text)
	}
	place := func(i int, otherwise int) (int, error) {
		if i >= len(args) || args[i].missing() {
			return otherwise, nil
		}
		n, err := strconv.Atoi(args[i].text)
		if err != nil || args[i].kind == object || args[i].kind == list {
			return 0, errors.New("takes whole numbers for places")
		}
		if n < 0 {
			n += size
		}
		return min(max(n, 0), size), nil
	}
	from, err1 := place(0, 0)
	to, err2 := place(1, size)
	if err := errors.Join(err1, err2); err != nil {
		return value{}, err
	}
	to = max(from, to)
	if v.kind != list {
		return textOf(cutRunes(v.text, from, to)), nil
	}
	items := make([]value, 0, min(to-from, 64))
	i := 0
	r.each(v, func(_ string, item value) bool {
		if i >= from && i < to {
			items = append(items, item)
		}
		i++
		return i < to && r.spend(workValue)
	})
	return listOf(items), nil
}

// cutRunes returns the characters of s from one place up to before another.
func cutRunes(s string, from, to int) string {
	start, end, i := len(s), len(s), 0
	for at := range s {
		if i == from {
			start = at
		}
		if i == to {
			end = at
			break
		}
		i++
	}
	return s[min(start, end):end]
}

func split(r *run, v value, args []value) (value, error) {
	s, err1 := v.characters()
	by, err2 := args[0].characters()
	if err := errors.Join(err1, err2); err != nil {
		return value{}, errNotText
	}
	if by == "" {
		return value{}, errors.New("needs a text to split at")
	}
	if !r.spend(strings.Count(s, by) * workValue) {
		return value{}, nil
	}
	var items []value
	for part := range strings.SplitSeq(s, by) {
		items = append(items, textOf(strings.TrimSpace(part)))
	}
	return listOf(items), nil
}

func join(r *run, v value, args []value) (value, error) {
	by, err := args[0].characters()
	if err != nil {
		return value{}, err
	}
	if v.kind != list {
		return value{}, errNotList
	}
	var b strings.Builder
	r.each(v, func(_ string, item value) bool {
		if item.blank() {
			return true
		}
		var s string
		if s, err = item.characters(); err != nil {
			return false
		}
		if b.Len() > 0 {
			b.WriteString(by)
		}
		b.WriteString(s)
		if b.Len() > maxText {
			err = errTooLong
		}
		return err == nil
	})
	return textOf(b.String()), err
}

func concat(_ *run, v value, args []value) (value, error) {
	var b strings.Builder
	for _, part := range append([]value{v}, args...) {
		s, err := part.characters()
		if err != nil {
			return value{}, err
		}
		if b.Len()+len(s) > max(maxText, len(v.text)) {
			return value{}, errTooLong
		}
		b.WriteString(s)
	}
	return textOf(b.String()), nil
}

func length(r *run, v value, _ []value) (value, error) {
	if v.kind == object || v.kind == list {
		return numberOf(strconv.Itoa(r.size(v))), nil
	}
	return numberOf(strconv.Itoa(utf8.RuneCountInString(v.text))), nil
}

func itemAt(r *run, v value, i int) (value, error) {
	if v.kind != list {
		return value{}, errNotList
	}
	return r.at(v, i), nil
}

func coalesce(_ *run, v value, args []value) (value, error) {
	for _, other := range args {
		if !v.blank() {
			break
		}
		v = other
	}
	return v, nil
}

func pick(r *run, v value, args []value) (value, error) {
	return choose(r, v, args, true)
}

func omit(r *run, v value, args []value) (value, error) {
	return choose(r, v, args, false)
}

// choose returns an object with only those of its members that args name, or with all others.
func choose(r *run, v value, args []value, named bool) (value, error) {
	if v.kind != object {
		return value{}, errNotObject
	}
	made := &composite{}
	r.each(v, func(name string, v value) bool {
		if slices.ContainsFunc(args, func(arg value) bool { return arg.text == name }) == named {
			made.names = append(made.names, name)
			made.values = append(made.values, v)
		}
		return r.spend(workValue + len(args)/8)
	})
	return value{kind: object, made: made}, nil
}

// cents turns an amount in the smallest unit of a currency, which may be given, into one in its main unit. A number instead
// of a currency says how many digits that moves.
func cents(_ *run, v value, args []value) (value, error) {
	d, s, err := v.decimal()
	if err != nil || s == "" {
		return value{}, err
	}
	digits := 2
	if len(args) > 0 && !args[0].blank() {
		unit, err := args[0].characters()
		if err != nil {
			return value{}, errors.New("takes a currency or a number of digits")
		}
		if n, err := strconv.Atoi(unit); err == nil && n >= 0 && n <= 8 {
			digits = n
		} else {
			digits = minorDigits(unit)
		}
	}
	return numberOf(d.shift(-digits).String()), nil
}

// minorDigits returns how many decimals a currency has (ISO 4217).
func minorDigits(currency string) int {
	switch strings.ToUpper(currency) {
	case "BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "UYI", "VND", "VUV", "XAF", "XOF", "XPF":
		return 0
	case "BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND":
		return 3
	case "CLF", "UYW":
		return 4
	}
	return 2
}

func hash(_ *run, v value, _ []value) (value, error) {
	s, err := v.characters()
	if err != nil || s == "" {
		return value{}, err
	}
	sum := sha256.Sum256([]byte(s))
	return textOf(hex.EncodeToString(sum[:])), nil
}

// appendDouble appends what CEL has computed as JSON.
func appendDouble(b []byte, f float64) ([]byte, error) {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return b, errors.New("the expression comes to a number that there is not in JSON")
	}
	b, err := jsontext.AppendFormat(b, strconv.AppendFloat(nil, f, 'g', -1, 64), jsontext.CanonicalizeRawFloats(true))
	return b, err
}
