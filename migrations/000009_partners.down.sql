BEGIN;

SET LOCAL lock_timeout = '10s';

DROP TABLE activation_mappings;
DROP TABLE activation_accounts;
DROP TABLE activation_receipts;
DROP TABLE holdings;

ALTER TABLE activation_batches DROP COLUMN entered, DROP COLUMN identities, DROP COLUMN removing;

DROP INDEX activations_renew;
DROP INDEX activations_due;
-- What had no status before waits to be sent again.
UPDATE activations SET status = 'pending', batch_id = NULL WHERE status IN ('accepted', 'unreachable');
ALTER TABLE activations
	DROP CONSTRAINT activations_wanted_check,
	DROP CONSTRAINT activations_status_check,
	ADD CONSTRAINT activations_status_check CHECK (status IN ('pending', 'claimed', 'settled', 'parked', 'failed')),
	DROP COLUMN rank,
	DROP COLUMN renew_at,
	DROP COLUMN resend,
	DROP COLUMN identity_message,
	DROP COLUMN identity_at,
	DROP COLUMN checked,
	DROP COLUMN identity,
	DROP COLUMN allowed,
	DROP COLUMN member;
CREATE INDEX activations_due ON activations (lane, destination_id, wanted, next_at) WHERE status = 'pending';

DELETE FROM destination_segments WHERE NOT attached AND filled;
ALTER TABLE destination_segments
	DROP COLUMN size_at,
	DROP COLUMN matched_at,
	DROP COLUMN matched_state,
	DROP COLUMN matched,
	DROP COLUMN resetting,
	DROP COLUMN audience_reason,
	DROP COLUMN audience_tries,
	DROP COLUMN audience_at,
	DROP COLUMN ready_at,
	DROP COLUMN audience;

DROP INDEX destinations_refresh;
ALTER TABLE destinations
	DROP COLUMN refresh_until,
	DROP COLUMN refresh_claim,
	DROP COLUMN refresh_at,
	DROP COLUMN refreshed_at,
	DROP COLUMN token_expires_at,
	DROP COLUMN secrets_version,
	DROP COLUMN linger,
	DROP COLUMN by_profile,
	DROP COLUMN consent_mode,
	DROP COLUMN purposes;

COMMIT;
