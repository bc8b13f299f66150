BEGIN;

SET LOCAL lock_timeout = '10s';

ALTER TABLE transitions DROP CONSTRAINT transitions_cause_check;
ALTER TABLE transitions ADD CONSTRAINT transitions_cause_check
	CHECK (cause IN ('event', 'timer', 'build', 'edit', 'delete', 'merge', 'unmerge', 'erasure')) NOT VALID;

-- Grows whenever a tombstone is left or closed: lanes read it with every µbatch, and look again when it has grown.
ALTER TABLE dedupe_generation ADD COLUMN tombstones bigint NOT NULL DEFAULT 0;

-- What keys the tombstones of a workspace. It is sealed, and sealed anew when the installation's keys change; it is itself
-- never changed.
CREATE TABLE tombstone_keys (
	workspace_id integer PRIMARY KEY REFERENCES workspaces (id),
	key          bytea   NOT NULL
);

-- One person, forgotten. erased_at is when nothing was left in the lanes; events up to then change nothing any more.
-- completed_at is when nothing was left at the destinations.
CREATE TABLE erasures (
	id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	workspace_id integer     NOT NULL REFERENCES workspaces (id),
	kind         text        NOT NULL, -- of the identifier that was given
	hash         bytea       NOT NULL, -- of it: its tombstone
	known        boolean     NOT NULL, -- whether anybody was known by it when it was asked for
	reason       text        NOT NULL,
	api_key_id   bigint      NOT NULL,
	api_key_name text        NOT NULL, -- as it was then
	asked_at     timestamptz NOT NULL DEFAULT now(),
	round        integer     NOT NULL DEFAULT 1, -- grows with what is known of the person: every lane has to look again
	erased_at    timestamptz,
	tombstones   integer     NOT NULL DEFAULT 0,
	completed_at timestamptz
);
CREATE INDEX erasures_by_workspace ON erasures (workspace_id, id);
CREATE INDEX erasures_open ON erasures (id) WHERE completed_at IS NULL;

-- The identifiers of somebody who is being forgotten, until it is done.
CREATE TABLE erasure_keys (
	erasure_id bigint   NOT NULL REFERENCES erasures (id) ON DELETE CASCADE,
	key        uuid     NOT NULL,
	role       smallint NOT NULL,
	PRIMARY KEY (erasure_id, key)
);

-- How far a lane is with an erasure, and how much it has deleted, by kind.
CREATE TABLE lane_erasures (
	lane       smallint NOT NULL,
	erasure_id bigint   NOT NULL,
	round      integer  NOT NULL,
	outbox_seq bigint   NOT NULL, -- what the lane had told others by then
	deleted    jsonb    NOT NULL,
	PRIMARY KEY (erasure_id, lane)
);

-- Who is not to come back by what happened before erased_at; null while the erasure is under way.
CREATE TABLE tombstones (
	workspace_id integer     NOT NULL,
	hash         bytea       NOT NULL, -- HMAC-SHA-256
	erasure_id   bigint      NOT NULL,
	erased_at    timestamptz,
	PRIMARY KEY (workspace_id, hash)
);
CREATE INDEX tombstones_by_erasure ON tombstones (erasure_id);

-- Events that came too late: of whom they were is not known.
CREATE TABLE suppressed_events (
	lane          smallint    NOT NULL,
	workspace_id  integer     NOT NULL,
	source_id     integer     NOT NULL,
	message_key   uuid        NOT NULL,
	received_at   timestamptz NOT NULL,
	suppressed_at timestamptz NOT NULL,
	PRIMARY KEY (lane, message_key, workspace_id, source_id)
);
CREATE INDEX suppressed_events_by_age ON suppressed_events (suppressed_at);

-- What destinations held of somebody when that person was forgotten, and whether they have let go of it. Who it was is
-- forgotten when they have.
CREATE TABLE erasure_removes (
	id             bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	erasure_id     bigint      NOT NULL,
	destination_id bigint      NOT NULL,
	segment_id     bigint      NOT NULL,
	lane           smallint    NOT NULL,
	profile_id     uuid,
	told           boolean     NOT NULL, -- the partner was, or may have been: there is something to remove
	outcome        text        NOT NULL DEFAULT 'waiting'
		CHECK (outcome IN ('waiting', 'acknowledged', 'shared', 'returned', 'destination_deleted')),
	status         integer     NOT NULL DEFAULT 0, -- of HTTP; 0 if there was no answer
	at             timestamptz,
	UNIQUE (erasure_id, destination_id, segment_id, profile_id)
);
CREATE INDEX erasure_removes_waiting ON erasure_removes (erasure_id) WHERE outcome = 'waiting';

-- By whom they are about: receipts are kept as long as the ledger, and change no more once they are done. Mappings are found
-- by what was sent.
CREATE INDEX activation_receipts_people ON activation_receipts USING gin (profiles) WHERE poll_at IS NULL;
CREATE INDEX activation_mappings_mapped ON activation_mappings USING hash ((mapped -> 'ids'));

COMMIT;
