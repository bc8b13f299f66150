// Package mapping turns what others send, webhooks, rows of files and messages of topics, into events in our shape, as a
// document says that a marketer can read:
//
//	document ──► Compile ──► Program ──┐
//	 YAML, JSON   faults by line       ▼
//	                     Input ──────► Map ──► events, as JSON
//	                      body, headers,        none, if no rule applies
//	                      query, meta
//
// A document is data: rules, each with a condition and an event whose cells are literal values, paths into the input with
// named functions behind them, or expressions in CEL. docs/mapping.md has the language.
//
// What a document can do is bounded: it has no loops but over the lists of its input, no access to anything but its input,
// no clock, and a budget of work. Numbers stay as they were written, through paths, functions, and CEL's comparison and
// addition of 64-bit integers. The same input gives the same bytes.
package mapping
