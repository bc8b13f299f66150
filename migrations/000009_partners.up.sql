BEGIN;

SET LOCAL lock_timeout = '10s';

-- What a destination's partner and owner ask for. purposes and consent_mode are the gate of consent. by_profile: people
-- are known there by our profile ids. linger: how long a change waits for others. Access tokens are refreshed at
-- refresh_at; whoever has refresh_claim is doing it, until refresh_until. secrets_version counts secrets, version the rest.
ALTER TABLE destinations
	ADD COLUMN purposes         text[]      NOT NULL DEFAULT '{}',
	ADD COLUMN consent_mode     text        NOT NULL DEFAULT 'granted' CHECK (consent_mode IN ('granted', 'not_denied')),
	ADD COLUMN by_profile       boolean     NOT NULL DEFAULT true,
	ADD COLUMN linger           interval    NOT NULL DEFAULT '0',
	ADD COLUMN secrets_version  bigint      NOT NULL DEFAULT 1,
	ADD COLUMN token_expires_at timestamptz,
	ADD COLUMN refreshed_at     timestamptz,
	ADD COLUMN refresh_at       timestamptz,
	ADD COLUMN refresh_claim    uuid,
	ADD COLUMN refresh_until    timestamptz NOT NULL DEFAULT '-infinity';
CREATE INDEX destinations_refresh ON destinations (refresh_at) WHERE refresh_at IS NOT NULL;

-- Nothing is sent about a segment before ready_at, which is infinity while it needs an audience and has none. Whoever
-- makes one has it until audience_at, which is otherwise when to try next. resetting: what was sent is to be forgotten,
-- because the audience is another one. A detached row stays until the partner holds nobody because of it.
ALTER TABLE destination_segments
	ADD COLUMN audience        text        NOT NULL DEFAULT '',
	ADD COLUMN ready_at        timestamptz NOT NULL DEFAULT '-infinity',
	ADD COLUMN audience_at     timestamptz NOT NULL DEFAULT '-infinity',
	ADD COLUMN audience_tries  integer     NOT NULL DEFAULT 0,
	ADD COLUMN audience_reason text        NOT NULL DEFAULT '',
	ADD COLUMN resetting       boolean     NOT NULL DEFAULT false,
	ADD COLUMN matched         bigint,
	ADD COLUMN matched_state   text        NOT NULL DEFAULT '',
	ADD COLUMN matched_at      timestamptz,
	ADD COLUMN size_at         timestamptz NOT NULL DEFAULT '-infinity'; -- when to ask the partner next

-- wanted is member and allowed. sent_identifiers is what the partner may hold because of this row, from before a message
-- is sent. identity counts how often the person's identifying data may have changed, checked is that of what was sent or
-- found the same. resend has it sent though nothing changed; renew_at is when that is to be, because the partner forgets.
ALTER TABLE activations
	ADD COLUMN member           boolean     NOT NULL DEFAULT true,
	ADD COLUMN allowed          boolean     NOT NULL DEFAULT true,
	ADD COLUMN identity         integer     NOT NULL DEFAULT 0,
	ADD COLUMN checked          integer     NOT NULL DEFAULT 0,
	ADD COLUMN identity_at      timestamptz,
	ADD COLUMN identity_message text        NOT NULL DEFAULT '',
	ADD COLUMN resend           boolean     NOT NULL DEFAULT false,
	ADD COLUMN renew_at         timestamptz,
	ADD COLUMN rank             smallint    NOT NULL GENERATED ALWAYS AS (
		CASE WHEN wanted THEN 2 WHEN cause IN ('consent', 'erasure') THEN 0 ELSE 1 END) STORED,
	DROP CONSTRAINT activations_status_check,
	ADD CONSTRAINT activations_status_check
		CHECK (status IN ('pending', 'claimed', 'accepted', 'settled', 'unreachable', 'parked', 'failed'));
UPDATE activations SET member = false WHERE NOT wanted;
ALTER TABLE activations ADD CONSTRAINT activations_wanted_check CHECK (wanted = (member AND allowed));
DROP INDEX activations_due;
CREATE INDEX activations_due ON activations (lane, destination_id, rank, next_at) WHERE status = 'pending';
CREATE INDEX activations_renew ON activations (lane, destination_id, renew_at) WHERE renew_at IS NOT NULL;

-- entered and identities belong to the body: what it says of each person, and of which identity. removing is how many
-- holdings it takes away.
ALTER TABLE activation_batches
	ADD COLUMN entered    boolean[],
	ADD COLUMN identities integer[],
	ADD COLUMN removing   integer NOT NULL DEFAULT 0;

-- Which identifiers a partner may hold in which audience: of how many rows of activations (holders) it is among the
-- sent_identifiers. moved: a remove was left out because others held it, so it is there whatever becomes of theirs.
-- removing is the message that takes it away, until that is answered or given up. lane is that of the identifier.
CREATE TABLE holdings (
	lane           smallint NOT NULL,
	destination_id bigint   NOT NULL,
	segment_id     bigint   NOT NULL,
	identifier     uuid     NOT NULL, -- 128 bits of the SHA-256 of kind and value
	holders        integer  NOT NULL CHECK (holders > 0),
	moved          boolean  NOT NULL DEFAULT false,
	removing       bigint,
	PRIMARY KEY (lane, destination_id, segment_id, identifier)
) WITH (fillfactor = 80);
CREATE INDEX holdings_removing ON holdings (removing) WHERE removing IS NOT NULL;

-- Messages that a partner took in and works on, under the number their batch had; then what it said became of them.
CREATE TABLE activation_receipts (
	lane           smallint    NOT NULL,
	id             bigint      NOT NULL,
	destination_id bigint      NOT NULL,
	segment_id     bigint      NOT NULL,
	message_key    text        NOT NULL,
	receipt        text        NOT NULL,
	profiles       uuid[]      NOT NULL,
	versions       bigint[]    NOT NULL,
	entered        boolean[]   NOT NULL,
	identities     integer[]   NOT NULL,
	accepted_at    timestamptz NOT NULL,
	give_up_at     timestamptz NOT NULL,
	poll_at        timestamptz,           -- null when it is done
	polls          integer     NOT NULL DEFAULT 0,
	claim_token    uuid,
	outcome        text        NOT NULL DEFAULT '',
	counts         jsonb       NOT NULL DEFAULT '[]', -- refused, by reason
	match          text        NOT NULL DEFAULT '',
	done_at        timestamptz,
	PRIMARY KEY (lane, id)
);
CREATE INDEX activation_receipts_open ON activation_receipts (poll_at) WHERE poll_at IS NOT NULL;
CREATE INDEX activation_receipts_done ON activation_receipts (destination_id, done_at) WHERE done_at IS NOT NULL;

-- What accounts at partners may still ask. next_at is when the next request of a period may be made, period_us 0 stands
-- for the account: nothing before blocked_until, and only a part of the usual (pace) before slow_until.
CREATE TABLE activation_accounts (
	account       text             NOT NULL,
	period_us     bigint           NOT NULL,
	next_at       timestamptz      NOT NULL DEFAULT '-infinity',
	blocked_until timestamptz      NOT NULL DEFAULT '-infinity',
	pace          double precision NOT NULL DEFAULT 1,
	slow_until    timestamptz      NOT NULL DEFAULT '-infinity',
	PRIMARY KEY (account, period_us)
);

-- What a partner's operator said that identifiers are called there, until when that holds.
CREATE TABLE activation_mappings (
	lane           smallint    NOT NULL,
	destination_id bigint      NOT NULL,
	identifiers    uuid        NOT NULL, -- 128 bits of the SHA-256 of what was asked for
	mapped         jsonb       NOT NULL,
	reason         text        NOT NULL,
	until          timestamptz NOT NULL,
	PRIMARY KEY (lane, destination_id, identifiers)
);

COMMIT;
