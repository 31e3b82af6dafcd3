-- What hosts were told to do with an order ahead of an activation. Its run indexes and those of runs are of one row.
CREATE TABLE preparation (
    patch_order TEXT NOT NULL REFERENCES patch_order, host TEXT NOT NULL REFERENCES host, run INTEGER NOT NULL,
    what TEXT NOT NULL, release TEXT NOT NULL REFERENCES release, state TEXT, phase TEXT NOT NULL, refusal TEXT,
    reason TEXT NOT NULL, verified TEXT NOT NULL, started_at TEXT NOT NULL, ended_at TEXT,
    PRIMARY KEY (patch_order, host, run)
) STRICT;
