-- What is held against each backend: a process that can't use its GPU, failures in a row, ejections, an admin's word.
CREATE TABLE backends (
    backend        TEXT PRIMARY KEY,
    poisoned       TEXT,
    failures       BLOB NOT NULL,
    ejections      INTEGER NOT NULL,
    ejected_until  INTEGER NOT NULL,
    drained        INTEGER NOT NULL
) WITHOUT ROWID;
