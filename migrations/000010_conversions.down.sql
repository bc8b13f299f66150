BEGIN;

SET LOCAL lock_timeout = '10s';

DELETE FROM deliveries WHERE subscription_id IS NOT NULL;
DELETE FROM activation_batches WHERE segment_id = 0;
DELETE FROM activation_receipts WHERE segment_id = 0;
ALTER TABLE deliveries
	DROP COLUMN subscription_id,
	DROP COLUMN event;
DROP TABLE conversion_counts;
DROP TABLE conversions;
DROP SEQUENCE event_subscription_version;
DROP TABLE event_subscriptions;

COMMIT;
