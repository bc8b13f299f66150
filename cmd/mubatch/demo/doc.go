// Package demo replays what a real shop sold, over mubatch's public API, as that shop would have sent it.
//
//	sample.csv.gz ──► events ──► POST /v1/batch ──► mubatch ──► webhooks ──► the demo's own receiver
//	                             /api/v1/segments, /destinations, /stats
//
// The dates are moved so that the last purchase is now. The messageIds depend on the data alone: however often it is
// replayed, and whoever is killed meanwhile, each invoice counts once. README.md says whose data it is.
package demo
