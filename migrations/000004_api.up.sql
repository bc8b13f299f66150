BEGIN;

SET LOCAL lock_timeout = '10s';

-- Keys of the management API. Of a secret only the hash is kept; the prefix is for people to tell keys apart.
CREATE TABLE api_keys (
	id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	workspace_id integer     NOT NULL REFERENCES workspaces (id),
	name         text        NOT NULL,
	key_hash     bytea       NOT NULL UNIQUE, -- SHA-256
	prefix       text        NOT NULL,
	scopes       text[]      NOT NULL,
	created_at   timestamptz NOT NULL DEFAULT now(),
	expires_at   timestamptz,
	last_used_at timestamptz,
	revoked_at   timestamptz
);
CREATE INDEX api_keys_by_workspace ON api_keys (workspace_id, id);

-- Answers to requests with an Idempotency-Key, each written in the transaction of the change it tells of, and sealed
-- with the secret of the key that asked: some of them show a secret once.
CREATE TABLE idempotency_keys (
	workspace_id integer     NOT NULL,
	api_key_id   bigint      NOT NULL,
	operation    text        NOT NULL, -- method and path
	key          text        NOT NULL,
	request_hash bytea       NOT NULL, -- SHA-256
	status       smallint    NOT NULL,
	answer       bytea       NOT NULL,
	created_at   timestamptz NOT NULL DEFAULT now(),
	PRIMARY KEY (workspace_id, api_key_id, operation, key)
);
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);

COMMIT;
