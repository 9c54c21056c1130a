-- Retention: how far the history had come at which time (milliseconds since 1970).
-- Entries have no time of their own: a column behind their blobs would be read through these, and to add one before
-- them would write all of a large journal anew. Their positions grow with time, so a mark now and then is enough.
CREATE TABLE marks (
    time         INTEGER PRIMARY KEY,
    position     INTEGER NOT NULL
);
