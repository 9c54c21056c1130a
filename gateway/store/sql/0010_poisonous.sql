-- Graphs that left a backend's GPU unusable, by tenant and digest. Times are milliseconds since 1970.
-- backends: a JSON list of names. retry: the prompt_id of the job that runs such a graph once more, while remembered is 0.
CREATE TABLE poisonous (
    id           TEXT PRIMARY KEY,
    tenant       TEXT NOT NULL,
    digest       BLOB NOT NULL,
    shape        TEXT NOT NULL,
    prompt_id    TEXT NOT NULL,
    node_id      TEXT NOT NULL,
    class_type   TEXT NOT NULL,
    error        TEXT NOT NULL,
    backends     BLOB NOT NULL,
    since        INTEGER NOT NULL,
    until        INTEGER NOT NULL,
    remembered   INTEGER NOT NULL,
    retry        TEXT NOT NULL
) WITHOUT ROWID;
