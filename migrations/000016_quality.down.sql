BEGIN;

SET LOCAL lock_timeout = '10s';

DROP TABLE source_rejects;
DROP TABLE source_faults;
DROP TABLE source_health;
DROP TABLE quarantined_events;
DROP TABLE source_schema_versions;
DROP TABLE source_schemas;
ALTER TABLE counters DROP COLUMN quarantined;

COMMIT;
