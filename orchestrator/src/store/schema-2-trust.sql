-- What hosts are owed (roots, the revocation list), what each of them has, and what became of it.
CREATE TABLE revocation (
    version INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE REFERENCES document, at TEXT NOT NULL
) STRICT;
CREATE TABLE revoked (
    document TEXT PRIMARY KEY, reason TEXT NOT NULL, version INTEGER NOT NULL REFERENCES revocation
) STRICT;
ALTER TABLE host ADD COLUMN root_version INTEGER;
ALTER TABLE host ADD COLUMN root_in_force TEXT;
ALTER TABLE host ADD COLUMN revocation_version INTEGER;
ALTER TABLE host ADD COLUMN revocation_in_force TEXT;
ALTER TABLE host ADD COLUMN offer TEXT NOT NULL DEFAULT 'waiting';
ALTER TABLE host ADD COLUMN offer_reason TEXT NOT NULL DEFAULT '';
ALTER TABLE host ADD COLUMN offer_at TEXT;
