BEGIN;

SET LOCAL lock_timeout = '10s';

DROP TABLE computed_traits;

ALTER TABLE lane_behaviours DROP COLUMN phase;

ALTER TABLE segments ADD COLUMN live_rule jsonb, ADD COLUMN live_behaviours integer[];
UPDATE segments AS s
SET live_rule = v.rule, live_behaviours = v.behaviours
FROM segment_versions AS v
WHERE v.segment_id = s.id AND v.version = s.live_version;

-- What a lane has not finished is not its live version any more.
UPDATE lane_segments AS l
SET live_version = s.live_version
FROM segments AS s
WHERE s.id = l.segment_id AND (l.phase <> 'done' OR l.version NOT IN (0, s.version, s.live_version));

DROP TABLE segment_versions;

COMMIT;
