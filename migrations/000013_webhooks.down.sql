BEGIN;

SET LOCAL lock_timeout = '10s';

DROP TABLE webhook_counts;
DROP TABLE webhook_secrets;
-- Their write keys would let events in unverified.
UPDATE sources SET enabled = false WHERE type = 'webhook';

COMMIT;
