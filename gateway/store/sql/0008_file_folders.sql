-- The folder of a file on its backend, where that is not the folder that its tenant knows.
ALTER TABLE files ADD COLUMN upstream_subfolder TEXT;
