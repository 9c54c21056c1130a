-- What routing learned from runs, in one row: lines of JSON (gateway/jobs/kept_learning.py). Types and statements are
-- such that PostgreSQL can hold it.
CREATE TABLE learned (
    id      INTEGER NOT NULL PRIMARY KEY,
    record  BLOB NOT NULL
);
