-- Files in object storage. Times are milliseconds since 1970. Types and statements are such that PostgreSQL can hold it.
CREATE TABLE artifacts (
    key                 TEXT NOT NULL PRIMARY KEY,
    tenant              TEXT NOT NULL,
    kind                TEXT NOT NULL,
    subfolder           TEXT NOT NULL,
    filename            TEXT NOT NULL,
    prompt_id           TEXT NOT NULL,
    backend             TEXT NOT NULL,
    upstream_subfolder  TEXT NOT NULL,
    upstream            TEXT NOT NULL,
    etag                TEXT NOT NULL,
    state               TEXT NOT NULL,
    size                BIGINT NOT NULL,
    digest              TEXT NOT NULL,
    shared_key          TEXT NOT NULL,
    created_at          BIGINT NOT NULL,
    stored_at           BIGINT NOT NULL,
    tries               INTEGER NOT NULL,
    next_at             BIGINT NOT NULL,
    saver               TEXT NOT NULL
);
