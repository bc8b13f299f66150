BEGIN;

SET LOCAL lock_timeout = '10s';

-- A version of a segment's rule. It is kept while it is the newest or the live one, or a lane's memberships follow it.
CREATE TABLE segment_versions (
	segment_id bigint      NOT NULL REFERENCES segments (id) ON DELETE CASCADE,
	version    integer     NOT NULL,
	rule       jsonb       NOT NULL,
	behaviours integer[]   NOT NULL, -- in the order of the rule's behaviours
	refers_to  bigint[]    NOT NULL DEFAULT '{}', -- the segments that the rule refers to
	created_at timestamptz NOT NULL DEFAULT now(),
	PRIMARY KEY (segment_id, version)
);
INSERT INTO segment_versions (segment_id, version, rule, behaviours, created_at)
SELECT id, version, rule, behaviours, updated_at FROM segments
UNION ALL
SELECT id, live_version, live_rule, live_behaviours, updated_at FROM segments WHERE live_version NOT IN (0, version);

-- live_version was what a lane had finished; now it is what the lane's µbatches evaluate, from the beginning of the
-- evaluation on. Versions of which nobody knows the rule any more were not evaluated.
UPDATE lane_segments AS l
SET live_version = CASE
	WHEN l.phase NOT IN ('evaluating', 'done') THEN s.live_version
	WHEN l.version IN (0, s.version, s.live_version) THEN l.version
	ELSE s.live_version END
FROM segments AS s
WHERE s.id = l.segment_id;

ALTER TABLE segments DROP COLUMN live_rule, DROP COLUMN live_behaviours;

-- A behaviour is complete in a lane when the lane has got all that any lane's archive has for it: every lane has replayed
-- its own and told the others, every lane has settled what came of that, and this one has applied what came of that.
ALTER TABLE lane_behaviours
	ADD COLUMN phase text NOT NULL DEFAULT 'replaying' CHECK (phase IN ('replaying', 'replayed', 'settled', 'complete'));

-- A computed trait is an aggregate under a name: its value is computed from a behaviour when somebody reads it. The live
-- one answers until all lanes have replayed what a newer one needs.
CREATE TABLE computed_traits (
	id                bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	workspace_id      integer     NOT NULL REFERENCES workspaces (id),
	key               text        NOT NULL,
	name              text        NOT NULL,
	description       text        NOT NULL DEFAULT '',
	value             jsonb       NOT NULL,
	behaviour_id      integer     NOT NULL,
	version           integer     NOT NULL DEFAULT 1, -- of the value
	revision          integer     NOT NULL DEFAULT 1, -- of the row, for ETag
	live_version      integer     NOT NULL DEFAULT 0, -- 0: never built
	live_value        jsonb,
	live_behaviour_id integer,
	created_at        timestamptz NOT NULL DEFAULT now(),
	updated_at        timestamptz NOT NULL DEFAULT now(),
	UNIQUE (workspace_id, key)
);

COMMIT;
