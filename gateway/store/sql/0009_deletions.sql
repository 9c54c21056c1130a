-- Files of backends, and uploads (kind 'upload', by their digest), that their owners deleted: nobody is to find them again.
CREATE TABLE deleted (
    backend     TEXT NOT NULL,
    kind        TEXT NOT NULL,
    subfolder   TEXT NOT NULL,
    filename    TEXT NOT NULL,
    tenant      TEXT NOT NULL,
    etag        TEXT NOT NULL,
    deleted_at  INTEGER NOT NULL,
    PRIMARY KEY (backend, kind, subfolder, filename)
) WITHOUT ROWID;
-- When an upload came (milliseconds since 1970, 0 for "before"), and whether it is to go because a job that named it has ended.
ALTER TABLE uploads ADD COLUMN brought_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE uploads ADD COLUMN ended INTEGER NOT NULL DEFAULT 0;
