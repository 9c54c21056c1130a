-- The first schema: jobs that are open, the history of those that ended, and which file is where.
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE jobs (
    tenant       TEXT NOT NULL,
    prompt_id    TEXT NOT NULL,
    gateway      TEXT NOT NULL,
    number       REAL NOT NULL,
    tag          REAL NOT NULL,
    state        TEXT NOT NULL,
    backend      TEXT,
    upstream_id  TEXT NOT NULL,
    create_time  INTEGER NOT NULL,
    start_time   INTEGER,
    attempts     INTEGER NOT NULL,
    digest       BLOB,
    node_errors  BLOB,
    submission   BLOB NOT NULL
);
CREATE UNIQUE INDEX jobs_key ON jobs (tenant, prompt_id);

CREATE TABLE history (
    position     INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant       TEXT NOT NULL,
    prompt_id    TEXT NOT NULL,
    backend      TEXT,
    upstream_id  TEXT NOT NULL,
    number       REAL NOT NULL,
    outcome      TEXT NOT NULL,
    digest       BLOB,
    node_errors  BLOB,
    summary      BLOB NOT NULL,
    entry        BLOB NOT NULL
);
CREATE UNIQUE INDEX history_key ON history (tenant, prompt_id);

CREATE TABLE files (
    tenant       TEXT NOT NULL,
    kind         TEXT NOT NULL,
    subfolder    TEXT NOT NULL,
    filename     TEXT NOT NULL,
    backend      TEXT NOT NULL,
    upstream     TEXT NOT NULL,
    PRIMARY KEY (tenant, kind, subfolder, filename)
) WITHOUT ROWID;
