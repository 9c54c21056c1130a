-- Comfy API v2. Times are milliseconds since 1970. Types and statements are such that PostgreSQL can hold these tables.
-- An Idempotency-Key that was used. digest: SHA-256 of the key in hexadecimal.
CREATE TABLE v2_keys (
    tenant         TEXT NOT NULL,
    digest         TEXT NOT NULL,
    taken_at       BIGINT NOT NULL,
    PRIMARY KEY (tenant, digest)
);
-- What a submission said of a job beside its prompt, as JSON.
CREATE TABLE v2_notes (
    tenant         TEXT NOT NULL,
    prompt_id      TEXT NOT NULL,
    note           TEXT NOT NULL,
    PRIMARY KEY (tenant, prompt_id)
);
-- A job that was cancelled without a history entry.
CREATE TABLE v2_canceled (
    tenant         TEXT NOT NULL,
    prompt_id      TEXT NOT NULL,
    created_at     BIGINT NOT NULL,
    started_at     BIGINT,
    ended_at       BIGINT NOT NULL,
    PRIMARY KEY (tenant, prompt_id)
);
-- An asset: a record about an upload. digest: SHA-256 of the bytes; hash: their BLAKE3. Both are in hexadecimal.
-- owns_upload: 1 if the upload goes with the asset, 0 if a client brought the upload on another route before.
CREATE TABLE v2_assets (
    id             TEXT NOT NULL PRIMARY KEY,
    tenant         TEXT NOT NULL,
    kind           TEXT NOT NULL,
    subfolder      TEXT NOT NULL,
    filename       TEXT NOT NULL,
    digest         TEXT NOT NULL,
    hash           TEXT NOT NULL,
    size           BIGINT NOT NULL,
    content_type   TEXT NOT NULL,
    file_path      TEXT NOT NULL,
    created_at     BIGINT NOT NULL,
    expires_at     BIGINT,
    owns_upload    INTEGER NOT NULL
);
