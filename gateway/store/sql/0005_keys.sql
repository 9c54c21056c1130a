-- Keys made over the admin API, and what browsers signed in with. Only digests (SHA-256), never a key.
-- Times are milliseconds since 1970. That there ever was a key is in meta ('had_keys'): without it, revoking the last
-- one would open the gateway.
CREATE TABLE keys (
    name         TEXT PRIMARY KEY,
    digest       TEXT NOT NULL,
    role         TEXT NOT NULL,
    tenant       TEXT NOT NULL,
    created      INTEGER NOT NULL,
    expires      INTEGER,
    old_digest   TEXT,
    old_until    INTEGER,
    used_at      INTEGER
) WITHOUT ROWID;

CREATE TABLE sign_ins (
    digest       TEXT PRIMARY KEY,
    key_digest   TEXT NOT NULL,
    expires      INTEGER NOT NULL
) WITHOUT ROWID;
