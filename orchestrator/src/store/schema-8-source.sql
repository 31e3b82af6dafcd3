-- What packages were built from; empty where a host does not say. Every host's packages are read once more: what was read before has none.
ALTER TABLE host_package ADD COLUMN source TEXT NOT NULL DEFAULT '';
ALTER TABLE host_package ADD COLUMN source_version TEXT NOT NULL DEFAULT '';
UPDATE survey SET change = 0;
