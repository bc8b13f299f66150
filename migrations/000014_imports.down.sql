BEGIN;

SET LOCAL lock_timeout = '10s';

DROP TABLE import_chunks;
DROP TABLE import_rejects;
DROP TABLE import_files;
DROP TABLE imports;

COMMIT;
