BEGIN;

SET LOCAL lock_timeout = '10s';

-- What a lane has applied of the others' outboxes: heard[n + 1] is the last number of lane n's. An outbox row is kept
-- until its target has heard it, and received_at is when the event was accepted that it follows from.
ALTER TABLE lanes ADD COLUMN heard bigint[] NOT NULL DEFAULT '{}';
ALTER TABLE outbox ADD COLUMN received_at timestamptz NOT NULL DEFAULT now();

COMMIT;
