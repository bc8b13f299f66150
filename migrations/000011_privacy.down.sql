BEGIN;

SET LOCAL lock_timeout = '10s';

DROP INDEX activation_mappings_mapped;
DROP INDEX activation_receipts_people;
DROP TABLE erasure_removes;
DROP TABLE suppressed_events;
DROP TABLE tombstones;
DROP TABLE lane_erasures;
DROP TABLE erasure_keys;
DROP TABLE erasures;
DROP TABLE tombstone_keys;
ALTER TABLE dedupe_generation DROP COLUMN tombstones;

UPDATE transitions SET cause = 'delete' WHERE cause = 'erasure';
ALTER TABLE transitions DROP CONSTRAINT transitions_cause_check;
ALTER TABLE transitions ADD CONSTRAINT transitions_cause_check
	CHECK (cause IN ('event', 'timer', 'build', 'edit', 'delete', 'merge', 'unmerge'));

COMMIT;
