-- Named workflows: graph and parameters are JSON. Times are milliseconds since 1970. Types and statements are such that
-- PostgreSQL can hold this table.
CREATE TABLE workflows (
    tenant         TEXT NOT NULL,
    name           TEXT NOT NULL,
    description    TEXT NOT NULL,
    parameters     TEXT NOT NULL,
    graph          BLOB NOT NULL,
    created_at     BIGINT NOT NULL,
    updated_at     BIGINT NOT NULL,
    PRIMARY KEY (tenant, name)
);
