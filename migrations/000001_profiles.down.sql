BEGIN;

DROP TABLE counters, failed_events, outbox, transitions, segment_counts, memberships, lane_segments, lane_behaviours,
	behaviours, segments, events, lookups, profiles, family_members, families, claims, routes, dedupe_generation,
	dedupe_1, dedupe_0, nodes, lanes, workspaces;

COMMIT;
