BEGIN;

SET LOCAL lock_timeout = '10s';

DROP TABLE kafka_rejected;
DROP TABLE kafka_sources;

COMMIT;
