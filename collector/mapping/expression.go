package mapping

import (
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/interpreter"
)

// Bounds of expressions.
const (
	maxExpression  = 4096     // bytes
	maxExpressions = 32 << 10 // bytes, of all in a document
	maxCost        = 100_000  // of one evaluation: see costs
	maxPattern     = 1000     // steps of the program that a pattern comes to
)

// environment is what expressions are compiled in. To build it costs more than to use it.
var environment = sync.OnceValues(func() (*cel.Env, error) {
	texts := cel.MapType(cel.StringType, cel.StringType)
	return cel.NewEnv(
		cel.Variable("body", cel.DynType),
		cel.Variable("item", cel.DynType),
		cel.Variable("parent", cel.DynType),
		cel.Variable("index", cel.IntType),
		cel.Variable("headers", texts),
		cel.Variable("query", texts),
		cel.Variable("meta", texts),
		cel.Variable("received_at", cel.TimestampType),
		cel.CrossTypeNumericComparisons(true),
		cel.OptionalTypes(),
		cel.ParserExpressionSizeLimit(maxExpression),
		cel.ParserRecursionLimit(maxNesting),
		cel.ExpressionNodeLimit(2000),
		cel.RegexProgramSizeLimit(maxPattern),
		celFunctions(),
	)
})

// expression is a formula in CEL.
type expression struct {
	position
	program cel.Program
	perItem bool // what it comes to depends on the element
	boolean bool // known to come to true or false
	dynamic bool // known only when it is computed
}

// compileExpression returns what is wrong with source as a sentence without its subject.
func compileExpression(at position, source string) (*expression, error) {
	env, err := environment()
	if err != nil {
		return nil, fmt.Errorf("build the environment of expressions: %w", err)
	}
	if len(source) > maxExpression {
		return nil, fmt.Errorf("is an expression of more than %d bytes", maxExpression)
	}
	checked, issues := env.Compile(source)
	if issues != nil && issues.Err() != nil {
		first := issues.Errors()[0]
		return nil, fmt.Errorf("is not CEL at column %d of the expression: %s", first.Location.Column()+1, strings.Join(strings.Fields(first.Message), " "))
	}
	if err := refused(checked.NativeRep().Expr()); err != nil {
		return nil, err
	}
	sizes := costs{}
	program, err := env.Program(checked, cel.EvalOptions(cel.OptOptimize), cel.CostLimit(maxCost), cel.CostTracking(sizes), cel.CustomDecoratorV2(sizes.match))
	if err != nil {
		return nil, fmt.Errorf("is not an expression that can be computed: %w", err)
	}
	e := &expression{position: at, program: program, boolean: checked.OutputType().IsExactType(cel.BoolType), dynamic: checked.OutputType().IsExactType(cel.DynType)}
	for _, to := range checked.NativeRep().ReferenceMap() {
		switch to.Name {
		case "item", "parent", "index":
			e.perItem = true
		}
	}
	return e, nil
}

// refused says what an expression has that there is no need for in JSON, and that would cost what cannot be told.
func refused(root ast.Expr) (err error) {
	ast.PostOrderVisit(root, ast.NewExprVisitor(func(e ast.Expr) {
		switch e.Kind() {
		case ast.StructKind:
			err = errors.New("makes a message; write {'name': value} for an object")
		case ast.LiteralKind:
			if e.AsLiteral().Type() == types.BytesType {
				err = errors.New("has bytes, which there are none of in JSON; write a text")
			}
		case ast.CallKind:
			call := e.AsCall()
			switch args := call.Args(); call.FunctionName() {
			case overloads.TypeConvertBytes:
				err = errors.New("calls bytes, which there are none of in JSON; use the text as it is")
			case overloads.Matches:
				if pattern := args[len(args)-1]; pattern.Kind() != ast.LiteralKind {
					err = errors.New("calls matches with a pattern that is not a literal text")
				}
			}
		}
	}))
	return err
}

// holds tells whether e is true. What is missing makes it false.
func (e *expression) holds(r *run, s *scope) bool {
	v := e.eval(r, s)
	if !v.missing() && v.kind != boolean && r.err == nil {
		r.fail(e.position, "wrong_type", "the condition comes to "+v.kind.String()+", not to true or false")
	}
	return v.text == "true" && r.err == nil
}

// eval returns what e comes to; nothing, if it needs a member or an item that is missing.
func (e *expression) eval(r *run, s *scope) value {
	if !r.spend(10) {
		return value{}
	}
	out, details, err := e.program.Eval(&variables{r, s})
	if details != nil && details.ActualCost() != nil && !r.spend(int(*details.ActualCost())) {
		return value{}
	}
	if r.err != nil {
		return value{}
	}
	if err == nil {
		v, err := fromCEL(r, out, 1)
		if err != nil {
			return r.fail(e.position, "wrong_type", err.Error())
		}
		return v
	}
	code, detail := explain(err)
	if code == "" {
		return value{}
	}
	return r.fail(e.position, code, detail)
}

// explain says what an error of CEL's is about. It does not pass on its text: there may be values of the input in it. The
// code is empty if something is missing.
func explain(err error) (code, detail string) {
	text := err.Error()
	for _, known := range []struct{ in, code, detail string }{
		{"no such key", "", ""},
		{"index out of bounds", "", ""},
		{"no such attribute", "", ""},
		{"cost limit exceeded", "too_much_work", "the expression costs more than " + strconv.Itoa(maxCost)},
		{"no such overload", "wrong_type", "the expression has an operator or function that does not take what it is given; convert it with string(), double(), int()"},
		{"division by zero", "division_by_zero", "the expression divides by zero"},
		{"modulus by zero", "division_by_zero", "the expression divides by zero"},
		{"overflow", "number_out_of_range", "the expression goes beyond 64 bits"},
	} {
		if strings.Contains(text, known.in) {
			return known.code, known.detail
		}
	}
	return "expression_failed", "the expression cannot be computed of this input"
}

// variables are what an expression sees.
type variables struct {
	r *run
	s *scope
}

func (v *variables) Parent() cel.Activation { return nil }

func (v *variables) ResolveName(name string) (any, bool) {
	switch name {
	case "item":
		return toCEL(v.r, v.s.item), true
	case "body":
		return toCEL(v.r, v.r.body()), true
	case "parent":
		if v.s.outer == nil {
			return types.NullValue, true
		}
		return toCEL(v.r, v.s.outer.item), true
	case "index":
		return types.Int(v.s.index), true
	case "headers":
		return v.r.in.Headers, true
	case "query":
		return v.r.in.Query, true
	case "meta":
		return v.r.in.Meta, true
	case "received_at":
		return types.Timestamp{Time: v.r.in.ReceivedAt}, true
	}
	return nil, false
}

// toCEL returns a value as CEL has it. Integers beyond 64 bits are handed through, and nothing can be done to them.
func toCEL(r *run, v value) ref.Val {
	switch v.kind {
	case boolean:
		return types.Bool(v.text == "true")
	case text:
		if !r.spend(len(v.text) / workBytes) { // to look at it is not in CEL's cost
			return types.NewErr("cost limit exceeded")
		}
		return types.String(v.text)
	case number:
		if strings.ContainsAny(v.text, ".eE") {
			if f, err := strconv.ParseFloat(v.text, 64); err == nil {
				return types.Double(f)
			}
			return bigNumber(v.text)
		}
		if i, err := strconv.ParseInt(v.text, 10, 64); err == nil {
			return types.Int(i)
		}
		if u, err := strconv.ParseUint(v.text, 10, 64); err == nil {
			return types.Uint(u)
		}
		return bigNumber(v.text)
	case object:
		return &celObject{celComposite{r, v}}
	case list:
		return &celList{celComposite{r, v}}
	}
	return types.NullValue
}

// fromCEL returns what an expression came to.
func fromCEL(r *run, v ref.Val, depth int) (value, error) {
	if depth > maxNesting {
		return value{}, errors.New("the expression comes to something nested too deep")
	}
	if !r.spend(workValue) {
		return value{}, nil
	}
	switch v := v.(type) {
	case *celObject:
		return v.of, nil
	case *celList:
		return v.of, nil
	case bigNumber:
		return numberOf(string(v)), nil
	case types.Null:
		return value{}, nil
	case types.Bool:
		return boolOf(bool(v)), nil
	case types.String:
		return textOf(string(v)), nil
	case types.Int:
		return numberOf(strconv.FormatInt(int64(v), 10)), nil
	case types.Uint:
		return numberOf(strconv.FormatUint(uint64(v), 10)), nil
	case types.Double:
		b, err := appendDouble(nil, float64(v))
		return numberOf(string(b)), err
	case types.Timestamp:
		return textOf(formatTime(v.Time)), nil
	case *types.Optional:
		if !v.HasValue() {
			return value{}, nil
		}
		return fromCEL(r, v.GetValue(), depth+1)
	case traits.Mapper:
		found := map[string]value{}
		for it := v.Iterator(); it.HasNext() == types.True; {
			name, ok := it.Next().(types.String)
			if !ok {
				return value{}, errors.New("the expression comes to a map with keys that are not texts")
			}
			member, err := fromCEL(r, v.Get(name), depth+1)
			if err != nil || r.err != nil {
				return value{}, err
			}
			if !member.missing() {
				found[string(name)] = member
			}
		}
		made := &composite{names: sortedKeys(found)}
		for _, name := range made.names {
			made.values = append(made.values, found[name])
		}
		return value{kind: object, made: made}, nil
	case traits.Lister:
		items := []value{}
		for it := v.Iterator(); it.HasNext() == types.True; {
			item, err := fromCEL(r, it.Next(), depth+1)
			if err != nil || r.err != nil {
				return value{}, err
			}
			if item.missing() {
				item = value{kind: null, text: "null"}
			}
			items = append(items, item)
		}
		return listOf(items), nil
	}
	return value{}, errors.New("the expression comes to something that is not JSON; convert it with string()")
}

// bigNumber is a number that CEL has no type for, as it was written.
type bigNumber string

var bigNumberType = types.NewOpaqueType("mubatch.BigNumber")

func (n bigNumber) ConvertToNative(reflect.Type) (any, error) {
	return nil, errors.New("a number beyond 64 bits")
}

func (n bigNumber) ConvertToType(to ref.Type) ref.Val {
	if to == types.TypeType {
		return bigNumberType
	}
	return types.NewErr("no such overload")
}

func (n bigNumber) Equal(other ref.Val) ref.Val { return types.Bool(n == other) }
func (n bigNumber) Type() ref.Type              { return bigNumberType }
func (n bigNumber) Value() any                  { return string(n) }

// celComposite is an object or a list that expressions look into, without a copy of it.
type celComposite struct {
	r  *run
	of value
}

func (c celComposite) ConvertToNative(reflect.Type) (any, error) {
	return nil, errors.New("an object or a list of the input")
}

func (c celComposite) Size() ref.Val { return types.Int(c.r.size(c.of)) }
func (c celComposite) Value() any    { return nil }

// elements returns the items of a list, or the names of an object.
func (c celComposite) elements() []ref.Val {
	all := make([]ref.Val, 0, min(c.r.size(c.of), 64))
	c.r.each(c.of, func(name string, v value) bool {
		if c.of.kind == object {
			all = append(all, types.String(name))
		} else {
			all = append(all, toCEL(c.r, v))
		}
		return true
	})
	return all
}

type celObject struct{ celComposite }

func (o *celObject) Type() ref.Type { return types.MapType }

func (o *celObject) ConvertToType(to ref.Type) ref.Val {
	switch to {
	case types.MapType:
		return o
	case types.TypeType:
		return types.MapType
	}
	return types.NewErr("no such overload")
}

func (o *celObject) Find(name ref.Val) (ref.Val, bool) {
	s, ok := name.(types.String)
	if !ok {
		return nil, false
	}
	v := o.r.get(o.of, string(s))
	return toCEL(o.r, v), v.kind != absent
}

func (o *celObject) Get(name ref.Val) ref.Val {
	if v, ok := o.Find(name); ok {
		return v
	}
	return types.NewErr("no such key")
}

func (o *celObject) Contains(name ref.Val) ref.Val {
	_, ok := o.Find(name)
	return types.Bool(ok)
}

func (o *celObject) Iterator() traits.Iterator { return &celIterator{all: o.elements()} }

func (o *celObject) Equal(other ref.Val) ref.Val {
	m, ok := other.(traits.Mapper)
	if !ok || m.Size() != o.Size() {
		return types.False
	}
	same := true
	o.r.each(o.of, func(name string, v value) bool {
		theirs, ok := m.Find(types.String(name))
		same = ok && types.Equal(toCEL(o.r, v), theirs) == types.True
		return same
	})
	return types.Bool(same)
}

type celList struct{ celComposite }

func (l *celList) Type() ref.Type { return types.ListType }

func (l *celList) ConvertToType(to ref.Type) ref.Val {
	switch to {
	case types.ListType:
		return l
	case types.TypeType:
		return types.ListType
	}
	return types.NewErr("no such overload")
}

func (l *celList) Add(other ref.Val) ref.Val {
	more, ok := other.(traits.Lister)
	if !ok {
		return types.NewErr("no such overload")
	}
	all := l.elements()
	for it := more.Iterator(); it.HasNext() == types.True && l.r.spend(1); {
		all = append(all, it.Next())
	}
	return types.NewRefValList(types.DefaultTypeAdapter, all)
}

func (l *celList) Contains(item ref.Val) ref.Val {
	for _, v := range l.elements() {
		if types.Equal(v, item) == types.True {
			return types.True
		}
	}
	return types.False
}

func (l *celList) Get(index ref.Val) ref.Val {
	i, ok := index.(types.Int)
	if !ok {
		return types.NewErr("no such overload")
	}
	if i >= 0 && i <= maxInput {
		if v := l.r.at(l.of, int(i)); v.kind != absent {
			return toCEL(l.r, v)
		}
	}
	return types.NewErr("index out of bounds")
}

func (l *celList) Iterator() traits.Iterator { return &celIterator{all: l.elements()} }

func (l *celList) Equal(other ref.Val) ref.Val {
	theirs, ok := other.(traits.Lister)
	if !ok || theirs.Size() != l.Size() {
		return types.False
	}
	for i, v := range l.elements() {
		if types.Equal(v, theirs.Get(types.Int(i))) != types.True {
			return types.False
		}
	}
	return types.True
}

// celIterator goes through what was gathered before.
type celIterator struct {
	all []ref.Val
	at  int
}

func (it *celIterator) HasNext() ref.Val { return types.Bool(it.at < len(it.all)) }

func (it *celIterator) Next() ref.Val {
	it.at++
	return it.all[it.at-1]
}

func (it *celIterator) ConvertToNative(reflect.Type) (any, error) {
	return nil, errors.New("an iterator")
}
func (it *celIterator) ConvertToType(ref.Type) ref.Val { return types.NewErr("no such overload") }
func (it *celIterator) Equal(ref.Val) ref.Val          { return types.False }
func (it *celIterator) Type() ref.Type                 { return types.IteratorType }
func (it *celIterator) Value() any                     { return nil }

// expressionCell is a cell that begins with =.
type expressionCell struct{ *expression }

// inExpressions are the functions that expressions may call with a text: lower(x), sha256(x).
var inExpressions = []string{"lower", "upper", "trim", "sha256", "number", "date", "country"}

// costs are what calls cost in expressions. CEL's own are by the types of arguments, which are not known before a body is
// there: it would take each for a single step, however long its texts are. It has the sizes of the programs of patterns.
type costs map[string]int

// CallCost implements cel-go's ActualCostEstimator.
func (c costs) CallCost(function, _ string, args []ref.Val, result ref.Val) *uint64 {
	total := 1 + textCost(result)
	for _, arg := range args {
		total += textCost(arg)
		switch function {
		case operators.Equals, operators.NotEquals, operators.In:
			total += elements(arg)
		}
	}
	switch function {
	case operators.Add:
		if len(args) == 2 {
			total += listCost(args[1])
			if _, growing := args[0].(traits.MutableLister); !growing { // map and filter add an item at a time
				total += listCost(args[0])
			}
		}
	case matchLiteral:
		if s, ok := args[0].(types.String); ok {
			total += c.matchCost(s, args[1])
		}
	}
	return &total
}

// matchLiteral is what a call of matches is in the plan of a program.
const matchLiteral = "match_literal"

// matchCost is what it costs to match s: an expression that is not simple goes through its program for every byte.
func (c costs) matchCost(s types.String, pattern ref.Val) uint64 {
	p, _ := pattern.(types.String)
	return uint64(len(s) * c[string(p)] / workBytes)
}

// match makes lists and maps cost what is in them, and calls of matches refuse what costs too much, before it is done. The patterns are compiled once.
func (c costs) match(i interpreter.InterpretableV2) (interpreter.InterpretableV2, error) {
	if made, ok := i.(interpreter.InterpretableConstructor); ok && slices.ContainsFunc(made.InitVals(), notConstant) {
		return construct{made}, nil
	}
	call, ok := i.(interpreter.InterpretableCall)
	if !ok || call.Function() != overloads.Matches {
		return i, nil
	}
	constant, ok := call.Args()[1].(interpreter.InterpretableConst)
	if !ok {
		return nil, errors.New("the pattern is not a literal text")
	}
	pattern, ok := constant.Value().(types.String)
	if !ok {
		return nil, errors.New("the pattern is not a literal text")
	}
	compiled, err := regexp.Compile(string(pattern))
	if err != nil {
		return nil, err
	}
	size, err := types.RegexProgramSize(string(pattern))
	if err != nil {
		return nil, err
	}
	if size > maxPattern {
		return nil, fmt.Errorf("the pattern comes to a program of %d steps; there can be %d", size, maxPattern)
	}
	c[string(pattern)] = size
	return interpreter.NewCall(call.ID(), matchLiteral, matchLiteral, call.Args(), func(args ...ref.Val) ref.Val {
		s, ok := args[0].(types.String)
		if !ok {
			return types.NewErr("no such overload")
		}
		if c.matchCost(s, pattern) > maxCost {
			return types.NewErr("cost limit exceeded")
		}
		return types.Bool(compiled.MatchString(string(s)))
	}), nil
}

// construct is a list or a map that an expression writes out. It costs as much as there is in it, to any depth: of one value
// that is in it twice, again and again, equality would see all.
type construct struct {
	interpreter.InterpretableConstructor
}

func (c construct) Exec(frame *interpreter.ExecutionFrame) ref.Val {
	made := c.InterpretableConstructor.Exec(frame)
	if tracker := frame.CostTracker(); tracker != nil {
		tracker.EvalUnary(nil, c.ID(), c, made, made)
	}
	return made
}

// Function and OverloadID make it a call that has a cost, as equality has.
func (construct) Function() string   { return operators.In }
func (construct) OverloadID() string { return "" }

func notConstant(i interpreter.InterpretableV2) bool {
	_, ok := i.(interpreter.InterpretableConst)
	return !ok
}

// listCost is by the items of a list, so that none is made that is longer than what was paid for.
func listCost(v ref.Val) uint64 {
	if l, ok := v.(traits.Lister); ok {
		return uint64(l.Size().(types.Int))
	}
	return 0
}

func textCost(v ref.Val) uint64 {
	if s, ok := v.(types.String); ok {
		return uint64(len(s) / 10)
	}
	return 0
}

// elements returns how many elements there are in what an expression put together, to any depth. Those of the input are
// counted when they are looked at.
func elements(v ref.Val) (n uint64) {
	var it traits.Iterator
	switch v := v.(type) {
	case *celList, *celObject:
		return 0
	case traits.Lister:
		it = v.Iterator()
	case traits.Mapper:
		for it := v.Iterator(); it.HasNext() == types.True && n < maxCost; {
			e := v.Get(it.Next())
			n += 1 + textCost(e) + elements(e)
		}
		return n
	case *types.Optional:
		if v.HasValue() {
			return elements(v.GetValue())
		}
		return 0
	default:
		return 0
	}
	for it.HasNext() == types.True && n < maxCost {
		e := it.Next()
		n += 1 + textCost(e) + elements(e)
	}
	return n
}

// celFunctions declares inExpressions.
func celFunctions() cel.EnvOption {
	var all []cel.EnvOption
	for _, name := range inExpressions {
		do := functions[name].do
		if bind := functions[name].bind; bind != nil {
			bound, err := bind(nil)
			if err != nil {
				panic(err) // it takes no argument
			}
			do = func(_ *run, v value, _ []value) (value, error) { return bound(v) }
		}
		all = append(all, cel.Function(name, cel.Overload("mapping_"+name, []*cel.Type{cel.StringType}, cel.DynType,
			cel.UnaryBinding(func(arg ref.Val) ref.Val {
				s, ok := arg.(types.String)
				if !ok {
					return types.NewErr("no such overload")
				}
				v, err := do(nil, textOf(string(s)), nil)
				if err != nil {
					return types.NewErr("conversion failed")
				}
				return toCEL(nil, v)
			}))))
	}
	return cel.Lib(library(all))
}

// library is a set of options for the environment.
type library []cel.EnvOption

func (l library) CompileOptions() []cel.EnvOption     { return l }
func (l library) ProgramOptions() []cel.ProgramOption { return nil }

// formatTime writes a time as events have it.
func formatTime(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z07:00") }
