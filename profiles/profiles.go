// Package profiles knows who did what: it folds events into profiles, profiles into segments, and hands every entering
// and leaving on to activation, all in one transaction a µbatch.
//
//	messages of a lane ──► Store.Apply ──► Step ──► profiles, memberships, transitions, archive, outbox
//	                       (one transaction) (pure)          │
//	                                                         └──► activation.Enqueue, in the same transaction
//
// Each identifier keeps its own fragment: what was seen under it. An identifier belongs to its earliest claimant, and a
// profile is the merge of the fragments that belong to its root. Everything in a fragment merges in any order, so the
// state is a function of the set of events, however they arrive.
//
// All that is kept about a person lives in one lane, and only the lane's owner writes it. [Step] is the whole logic and
// touches neither clock nor database; [Store] reads what a step needs and writes what it decided.
package profiles
