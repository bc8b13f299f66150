BEGIN;

DROP TABLE write_keys;
DROP TABLE sources;

COMMIT;
