package rule

import "strings"

// operator is what a condition compares with.
type operator uint8

const (
	opNone operator = iota
	opEq
	opNeq
	opIn
	opNotIn
	opGt
	opGte
	opLt
	opLte
	opContains
	opNotContains
	opStartsWith
	opEndsWith
	opMatches
	opExists
	opNotExists
	opBefore
	opAfter
	opWithinLast
	opWithinNext
	opMoreThanAgo
)

// operand is what kind of value an operator takes.
type operand uint8

const (
	operandNone operand = iota
	operandScalar
	operandList
	operandNumber
	operandText
	operandPattern
	operandDate
	operandDuration
)

var operators = [...]struct {
	name     string
	operand  operand
	positive operator // of a negative operator, its opposite
	yes, no  string   // in English, what is true of a value and the opposite
}{
	opEq:          {name: "eq", operand: operandScalar, yes: "is", no: "is not"},
	opNeq:         {name: "neq", operand: operandScalar, positive: opEq},
	opIn:          {name: "in", operand: operandList, yes: "is one of", no: "is none of"},
	opNotIn:       {name: "not_in", operand: operandList, positive: opIn},
	opGt:          {name: "gt", operand: operandNumber, yes: "is more than", no: "is not more than"},
	opGte:         {name: "gte", operand: operandNumber, yes: "is at least", no: "is not at least"},
	opLt:          {name: "lt", operand: operandNumber, yes: "is less than", no: "is not less than"},
	opLte:         {name: "lte", operand: operandNumber, yes: "is at most", no: "is not at most"},
	opContains:    {name: "contains", operand: operandScalar, yes: "contains", no: "does not contain"},
	opNotContains: {name: "not_contains", operand: operandScalar, positive: opContains},
	opStartsWith:  {name: "starts_with", operand: operandText, yes: "starts with", no: "does not start with"},
	opEndsWith:    {name: "ends_with", operand: operandText, yes: "ends with", no: "does not end with"},
	opMatches:     {name: "matches", operand: operandPattern, yes: "matches", no: "does not match"},
	opExists:      {name: "exists", operand: operandNone, yes: "is known", no: "is not known"},
	opNotExists:   {name: "not_exists", operand: operandNone, positive: opExists},
	opBefore:      {name: "before", operand: operandDate, yes: "is before", no: "is not before"},
	opAfter:       {name: "after", operand: operandDate, yes: "is after", no: "is not after"},
	opWithinLast:  {name: "within_last", operand: operandDuration, yes: "is within the last", no: "is not within the last"},
	opWithinNext:  {name: "within_next", operand: operandDuration, yes: "is within the next", no: "is not within the next"},
	opMoreThanAgo: {name: "more_than_ago", operand: operandDuration, yes: "is at least as long ago as", no: "is not as long ago as"},
}

func parseOperator(name string) (op operator, ok bool) {
	for op := opEq; int(op) < len(operators); op++ {
		if operators[op].name == name {
			return op, true
		}
	}
	return opNone, false
}

// operatorNames returns the names of all operators, or of those that do not depend on the present.
func operatorNames(relative bool) string {
	var names []string
	for op := opEq; int(op) < len(operators); op++ {
		if relative || !op.relative() {
			names = append(names, operators[op].name)
		}
	}
	return strings.Join(names, ", ")
}

func (op operator) operand() operand { return operators[op].operand }

// negative tells whether op is the opposite of another operator.
func (op operator) negative() bool { return operators[op].positive != opNone }

// positive returns op, or what it is the opposite of.
func (op operator) positive() operator {
	if op.negative() {
		return operators[op].positive
	}
	return op
}

// relative tells whether what op says depends on the present.
func (op operator) relative() bool { return op.operand() == operandDuration }
