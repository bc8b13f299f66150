BEGIN;

SET LOCAL lock_timeout = '10s';

DROP TABLE audit_log;
DROP TABLE decisions;
UPDATE transitions SET cause = 'merge' WHERE cause = 'unmerge';
ALTER TABLE transitions DROP CONSTRAINT transitions_cause_check;
ALTER TABLE transitions ADD CONSTRAINT transitions_cause_check
	CHECK (cause IN ('event', 'timer', 'build', 'edit', 'delete', 'merge'));

COMMIT;
