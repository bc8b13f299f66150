BEGIN;

SET LOCAL lock_timeout = '10s';

DROP INDEX transitions_by_segment;
CREATE INDEX transitions_by_segment ON transitions (lane, segment_id, at DESC, seq DESC);

DROP TABLE profile_counts, segment_days;

COMMIT;
