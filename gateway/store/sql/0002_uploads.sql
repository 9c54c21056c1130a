-- Uploads: what each tenant calls them, and under which name they are on each backend.
CREATE TABLE uploads (
    tenant       TEXT NOT NULL,
    kind         TEXT NOT NULL,
    subfolder    TEXT NOT NULL,
    filename     TEXT NOT NULL,
    digest       TEXT NOT NULL,
    size         INTEGER NOT NULL,
    used_at      INTEGER NOT NULL,
    PRIMARY KEY (tenant, kind, subfolder, filename)
) WITHOUT ROWID;

CREATE TABLE placements (
    backend      TEXT NOT NULL,
    kind         TEXT NOT NULL,
    subfolder    TEXT NOT NULL,
    filename     TEXT NOT NULL,
    wanted       TEXT NOT NULL,
    digest       TEXT NOT NULL,
    etag         TEXT NOT NULL,
    PRIMARY KEY (backend, kind, subfolder, filename)
) WITHOUT ROWID;
