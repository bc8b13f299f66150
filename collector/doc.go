// Package collector takes events in over HTTP, keeps them in Redis streams, and hands them on in batches.
//
//	Handler ──► clean ──► Committer ──► Stream ──► Flusher ──► profiles
//	  keys from            one fsync     a lane is
//	  the Directory        for many      a log
//
// An event is fsynced in the stream of its lane before its request is answered. It is cleaned once, on the way in: what
// is in a stream is canonical JSON that Postgres takes.
package collector
