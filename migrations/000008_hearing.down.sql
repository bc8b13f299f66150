BEGIN;

SET LOCAL lock_timeout = '10s';

ALTER TABLE outbox DROP COLUMN received_at;
ALTER TABLE lanes DROP COLUMN heard;

COMMIT;
