-- Restarts of backends. attempts: a JSON list of their times (milliseconds since 1970). An empty outcome: not ended yet.
CREATE TABLE restarts (
    backend      TEXT PRIMARY KEY,
    attempts     BLOB NOT NULL,
    reason       TEXT NOT NULL,
    outcome      TEXT NOT NULL
) WITHOUT ROWID;
