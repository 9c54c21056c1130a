-- Files of backends that the gateway knew and knows no more, with the ETag by which it knew them. forgotten_at is
-- milliseconds since 1970. Types and statements are such that PostgreSQL can hold it.
CREATE TABLE forgotten (
    backend       TEXT NOT NULL,
    kind          TEXT NOT NULL,
    subfolder     TEXT NOT NULL,
    filename      TEXT NOT NULL,
    etag          TEXT NOT NULL,
    forgotten_at  BIGINT NOT NULL,
    PRIMARY KEY (backend, kind, subfolder, filename)
);
-- The copies without metadata are looked for.
CREATE INDEX artifacts_shared ON artifacts (shared_key);
