BEGIN;

SET LOCAL lock_timeout = '10s';

DROP TABLE visitor_claims;
ALTER TABLE computed_traits DROP COLUMN public;
ALTER TABLE segments DROP COLUMN public;

COMMIT;
