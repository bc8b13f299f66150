BEGIN;

SET LOCAL lock_timeout = '10s';

-- A workspace is a tenant. Its secret keys the hashes that stand for identifiers: it is never changed.
CREATE TABLE workspaces (
	id         integer     GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	key        text        NOT NULL UNIQUE,
	name       text        NOT NULL,
	secret     bytea       NOT NULL,
	settings   jsonb       NOT NULL DEFAULT '{}',
	created_at timestamptz NOT NULL DEFAULT now()
);

-- A lane is a log of messages and everything that follows from it. Only its owner writes under its number; the
-- compare-and-set of (epoch, offset) in every transaction, not the lease, is what makes that safe.
CREATE TABLE lanes (
	lane           smallint    PRIMARY KEY,
	epoch          bigint      NOT NULL DEFAULT 0,
	turn           bigint      NOT NULL DEFAULT 0, -- grows with every transaction of the lane
	owner          text        NOT NULL DEFAULT '',
	lease_until    timestamptz NOT NULL DEFAULT '-infinity',
	offset_ms      bigint      NOT NULL DEFAULT 0,
	offset_seq     bigint      NOT NULL DEFAULT 0,
	redis_run_id   text        NOT NULL DEFAULT '',
	unclean        boolean     NOT NULL DEFAULT false, -- the owner did not let go of it in order
	attempts       integer     NOT NULL DEFAULT 0, -- at the batch behind the offset, while in doubt
	suspect        uuid, -- the message that was attempted last, while in doubt
	outbox_seq     bigint      NOT NULL DEFAULT 0,
	archive_seq    bigint      NOT NULL DEFAULT 0,
	transition_seq bigint      NOT NULL DEFAULT 0,
	as_of          timestamptz NOT NULL DEFAULT '-infinity'
) WITH (fillfactor = 20);

CREATE TABLE nodes (
	id      text        PRIMARY KEY,
	seen_at timestamptz NOT NULL
);

-- Dedupe: two generations, of which one is current. A rotation empties the older one and makes it current, so a
-- message is remembered for one to two windows and forgetting costs nothing.
CREATE TABLE dedupe_0 (
	lane         smallint NOT NULL,
	workspace_id integer  NOT NULL,
	source_id    integer  NOT NULL,
	message_key  uuid     NOT NULL,
	PRIMARY KEY (lane, workspace_id, source_id, message_key)
);
CREATE TABLE dedupe_1 (LIKE dedupe_0 INCLUDING ALL);
CREATE TABLE dedupe_generation (
	"only"     boolean     PRIMARY KEY DEFAULT true CHECK ("only"),
	current    smallint    NOT NULL,
	rotated_at timestamptz NOT NULL
);
INSERT INTO dedupe_generation (current, rotated_at) VALUES (0, now());

-- Where a lane believes an identifier's fragment belongs. In the identifier's home lane the row is the truth and
-- holds the claims it follows from; elsewhere it says where to send what still arrives. No row: the identifier is
-- its own root.
CREATE TABLE routes (
	lane         smallint NOT NULL,
	workspace_id integer  NOT NULL,
	key          uuid     NOT NULL,
	root         uuid     NOT NULL,
	version      bigint   NOT NULL,
	claims       bytea,
	PRIMARY KEY (lane, workspace_id, key)
);

-- The claims a lane has made for its people, the earliest of each pair.
CREATE TABLE claims (
	lane         smallint NOT NULL,
	workspace_id integer  NOT NULL,
	parent       uuid     NOT NULL,
	child        uuid     NOT NULL,
	kind         smallint NOT NULL,
	at           bigint   NOT NULL, -- unix ms, event time
	stamp        bigint   NOT NULL, -- orders claims of the same time
	message_id   text     NOT NULL,
	named        boolean  NOT NULL, -- the child itself was sent along, not only its key
	PRIMARY KEY (lane, workspace_id, parent, child)
);

-- A family is a set of users that claim each other; the workspace's family lane decides who is whose root.
CREATE TABLE families (
	lane         smallint NOT NULL,
	workspace_id integer  NOT NULL,
	id           uuid     NOT NULL,
	state        bytea    NOT NULL,
	PRIMARY KEY (lane, workspace_id, id)
);
CREATE TABLE family_members (
	lane         smallint NOT NULL,
	workspace_id integer  NOT NULL,
	key          uuid     NOT NULL,
	family_id    uuid     NOT NULL,
	PRIMARY KEY (lane, workspace_id, key)
);

-- A profile: its fragments and its standing in each segment, packed. due_at is the next moment at which a
-- membership may change by itself.
CREATE TABLE profiles (
	lane         smallint    NOT NULL,
	workspace_id integer     NOT NULL,
	id           uuid        NOT NULL,
	state        bytea       NOT NULL,
	due_at       timestamptz,
	last_seen_at timestamptz NOT NULL,
	updated_at   timestamptz NOT NULL,
	PRIMARY KEY (lane, workspace_id, id)
) WITH (fillfactor = 85);
CREATE INDEX profiles_due ON profiles (lane, due_at) WHERE due_at IS NOT NULL;

-- E-mail addresses, phone numbers and custom ids, by key: for looking people up.
CREATE TABLE lookups (
	lane         smallint NOT NULL,
	workspace_id integer  NOT NULL,
	key          uuid     NOT NULL,
	profile_id   uuid     NOT NULL,
	PRIMARY KEY (lane, workspace_id, key, profile_id)
);

-- The archive: every applied event, in the home lane of its identifier. payload is the cleaned JSON.
CREATE TABLE events (
	lane         smallint    NOT NULL,
	seq          bigint      NOT NULL,
	received_at  timestamptz NOT NULL,
	workspace_id integer     NOT NULL,
	source_id    integer     NOT NULL,
	key          uuid        NOT NULL,
	message_key  uuid        NOT NULL,
	event_at     timestamptz NOT NULL,
	applied_at   timestamptz NOT NULL,
	type         text        NOT NULL,
	name         text        NOT NULL,
	payload      bytea       NOT NULL,
	PRIMARY KEY (lane, seq, received_at)
) PARTITION BY RANGE (received_at);
CREATE TABLE events_default PARTITION OF events DEFAULT;
CREATE INDEX events_by_key ON events (lane, workspace_id, key, event_at DESC, seq DESC);
CREATE INDEX events_by_message ON events (lane, message_key);

CREATE TABLE segments (
	id              bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	workspace_id    integer     NOT NULL REFERENCES workspaces (id),
	key             text        NOT NULL,
	name            text        NOT NULL,
	description     text        NOT NULL DEFAULT '',
	rule            jsonb       NOT NULL,
	behaviours      integer[]   NOT NULL, -- in the order of the rule's behaviours
	version         integer     NOT NULL DEFAULT 1, -- of the rule
	revision        integer     NOT NULL DEFAULT 1, -- of the row, for ETag
	live_version    integer     NOT NULL DEFAULT 0, -- 0: never built
	live_rule       jsonb,
	live_behaviours integer[],
	deleting        boolean     NOT NULL DEFAULT false,
	created_at      timestamptz NOT NULL DEFAULT now(),
	updated_at      timestamptz NOT NULL DEFAULT now(),
	UNIQUE (workspace_id, key)
);

-- A behaviour is what rules count: an event name and a property filter, with as many times kept as they need.
CREATE TABLE behaviours (
	id           integer     GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	workspace_id integer     NOT NULL REFERENCES workspaces (id),
	definition   bytea       NOT NULL,
	keep         integer     NOT NULL,
	retired      boolean     NOT NULL DEFAULT false,
	created_at   timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX behaviours_by_workspace ON behaviours (workspace_id) WHERE NOT retired;

-- Which behaviours a lane folds, and how far it has replayed its archive for those that came later than events.
CREATE TABLE lane_behaviours (
	lane         smallint NOT NULL,
	behaviour_id integer  NOT NULL,
	cut_seq      bigint   NOT NULL, -- events up to here are replayed from the archive, later ones folded live
	replayed_seq bigint   NOT NULL,
	PRIMARY KEY (lane, behaviour_id)
);

-- How far a lane is with a segment's version: replaying, ready (waits for the other lanes), evaluating, done.
CREATE TABLE lane_segments (
	lane         smallint NOT NULL,
	segment_id   bigint   NOT NULL,
	version      integer  NOT NULL, -- 0: deleted
	phase        text     NOT NULL CHECK (phase IN ('replaying', 'ready', 'evaluating', 'done')),
	cursor       uuid     NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
	live_version integer  NOT NULL DEFAULT 0, -- the version this lane's memberships follow
	PRIMARY KEY (lane, segment_id)
);

CREATE TABLE memberships (
	lane         smallint    NOT NULL,
	workspace_id integer     NOT NULL,
	segment_id   bigint      NOT NULL,
	profile_id   uuid        NOT NULL,
	entered_at   timestamptz NOT NULL,
	PRIMARY KEY (lane, segment_id, profile_id)
);

CREATE TABLE segment_counts (
	lane       smallint NOT NULL,
	segment_id bigint   NOT NULL,
	members    bigint   NOT NULL,
	PRIMARY KEY (lane, segment_id)
) WITH (fillfactor = 50);

-- Every entering and leaving, with its cause.
CREATE TABLE transitions (
	lane              smallint    NOT NULL,
	seq               bigint      NOT NULL,
	at                timestamptz NOT NULL,
	workspace_id      integer     NOT NULL,
	segment_id        bigint      NOT NULL,
	profile_id        uuid        NOT NULL,
	entered           boolean     NOT NULL,
	cause             text        NOT NULL CHECK (cause IN ('event', 'timer', 'build', 'edit', 'delete', 'merge')),
	cause_source_id   integer     NOT NULL DEFAULT 0,
	cause_message_id  text        NOT NULL DEFAULT '',
	cause_message_key uuid, -- NULL if no message was the cause
	PRIMARY KEY (lane, seq)
);
CREATE INDEX transitions_by_segment ON transitions (lane, segment_id, at DESC, seq DESC);
CREATE INDEX transitions_by_profile ON transitions (lane, workspace_id, profile_id, at DESC, seq DESC);
CREATE INDEX transitions_by_message ON transitions (lane, cause_message_key) WHERE cause_message_key IS NOT NULL;

-- Messages to other lanes, until they are in those lanes' streams.
CREATE TABLE outbox (
	lane    smallint NOT NULL,
	seq     bigint   NOT NULL,
	target  smallint NOT NULL,
	message bytea    NOT NULL,
	PRIMARY KEY (lane, seq)
);

-- Events that could not be applied: kept, with the reason, until they are replayed.
CREATE TABLE failed_events (
	lane         smallint    NOT NULL,
	id           bigint      GENERATED ALWAYS AS IDENTITY,
	workspace_id integer     NOT NULL,
	source_id    integer     NOT NULL,
	message_key  uuid        NOT NULL,
	received_at  timestamptz NOT NULL,
	failed_at    timestamptz NOT NULL DEFAULT now(),
	stage        text        NOT NULL, -- frame, decode, fold, store, crash
	reason       text        NOT NULL,
	sqlstate     text        NOT NULL DEFAULT '',
	attempts     integer     NOT NULL DEFAULT 1,
	software     text        NOT NULL DEFAULT '',
	message      bytea       NOT NULL, -- the message as it was in the stream
	replayed_at  timestamptz,
	PRIMARY KEY (lane, id)
);
CREATE INDEX failed_events_by_message ON failed_events (lane, message_key);

-- What became of accepted events: accepted = applied + duplicate + failed + suppressed, in every row.
CREATE TABLE counters (
	lane         smallint NOT NULL,
	workspace_id integer  NOT NULL,
	source_id    integer  NOT NULL,
	day          date     NOT NULL,
	accepted     bigint   NOT NULL DEFAULT 0,
	applied      bigint   NOT NULL DEFAULT 0,
	duplicate    bigint   NOT NULL DEFAULT 0,
	failed       bigint   NOT NULL DEFAULT 0,
	suppressed   bigint   NOT NULL DEFAULT 0,
	PRIMARY KEY (lane, workspace_id, source_id, day)
) WITH (fillfactor = 50);

COMMIT;
