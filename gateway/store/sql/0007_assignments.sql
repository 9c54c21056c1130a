-- What marks a job's prompt on its backend as this job's: the id that the gateway gave it, '' from before there were marks.
-- The assignments that were given up, as a JSON list of [backend, upstream_id, mark]: what is found of them there must not run, or is taken back.
ALTER TABLE jobs ADD COLUMN mark TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN given_up BLOB NOT NULL DEFAULT x'5b5d';
