// Package mubatch turns website tags, SDK calls and webhooks into live audiences at ad partners in under a second.
//
//	tags, SDKs,           one binary, any number of copies, roles chosen by flag
//	pixels, webhooks ──►  collector ──► Redis Streams ──► flusher ──► profiles ──► activation ──►  partners
//	                      durable       (L lanes)         µbatch      segments     ledger,         (webhooks, …)
//	                      before 2xx                                  one Postgres dispatcher
//	marketers ◄── REST ──                                             transaction
//
// The folders are the flow, in this order:
//
//   - [github.com/mubatch/mubatch/cmd/mubatch] reads the configuration and wires everything together;
//   - [github.com/mubatch/mubatch/api] answers marketers and operators;
//   - [github.com/mubatch/mubatch/collector] takes events in, keeps them in Redis and flushes them in µbatches;
//   - [github.com/mubatch/mubatch/profiles] folds events into profiles and segments;
//   - [github.com/mubatch/mubatch/activation] tells the partners who entered and who left;
//   - [github.com/mubatch/mubatch/migrations] holds the schema they share.
//
// This package itself only carries the HTTP contract.
package mubatch

import _ "embed" // for the contract

//go:embed openapi.yaml
var openAPI string

// OpenAPI returns the HTTP contract, an OpenAPI 3.1 document in YAML.
func OpenAPI() string { return openAPI }
