-- What a file is known by, beside its name: its ETag on its backend; null while the job that writes it goes on, empty
-- where there is none to compare. Whether its name there was another file's before. When a job last told of it: milliseconds since 1970, 0 for "before".
ALTER TABLE files ADD COLUMN etag TEXT DEFAULT '';
ALTER TABLE files ADD COLUMN anew INTEGER NOT NULL DEFAULT 0;
ALTER TABLE files ADD COLUMN made_at INTEGER NOT NULL DEFAULT 0;
