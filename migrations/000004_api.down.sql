BEGIN;

SET LOCAL lock_timeout = '10s';

DROP TABLE idempotency_keys;
DROP TABLE api_keys;

COMMIT;
