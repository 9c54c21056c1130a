-- Webhooks. Times are milliseconds since 1970. Types and statements are such that PostgreSQL can hold these tables.
-- events: a JSON list of types. secrets: a JSON list of [secret, milliseconds until it is valid or null], the newest first.
CREATE TABLE webhook_endpoints (
    id             TEXT NOT NULL PRIMARY KEY,
    tenant         TEXT NOT NULL,
    url            TEXT NOT NULL,
    events         TEXT NOT NULL,
    secrets        TEXT NOT NULL,
    state          TEXT NOT NULL,
    reason         TEXT NOT NULL,
    description    TEXT NOT NULL,
    is_admin       INTEGER NOT NULL,
    source         TEXT NOT NULL,
    created_at     BIGINT NOT NULL,
    failing_since  BIGINT
);
CREATE TABLE webhook_events (
    id             TEXT NOT NULL PRIMARY KEY,
    tenant         TEXT NOT NULL,
    type           TEXT NOT NULL,
    prompt_id      TEXT,
    happened_at    BIGINT NOT NULL,
    payload        BLOB NOT NULL
);
-- endpoint_id: '' for the webhook of a prompt, which then is in target, as JSON. attempts: a JSON list of the newest ones.
CREATE TABLE webhook_deliveries (
    event_id       TEXT NOT NULL,
    endpoint_id    TEXT NOT NULL,
    tenant         TEXT NOT NULL,
    state          TEXT NOT NULL,
    attempts       TEXT NOT NULL,
    tries          INTEGER NOT NULL,
    next_at        BIGINT,
    target         TEXT,
    PRIMARY KEY (event_id, endpoint_id)
);
CREATE INDEX webhook_deliveries_endpoint ON webhook_deliveries (endpoint_id);
-- The webhook of an open job's prompt, as JSON; empty if it has none.
ALTER TABLE jobs ADD COLUMN webhook BLOB NOT NULL DEFAULT x'';
